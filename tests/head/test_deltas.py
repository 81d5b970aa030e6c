"""What a real head tells nodes of each other: all of what is new, and little of what changes all the time."""

from __future__ import annotations

from pathlib import Path

import pytest

from moray.protocol import messages as m
from tests.head.world import ONE_CPU, FakeNode, running_world

pytestmark = pytest.mark.slow


def deltas_of(node: FakeNode) -> list[m.ViewDelta]:
    """What the node is told from now on."""
    told: list[m.ViewDelta] = []
    handlers = node.link._wire_handlers
    handle = handlers[m.ViewDelta]

    def record(delta: m.ViewDelta) -> None:
        told.append(delta)
        handle(delta)

    handlers[m.ViewDelta] = record
    return told


def test_of_a_node_that_only_has_more_or_less_free_nothing_else_is_told(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        world.until(lambda: {a.tag, b.tag} <= a.link.nodes().keys(), "they know each other")
        before = a.link.nodes()[b.tag]
        address, total = before.address, dict(before.resources)
        told = deltas_of(a)
        b.free = dict(ONE_CPU)
        b.link.changed()
        world.until(lambda: a.link.nodes()[b.tag].available == ONE_CPU, "the change is told")
        assert [load.node_id for delta in told for load in delta.loads] == [b.node_id]
        assert not any(delta.changed or delta.dead for delta in told)
        after = a.link.nodes()[b.tag]
        assert (after.address, after.resources) == (address, total)
        known = a.link.view.nodes[b.node_id]
        assert (known.available, known.info) == (ONE_CPU, after)


def test_what_else_changes_is_told_whole(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        world.until(lambda: {a.tag, b.tag} <= a.link.nodes().keys(), "they know each other")
        told = deltas_of(a)
        total = {"CPU": 5 * 10_000}
        b.free = dict(ONE_CPU)
        b.link.set_total(total)
        world.until(lambda: a.link.nodes()[b.tag].resources == total, "the change is told")
        assert [info.node_id for delta in told for info in delta.changed] == [b.node_id]
        c = world.node()
        world.until(lambda: c.tag in a.link.nodes(), "a new node is told")
        assert [info.node_id for delta in told for info in delta.changed] == [b.node_id, c.node_id]
        assert a.link.nodes()[b.tag].available == ONE_CPU
        assert c.link.nodes()[b.tag] == a.link.nodes()[b.tag]
