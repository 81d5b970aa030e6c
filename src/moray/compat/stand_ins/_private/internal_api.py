"""``ray._private.internal_api``, also ``ray.internal``: freeing by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from moray.api import connected
from moray.object_ref import ObjectRef
from moray.runtime import freeing

__all__ = ["free"]


def free(object_refs: ObjectRef[Any] | Sequence[ObjectRef[Any]], local_only: bool = False) -> None:  # noqa: ARG001
    """Free objects although references to them exist: who gets one from then on is told so by an ObjectFreedError.

    Args:
        object_refs: one, or several.
        local_only: accepted; copies on other nodes are freed in any case.

    Raises:
        TypeError: something else than references was given.
    """
    refs = [object_refs] if isinstance(object_refs, ObjectRef) else list(object_refs)
    for ref in refs:
        if not isinstance(ref, ObjectRef):
            raise TypeError(f"free() takes ObjectRefs, not {ref!r:.80} ({type(ref).__name__})")
    freeing.free(connected(), refs)
