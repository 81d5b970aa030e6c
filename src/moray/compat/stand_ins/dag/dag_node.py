"""``ray.dag.dag_node``."""

from __future__ import annotations

from moray.dag import DAGNode

__all__ = ["DAGNode"]
