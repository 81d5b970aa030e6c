"""Objects between machines: a random world of cores, broadcasts, and named scenarios."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from math import ceil, log2
from typing import Any

import pytest
from hypothesis import given, strategies

from moray.core import transfers_types as t
from moray.core.transfers import Transfers
from moray.core.transfers_serving import Copies
from tests.core.transfers_world import CHUNK, Node, World

A, B, C, D, E = ((number).to_bytes(4, "big") for number in range(1, 6))
X, Y, Z = (letter * 28 for letter in (b"x", b"y", b"z"))
P, Q = b"process-p---", b"process-q---"


def world_with(size: int, count: int = 5, budget: int = 1000) -> World:
    """X is at A."""
    world = World(count, budget)
    world.put(A, X, size)
    return world


def step_until(world: World, condition: object, seed: int = 0) -> None:
    chance = random.Random(seed)
    for _ in range(10_000):
        if condition():  # type: ignore[operator]
            return
        chance.choice(world.steps())()
    raise AssertionError("it did not come to that")


# --- named scenarios ------------------------------------------------------------------------------------------


def test_an_object_is_pulled_once_for_all_who_ask() -> None:
    world = world_with(10)
    node = world.nodes[B]
    for request in range(3):
        node.pin(P, request, X, A, 10)
    assert len(node.asked) == 1
    world.settle()
    assert set(node.answers.values()) == {"pinned"}
    assert node.store[X].bytes == [1] * 10
    world.check_idle()


def test_a_pin_of_what_is_here_costs_no_pull() -> None:
    world = world_with(10)
    world.nodes[B].pin(P, 1, X, A, 10)
    world.settle()
    world.nodes[B].pin(Q, 2, X, A, 10)
    assert world.nodes[B].answers[Q, 2] == "pinned"


def test_gets_come_before_arguments_before_what_nobody_waits_for() -> None:
    world = World(2, budget=10)
    node = world.nodes[B]
    names = [bytes([number]) * 28 for number in range(1, 5)]
    for name in names:
        world.put(A, name, 10)
    for request, (name, priority) in enumerate(zip(names, (2, 2, 1, 0), strict=True)):
        node.pin(P, request, name, A, 10, priority)
    order = []
    while node.core.stats()["pulls"]:
        if node.asked and node.asked[0][0] not in order:
            order.append(node.asked[0][0])
        world.steps()[0]()
    assert order == [names[0], names[3], names[2], names[1]]


def test_what_waits_moves_ahead_when_somebody_gets_it() -> None:
    world = World(2, budget=10)
    node = world.nodes[B]
    for name in (X, Y, Z):
        world.put(A, name, 10)
    node.pin(P, 1, X, A, 10)
    node.pin(P, 2, Y, A, 10, 1)
    node.pin(P, 3, Z, A, 10, 2)
    node.pin(Q, 4, Z, A, 10, 0)
    step_until(world, lambda: node.answers.get((P, 1)))
    assert node.asked[0][0] == Z


def test_the_budget_is_kept_and_one_alone_may_exceed_it() -> None:
    world = World(2, budget=25)
    node = world.nodes[B]
    sizes = {bytes([number]) * 28: size for number, size in enumerate((10, 10, 10, 60, 10), 1)}
    for request, (name, size) in enumerate(sizes.items()):
        world.put(A, name, size)
        node.pin(P, request, name, A, size)
    world.settle()
    assert set(node.answers.values()) == {"pinned"}
    assert node.peak == 60
    world.check_idle()


def test_a_dead_source_is_replaced_and_what_is_here_stays() -> None:
    """C pulls from B, which is still pulling itself, and B dies: the rest comes from A."""
    world = world_with(40)
    for tag in (D, E, B, C):
        world.nodes[tag].pin(P, 1, X, A, 40)
    third = world.nodes[C]
    step_until(world, lambda: any(p.have >= 2 * CHUNK and p.source not in (A, b"") for p in third.core._pulls.values()))
    pull = third.core._pulls[X]
    have = pull.have
    world.kill(world.nodes[pull.source])
    assert pull.have >= have
    world.settle()
    assert third.answers[P, 1] == "pinned"
    assert third.store[X].bytes == [1] * 40


def test_a_dead_primary_is_found_elsewhere() -> None:
    world = world_with(10)
    world.nodes[B].pin(P, 1, X, A, 10)
    world.settle()
    world.kill(world.nodes[A])
    world.nodes[C].pin(P, 1, X, A, 10)
    world.settle()
    assert world.nodes[C].answers[P, 1] == "pinned"


def test_what_no_living_node_has_is_lost() -> None:
    world = world_with(10)
    world.kill(world.nodes[A])
    world.nodes[B].pin(P, 1, X, A, 10)
    world.settle()
    assert "no other one has a copy" in world.nodes[B].answers[P, 1]
    assert A.hex() in world.nodes[B].answers[P, 1]
    world.check_idle()


def test_an_owner_is_told_of_the_new_primary_and_frees_all_by_it() -> None:
    world = world_with(10)
    for tag in (B, C):
        world.nodes[tag].pin(P, 1, X, A, 10)
    world.settle()
    world.kill(world.nodes[A])
    owner = world.nodes[D]
    owner.run(owner.core.locate(P, 7, [X, Y]))
    world.settle()
    assert owner.located[7] == [B, b""]
    assert not world.nodes[B].store[X].secondary
    for tag in (B, C):
        world.nodes[tag].unpin(P, 1)
    owner.free(X, B)
    world.settle()
    assert not any(X in node.store for node in world.living())


def test_the_next_copy_is_taken_when_the_chosen_one_has_gone() -> None:
    world = world_with(10)
    for tag in (B, C):
        world.nodes[tag].pin(P, 1, X, A, 10)
    world.settle()
    world.kill(world.nodes[A])
    owner, chosen = world.nodes[D], world.nodes[B]
    owner.run(owner.core.locate(P, 7, [X]))
    step_until(world, lambda: any(isinstance(m, t.PromoteAt) for m in world.links.get((D, B), ())))
    chosen.unpin(P, 1)
    assert chosen.drop(X)
    world.settle()
    assert owner.located[7] == [C]


def test_a_node_that_nobody_waits_at_stops_pulling() -> None:
    world = world_with(400)
    node = world.nodes[B]
    node.pin(P, 1, X, A, 400)
    step_until(world, lambda: X in node.core._pulls and node.core._pulls[X].have)
    node.die_process(P)
    world.settle()
    world.check_idle()
    assert X not in node.store
    assert A not in [tag for tag in world.nodes if world.nodes[tag].core._serving.copies]


def test_a_late_copy_of_a_freed_object_is_freed() -> None:
    world = world_with(10)
    node = world.nodes[B]
    node.pin(P, 1, X, A, 10)
    step_until(world, lambda: node.answers)
    node.unpin(P, 1)
    world.nodes[A].core._serving.copies.clear()  # As if the word of it had come after everything else.
    world.nodes[A].free(X)
    world.settle()
    assert X not in node.store


@pytest.mark.parametrize("complete", [False, True])
def test_what_is_freed_by_a_node_that_dies_is_freed(complete: bool) -> None:
    """Its word is lost with it. It was the owner's, which died, too."""
    world = world_with(40)
    world.owners[X] = B
    third = world.nodes[C]
    third.pin(P, 1, X, A, 40)
    step_until(world, lambda: third.answers if complete else third.core._pulls[X].have)
    third.unpin(P, 1)
    world.nodes[B].free(X, A)
    world.kill(world.nodes[B])
    world.settle()
    assert not any(X in node.store for node in world.living())
    assert not any(node.core._serving.copies for node in world.living())
    world.check_idle()


