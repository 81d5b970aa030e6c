"""Calls of moray in signal handlers of the user (INTERRUPT).

A handler runs in the main thread, between any two bytecodes of what that was doing, moray's own steps included. The
locks that such a step holds can be taken again by its thread, and each says what a handler finds inside of it:

- a connection's: a frame is queued, and sent by the step that was interrupted, which looks again before it ends, or by
  the loop;
- ``KeyPool.lock``, ``Callee.lock``: a task or call is queued rather than sent directly;
- those under which a worker sends results, items and output: nothing is sent, the interrupted step goes on with it;
- ``Runtime.waiter_lock``: waiters are added and removed one by one; ``Runtime.import_lock``: see `import_ref`.

So putting small values and submitting always work. Waiting cannot always (a large value may wait for room): what is
waited for comes through the loop, which needs the lock that only the interrupted step can release. That is one clear
error instead of a deadlock; it is looked for when a wait has lasted for a while, so that it costs the others nothing.
"""

from __future__ import annotations

from _thread import get_ident
from threading import main_thread
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from moray import exceptions

if TYPE_CHECKING:
    from moray.runtime.runtime import Runtime, Waiter

#: A wait this long is looked at.
HANDLER_S: Final = 0.1


def block(runtime: Runtime, waiter: Waiter, deadline: float | None) -> bool:
    """See Runtime.block."""
    if deadline is None or deadline - monotonic() > HANDLER_S:
        if waiter.wait(HANDLER_S):
            return True
        refuse_inside(runtime)
    if deadline is None:
        return waiter.wait()
    return waiter.wait(max(0.0, deadline - monotonic()))


def refuse_inside(runtime: Runtime) -> None:
    """Raise if the calling thread holds what the loop needs: nothing that it waits for would ever come."""
    if get_ident() != main_thread().ident:
        return
    locks: list[Any] = [runtime.import_lock, runtime.waiter_lock]
    locks += [pool.lock for pool in list(runtime.submitter.pools.values())]
    locks += [callee.lock for callee in runtime.actors.callees()]
    locks += runtime.sending_locks()
    connections: list[Any] = [runtime.node]
    for peer in list(runtime.peers.values()):
        connections += peer.connections
    if any(lock._is_owned() for lock in locks) or any(connection.inside() for connection in connections):
        raise exceptions.MoraySystemError(
            "get(), wait() or another call that waits (a large value waits for room) was made in a signal handler that "
            "interrupted this thread in the middle of a call of moray, which cannot go on before the handler returns. "
            "In handlers only put() and .remote() of small values always work: keep the reference (or set a flag), and "
            "wait for it outside of the handler"
        )
