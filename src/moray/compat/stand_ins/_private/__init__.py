"""Modules that are private in Ray, and imported by programs all the same; after `import ray` alone, too."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


def __getattr__(name: str) -> ModuleType:
    target = f"{__name__}.{name}"
    if name.startswith("__") or find_spec(target) is None:
        raise AttributeError(f"module 'ray._private' (moray's stand-in for it) has no attribute {name!r}")
    return import_module(target)
