"""A real head process, and nodes that consist of nothing but their link to it, all in the loop of the test."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from moray.head.config import HeadConfig, HeadReady
from moray.ids import new_process, tag_of
from moray.node.head_link import Dial, HeadLink, dial_plain, dial_tls
from moray.node.head_process import HeadProcess
from moray.platform import process_control
from moray.platform.lease_page import LeasePage
from moray.protocol import messages as m
from moray.protocol.connection import decode_body
from moray.protocol.reactor import Reactor

DEADLINE_S = 20.0
#: Short, so that deaths are seen soon; long enough for a busy machine.
LEASE_S = 2.0
ONE_CPU = {"CPU": m.RESOURCE_UNIT}

M = TypeVar("M", bound=m.Message)
T = TypeVar("T")


class World:
    """The loop, the head, and the nodes."""

    def __init__(self, directory: Path, **config: Any) -> None:
        self.directory = directory
        self.reactor = Reactor()
        self.reactor.lead.acquire()
        self.nodes: list[FakeNode] = []
        #: Each head that was ready.
        self.ready: list[HeadReady] = []
        self.security_dir = config.get("security_dir", "")
        settings = {"storage": f"sqlite:{directory}/head.db", "lease_s": LEASE_S, **config}
        self.head = HeadProcess(HeadConfig(**settings), str(directory), "test", self.reactor, self.ready.append)
        # Tests kill young heads, one after the other.
        self.head.longest_pause_s = 0.1
        self.until(lambda: self.ready, "the head is ready")

    def until(self, condition: Callable[[], T], what: str, timeout_s: float = DEADLINE_S) -> T:
        """Turn the loop until `condition` holds; its value."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            if time.monotonic() > deadline:
                log = (self.directory / "head.log").read_text(encoding="utf-8")
                raise AssertionError(f"not within {timeout_s:g} s: {what}\nthe head's log:\n{log}")
            self.reactor.turn(0.02)
        return value

    def pass_time(self, duration_s: float) -> None:
        """Turn the loop for so long: something shall not happen meanwhile."""
        end = time.monotonic() + duration_s
        while time.monotonic() < end:
            self.reactor.turn(0.02)

    def dial(self) -> Dial:
        address = self.ready[-1].address
        if not self.security_dir:
            return dial_plain(address, self.reactor)
        from moray.security.identity import Identity, client_context

        return dial_tls(address, self.reactor, client_context(Identity.load(Path(self.security_dir))))

    def node(self, *, join: bool = True, **info: Any) -> FakeNode:
        node = FakeNode(self, **info)
        self.nodes.append(node)
        if join:
            self.until(lambda: node.link.welcomed, "the node is welcomed")
        return node

    def kill_head(self, *, wait: bool = True) -> None:
        """SIGKILL; the next one is started at once."""
        count = len(self.ready)
        if self.head.pid:  # 0 would be this process's own group.
            process_control.kill(self.head.pid)
        if wait:
            self.until(lambda: len(self.ready) > count, "the next head is ready")

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self.head.close()
        self.reactor.lead.release()
        self.reactor.close()


