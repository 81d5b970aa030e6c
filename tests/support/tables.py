"""The sizes of a runtime's tables of references and values: all 0 when nothing is left (REF-FREE)."""

from __future__ import annotations

from moray.runtime.runtime import Runtime
from tests.support.procs import wait_until

_CORE = ("owned", "foreign", "containers", "tasks", "pinned", "questions")
_PEER = ("registered", "provisional", "transit", "unacked", "tombstones", "done")
_VALUES = ("_asked", "_wanted", "_getters", "_free", "_unpinned", "_stored")


def runtime_tables(runtime: Runtime) -> dict[str, int]:
    """Name of the table → how much is in it."""
    core, values = runtime.references.core, runtime.values
    sizes = {name: len(getattr(core, name)) for name in _CORE}
    sizes |= {name: sum(len(getattr(peer, name)) for peer in core.peers.values()) for name in _PEER}
    sizes |= {name: len(getattr(values, name)) for name in _VALUES}
    return sizes | {
        "entries": sum(len(origin.entries) for origin in list(runtime.origins.values())),
        "gated": len(runtime.references._gated),
        "pending": len(runtime.pending),
        "pins": len(values.store._pins),
        "waiting": len(runtime.submitter._waiting_tasks),
    }


def empty_tables() -> dict[str, int]:
    """What :func:`runtime_tables` says when nothing is left."""
    return dict.fromkeys((*_CORE, *_PEER, *_VALUES, "entries", "gated", "pending", "pins", "waiting"), 0)


def wait_until_empty(runtime: Runtime, timeout_s: float = 20, **held: int) -> None:
    """Wait until nothing is left in the tables but what is `held`, or fail with what is."""
    expected = empty_tables() | held

    def left() -> dict[str, int]:
        return {name: size for name, size in runtime_tables(runtime).items() if size > expected[name]}

    try:
        wait_until(lambda: not left(), timeout_s, "empty tables")
    except AssertionError:
        raise AssertionError(f"left: {left()}") from None
