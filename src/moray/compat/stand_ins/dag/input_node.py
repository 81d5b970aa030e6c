"""``ray.dag.input_node``."""

from __future__ import annotations

from moray.dag import DAGInputData, InputAttributeNode, InputNode

__all__ = ["DAGInputData", "InputAttributeNode", "InputNode"]
