"""A member of a real cluster that is nothing but its links: what it says to a real node, and when, is the test's."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from moray.cluster_utils import Cluster
from moray.ids import new_process, tag_of
from moray.node.head_link import HeadLink, dial_tls
from moray.node.links import Link, Links
from moray.platform.lease_page import LeasePage
from moray.protocol import messages as m
from moray.protocol.connection import HEADER, decode_body, encode_frame
from moray.protocol.reactor import Reactor
from moray.protocol.tcp import NODE_TARGET, parse_address, preface, start_connect
from moray.protocol.tls import TlsConnection
from moray.security import join, token as tokens
from moray.security.identity import client_context

DEADLINE_S = 30.0

M = TypeVar("M", bound=m.Message)
T = TypeVar("T")


class FalseNode:
    """Joined when made. Everything happens in the test's thread, in `until` and `expect`."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        head = cluster.head_node
        assert head is not None
        self.node_id = os.urandom(28)
        host, port = parse_address(cluster.address)
        identity = join.join(host, port, tokens.parse(cluster.token), f"node {self.node_id.hex()[:16]}")
        self._context = client_context(identity)
        self.reactor = Reactor()
        self.reactor.lead.acquire()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._page = LeasePage.create(str(directory))
        #: What the real node has said for a client of this one, and to this node itself.
        self.inbox: list[tuple[bytes, m.AnyMessage]] = []
        self.ended: list[int] = []
        self.links = Links(self.node_id, self.reactor, self._dial, self._on_link)
        self.head = HeadLink(self.reactor, dial_tls(cluster.address, self.reactor, self._context), self._page, self)
        self.head.join(m.NodeInfo(self.node_id, f"127.0.0.1:{self._listener.getsockname()[1]}", {}, {}))
        self.until(lambda: self.head.welcomed, "the head welcomes it")
        self.real = bytes.fromhex(head.node_id)

    def _dial(
        self, node_id: bytes, on_message: Callable[[Any, Any], None], on_close: Callable[[Any, str], None]
    ) -> TlsConnection:
        sock = start_connect(*parse_address(self.head.nodes()[tag_of(node_id)].address))
        return TlsConnection(
            sock, self.reactor, on_message, on_close, context=self._context, server_side=False,
            preface=preface(NODE_TARGET),
        )  # fmt: skip

    def _on_link(self, _link: Link, message: Any) -> None:
        if isinstance(message, m.ForClient):
            body = decode_body(message.body)
            self.inbox += [(process, body) for process in message.processes or [b""]]

    # --- HeadEvents -------------------------------------------------------------------------------------

    def available(self) -> tuple[m.Resources, list[tuple[m.Resources, int]]]:
        return {}, []

    def inventory(self) -> tuple[list[int], list[tuple[bytes, int, bytes, int, str, int]], list[tuple[bytes, int]]]:
        return [], [], []

    def job_ended(self, ended: m.JobEnded) -> None:
        self.ended.append(ended.job)

    def __getattr__(self, name: str) -> Callable[..., None]:
        """The other events do not matter."""
        return lambda *_details: None

    # --- for tests --------------------------------------------------------------------------------------

    def process(self) -> bytes:
        return new_process(tag_of(self.node_id))

    def job(self) -> tuple[int, bytes]:
        """A driver's job here: its number, and the driver."""
        driver = self.process()
        config = m.JobConfig(sys.path, "/", {}, sys.executable, "space", "a test")
        numbers: list[int] = []
        self.head.begin_job(driver, 4242, "tcp://127.0.0.1:1/driver", msgspec.msgpack.encode(config), numbers.append)
        self.until(lambda: numbers, "the job has a number")
        return numbers[0], driver

    def say(self, process: bytes, job: int, message: m.Message) -> None:
        """In the name of a client of this node."""
        self.say_bytes(process, job, encode_frame(message)[HEADER.size :])

    def say_bytes(self, process: bytes, job: int, body: bytes) -> None:
        self.links.get(self.real).send(m.FromClient(process, 4242, job, body))

    def leave(self, process: bytes) -> None:
        """A client of this node has ended."""
        self.links.get(self.real).send(m.ClientLeft(process))

    def expect(self, process: bytes, kind: type[M]) -> M:
        """The next message of a kind to one of its clients."""

        def look() -> M | None:
            for entry in self.inbox:
                if entry[0] == process and isinstance(entry[1], kind):
                    self.inbox.remove(entry)
                    return entry[1]
            return None

        found = self.until(look, f"{kind.__name__} arrives")
        assert found is not None
        return found

    def until(self, condition: Callable[[], T], what: str) -> T:
        """Turn the loop until `condition` holds; its value."""
        deadline = time.monotonic() + DEADLINE_S
        while not (value := condition()):
            assert time.monotonic() < deadline, f"not within {DEADLINE_S:g} s: {what}"
            self.reactor.turn(0.02)
        return value

    def close(self) -> None:
        """Leave the cluster."""
        self.links.close()
        self.head.close("the test is over")
        self.reactor.turn(0)
        self._listener.close()
        self._page.close()
        self.reactor.lead.release()
        self.reactor.close()