def test_what_a_dead_primary_was_to_free_makes_room() -> None:
    """The owner's word was lost with it, or its own to the copy's node: the copy is in nobody's way."""
    for heard in (False, True):
        world = world_with(10)
        node, owner = world.nodes[B], world.nodes[D]
        node.pin(P, 1, X, A, 10)
        world.settle()
        node.unpin(P, 1)
        owner.free(X, A)
        if heard:
            world.by_link(D, A)
        world.kill(world.nodes[A])
        world.settle()
        assert node.drop(X)
        world.check_idle()


def test_who_stopped_reading_a_pull_is_forgotten_with_it() -> None:
    """C reads from B, which is pulling itself, and stops; it tells only the primary's node of that. Then B gives up."""
    world = world_with(40)
    node = world.nodes[B]
    node.pin(P, 1, X, A, 40)
    step_until(world, lambda: X in node.making)
    node.run(node.core.asked(1, C, 1, X, 0, 16, []))
    node.run(node.core.acknowledged(1, 1, 0, True))
    node.die_process(P)
    world.settle()
    world.check_idle()
    assert not node.core._serving.copies


def test_a_size_that_is_not_the_owners_is_an_error() -> None:
    world = world_with(10)
    world.nodes[B].pin(P, 1, X, A, 12)
    world.settle()
    assert "has 10 bytes of it, and its owner says that there are 12" in world.nodes[B].answers[P, 1]
    world.check_idle()


