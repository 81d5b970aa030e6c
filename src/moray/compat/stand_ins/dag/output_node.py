"""``ray.dag.output_node``."""

from __future__ import annotations

from moray.dag import MultiOutputNode

__all__ = ["MultiOutputNode"]
