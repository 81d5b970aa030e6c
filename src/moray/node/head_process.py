"""The head as a child of the node beside it: started, and started again whenever it dies.

The head is a process of its own so that it can die without its machine's work; and it never outlives its node, whose
pidfd it watches. A head that dies at once, again and again (its storage is gone, its port is taken), is started with
growing pauses; its log says why each time. Its port stays the same, so that nodes find the next one. Only one that
says that another head has taken over its storage (on another machine) is not started again: they would take it from
each other in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from time import monotonic
from typing import Final

import msgspec

from moray.head.config import REPLACED, HeadConfig, HeadReady
from moray.node.daemon import Daemon
from moray.node.logs import log, tail
from moray.protocol.reactor import READ, Reactor

HEAD_LOG: Final = "head.log"


class HeadProcess(Daemon):
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
        super().__init__(reactor, "moray.head.main", "moray-head", name, f"{log_dir}/{HEAD_LOG}")
        self._config = msgspec.structs.replace(config, node_pid=os.getpid())
        self._on_ready = on_ready
        self._on_failed = on_failed
        #: Where it says that it is ready; -1: none runs.
        self._ready = -1
        self._said = b""
        #: It has said that it is ready.
        self._accepts = False
        #: Another head has taken over: none is started here any more.
        self.replaced = False
        self._start()

    def _start(self) -> None:
        self._timer = None
        self._began = monotonic()
        self._said = b""
        self._accepts = False
        try:
            self._ready, ready_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                self._reactor.register(self._ready, READ, self._on_pipe)
                os.set_blocking(ready_end, True)
                self._spawn(self._config, ready_end)
            finally:
                os.close(ready_end)
        except OSError as error:
            self._close_ready()
            self._start_later(f"the head could not be started: {error}")

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
        self._start_later(f"the head {pid} has ended (see {self._log_path})")

    def _start_later(self, why: str) -> None:
        log(f"{why}; another one starts in {self._pause(self._start):g} s")

    def _forget(self) -> None:
        self._close_ready()
        super()._forget()
