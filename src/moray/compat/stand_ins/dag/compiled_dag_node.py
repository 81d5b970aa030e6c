"""``ray.dag.compiled_dag_node``."""

from __future__ import annotations

from moray.dag import CompiledDAG, CompiledDAGFuture, CompiledDAGRef

__all__ = ["CompiledDAG", "CompiledDAGFuture", "CompiledDAGRef"]
