"""Placement groups of a cluster: reserved on nodes in two steps, known to the next head."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from moray.config import WARN_AFTER_S
from moray.protocol import messages as m
from tests.head.world import ONE_CPU, FakeNode, World, running_world

#: Processes are started, killed, and waited for.
pytestmark = pytest.mark.slow


def create(node: FakeNode, driver: bytes, job: int, bundles: list[dict[str, int]], **changes: Any) -> bytes:
    group = os.urandom(14) + job.to_bytes(4, "big")
    fields = {"strategy": "STRICT_SPREAD"} | changes
    node.say(driver, job, m.CreateGroup(1, group, bundles, **fields))
    return group


def step(node: FakeNode, name: str) -> m.ReserveBundles:
    return node.expect_told(m.ReserveBundles, lambda told: told.step == name)


def answer(node: FakeNode, asked: m.ReserveBundles, reason: str = "") -> None:
    committed = not reason and (asked.alone or asked.step == "commit")
    node.link.report(m.BundlesReserved(asked.request, asked.group, reason, committed))


def state(node: FakeNode, group: bytes, name: str) -> m.GroupState:
    return node.expect(m.GroupState, lambda told: (told.group, told.state) == (group, name))


def reserve(world: World, nodes: list[FakeNode], *, kill: bool = False) -> None:
    """Both steps, with the head killed after each word."""
    alone = len(nodes) == 1
    for name in ("prepare",) if alone else ("prepare", "commit"):
        for node in nodes:
            asked = step(node, name)
            assert asked.alone == alone
            answer(node, asked)
            if kill and name == "commit":
                world.pass_time(0.2)
                world.kill_head()


def test_a_group_is_reserved_on_two_nodes(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        job, driver = a.job()
        group = create(a, driver, job, [ONE_CPU, ONE_CPU])
        reserve(world, [a, b], kill=True)
        made = state(a, group, "created")
        assert set(made.nodes) == {a.node_id, b.node_id}
        world.kill_head()
        watcher = b.process()
        b.say(watcher, job, m.WatchGroup(3, group))
        assert state(b, group, "created").nodes == made.nodes
        a.say(driver, job, m.RemoveGroup(2, group))
        for node in (a, b):
            assert step(node, "remove").group == group
        state(b, group, "removed")
        world.kill_head()
        b.say(watcher, job, m.WatchGroup(4, group))
        assert "was removed" in state(b, group, "removed").reason


def test_an_attempt_that_was_under_way_is_given_back_and_begins_anew(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        job, driver = a.job()
        group = create(a, driver, job, [ONE_CPU, ONE_CPU])
        first = step(a, "prepare")
        step(b, "prepare")
        world.kill_head()
        began = time.monotonic()
        for node in (a, b):
            assert step(node, "return").request == first.request
        answer(a, first)
        reserve(world, [a, b])
        state(a, group, "created")
        assert time.monotonic() - began < WARN_AFTER_S, "nobody had to say anything for it to begin"


def test_bundles_of_a_dead_node_are_placed_anew(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b, c = world.node(resources={}), world.node(), world.node()
        job, driver = a.job()
        group = create(a, driver, job, [ONE_CPU], strategy="PACK", name="g", namespace="s")

        def asked() -> FakeNode | None:
            return next((node for node in (b, c) if any(isinstance(t, m.ReserveBundles) for t in node.told)), None)

        first = world.until(asked, "a node is asked")
        assert first is not None
        other = c if first is b else b
        reserve(world, [first])
        assert state(a, group, "created").nodes == [first.node_id]
        first.told.clear()
        first.die()
        state(a, group, "rescheduling")
        reserve(world, [other])
        assert state(a, group, "created").nodes == [other.node_id]
        a.link.report(m.JobEnded(job, driver))
        assert step(other, "remove").group == group


def test_a_group_that_fits_nowhere_says_why_and_waits_for_nodes(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a = world.node()
        job, driver = a.job()
        group = create(a, driver, job, [ONE_CPU, ONE_CPU])
        assert "need a node each" in state(a, group, "infeasible").reason
        world.kill_head()
        b = world.node()
        reserve(world, [a, b])
        state(a, group, "created")
