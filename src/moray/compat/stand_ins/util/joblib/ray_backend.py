"""``ray.util.joblib.ray_backend``: the backend's class."""

from __future__ import annotations

from moray.util.joblib.backend import MorayBackend as RayBackend

__all__ = ["RayBackend"]
