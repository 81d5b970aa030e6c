"""Starting the node of a local ``init()``, and the caller's handle on it.

The node is a fresh interpreter (exec, never a fork of the user's program) in a session of its own, so that no Ctrl-C of
the terminal reaches it. It is told its configuration through an anonymous file on descriptor 0 and says that it is
ready on descriptor 1; nobody polls. It watches its driver by pidfd from its first moment (LIVENESS), so a caller that
dies at any point leaves nothing. While it starts, the caller removes what dead sessions left.
"""

from __future__ import annotations

import os
import select
import sys
from time import monotonic
from typing import Final

import msgspec

from moray.exceptions import MoraySystemError
from moray.launch import session_directory
from moray.launch.config import NO_WORKER, SESSION_VARIABLE, WORKER_VARIABLE, NodeConfig, NodeReady, session_environ
from moray.launch.node_ends import log_tail
from moray.launch.session_directory import Session, find_sessions, kill_tagged, sweep_stale
from moray.platform import process_control
from moray.platform.memory_files import create_memory_file

__all__ = ["NodeHandle", "NodeStartError", "Session", "find_sessions", "kill_tagged", "start_node", "sweep_stale"]

#: How long a node may take until it is ready. It takes a tenth of a second; a machine that swaps, minutes.
START_TIMEOUT_S: Final = 60.0


class NodeStartError(MoraySystemError):
    """The node did not start; `str` says why in one line, or has the last lines of its log."""

    #: The message says it all.
    complete = False


class NodeHandle:
    """A node that this process started, as its parent sees it."""

    def __init__(self, pid: int, config: NodeConfig, ready: NodeReady) -> None:
        self.pid = pid
        self.address = ready.address
        #: "HOST:PORT" of its cluster's head; "": it is in none.
        self.cluster_address = ready.head
        self.session = config.session
        self.session_dir = config.session_dir
        self.node_id = ready.node_id
        #: Exit code, or minus the signal; None while it runs, and if somebody else reaped it.
        self.status: int | None = None
        #: Says when the node is dead; -1 after that was seen.
        self.pidfd = os.pidfd_open(pid)

    def wait_ended(self, timeout_s: float | None = None) -> bool:
        """Wait until the node is gone, and reap it; False if `timeout_s` passed first."""
        if self.pidfd < 0:
            return True
        if not process_control.wait_pidfd(self.pidfd, timeout_s):
            return False
        try:
            _pid, status = os.waitpid(self.pid, 0)
            self.status = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            pass  # The user's program reaped it (os.wait()).
        os.close(self.pidfd)
        self.pidfd = -1
        return True

    def kill(self) -> None:
        """End the node by force, and everything that the session started."""
        if self.pidfd >= 0:
            process_control.kill_pidfd(self.pidfd)
            self.wait_ended()
        kill_tagged(self.session)
        session_directory.remove_session(self.session_dir)


def start_node(
    config: NodeConfig, temp_dir: str = "", timeout_s: float = START_TIMEOUT_S, *, detached: bool = False
) -> NodeHandle:
    """Start a node for this process, and wait until it accepts connections.

    Args:
        config: what the node shall be; `session`, `session_dir`, `driver_pid` and `environ` are filled in if empty.
        temp_dir: where the session's directory goes; "": TMPDIR, or /tmp.
        timeout_s: how long the start may take.
        detached: it does not end with this process.

    Raises:
        NodeStartError: the node ended, or was not ready in time; the message has the end of its log.
    """
    session_dir = session_directory.new_path(session_directory.root_directory(temp_dir), os.getpid())
    config = msgspec.structs.replace(
        config,
        session=os.path.basename(session_dir),
        session_dir=session_dir,
        driver_pid=0 if detached else config.driver_pid or os.getpid(),
    )
    last_words = create_memory_file("moray-log")
    pid = ready = -1
    try:
        pid, ready = _spawn(config, last_words)
        sweep_stale(temp_dir)
        answer = _wait_ready(ready, timeout_s)
        if answer.problem:
            error = NodeStartError(answer.problem)
            error.complete = True
            raise error
        return NodeHandle(pid, config, answer)
    except BaseException as error:
        _give_up(pid, config, last_words, error)
        raise
    finally:
        os.close(last_words)
        if ready >= 0:
            os.close(ready)


def _spawn(config: NodeConfig, last_words: int) -> tuple[int, int]:
    """Start the process: its pid, and the descriptor on which it says that it is ready."""
    environ = (config.environ or session_environ()) | {SESSION_VARIABLE: config.session, WORKER_VARIABLE: NO_WORKER}
    settings = create_memory_file("moray-config", msgspec.msgpack.encode(msgspec.structs.replace(config, environ={})))
    ready, ready_end = os.pipe2(os.O_CLOEXEC)
    try:
        pid = process_control.spawn_daemon(_command(config), environ, (settings, ready_end, last_words))
    except BaseException:
        os.close(ready)
        raise
    finally:
        os.close(settings)
        os.close(ready_end)
    return pid, ready


def _interpreter() -> str:
    if not sys.executable:
        raise NodeStartError(
            "the path of the Python interpreter is unknown (sys.executable is empty), so no node can be started"
        )
    return sys.executable


def _command(config: NodeConfig) -> list[str]:
    """The command line; ends with the session's name, for whoever reads the list of processes."""
    from importlib.util import find_spec

    import moray

    # Found, not imported: daemons come by here, and never unpickle.
    cloudpickle = find_spec("cloudpickle")
    assert cloudpickle is not None
    assert cloudpickle.origin is not None
    package = [os.path.abspath(path) for path in moray.__path__]
    folders = (package[0], os.path.dirname(msgspec.__file__), os.path.dirname(cloudpickle.origin))
    paths = list(dict.fromkeys(map(_root_of, folders)))
    optimize = ["-" + "O" * sys.flags.optimize] if sys.flags.optimize else []
    code = process_control.daemon_code("moray.node.main", package, paths)
    return [_interpreter(), *optimize, "-c", code, "moray-node", config.session]


def _root_of(package: str) -> str:
    """The directory on `sys.path` that a package's directory lies in."""
    return os.path.dirname(os.path.abspath(package))


def _wait_ready(ready: int, timeout_s: float) -> NodeReady:
    """What the node says once it is ready. It says it in one write, and closes the pipe."""
    deadline = monotonic() + timeout_s
    poller = select.poll()
    poller.register(ready, select.POLLIN)
    data = b""
    while True:
        if not poller.poll(max(0.0, deadline - monotonic()) * 1000):
            raise NodeStartError(f"the node was not ready after {timeout_s:g} s")
        chunk = os.read(ready, 1 << 16)
        if not chunk:
            break
        data += chunk
    if not data:
        raise NodeStartError("the node ended while it started")
    return msgspec.msgpack.decode(data, type=NodeReady)


def _give_up(pid: int, config: NodeConfig, last_words: int, error: BaseException) -> None:
    """Leave nothing of a start that failed or was interrupted; tell the node's last words."""
    if pid > 0:
        process_control.kill(pid)
        try:
            os.waitpid(pid, 0)
        except ChildProcessError:
            pass  # Reaped by the user's program.
        kill_tagged(config.session)
    if isinstance(error, NodeStartError) and not error.complete:
        tail = log_tail(config.session_dir, os.pread(last_words, 1 << 16, 0))
        error.args = (f"{error}{tail or '; its log is empty'}",)
    session_directory.remove_session(config.session_dir)
