"""A node that is dead to its cluster begins anew, in the same process.

The others have started elsewhere what ran here (FENCE), so all of it ends: workers, objects, jobs; its drivers are told
why. Then the process executes itself with another node id, in the same session, which is empty but for the logs. So
whoever watches the process (``moray start --block``, a supervisor) sees nothing of it, and nothing of the old life can
be left in the new one.
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


def begin_anew(config: NodeConfig, clients: Clients, reason: str) -> NoReturn:
    """To be called when the node's processes have ended and its parts are closed.

    Args:
        config: what the node was told when it started.
        clients: who is told `reason`.
        reason: why it is dead to the cluster.
    """
    assert config.cluster is not None
    session_directory.empty(config.session_dir)
    session.say_goodbye(clients, None, reason)
    cluster = msgspec.structs.replace(
        config.cluster,
        credentials=f"{config.session_dir}/{session_directory.TLS_FOLDER}",
        node_id=os.urandom(28),
        rejoins=f"it was node {config.cluster.node_id.hex()[:12]} before; {reason}",
    )
    settings = msgspec.msgpack.encode(msgspec.structs.replace(config, cluster=cluster, environ={}))
    # Nobody waits for its word that it is ready. The lock goes on as the third of a node's three descriptors, so that
    # the session is there all the time: `moray stop` finds it, and nobody sweeps it.
    first = create_memory_file("moray-config", settings), os.open(os.devnull, os.O_WRONLY), _lock_of(config.session_dir)
    log(f"this process begins anew as node {cluster.node_id.hex()[:12]}")
    for target, fd in enumerate(first):
        os.dup2(fd, target)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - no shell: our own arguments.


def _lock_of(session_dir: str) -> int:
    """The descriptor that holds the session's lock: another one of the same file would hold none."""
    path = os.path.realpath(f"{session_dir}/{session_directory.LOCK_NAME}")
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == path:
                return int(name)
        except OSError:
            continue  # That of the listing itself.
    raise RuntimeError(f"the lock {path} is not open here")
