"""``ray.dag.vis_utils``."""

from __future__ import annotations

from moray.dag import plot

__all__ = ["plot"]
