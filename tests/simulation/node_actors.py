"""The simulated node as :class:`moray.node.actors.Actors`, the real one, sees it: clients, leases, workers, time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from moray.protocol import messages as m

if TYPE_CHECKING:
    from tests.simulation.node import Client, Node
    from tests.simulation.process import Process

#: Far shorter than the real one, so that it is reached.
STOP_GRACE_S: Final = 1.0


class ClientView:
    """Clients."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def get(self, process: bytes) -> Client | None:
        return self._node.clients.get(process)

    def send(self, process: bytes, message: m.Message) -> None:
        self._node.send(process, message)

    def send_all(self, processes: Iterable[bytes], message: m.Message) -> None:
        for process in processes:
            self._node.send(process, message)


class LeaseView:
    """The scheduler, by the simulated clock."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def request(self, *wish: Any, permanent: bool, placement: dict[str, int]) -> None:
        """Of the strategy, the last of them, there is none here."""
        node = self._node
        arguments = (*wish[:-1], node.world.now)
        actions = node.scheduler.request(*arguments, permanent=permanent, placement=placement)
        node.observe("request", arguments, actions)


class WorkerView:
    """Processes."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def get(self, process: bytes) -> Process | None:
        client = self._node.clients.get(process)
        return client.body if client is not None else None

    def grant_grace(self, worker: Process, _cause: str, grace_s: float) -> None:
        self._node.world.at(grace_s, "", lambda: self.kill(worker, ""), self._node)

    def kill(self, worker: Process, _cause: str) -> None:
        self._node.universe.die(worker, -9)


class ReactorView:
    """Time."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Any:
        return self._node.world.at(delay_s, "", call, self._node)
