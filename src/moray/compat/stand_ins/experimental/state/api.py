"""``ray.experimental.state.api``, as ``ray.util.state`` was called before."""

from __future__ import annotations

from typing import Any

from moray.compat.stand_ins.util import state


def __getattr__(name: str) -> Any:
    return getattr(state, name)
