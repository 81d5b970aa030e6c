"""Objects between stores over sockets: real stores and connections, several nodes in one loop."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import pytest

from moray.ids import new_process
from moray.protocol import messages as m
from tests.node.raw_lines import FakeCluster, silence

MIB = 1 << 20

Make = Callable[..., FakeCluster]


@pytest.fixture(name="make")
def _make(tmp_path: Path) -> Iterator[Make]:
    made: list[FakeCluster] = []

    def make(count: int, **options: Any) -> FakeCluster:
        made.append(FakeCluster(count, tmp_path, **options))
        return made[-1]

    yield make
    for cluster in made:
        for node in cluster.nodes:
            if node.alive:
                node.transfers.core.check()
        cluster.close()


def test_an_object_is_read_at_another_node(make: Make) -> None:
    cluster = make(2)
    a, b = cluster.nodes
    data = os.urandom(9 * MIB + 5)
    name = a.put(data)
    assert b.read(name, a, len(data)) == data
    # The second time it is here.
    moved = sum(line.raw_bytes for line in b.dialled)
    assert b.read(name, a, len(data)) == data
    assert sum(line.raw_bytes for line in b.dialled) == moved == len(data)


def test_many_readers_are_one_pull(make: Make) -> None:
    cluster = make(2)
    a, b = cluster.nodes
    data = os.urandom(3 * MIB)
    name = a.put(data)
    requests = [b.pin_soon(name, a, len(data)) for _ in range(5)]
    assert [b.take(request, name) for request in requests] == [data] * 5
    assert sum(line.raw_bytes for line in b.dialled) == len(data)


def test_what_is_lost_says_so(make: Make) -> None:
    cluster = make(2)
    a, b = cluster.nodes
    answer = b.ask(lambda number: m.PinObject(number, a.new_id(), a.tag, 1000))
    assert isinstance(answer, m.StoreError)
    assert answer.code == "lost"
    assert a.tag.hex() in answer.detail


def test_an_object_that_is_not_sealed_yet_is_waited_for(make: Make) -> None:
    """STORE-SEAL, at another node."""
    cluster = make(2)
    a, b = cluster.nodes
    name, data = a.new_id(), os.urandom(MIB)
    created = a.ask(lambda number: m.CreateObject(number, name, len(data)))
    request = b.pin_soon(name, a, len(data))
    for _ in range(20):
        with cluster.reactor.lead:
            cluster.reactor.turn(0.01)
    assert not b.answers
    a.client.view(created.offset, len(data), created.path)[:] = data
    a.owned.handle(a.process, m.SealObject(0, name))
    assert b.take(request, name) == data


def test_a_broadcast_to_five_nodes_is_a_tree(make: Make) -> None:
    cluster = make(6)
    a, *others = cluster.nodes
    data = os.urandom(20 * MIB)
    name = a.put(data)
    requests = [node.pin_soon(name, a, len(data)) for node in others]
    for node, request in zip(others, requests, strict=True):
        assert node.take(request, name) == data
    sent = [sum(line.raw_bytes for line in node.dialled) for node in others]
    assert sent == [len(data)] * 5
    # Two pulled from the first; the others from each other.
    assert sum(line.raw_bytes for node in others for line in node.dialled if line.peer == a.tag) == 2 * len(data)


def test_a_source_that_dies_in_the_middle_is_replaced(make: Make) -> None:
    cluster = make(5, chunk=64 << 10)
    a, *others = cluster.nodes
    data = os.urandom(16 * MIB)
    name = a.put(data)
    requests = {node: node.pin_soon(name, a, len(data)) for node in others}

    def passing_on() -> Any:
        return next((n for n in others if len(n.transfers.core._serving.sources()) == 1), None)

    cluster.until(lambda: passing_on() and any(line.raw_bytes > MIB for n in others for line in n.dialled))
    middle = passing_on()
    middle.die()
    for node, request in requests.items():
        if node is not middle:
            assert node.take(request, name) == data
    # What was here before was not sent again.
    assert sum(line.raw_bytes for n in others if n is not middle for line in n.dialled) < 3.5 * len(data)


def test_a_primary_that_dies_in_the_middle_is_an_error_unless_somebody_has_it(make: Make) -> None:
    cluster = make(4, chunk=64 << 10)
    a, b, c, d = cluster.nodes
    data = os.urandom(8 * MIB)
    kept, lost = a.put(data), a.put(data)
    assert d.read(kept, a, len(data)) == data
    first, second = b.pin_soon(kept, a, len(data)), c.pin_soon(lost, a, len(data))
    cluster.until(lambda: any(line.raw_bytes > MIB for node in (b, c) for line in node.dialled))
    # The owner is another process than those of the dead node.
    a.alive = False
    for line in [*a.dialled, *a.accepted]:
        silence(line)
        line.close()
    for node in (b, c, d):
        node.transfers.node_died(a.node_id)
    assert b.take(first, kept) == data
    cluster.until(lambda: (c.process, second) in c.answers)
    assert "no other one has a copy" in c.answers[c.process, second].detail
    located = b.ask(lambda number: locate(b, m.FindObjects(number, [kept, lost])))
    assert located.nodes == [b.tag, b""]


def locate(node: Any, message: m.FindObjects) -> m.Message:
    node.transfers.locate(node.process, message)
    return m.UnpinObjects([])  # Something that the store takes.


def test_a_lost_line_is_made_anew(make: Make) -> None:
    cluster = make(2, chunk=64 << 10)
    a, b = cluster.nodes
    data = os.urandom(16 * MIB)
    name = a.put(data)
    request = b.pin_soon(name, a, len(data))
    cluster.until(lambda: b.dialled and b.dialled[0].raw_bytes > MIB)
    b.dialled[0].close("cut")
    assert b.take(request, name) == data
    assert len(b.dialled) == 2
    assert sum(line.raw_bytes for line in b.dialled) < len(data) + 2 * MIB


def test_copies_are_freed_with_the_object(make: Make) -> None:
    """REF-FREE."""
    cluster = make(4)
    a, *others = cluster.nodes
    data = os.urandom(MIB)
    name = a.put(data)
    for node in others:
        assert node.read(name, a, len(data)) == data
    # The owner frees at its own node, which is not that of the primary copy.
    others[0].owned.handle(others[0].process, m.FreeObjects([name], a.tag))
    cluster.until(lambda: not any(node.store.holds(name) for node in cluster.nodes))
    assert all(node.store.stats()["used_bytes"] == 0 for node in cluster.nodes)


def test_copies_make_room_and_are_not_spilled(make: Make) -> None:
    cluster = make(2, arena_bytes=16 * MIB)
    a, b = cluster.nodes
    data = [os.urandom(4 * MIB) for _ in range(3)]
    names = [a.put(each) for each in data]
    for _ in range(3):
        for name, each in zip(names, data, strict=True):
            assert b.read(name, a, len(each)) == each
        b.put(os.urandom(4 * MIB))
    stats = b.store.stats()
    assert stats["used_bytes"] <= 16 * MIB
    assert stats["spilled_objects"] == 0
    assert len(b.transfers.core.copies) + 3 == stats["objects"] <= 4


def test_a_spilled_primary_is_sent(make: Make) -> None:
    cluster = make(2, arena_bytes=16 * MIB)
    a, b = cluster.nodes
    data = [os.urandom(4 * MIB) for _ in range(8)]
    names = [a.put(each) for each in data]
    assert a.store.stats()["spilled_objects"] > 0
    for name, each in zip(names, data, strict=True):
        assert b.read(name, a, len(each)) == each


def test_what_is_pulled_at_once_keeps_to_the_budget(make: Make) -> None:
    cluster = make(2, budget=4 * MIB)
    a, b = cluster.nodes
    data = os.urandom(MIB)
    names = [a.put(data) for _ in range(20)]
    requests = [b.pin_soon(name, a, len(data)) for name in names]
    peak = 0

    def done() -> bool:
        nonlocal peak
        peak = max(peak, b.transfers.core.stats()["in_flight_bytes"])
        return all((b.process, request) in b.answers for request in requests)

    cluster.until(done)
    assert MIB < peak <= 4 * MIB


def test_a_reader_that_dies_ends_its_pull(make: Make) -> None:
    cluster = make(2, chunk=64 << 10)
    a, b = cluster.nodes
    data = os.urandom(16 * MIB)
    name, reader = a.put(data), new_process(b.tag)
    b.ask_soon(lambda number: m.PinObject(number, name, a.tag, len(data)), reader)
    cluster.until(lambda: b.dialled and b.dialled[0].raw_bytes > MIB)
    b.store.process_died(reader)
    b.owned.owner_died(reader)
    cluster.until(lambda: not b.store.holds(name) and not a.transfers.core._serving.sources())
    assert b.dialled[0].raw_bytes < len(data)
    assert a.store.stats()["pinned_objects"] == 0
    assert b.store.stats()["used_bytes"] == 0


def test_an_owners_death_frees_what_was_pulled_of_it(make: Make) -> None:
    cluster = make(2)
    a, b = cluster.nodes
    data = os.urandom(MIB)
    name = a.put(data)
    b.read(name, a, len(data))
    b.owned.owner_died(a.process)
    assert not b.store.holds(name)


def test_objects_travel_over_tls(make: Make) -> None:
    from moray.security.authority import Authority

    cluster = make(4, identity=Authority.create().issue("node"))
    a, *others = cluster.nodes
    data = os.urandom(20 * MIB + 3)
    name = a.put(data)
    requests = [node.pin_soon(name, a, len(data)) for node in others]
    for node, request in zip(others, requests, strict=True):
        assert node.take(request, name) == data


@pytest.mark.long
def test_a_gibibyte_is_moved_once(make: Make) -> None:
    cluster = make(2, arena_bytes=1200 * MIB)
    a, b = cluster.nodes
    size = 1 << 30
    name = a.new_id()
    created = a.ask(lambda number: m.CreateObject(number, name, size))
    view = a.client.view(created.offset, size, created.path)
    for start in range(0, size, 64 * MIB):
        view[start : start + 64 * MIB] = bytes([start // (64 * MIB)]) * (64 * MIB)
    a.owned.handle(a.process, m.SealObject(0, name))
    begin, cpu = perf_counter(), process_time()
    request = b.pin_soon(name, a, size)
    cluster.until(lambda: (b.process, request) in b.answers)
    print(f"1 GiB in {perf_counter() - begin:.2f} s, {process_time() - cpu:.2f} s of CPU for both ends")
    pinned = b.answers[b.process, request]
    assert isinstance(pinned, m.ObjectPinned), pinned
    assert sum(line.raw_bytes for line in b.dialled) == size
    other = b.client.view(pinned.offset, size, pinned.path)
    assert all(other[at : at + 64 * MIB] == view[at : at + 64 * MIB] for at in range(0, size, 64 * MIB))
    other.release()
    view.release()
