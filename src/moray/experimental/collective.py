"""Collective steps of graphs: :mod:`moray.dag.collective`, by the name that Ray's users know."""

from __future__ import annotations

from moray.dag.collective import ReduceOp, allgather, allreduce, reducescatter

__all__ = ["ReduceOp", "allgather", "allreduce", "reducescatter"]
