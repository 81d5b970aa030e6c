"""``ray.ray_constants``, as it was called before it became private."""

from __future__ import annotations

from moray.compat.stand_ins._private.ray_constants import *  # noqa: F403
