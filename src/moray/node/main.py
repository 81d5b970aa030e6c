"""The node's process: started by :mod:`moray.launch.local`.

Order matters. The template is forked before there is any socket, thread or epoll set, and while the node goes on to
set itself up, it imports what workers need. The driver's pidfd is opened before anything else that takes time, and
checked against the parent's number, so that a driver that died in between is noticed. The node's own exceptions end it
(its drivers see that, and the log has the traceback), after ending what depends on it.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import traceback
from importlib import import_module
from typing import TYPE_CHECKING, Final, NoReturn

import msgspec

from moray.launch import session_directory
from moray.launch.config import FIRST_OWN_FD, NodeConfig, NodeReady
from moray.node import template
from moray.node.logs import log
from moray.node.settings import Settings
from moray.node.templates import start_root
from moray.platform import process_control
from moray.platform.memory_files import read_all

if TYPE_CHECKING:
    from socket import socket

#: What both a node of a cluster and its template import: loaded once, before the fork. A local session's node does
#: without, so that both load at the same time, and `init()` is sooner back.
_SHARED_MODULES: Final = (
    "moray.protocol.tls",
    "moray.security.identity",
    "moray.core.actors",
    "moray.runtime.marks",
    "moray.launch.packages",
)


def main() -> NoReturn:
    """Be a node; the descriptors are as :mod:`moray.launch.config` says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    # The driver's directory may be removed or unmounted while this process lives.
    os.chdir("/")
    process_control.close_from(FIRST_OWN_FD)
    config = msgspec.msgpack.decode(read_all(0), type=NodeConfig)
    _redirect_input()
    owner_pidfd = _watch_owner(config.driver_pid)
    if config.cluster is not None and config.cluster.rejoins:
        lock = os.dup(2)  # The session is there, and this has been its lock while nothing else was open.
    else:
        lock = session_directory.create(config.session_dir)
    _open_log(config.session_dir)
    process_control.preload()

    modules, credentials = _prepare_for_cluster(config) if config.cluster is not None else ((), "")

    def run_template(control: socket, parent: int) -> None:
        if owner_pidfd >= 0:
            os.close(owner_pidfd)
        os.close(lock)
        os.dup2(2, 1)
        template.main(control, parent, config.worker_entry, modules, credentials)

    root, root_pid = start_root(run_template)
    session_directory.keep_from_tidiers(config.session_dir)
    try:
        _run(config, root, root_pid, owner_pidfd)
    except BaseException:  # noqa: BLE001 - whatever it is, the session must not stay behind
        log(f"the node failed:\n{traceback.format_exc()}")
    from moray.node import session

    session.end_processes(timeout_s=5.0)
    os._exit(1)


def _run(config: NodeConfig, root: socket, root_pid: int, owner_pidfd: int) -> None:
    from moray.node.node import Node

    process_control.set_name("moray:node")
    process_control.become_subreaper()
    process_control.raise_descriptor_limit()

    def announce(head: str = "", problem: str = "") -> None:
        log(f"node {os.getpid()} of session {config.session} is ready, Python {sys.version.split()[0]}")
        try:
            os.write(1, msgspec.msgpack.encode(NodeReady(node.address, node.node_id, os.getpid(), head, problem)))
        except BrokenPipeError:
            # Its driver died, or gave up, while this node started.
            node.end_session("nobody waits for it any more")
        os.dup2(2, 1)

    try:
        node = Node(config, _settings(config), root, root_pid, owner_pidfd, announce)
    except OSError as error:
        if config.cluster is None:
            raise
        os.write(1, msgspec.msgpack.encode(NodeReady("", b"", os.getpid(), problem=str(error))))
        raise
    if config.cluster is None:
        announce()
    node.run()


def _prepare_for_cluster(config: NodeConfig) -> tuple[tuple[str, ...], str]:
    """What its template is to import beside the usual, and where the node's certificate will be."""
    for module in _SHARED_MODULES:
        import_module(module)
    return template.CLUSTER_MODULES, f"{config.session_dir}/{session_directory.TLS_FOLDER}"


def _redirect_input() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _open_log(session_dir: str) -> None:
    """From now on what this process has to say goes to its log; a crash of the interpreter too."""
    path = f"{session_dir}/{session_directory.LOG_FOLDER}/{session_directory.NODE_LOG}"
    log_fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(log_fd, 2)
    os.close(log_fd)


def _watch_owner(pid: int) -> int:
    """A pidfd of the driver that started this node; -1 if it has none."""
    if not pid:
        return -1
    pidfd = process_control.open_pidfd(pid)
    # The driver is this process's parent; once it is dead, its number may be anybody's.
    if pidfd is None or os.getppid() != pid:
        # It ended before its node had started, which has left no trace so far.
        os._exit(0)
    return pidfd


def _settings(config: NodeConfig) -> Settings:
    known = {name: value for name, value in config.system_config.items() if name in Settings.__struct_fields__}
    unknown = sorted(config.system_config.keys() - known.keys())
    if unknown:
        log(f"system_config: without meaning here, and ignored: {', '.join(unknown)}")
    return msgspec.convert(known, type=Settings)
