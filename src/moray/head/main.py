"""The head's process: started by the node beside it (:mod:`moray.node.head_process`).

It is told what to be on descriptor 0, says on descriptor 1 that it is ready, and logs to descriptor 2. It watches its
node by pidfd and ends with it, whose end is the end of the machine's part in the cluster. It may be killed at any
moment: what it has acknowledged is stored (DURABLE), and its node starts it again.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from typing import NoReturn

import msgspec

from moray.config import SWITCH_INTERVAL_S
from moray.head.config import FIRST_OWN_FD, REPLACED, HeadConfig, HeadReady
from moray.head.head import Head
from moray.head.listener import Listener
from moray.head.storage import open_storage
from moray.node.clients import PidWatch
from moray.node.logs import log
from moray.node.signals import Signals
from moray.platform import process_control
from moray.platform.memory_files import read_all


def main() -> NoReturn:
    """Be a head."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    os.chdir("/")
    process_control.close_from(FIRST_OWN_FD)
    config = msgspec.msgpack.decode(read_all(0), type=HeadConfig)
    node_pidfd = _watch_node(config.node_pid)
    process_control.set_name("moray:head")
    process_control.raise_descriptor_limit()
    # The writer's thread and the loop take turns.
    process_control.set_switch_interval(SWITCH_INTERVAL_S)
    try:
        _run(config, node_pidfd)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the node starts another head
        text = str(error) if isinstance(error, OSError | RuntimeError) else traceback.format_exc()
        log(f"the head failed: {text}")
    os._exit(1)


def _run(config: HeadConfig, node_pidfd: int) -> NoReturn:
    storage = open_storage(config.storage, full=config.full_durability)
    # Its node hears there if it must not start another one.
    node_pipe = os.dup(1)
    head = Head(config, storage, lambda _reason: _step_down(head, node_pipe))
    if node_pidfd >= 0:
        PidWatch(node_pidfd, head.reactor, lambda: _end(head, "its node has ended"))
    Signals(head.reactor, {signal.SIGTERM: lambda: _end(head, "it was told to end (SIGTERM)")})
    head.start()
    listener = Listener(
        config.host,
        config.port,
        head.reactor,
        head.on_message,
        head.on_close,
        security_dir=config.security_dir,
        relay_inbox=config.relay_inbox,
    )
    ready = HeadReady(listener.address, storage.epoch, storage.cluster_id, os.getpid())
    log(f"head {os.getpid()} is ready at {listener.address}, epoch {storage.epoch}, Python {sys.version.split()[0]}")
    try:
        os.write(1, msgspec.msgpack.encode(ready))
    except BrokenPipeError:
        _end(head, "nobody waits for it any more")
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    while True:
        head.turn()


def _step_down(head: Head, node_pipe: int) -> NoReturn:
    """This is not the head any more, or cannot be."""
    if head.replaced:
        os.write(node_pipe, REPLACED)
    os._exit(1)


def _end(head: Head, reason: str) -> NoReturn:
    """End in order: what was decided is stored."""
    log(f"the head ends: {reason}")
    head.commits.close()
    head.storage.close()
    os._exit(0)


def _watch_node(pid: int) -> int:
    """A pidfd of the node that started this head; -1 if it has none."""
    if not pid:
        return -1
    pidfd = process_control.open_pidfd(pid)
    # The node is this process's parent; once it is dead, its number may be anybody's.
    if pidfd is None or os.getppid() != pid:
        os._exit(0)
    return pidfd
