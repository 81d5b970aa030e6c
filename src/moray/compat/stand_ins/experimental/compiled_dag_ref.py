"""``ray.experimental.compiled_dag_ref``."""

from __future__ import annotations

from moray.dag import CompiledDAGFuture, CompiledDAGRef

__all__ = ["CompiledDAGFuture", "CompiledDAGRef"]