def test_chunks_that_cannot_be_are_refused() -> None:
    core = Transfers(B, 100, lambda _: False, lambda _: False, CHUNK)
    core.pin(P, 1, X, A, 10)
    [ask] = core.copy_placed(X)
    assert isinstance(ask, t.AskFor)
    core.begins(ask.pull, 10)
    with pytest.raises(ValueError, match="a chunk of 4 bytes at 8 of object"):
        core.chunk_begins(ask.pull, 8, 4)
    assert core.chunk_begins(ask.pull + 1, 0, 4) == b""


def test_at_most_two_are_served_at_a_time() -> None:
    world = world_with(40, count=8)
    for tag in list(world.nodes)[1:]:
        world.nodes[tag].pin(P, 1, X, A, 40)
    chance = random.Random(1)
    while world.steps():
        chance.choice(world.steps())()
        for node in world.nodes.values():
            for source in node.core._serving._sources.values():
                assert sum(not serve.stopped for serve in source.serves) <= t.FANOUT
    assert all(node.store[X].sealed for node in world.nodes.values())
    world.check_idle()


def test_nobody_is_sent_to_a_node_that_it_feeds() -> None:
    copies = Copies()
    nodes = [number.to_bytes(4, "big") for number in range(1, 7)]
    places = [copies.assign(node, [], load, 2) for node, load in zip(nodes, (0, 1, 2, 2, 2, 2), strict=True)]
    assert places[:2] == [b"", b""]
    first, second = nodes[:2]
    fed = [node for node, place in zip(nodes, places, strict=True) if place == first]
    assert len(fed) == places.count(second) == 2
    # It has lost what sent to it; all that are left with room are its own and the other's.
    assert copies.assign(first, [], 2, 2) not in [b"", first, *fed]
    copies.check()


def test_a_copy_that_is_still_passed_on_is_not_dropped_when_it_is_complete() -> None:
    """STORE-PIN: it is held from its seal on."""
    found = 0
    for seed in range(20):
        world = world_with(60)
        for tag in (B, C, D, E):
            world.nodes[tag].pin(P, 1, X, A, 60)
        others = [world.nodes[tag] for tag in (B, C, D, E)]
        chance = random.Random(seed)
        while world.steps():
            for node in others:
                read = any(pull.source == node.tag for other in others for pull in other.core._pulls.values())
                if read and node.has_whole(X) and (P, 1) in node.answers:
                    node.unpin(P, 1)
                    found += not node.drop(X)
            chance.choice(world.steps())()
        world.check_idle()
    assert found


