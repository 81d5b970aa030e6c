"""Words that cross the end of what they are about, and bytes that are no message: the head goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from moray.protocol import messages as m
from moray.protocol.connection import encode_frame
from tests.head.world import LEASE_S, ONE_CPU, detached, running_world
from tests.node.raw_bytes import UNREADABLE

#: Processes are started, killed, and waited for.
pytestmark = pytest.mark.slow


def test_a_detached_actor_is_ready_after_its_job_has_ended(tmp_path: Path) -> None:
    """Its creator is a worker elsewhere, which its node has not ended yet."""
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        job, driver = a.job()
        worker = b.process()
        made = detached(resources=ONE_CPU, name="late", namespace="s", waiting=True)
        b.say(worker, job, m.RegisterActor(1, made))
        b.expect(m.ActorRegistered)
        a.link.report(m.JobEnded(job, driver, "its driver has ended"))
        world.until(lambda: b.ended == [job], "the job's end is told")
        b.say(worker, job, m.PlaceActor(made.actor))
        b.say(worker, job, m.FindActor(2, "late", "s"))
        b.expect(m.ActorRegistered, lambda answer: answer.request == 2)
        assert len(world.ready) == 1, "the head has died of it"


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_a_client_sends_bytes_that_are_no_message(tmp_path: Path, body: bytes) -> None:
    with running_world(tmp_path) as world:
        node = world.node()
        link = node.link
        link._said += 1
        frame = encode_frame(m.ToHead(link._said, node.process(), 4242, 1, body))
        link._kept.append((link._said, frame))
        assert link._wire is not None
        link._wire.send_frame(frame)
        node.say(client := node.process(), 1, m.KvRequest(1, "put", b"", b"key", os.urandom(4)))
        assert node.expect(m.KvAnswer).count == 1
        assert len(world.ready) == 1, "the head has died of it"
        del client


def test_a_node_that_was_released_before_the_heads_restart_does_not_come_back(tmp_path: Path) -> None:
    """The others know it as dead; the next head does not know it at all, and nothing else tells of its past."""
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        b.hang()
        world.until(lambda: [node_id for node_id, _reason in a.deaths] == [b.node_id], "its death is told")
        world.pass_time(LEASE_S)  # So that it is released.
        world.kill_head()
        wire = b.link._wire
        assert wire is not None
        wire.close("as its end would be seen")
        world.until(lambda: b.fenced_because, "it is refused")
        assert "must join with a new id" in b.fenced_because[0]
        assert a.deaths[0][0] == b.node_id
        assert [info.node_id for info in a.link.nodes().values()] == [a.node_id]
