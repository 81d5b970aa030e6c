"""``ray.dag.function_node``."""

from __future__ import annotations

from moray.dag import FunctionNode

__all__ = ["FunctionNode"]
