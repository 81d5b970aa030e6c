"""``ray._private.ray_constants``, also ``ray.ray_constants``: the few that programs pass on."""

from __future__ import annotations

from typing import Final

__all__ = ["RAY_ADDRESS_ENVIRONMENT_VARIABLE", "RAY_NAMESPACE_ENVIRONMENT_VARIABLE", "REDIS_DEFAULT_PASSWORD"]

#: `init(_redis_password=…)` is accepted and without meaning.
REDIS_DEFAULT_PASSWORD: Final = ""
RAY_ADDRESS_ENVIRONMENT_VARIABLE: Final = "RAY_ADDRESS"
RAY_NAMESPACE_ENVIRONMENT_VARIABLE: Final = "RAY_NAMESPACE"
