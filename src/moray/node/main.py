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
from typing import TYPE_CHECKING, NoReturn

import msgspec

from moray.launch.config import LOCK_FD, NodeConfig, NodeReady
from moray.launch.session_directory import remove_session
from moray.node import template
from moray.node.logs import log
from moray.node.settings import Settings
from moray.node.templates import start_root
from moray.platform import process_control
from moray.platform.memory_files import read_all

if TYPE_CHECKING:
    from socket import socket


def main() -> NoReturn:
    """Be a node; the descriptors are as :mod:`moray.launch.config` says."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    faulthandler.enable()
    # The driver's directory may be removed or unmounted while this process lives.
    os.chdir("/")
    process_control.close_from(LOCK_FD + 1)
    config = msgspec.msgpack.decode(read_all(0), type=NodeConfig)
    os.set_inheritable(LOCK_FD, False)
    _redirect_input()
    owner_pidfd = _watch_owner(config)
    process_control.preload()

    def run_template(control: socket, parent: int) -> None:
        if owner_pidfd >= 0:
            os.close(owner_pidfd)
        os.close(LOCK_FD)
        os.dup2(2, 1)
        template.main(control, parent, config.worker_entry)

    root, root_pid = start_root(run_template)
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
    node = Node(config, _settings(config), root, root_pid, owner_pidfd)
    log(f"node {os.getpid()} of session {config.session} is ready, Python {sys.version.split()[0]}")
    os.write(1, msgspec.msgpack.encode(NodeReady(node.address, node.node_id, os.getpid())))
    os.dup2(2, 1)
    node.run()


def _redirect_input() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _watch_owner(config: NodeConfig) -> int:
    """A pidfd of the driver that started this node; -1 if it has none."""
    pid = config.driver_pid
    if not pid:
        return -1
    pidfd = process_control.open_pidfd(pid)
    # The driver is this process's parent; once it is dead, its number may be anybody's.
    if pidfd is None or os.getppid() != pid:
        # It ended before its node had started: the directory is all that there is.
        remove_session(config.session_dir)
        os._exit(0)
    return pidfd


def _settings(config: NodeConfig) -> Settings:
    known = {name: value for name, value in config.system_config.items() if name in Settings.__struct_fields__}
    unknown = sorted(config.system_config.keys() - known.keys())
    if unknown:
        log(f"system_config: without meaning here, and ignored: {', '.join(unknown)}")
    return msgspec.convert(known, type=Settings)
