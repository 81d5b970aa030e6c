"""The end of the session: nothing is left, then the driver is told.

Processes first: workers, templates, and all that they started. The node is a child subreaper, so every descendant
becomes its child sooner or later, and killing children until there is none reaches them all. Then memory, sockets,
files. Only then does the driver learn that it is done, so that what it sees next is a clean machine.

This is the one place where the node waits: there is nobody left to serve.
"""

from __future__ import annotations

import select
from time import monotonic
from typing import Final

from moray.launch import session_directory
from moray.node.clients import Client, Clients
from moray.node.logs import log
from moray.node.orphans import kill_all_descendants
from moray.protocol import messages as m

#: How long the last word to a driver may take to be sent. It fits into an empty socket buffer.
_LAST_WORD_S: Final = 0.5


def end_processes(timeout_s: float) -> None:
    """Kill and reap everything that descends from this process."""
    left = kill_all_descendants(timeout_s)
    if left:
        log(f"{left} processes of the session could not be ended within {timeout_s:g} s")


def remove_files(session_dir: str) -> None:
    """Remove the session's directory. What cannot be removed is left, and the log says so as long as it can."""
    try:
        session_directory.remove_session(session_dir)
    except OSError as error:
        log(f"the session's directory could not be removed: {error}")


def say_goodbye(clients: Clients, owner: Client | None, reason: str) -> None:
    """Tell all drivers why, and the session's that all is gone."""
    deadline = monotonic() + _LAST_WORD_S
    for client in clients:
        client.send(m.Shutdown(reason))
        if client is owner:
            client.send(m.ShutdownDone())
        _flush(client, deadline)


def _flush(client: Client, deadline: float) -> None:
    connection = client.connection
    while connection is not None and connection.out and not (connection.closed or connection.broken):
        poller = select.poll()
        poller.register(connection.fd, select.POLLOUT)
        if not poller.poll(max(0.0, deadline - monotonic()) * 1000):
            return
        connection.flush()
