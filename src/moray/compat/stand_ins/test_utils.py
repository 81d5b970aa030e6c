"""``ray.test_utils``, as it was called before it became private."""

from __future__ import annotations

from typing import Any

from moray.compat.stand_ins._private import test_utils
from moray.compat.stand_ins._private.test_utils import *  # noqa: F403


def __getattr__(name: str) -> Any:
    return getattr(test_utils, name)
