"""What is useful and may still change: where objects are, and ``tqdm_ray``, progress bars of many workers."""

from __future__ import annotations

from typing import Any

from moray.object_ref import ObjectRef

__all__ = ["get_local_object_locations", "get_object_locations"]


def get_object_locations(
    obj_refs: list[ObjectRef[Any]],
    timeout_ms: int = -1,  # noqa: ARG001 - Ray's; see the docstring.
) -> dict[ObjectRef[Any], dict[str, Any]]:
    """Where the values of references are, as far as this process knows; it does not wait for values.

    Args:
        obj_refs: references.
        timeout_ms: accepted; nothing is asked that could take time on one machine.

    Returns:
        For each reference ``{"node_ids": [...], "object_size": bytes, "did_spill": False}``: the nodes (hexadecimal
        ids) whose store has the value; none, if it lies in its owner's memory (small values) or is not there yet. The
        size is that of the pickled value, or None as long as it is not known. Spilled values count as their node's.

    Example:
        >>> import moray
        >>> from moray.experimental import get_object_locations
        >>> ref = moray.put(bytes(1_000_000))
        >>> [len(where["node_ids"]) for where in get_object_locations([ref]).values()]
        [1]
    """
    from moray.api import connected

    node_id = connected().welcome.node_id.hex()
    found = {}
    for ref in obj_refs:
        if type(ref) is not ObjectRef:
            raise TypeError(f"get_object_locations() takes ObjectRefs; the list contains {ref!r:.80}")
        # Only the entry knows: the public interface has no question that does not fetch the value.
        entry = ref._entry
        size = None
        if entry.ready:
            size = entry.size or len(entry.blob or b"")
        found[ref] = {"node_ids": [node_id] if entry.size else [], "object_size": size, "did_spill": False}
    return found


def get_local_object_locations(obj_refs: list[ObjectRef[Any]]) -> dict[ObjectRef[Any], dict[str, Any]]:
    """:func:`get_object_locations` without asking anybody else, which is the same on one machine."""
    return get_object_locations(obj_refs)
