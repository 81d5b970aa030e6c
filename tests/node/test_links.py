"""Links between nodes deliver each message once and in order, whatever becomes of connections."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from moray.node.links import Link, Links
from moray.protocol import messages as m
from moray.protocol.connection import Connection
from moray.protocol.reactor import Reactor

#: The smaller id makes the connection that stays.
IDS = [bytes([number]) * 28 for number in (1, 2, 3)]


class Net:
    """Nodes in one loop; connections are socket pairs that can be cut."""

    def __init__(self) -> None:
        self.reactor = Reactor()
        self.nodes: dict[bytes, Node] = {node_id: Node(self, node_id) for node_id in IDS}
        self.wires: list[Connection] = []
        self.refuse = False

    def cut(self, chosen: Connection) -> None:
        chosen.close("cut by the test")

    def turn(self, times: int = 1) -> None:
        with self.reactor.lead:
            for _ in range(times):
                self.reactor.turn(0.0)

    def until(self, done: Callable[[], bool], turns: int = 5_000) -> None:
        with self.reactor.lead:
            for _ in range(turns):
                if done():
                    return
                self.reactor.turn(0.01)
        raise AssertionError("it did not come to that")

    def close(self) -> None:
        for node in self.nodes.values():
            node.links.close()
        for wire in self.wires:
            wire.close()
        self.reactor.close()


class Node:
    def __init__(self, net: Net, node_id: bytes) -> None:
        self.net = net
        self.node_id = node_id
        self.links = Links(node_id, net.reactor, self.dial, self.on_message)
        self.got: dict[bytes, list[int]] = {}

    def on_message(self, link: Link, message: Any) -> None:
        assert isinstance(message, m.LeaseRenewed)
        self.got.setdefault(link.node_id, []).append(message.number)

    def dial(
        self, node_id: bytes, on_message: Callable[[Any, Any], None], on_close: Callable[[Any, str], None]
    ) -> Connection:
        if self.net.refuse:
            raise ConnectionRefusedError("nobody listens")
        near, far = socket.socketpair()
        other = self.net.nodes[node_id]
        accepted = Connection(far, self.net.reactor, other.on_first, lambda _wire, _reason: None)
        mine = Connection(near, self.net.reactor, on_message, on_close)
        self.net.wires += [mine, accepted]
        return mine

    def on_first(self, wire: Connection, message: Any) -> None:
        assert isinstance(message, m.LinkHello)
        self.links.accept(wire, message)

    def send(self, to: bytes, number: int) -> None:
        self.links.get(to).send(m.LeaseRenewed(number))


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    yield made
    made.close()


def test_messages_arrive_in_order(net: Net) -> None:
    a, b = IDS[:2]
    for number in range(200):
        net.nodes[a].send(b, number)
        net.nodes[b].send(a, number)
    net.until(lambda: len(net.nodes[b].got.get(a, [])) == 200 and len(net.nodes[a].got.get(b, [])) == 200)
    assert net.nodes[b].got[a] == net.nodes[a].got[b] == list(range(200))


def test_both_connect_at_once_and_one_connection_stays(net: Net) -> None:
    a, b = IDS[:2]
    net.nodes[b].send(a, 1)
    net.nodes[a].send(b, 1)
    net.until(lambda: bool(net.nodes[b].got) and bool(net.nodes[a].got))
    net.turn(20)
    assert sum(not wire.closed for wire in net.wires) == 2


def test_what_was_sent_is_forgotten_once_it_has_arrived(net: Net) -> None:
    a, b = IDS[:2]
    for number in range(1_000):
        net.nodes[a].send(b, number)
    net.until(lambda: len(net.nodes[b].got.get(a, [])) == 1_000)
    net.until(lambda: not net.nodes[a].links.get(b).unacked)


def test_nobody_listens_for_a_while(net: Net) -> None:
    a, b = IDS[:2]
    net.refuse = True
    net.nodes[a].send(b, 1)
    net.turn(5)
    net.refuse = False
    net.until(lambda: net.nodes[b].got.get(a) == [1])


def test_a_dead_node_gets_nothing_more(net: Net) -> None:
    a, b = IDS[:2]
    net.nodes[a].send(b, 1)
    net.until(lambda: net.nodes[b].got.get(a) == [1])
    link = net.nodes[a].links.get(b)
    net.nodes[a].links.node_died(b)
    link.send(m.LeaseRenewed(2))
    net.turn(20)
    assert net.nodes[b].got[a] == [1]
    assert not link.unacked


def test_another_node_at_the_address_is_refused(net: Net) -> None:
    a, b = IDS[:2]
    near, far = socket.socketpair()
    heard: list[Any] = []
    mine = Connection(near, net.reactor, lambda _wire, message: heard.append(message), lambda _wire, _reason: None)
    accepted = Connection(far, net.reactor, net.nodes[b].on_first, lambda _wire, _reason: None)
    net.wires += [mine, accepted]
    mine.send(m.LinkHello(m.PROTOCOL_VERSION, a, 0, wanted=IDS[2]))
    net.until(lambda: accepted.closed)
    net.turn(5)
    assert isinstance(heard[0], m.Refused)


@pytest.mark.parametrize("seed", range(30))
def test_cuts_at_any_moment_lose_and_repeat_nothing(net: Net, seed: int) -> None:
    random_ = random.Random(seed)
    sent: dict[tuple[bytes, bytes], int] = {}
    for _ in range(600):
        roll = random_.random()
        if roll < 0.6:
            source, to = random_.sample(IDS, 2)
            pair = (source, to)
            number = sent.get(pair, 0)
            net.nodes[pair[0]].send(pair[1], number)
            sent[pair] = number + 1
        elif roll < 0.9:
            net.turn()
        else:
            alive = [wire for wire in net.wires if not wire.closed]
            if alive:
                net.cut(random_.choice(alive))
    net.until(lambda: all(len(net.nodes[to].got.get(source, [])) == count for (source, to), count in sent.items()))
    for (source, to), count in sent.items():
        assert net.nodes[to].got[source] == list(range(count))
