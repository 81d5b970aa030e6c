"""``ray.dag.class_node``."""

from __future__ import annotations

from moray.dag import ClassMethodNode, ClassNode

__all__ = ["ClassMethodNode", "ClassNode"]
