"""A table of actors that is restored from its records is the table that was stored, after any history (DURABLE)."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from moray.core.actor_actions import ActorAction, Place, Registration, Site, Stop
from moray.core.actor_records import ActorRecord, EarlyRecord, RecordedActorTable
from moray.core.actor_tombstones import Tombstone

ACTORS = [bytes([n]) * 16 for n in range(6)]
PROCESSES = [bytes([tag]) * 4 + bytes([n]) * 8 for tag in range(3) for n in range(3)]
CREATORS = PROCESSES[:4]


class Store:
    """Does with the records what the head's storage does: only what is said to have changed is written."""

    def __init__(self) -> None:
        self.living: dict[bytes, bytes] = {}
        self.dead: dict[bytes, tuple[int, bytes]] = {}
        self.early = msgspec.msgpack.encode(EarlyRecord())
        self.deaths = 0

    def update(self, table: RecordedActorTable) -> None:
        for actor in table.take_changed():
            made, record, stone = table.registration(actor), table.record(actor), table.tombstone(actor)
            self.living.pop(actor, None)
            self.dead.pop(actor, None)
            if made is not None:
                self.living[actor] = msgspec.msgpack.encode((made, record))
            if stone is not None:
                self.deaths += 1
                self.dead[actor] = self.deaths, msgspec.msgpack.encode(stone)
        self.early = msgspec.msgpack.encode(table.early())

    def restore(self) -> RecordedActorTable:
        table = RecordedActorTable()
        living = [msgspec.msgpack.decode(row, type=tuple[Registration, ActorRecord]) for row in self.living.values()]
        dead = [msgspec.msgpack.decode(row, type=Tombstone) for _order, row in sorted(self.dead.values())]
        table.restore(living, dead, msgspec.msgpack.decode(self.early, type=EarlyRecord))
        return table


def everything(table: RecordedActorTable) -> dict[str, Any]:
    """All that the table knows, as plain values; warnings that were given may be given again."""
    return {
        "living": {name: (table.registration(name), table.record(name)) for name in table._actors},
        "dead": {name: table.tombstone(name) for name in table._dead._stones},
        "early": table.early(),
        "names": {key: actor.made.actor for key, actor in table._names.items()},
        "processes": {process: actor.made.actor for process, actor in table._by_process.items()},
        "watched": {process: set(names) for process, names in table._watched_by.items()},
    }


class World:
    """Random events, as far as they make sense."""

    def __init__(self, seed: int) -> None:
        self.pick = random.Random(seed)
        self.table = RecordedActorTable()
        self.fresh = 0
        self.steps = 0
        self.wanted: list[Place] = []

    def step(self) -> None:
        pick, table = self.pick, self.table
        process, creator = pick.choice(PROCESSES), pick.choice(CREATORS)
        # Others by and by: the dead are never made again.
        self.steps += 1
        actor = (self.steps // 12 + pick.randrange(6)).to_bytes(16, "big")
        record = table.record(actor)
        at = record.site.process if record is not None else process
        incarnation = record.incarnation if record is not None else 0
        match pick.randrange(13):
            case 0 | 1:
                made = Registration(
                    actor,
                    creator,
                    1,
                    pick.randrange(2),
                    "A",
                    name=pick.choice(["", "", "x", "y"]),
                    detached=pick.random() < 0.3,
                    max_restarts=pick.choice([0, 1, -1]),
                    waiting=pick.random() < 0.3,
                    creation=b"c",
                )
                actions = table.register(made, pick.randrange(2))
            case 2:
                actions = table.ready(creator, actor)
            case 3:
                actions = table.release(creator, actor)
            case 4 | 5 | 6 if self.wanted:
                place = self.wanted.pop(pick.randrange(len(self.wanted)))
                self.fresh += 1
                site = Site(process[:4] + self.fresh.to_bytes(8, "big"), 5, "there", 1)
                actions = table.granted(place.actor, place.incarnation, site)
            case 7 | 8:
                actions = table.started(at, actor, incarnation, pick.choice([b"", b"", b"error"]))
            case 9:
                actions = table.worker_died(at, "it died", "")
                actions += table.process_died(at)
            case 10:
                actions = table.watch(process, actor, creator, creator_lives=pick.random() < 0.7)
            case 11:
                actions = self.rare(actor, at, incarnation)
            case _ if pick.random() < 0.5:
                actions = table.process_died(process)
            case _:
                actions = table.job_ended(pick.randrange(2))
        self.wanted += [action for action in actions if isinstance(action, Place)]
        assert not any(isinstance(action, Stop) and not action.process for action in actions)

    def rare(self, actor: bytes, at: bytes, incarnation: int) -> list[ActorAction]:
        match self.pick.randrange(8):
            case 5:
                self.table.drained(at, "its node leaves")
                return []
            case 6 if any(made.actor == actor for made in self.table.movable(at[:4])):
                return self.table.move(actor, "its node leaves", 1.0)
            case 7:
                return self.table.moved(at, actor, incarnation, {at: [self.pick.randrange(9)]})
            case 0:
                return self.table.kill(actor, self.pick.random() < 0.5)
            case 1:
                return self.table.exiting(at, actor, incarnation, "enough")
            case 2:
                return self.table.refused(actor, incarnation, "no room", self.pick.random() < 0.5)
            case 3:
                return self.table.end(actor, "it must")
            case _:
                return self.table.group_removed("0" * 36, "gone")


@pytest.mark.parametrize("seed", range(30))
def test_what_is_restored_is_what_was_stored(seed: int) -> None:
    world, store = World(seed), Store()
    for step in range(300):
        world.step()
        store.update(world.table)
        again = store.restore()
        again.validate()
        assert everything(again) == everything(world.table), f"seed {seed}, step {step}"
        if world.pick.random() < 0.05:
            # The head is killed; its successor goes on.
            world.table = again


def test_only_what_has_changed_is_named() -> None:
    table = RecordedActorTable()
    for actor in ACTORS:
        table.register(Registration(actor, CREATORS[0], 1, 1, "A"), 0)
    assert table.take_changed() == set(ACTORS)
    table.kill(ACTORS[2], no_restart=True)
    assert table.take_changed() == {ACTORS[2]}
    assert table.take_changed() == set()


def test_the_processes_of_a_node() -> None:
    table = RecordedActorTable()
    creator, watcher, home = PROCESSES[0], PROCESSES[1], PROCESSES[4]
    table.register(Registration(ACTORS[0], creator, 1, 1, "A"), 0)
    table.granted(ACTORS[0], 0, Site(home, 5, "there", 1))
    table.watch(watcher, ACTORS[0], creator, creator_lives=True)
    table.watch(PROCESSES[2], ACTORS[1], PROCESSES[5], creator_lives=True)
    assert table.processes_of(creator[:4]) == {creator, watcher, PROCESSES[2]}
    assert table.processes_of(home[:4]) == {home, PROCESSES[5]}
    assert table.placed_on(home[:4]) == {ACTORS[0]: (0, home)}
