"""``ray.dag.collective_node``."""

from __future__ import annotations

from moray.dag import CollectiveOutputNode

__all__ = ["CollectiveOutputNode"]