def test_a_pull_that_is_stopped_while_it_queues_is_forgotten() -> None:
    world = world_with(40)
    core = world.nodes[A].core
    run = world.nodes[A].run
    for line, (node, avoid) in enumerate(((B, []), (C, []), (D, [B, C])), 1):
        run(core.asked(line, node, 1, X, 0, 16, avoid))
    assert [len(source.queue) for source in core._serving._sources.values()] == [1]
    run(core.acknowledged(3, 1, 0, True))
    assert [len(source.queue) for source in core._serving._sources.values()] == [0]


def test_a_node_that_asks_again_takes_the_place_of_its_lost_line() -> None:
    """The source may hear of the end of a line much later."""
    world = world_with(40)
    core, run = world.nodes[A].core, world.nodes[A].run
    run(core.asked(1, B, 1, X, 0, 16, []))
    run(core.asked(2, C, 1, X, 0, 16, []))
    run(core.asked(3, B, 2, X, 8, 16, []))
    [source] = core._serving._sources.values()
    assert [(serve.line, serve.stopped) for serve in source.serves] == [(1, True), (2, False), (3, False)]
    run(core.line_ended(1))
    assert [serve.line for serve in source.serves] == [2, 3]


# --- broadcasts -------------------------------------------------------------------------------------------------


def rounds_of_broadcast(count: int, chunks: int) -> float:
    """All nodes want an object at once; in a tick, each node sends one chunk. Returns rounds: ticks per object."""
    size = chunks * CHUNK
    world = World(count + 1, budget=size)
    world.put(A, X, size)
    nodes = list(world.nodes.values())
    for node in nodes[1:]:
        node.pin(P, 1, X, A, size)
    ticks = 0
    while any(X not in node.store or not node.store[X].sealed for node in nodes):
        assert ticks < 100 * chunks
        while steps := control_steps(world):
            for step in steps:
                step()
        sending: dict[bytes, list[Any]] = {}
        for line in world.lines.values():
            if line.to_puller:
                sending.setdefault(line.source.tag, []).append(line)
        for lines in sending.values():
            line = lines[ticks % len(lines)]
            world.to_puller(line)
            world.to_puller(line)
        ticks += 1
    world.settle()
    world.check_idle()
    assert all(node.store[X].bytes == [1] * size for node in nodes)
    return ticks / chunks


def control_steps(world: World) -> list[Callable[[], Any]]:
    """All but chunks: they take no time."""
    steps: list[Callable[[], Any]] = []
    for node in world.nodes.values():
        if node.asked:
            steps.append(node.place)
        missing = {pull.source for pull in node.core._by_number.values()} - node.lines.keys()
        steps += [partial(world.line_again, node, tag) for tag in missing]
    for line in world.lines.values():
        if line.to_source:
            steps.append(partial(world.to_source, line))
        elif line.to_puller and not isinstance(line.to_puller[0], tuple):
            steps.append(partial(world.to_puller, line))
    for (sender, receiver), queue in world.links.items():
        if queue:
            steps.append(partial(world.by_link, sender, receiver))
    return steps


@pytest.mark.parametrize("count", [20, 200])
@pytest.mark.parametrize("chunks", [1, 32])
def test_a_broadcast_takes_about_log_n_rounds(count: int, chunks: int) -> None:
    """With one chunk, as a tree of nodes that send one after another; with many, the tree receives at once."""
    rounds = rounds_of_broadcast(count, chunks)
    limit = 2 * ceil(log2(count + 1)) if chunks == 1 else 2.5 + 2 * ceil(log2(count + 1)) / chunks
    assert rounds <= limit


# --- random worlds --------------------------------------------------------------------------------------------------


