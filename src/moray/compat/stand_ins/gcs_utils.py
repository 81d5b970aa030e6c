"""``ray.gcs_utils``, as it was called before it became private."""

from __future__ import annotations

from moray.compat.stand_ins._private.gcs_utils import *  # noqa: F403
