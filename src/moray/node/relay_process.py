"""The relay as a child of the head's node: started when the first connection for it comes, and again if it is needed.

The node owns the relay's inbox. While no relay runs, it looks whether something has come there, and starts one, which
inherits the inbox and finds what has come. So nothing is lost when a relay ends, for whatever reason. The relay asks
its node where it may connect to, through a socket whose end tells it that the node has ended.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Final

from moray.node.daemon import Daemon
from moray.node.logs import log
from moray.node.relay import CONTROL_BYTES, RelayConfig
from moray.protocol.reactor import READ
from moray.protocol.relaying import open_datagrams, relay_inbox

if TYPE_CHECKING:
    from moray.protocol.reactor import Reactor

RELAY_LOG: Final = "relay.log"

#: A relay that has not taken the last answers is told again after this time.
_AGAIN_S: Final = 0.02


class RelayProcess(Daemon):
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
        super().__init__(reactor, "moray.node.relay", "moray-relay", name, f"{log_dir}/{RELAY_LOG}")
        self._config = config
        self._resolve = resolve
        self._inbox = open_datagrams(relay_inbox(session_dir))
        self._control: socket.socket | None = None
        self._watch()

    def close(self) -> None:
        """Kill it, and start no other."""
        super().close()
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
            control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                try:
                    self._spawn(self._config, self._inbox.fileno(), theirs.fileno())
                except BaseException:
                    control.close()
                    raise
        except OSError as error:
            self._start_later(f"the relay could not be started: {error}")
            return
        control.setblocking(False)
        self._control = control
        self._reactor.register(control.fileno(), READ, lambda _events: self._on_question(control))
        log(f"relay {self.pid} was started (see {self._log_path})")

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
        self._start_later(f"the relay {pid} has ended")

    def _start_later(self, why: str) -> None:
        log(f"{why}; another one starts when it is needed, not before {self._pause(self._watch):g} s")

    def _forget(self) -> None:
        if self._control is not None:
            self._reactor.unregister(self._control.fileno())
            self._control.close()
            self._control = None
        super()._forget()