class FakeNode:
    """A node without workers or store; it keeps what it is told."""

    def __init__(
        self, world: World, node_id: bytes = b"", resources: dict[str, int] | None = None, *, relayed: bool = False
    ) -> None:
        self.world = world
        self.free = dict(resources if resources is not None else {"CPU": 4 * m.RESOURCE_UNIT})
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.node_id = node_id or os.urandom(28)
        directory = world.directory / f"node{len(world.nodes)}"
        directory.mkdir(exist_ok=True)
        self.page = LeasePage.create(str(directory))
        #: What its clients were told: (process, message). What itself was told.
        self.inbox: list[tuple[bytes, m.Message]] = []
        self.told: list[m.Message] = []
        #: All that it was told, in order, for tests of repeats.
        self.numbers: list[int] = []
        self.deaths: list[tuple[bytes, str]] = []
        self.ended: list[int] = []
        self.fenced_because: list[str] = []
        #: What it has heard of the head's absence.
        self.away: list[str] = []
        self.fenced_actors: list[tuple[bytes, int]] = []
        #: What it says that it has.
        self.actors: list[tuple[bytes, int, bytes, int, str, int]] = []
        self.link = HeadLink(world.reactor, world.dial(), self.page, self)
        for kind in (m.PlaceWorker, m.StopProcess, m.DrainNode, m.ReserveBundles):
            self.link.handlers[kind] = self.told.append
        self.info = m.NodeInfo(
            self.node_id,
            f"127.0.0.1:{self.socket.getsockname()[1]}",
            dict(self.free),
            dict(self.free),
            relayed=relayed,
        )
        self.link.join(self.info)

    @property
    def tag(self) -> bytes:
        return tag_of(self.node_id)

    # --- HeadEvents -------------------------------------------------------------------------------------

    def available(self) -> tuple[m.Resources, list[tuple[m.Resources, int]]]:
        return self.free, []

    def inventory(self) -> tuple[list[int], list[tuple[bytes, int, bytes, int, str, int]], list[tuple[bytes, int]]]:
        return [], self.actors, []

    def deliver(self, processes: list[bytes], body: bytes) -> None:
        self.inbox += [(process, decode_body(body)) for process in processes]

    def end_actors(self, actors: list[tuple[bytes, int]]) -> None:
        self.fenced_actors += actors

    def view_changed(self) -> None:
        assert self.link.view.nodes.keys() == {info.node_id for info in self.link.nodes().values()}

    def node_died(self, node_id: bytes, reason: str) -> None:
        self.deaths.append((node_id, reason))

    def job_ended(self, ended: m.JobEnded) -> None:
        self.ended.append(ended.job)

    def fenced(self, reason: str) -> None:
        self.fenced_because.append(reason)

    def mismatched(self, reason: str) -> None:
        self.away.append(f"mismatched: {reason}")

    def head_silent(self, reason: str) -> None:
        self.away.append(f"silent: {reason}")

    def head_back(self, after_s: float) -> None:
        self.away.append(f"back after {after_s}")

    def head_lost(self, reason: str) -> None:
        self.away.append(f"lost: {reason}")

    # --- for tests --------------------------------------------------------------------------------------

    def rejoin(self) -> None:
        """With another id, as after having ended everything."""
        self.node_id = os.urandom(28)
        self.info = msgspec.structs.replace(self.info, node_id=self.node_id)
        self.link.join(self.info)

    def process(self) -> bytes:
        return new_process(self.tag)

    def job(self, process: bytes | None = None) -> tuple[int, bytes]:
        """A driver's job: its number, and the driver."""
        process = process or self.process()
        config = m.JobConfig(sys.path, "/", {}, sys.executable, "space", "a test")
        numbers: list[int] = []
        self.link.begin_job(process, 4242, "tcp://driver", msgspec.msgpack.encode(config), numbers.append)
        self.world.until(lambda: numbers, "the job has a number")
        return numbers[0], process

    def say(self, process: bytes, job: int, message: m.Message) -> None:
        self.link.relay(process, 4242, job, message)

    def expect(self, kind: type[M], accept: Callable[[M], bool] = lambda _message: True) -> M:
        """The next message of a kind to one of its clients; others stay."""

        def look() -> M | None:
            for entry in self.inbox:
                message = entry[1]
                if isinstance(message, kind) and accept(message):
                    self.inbox.remove(entry)
                    return message
            return None

        found = self.world.until(look, f"{kind.__name__} arrives")
        assert found is not None
        return found

    def expect_told(self, kind: type[M], accept: Callable[[M], bool] = lambda _message: True) -> M:
        """The same for messages to the node itself."""

        def look() -> M | None:
            for message in self.told:
                if isinstance(message, kind) and accept(message):
                    self.told.remove(message)
                    return message
            return None

        found = self.world.until(look, f"{kind.__name__} arrives")
        assert found is not None
        return found

    def die(self) -> None:
        """Like kill -9: its connection is lost, and nobody listens at its address."""
        self.link.close()
        self.socket.close()

    def hang(self) -> None:
        """Like a stopped process: its connection stands and its address accepts, but it says nothing."""
        wire = self.link._wire
        assert wire is not None
        self.world.reactor.unregister(wire.fd)  # type: ignore[attr-defined]
        for timer in (self.link._renew_timer, self.link._soon_timer):
            if timer is not None:
                timer.cancel()

    def close(self) -> None:
        self.link.close()
        self.socket.close()
        self.page.close()


@contextmanager
def running_world(directory: Path, **config: Any) -> Iterator[World]:
    world = World(directory, **config)
    try:
        yield world
    finally:
        world.close()


def spec(actor: bytes | None = None, **changes: Any) -> m.ActorSpec:
    """An actor of which nobody has heard."""
    fields: dict[str, Any] = {"resources": {}, "placement": ONE_CPU} | changes
    return m.ActorSpec(actor or os.urandom(16), "Counter", **fields)


def detached(**changes: Any) -> m.ActorSpec:
    creation = m.Creation("Counter", b"class", b"arguments")
    return spec(detached=True, creation=msgspec.msgpack.encode(creation), **changes)
