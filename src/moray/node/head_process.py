"""The head as a child of the node beside it: started, and started again whenever it dies.

The head is a process of its own so that it can die without its machine's work; and it never outlives its node, whose
pidfd it watches. A head that dies at once, again and again (its storage is gone, its port is taken), is started with
growing pauses; its log says why each time. Its port stays the same, so that nodes find the next one. Only one that
says that another head has taken over its storage (on another machine) is not started again: they would take it from
each other in turn.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from time import monotonic
from typing import Final

import msgspec

from moray.head.config import REPLACED, HeadConfig, HeadReady
from moray.node.logs import log, tail
from moray.platform import process_control
from moray.platform.memory_files import create_memory_file
from moray.protocol.reactor import READ, Reactor, Timer

HEAD_LOG: Final = "head.log"

#: The pause before a head that died is started again; it doubles while heads die young.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
#: A head that has lived so long did not die of its start.
_HEALTHY_S: Final = 10.0

#: The head runs the very package that its node runs, without its facade (see :mod:`moray.launch.local`).
_BOOT: Final = (
    "import sys; package = sys.modules['moray'] = type(sys)('moray'); package.__path__ = {package!r}; "
    "sys.path[:] = {paths!r}; from moray.head.main import main; main()"
)


class HeadProcess:
    """Keeps one head running. Loop only."""

    def __init__(
        self,
        config: HeadConfig,
        log_dir: str,
        name: str,
        reactor: Reactor,
        on_ready: Callable[[HeadReady], None],
        on_failed: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        """Start it.

        Args:
            config: what it is told; `node_pid` is filled in, and the port, once it has one.
            log_dir: where ``head.log`` is.
            name: for the list of processes.
            reactor: the node's.
            on_ready: called each time that a head accepts nodes.
            on_failed: called when one has ended before it was ready, with the last that it said.
        """
        self._config = msgspec.structs.replace(config, node_pid=os.getpid())
        self._log_path = f"{log_dir}/{HEAD_LOG}"
        self._name = name
        self._reactor = reactor
        self._on_ready = on_ready
        self._on_failed = on_failed
        #: 0: none runs.
        self.pid = 0
        self._pidfd = -1
        #: Where it says that it is ready; -1: none runs.
        self._ready = -1
        self._said = b""
        #: It has said that it is ready.
        self._accepts = False
        #: Another head has taken over: none is started here any more.
        self.replaced = False
        self._began = 0.0
        self._pause_s = _FIRST_PAUSE_S
        #: The longest pause between two heads.
        self.longest_pause_s = _LONGEST_PAUSE_S
        self._timer: Timer | None = None
        self._start()

    def close(self) -> None:
        """Kill it, and start no other. Its end is waited for: SIGKILL takes no time."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pidfd >= 0:
            process_control.kill_pidfd(self._pidfd)
            process_control.wait_pidfd(self._pidfd, None)
            self._forget()

    def _start(self) -> None:
        self._timer = None
        self._began = monotonic()
        self._said = b""
        self._accepts = False
        try:
            self._spawn()
        except OSError as error:
            self._close_ready()
            self._start_later(f"the head could not be started: {error}")
            return
        # It is our child, and nobody has reaped it yet: the number is its own.
        self._pidfd = os.pidfd_open(self.pid)
        self._reactor.register(self._pidfd, READ, lambda _events: self._died())

    def _spawn(self) -> None:
        self._ready, ready_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._reactor.register(self._ready, READ, self._on_pipe)
        held = [ready_end]
        try:
            os.set_blocking(ready_end, True)
            held.insert(0, create_memory_file("moray-head-config", msgspec.msgpack.encode(self._config)))
            held.append(os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
            self.pid = os.posix_spawn(
                sys.executable,
                self._command(),
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(held)],
                setsid=True,
                setsigmask=[],
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        finally:
            for fd in held:
                os.close(fd)

    def _command(self) -> list[str]:
        package = list(sys.modules["moray"].__path__)
        return [sys.executable, "-c", _BOOT.format(package=package, paths=sys.path), "moray-head", self._name]

    def _on_pipe(self, _events: int) -> None:
        self._hear()

    def _hear(self) -> bool:
        """It says that it is ready, in one write; and maybe, later, that it was replaced. False: nothing is there."""
        try:
            chunk = os.read(self._ready, 1 << 16)
        except BlockingIOError:
            return False
        self._said += chunk
        if chunk and not self._accepts:
            try:
                ready = msgspec.msgpack.decode(self._said, type=HeadReady)
            except msgspec.DecodeError:
                return True  # The rest follows.
            # The next head listens where this one does.
            port = int(ready.address.rpartition(":")[2])
            self._config = msgspec.structs.replace(self._config, port=port)
            self._accepts, self._said = True, b""
            log(f"the head {ready.pid} is ready at {ready.address}, epoch {ready.epoch}")
            self._on_ready(ready)
        elif chunk:
            self.replaced = REPLACED in self._said
        else:
            self._close_ready()
        return True

    def _close_ready(self) -> None:
        if self._ready >= 0:
            self._reactor.unregister(self._ready)
            os.close(self._ready)
            self._ready = -1

    def _died(self) -> None:
        pid = self.pid
        while self._ready >= 0 and self._hear():
            pass  # To its last word.
        self._forget()
        if self.replaced:
            log(f"the head {pid} has ended: another one has taken over its storage, so none is started here")
            return
        if not self._accepts:
            self._on_failed(tail(self._log_path, 1).rpartition("the head failed: ")[2])
        if monotonic() - self._began > _HEALTHY_S:
            self._pause_s = _FIRST_PAUSE_S
        self._start_later(f"the head {pid} has ended (see {self._log_path})")

    def _start_later(self, why: str) -> None:
        log(f"{why}; another one starts in {self._pause_s:g} s")
        self._timer = self._reactor.call_later(self._pause_s, self._start)
        self._pause_s = min(2 * self._pause_s, self.longest_pause_s)

    def _forget(self) -> None:
        self._close_ready()
        self._reactor.unregister(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # The node's own look at its dead children has found it.
        self.pid = 0
