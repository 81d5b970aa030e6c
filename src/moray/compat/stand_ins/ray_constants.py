"""``ray.ray_constants``, as it was called before it became private."""

from __future__ import annotations

from moray.compat.stand_ins._private.ray_constants import (
    RAY_ADDRESS_ENVIRONMENT_VARIABLE,
    RAY_NAMESPACE_ENVIRONMENT_VARIABLE,
    REDIS_DEFAULT_PASSWORD,
)

__all__ = ["RAY_ADDRESS_ENVIRONMENT_VARIABLE", "RAY_NAMESPACE_ENVIRONMENT_VARIABLE", "REDIS_DEFAULT_PASSWORD"]
