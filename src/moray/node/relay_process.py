"""The relay as a child of the head's node: started when the first connection for it comes, and again if it is needed.

The node owns the relay's inbox. While no relay runs, it looks whether something has come there, and starts one, which
inherits the inbox and finds what has come. So nothing is lost when a relay ends, for whatever reason. The relay asks
its node where it may connect to, through a socket whose end tells it that the node has ended.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

import msgspec

from moray.node.logs import log
from moray.node.relay import CONTROL_BYTES, RelayConfig
from moray.platform import process_control
from moray.platform.memory_files import create_memory_file
from moray.protocol.reactor import READ, Timer
from moray.protocol.relaying import open_datagrams, relay_inbox

if TYPE_CHECKING:
    from moray.protocol.reactor import Reactor

RELAY_LOG: Final = "relay.log"

#: The pause before another relay is started after one that died young; it doubles while they do.
_FIRST_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 5.0
_HEALTHY_S: Final = 10.0
#: A relay that has not taken the last answers is told again after this time.
_AGAIN_S: Final = 0.02

#: The relay runs the very package that its node runs, without its facade (see :mod:`moray.launch.local`).
_BOOT: Final = (
    "import sys; package = sys.modules['moray'] = type(sys)('moray'); package.__path__ = {package!r}; "
    "sys.path[:] = {paths!r}; from moray.node.relay import main; main()"
)


class RelayProcess:
    """Has a relay run while one is needed. Loop only.

    Args:
        session_dir: of the node.
        log_dir: where ``relay.log`` is.
        name: for the list of processes.
        config: what it is told.
        resolve: may somebody connect to this address ("": the head)? Calls back with where that is, or "".
    """

    def __init__(
        self,
        reactor: Reactor,
        session_dir: str,
        log_dir: str,
        name: str,
        config: RelayConfig,
        resolve: Callable[[str, Callable[[str], None]], None],
    ) -> None:
        self._reactor = reactor
        self._log_path = f"{log_dir}/{RELAY_LOG}"
        self._name = name
        self._config = config
        self._resolve = resolve
        self._inbox = open_datagrams(relay_inbox(session_dir))
        #: 0: none runs.
        self.pid = 0
        self._pidfd = -1
        self._control: socket.socket | None = None
        self._began = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._timer: Timer | None = None
        self._watch()

    def close(self) -> None:
        """Kill it, and start no other."""
        if self._timer is not None:
            self._timer.cancel()
        if self._pidfd >= 0:
            process_control.kill_pidfd(self._pidfd)
            process_control.wait_pidfd(self._pidfd, None)
            self._forget()
        else:
            self._reactor.unregister(self._inbox.fileno())
        self._inbox.close()

    def _watch(self) -> None:
        """No relay runs: start one when somebody needs it."""
        self._timer = None
        self._reactor.register(self._inbox.fileno(), READ, lambda _events: self._start())

    def _start(self) -> None:
        self._reactor.unregister(self._inbox.fileno())
        self._began = monotonic()
        try:
            self._spawn()
        except OSError as error:
            self._start_later(f"the relay could not be started: {error}")
            return
        self._pidfd = os.pidfd_open(self.pid)
        self._reactor.register(self._pidfd, READ, lambda _events: self._died())
        log(f"relay {self.pid} was started (see {self._log_path})")

    def _spawn(self) -> None:
        control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        control.setblocking(False)
        held = [theirs.fileno()]
        try:
            held.insert(0, os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600))
            held.insert(0, os.dup(self._inbox.fileno()))
            held.insert(0, create_memory_file("moray-relay-config", msgspec.msgpack.encode(self._config)))
            self.pid = os.posix_spawn(
                sys.executable,
                self._command(),
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(held)],
                setsid=True,
                setsigmask=[],
                setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
            )
        except BaseException:
            control.close()
            raise
        finally:
            theirs.close()
            for fd in held[:-1]:
                os.close(fd)
        self._control = control
        self._reactor.register(control.fileno(), READ, lambda _events: self._on_question(control))

    def _command(self) -> list[str]:
        package = list(sys.modules["moray"].__path__)
        return [sys.executable, "-c", _BOOT.format(package=package, paths=sys.path), "moray-relay", self._name]

    def _on_question(self, control: socket.socket) -> None:
        try:
            question = control.recv(CONTROL_BYTES)
        except (BlockingIOError, OSError):
            question = b""
        if not question:
            return  # It has ended, which its pidfd tells.
        number, _, address = question.decode(errors="replace").partition(" ")

        self._resolve(address, lambda found: self._answer(control, f"{number} {found}".encode()))

    def _answer(self, control: socket.socket, answer: bytes) -> None:
        if control is not self._control:
            return  # It has ended meanwhile.
        try:
            control.send(answer)
        except BlockingIOError:
            self._reactor.call_later(_AGAIN_S, lambda: self._answer(control, answer))
        except OSError as error:
            log(f"the relay could not be answered: {error}")

    def _died(self) -> None:
        pid = self.pid
        self._forget()
        if monotonic() - self._began > _HEALTHY_S:
            self._pause_s = _FIRST_PAUSE_S
        self._start_later(f"the relay {pid} has ended")

    def _start_later(self, why: str) -> None:
        log(f"{why}; another one starts when it is needed, not before {self._pause_s:g} s")
        self._timer = self._reactor.call_later(self._pause_s, self._watch)
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _forget(self) -> None:
        if self._control is not None:
            self._reactor.unregister(self._control.fileno())
            self._control.close()
            self._control = None
        self._reactor.unregister(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # The node's own look at its dead children has found it.
        self.pid = 0