class Walk:
    """Random events; whatever happens, every pin is answered rightly."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.world = World(5, budget=self.chance.choice([10, 40, 200]))
        self.sizes = {name: self.chance.randint(1, 30) for name in (X, Y, Z)}
        self.primaries = {}
        for content, name in enumerate(self.sizes, 1):
            self.primaries[name] = self.chance.choice(list(self.world.nodes))
            self.world.put(self.primaries[name], name, self.sizes[name], content)
            self.world.owners[name] = self.chance.choice(list(self.world.nodes))
        self.freed: set[bytes] = set()
        #: Freed before the node with the primary copy died, which may not have told of it.
        self.untold: set[bytes] = set()
        self.requests = 0
        self.deaths = 0

    def run(self, steps: int) -> None:
        for _ in range(steps):
            network = self.world.steps()
            if network and self.chance.random() < 0.8:
                self.chance.choice(network)()
            else:
                self.event()
        while network := self.world.steps():
            self.chance.choice(network)()
        self.world.check_idle()
        self.check_answers()
        self.free_all()

    def node(self) -> Node:
        return self.chance.choice(self.world.living())

    def event(self) -> None:
        kind = self.chance.choice(["pin"] * 8 + ["unpin"] * 2 + ["drop"] * 2 + ["process", "cut", "free", "kill"])
        name, node = self.chance.choice(list(self.sizes)), self.node()
        if kind == "pin" and name not in self.freed and node.tag != self.primaries[name]:
            self.requests += 1
            process = self.chance.choice([P, Q])
            node.pin(process, self.requests, name, self.primaries[name], self.sizes[name], self.chance.randrange(3))
        elif kind == "unpin":
            readers = [reader for region in node.store.values() for reader in sorted(region.readers)]
            if readers:
                node.unpin(*self.chance.choice(readers))
        elif kind == "drop":
            node.drop(name)
        elif kind == "process":
            node.die_process(self.chance.choice([P, Q]))
        elif kind == "cut" and self.world.lines:
            self.world.cut(self.chance.choice(list(self.world.lines.values())))
        elif kind == "free" and name not in self.freed and self.chance.random() < 0.2:
            self.free(name)
        elif kind == "kill" and self.deaths < 2 and self.chance.random() < 0.2:
            self.deaths += 1
            self.untold |= {name for name in self.freed if self.primaries[name] == node.tag}
            self.freed |= {name for name, owner in self.world.owners.items() if owner == node.tag}
            self.world.kill(node)

    def free(self, name: bytes) -> None:
        self.freed.add(name)
        self.world.nodes[self.world.owners[name]].free(name, self.primaries[name])

    def check_answers(self) -> None:
        """Only what was freed, or lost its owner or its primary copy, may be lost."""
        for node in self.world.nodes.values():
            for answer in node.answers.values():
                if answer != "pinned":
                    name = bytes.fromhex(answer.split()[1][:-1])
                    assert name in self.freed or self.world.nodes[self.primaries[name]].dead, answer

    def free_all(self) -> None:
        """REF-FREE: nothing is left anywhere."""
        for node in self.world.living():
            for process in (P, Q):
                node.die_process(process)
        for name in self.primaries:
            if name not in self.freed:
                self.free(name)
        while network := self.world.steps():
            self.chance.choice(network)()
        for node in self.world.living():
            for name in self.untold.intersection(node.store):
                assert node.drop(name), "it keeps room from others"
        while network := self.world.steps():
            self.chance.choice(network)()
        for node in self.world.living():
            assert not node.store
            assert not node.doomed
            assert not node.core._serving.copies, "remembered for ever"
        self.world.check_idle()


@pytest.mark.parametrize("first", range(0, 300, 30))
def test_random_worlds(first: int) -> None:
    for seed in range(first, first + 30):
        Walk(random.Random(seed)).run(150)


@given(strategies.randoms(use_true_random=False))
def test_random_worlds_by_hypothesis(chance: random.Random) -> None:
    Walk(chance).run(60)
