"""A node that is dead to its cluster begins anew, in the same process.

The others have started elsewhere what ran here (FENCE), so all of it ends: workers, objects, jobs; its drivers are told
why. Then the process executes itself with another node id and an empty session of the same name and place. So whoever
watches the process (``moray start --block``, a supervisor) sees nothing of it, and nothing of the old life can be left
in the new one.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

import msgspec

from moray.launch import session_directory
from moray.node import session
from moray.node.logs import log
from moray.platform.memory_files import create_memory_file

if TYPE_CHECKING:
    from moray.launch.config import NodeConfig
    from moray.node.clients import Clients


def begin_anew(config: NodeConfig, credentials: str, clients: Clients, reason: str) -> NoReturn:
    """To be called when the node's processes have ended and its parts are closed.

    Args:
        config: what the node was told when it started.
        credentials: where its certificate is.
        clients: who is told `reason`.
        reason: why it is dead to the cluster.
    """
    assert config.cluster is not None
    kept = session_directory.new_directory(os.path.dirname(config.session_dir))
    for name in os.listdir(credentials):
        os.rename(f"{credentials}/{name}", f"{kept}/{name}")
    session.remove_files(config.session_dir)
    session.say_goodbye(clients, None, reason)
    cluster = msgspec.structs.replace(
        config.cluster,
        credentials=kept,
        node_id=os.urandom(28),
        rejoins=f"it was node {config.cluster.node_id.hex()[:12]} before; {reason}",
    )
    settings = create_memory_file(
        "moray-config", msgspec.msgpack.encode(msgspec.structs.replace(config, cluster=cluster, environ={}))
    )
    # Nobody waits for its word that it is ready; until it has a log again, there is none.
    null = os.open(os.devnull, os.O_WRONLY)
    for target, fd in enumerate((settings, null, null)):
        os.dup2(fd, target)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - no shell: our own arguments.
    finally:
        log("it could not execute itself")
        os._exit(1)
