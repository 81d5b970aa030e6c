"""``ray.experimental.util.types``: how values are combined by collective steps."""

from __future__ import annotations

from moray.dag.collective import ReduceOp

__all__ = ["ReduceOp"]
