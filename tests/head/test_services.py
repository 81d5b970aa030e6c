"""Jobs, values and relayed messages at a real head, which is killed at every opportunity (DURABLE, HEAD-EPOCH)."""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

import msgspec
import pytest

from moray.protocol import messages as m
from tests.head.world import LEASE_S, FakeNode, running_world

#: Processes are started, killed, and waited for.
pytestmark = pytest.mark.slow


def test_values(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        node = world.node()
        job, driver = node.job()

        def ask(op: str, key: bytes, value: bytes = b"", space: bytes = b"s") -> m.KvAnswer:
            node.say(driver, job, m.KvRequest(7, op, space, key, value))
            return node.expect(m.KvAnswer)

        assert ask("get", b"k").value is None
        assert ask("put", b"k", b"1").count == 1
        assert ask("put", b"k", b"2").count == 0
        assert ask("put_new", b"k", b"3").count == 0
        assert ask("put_new", b"k2", b"").count == 1
        assert ask("put", b"k", b"other", b"t").count == 1
        for _ in range(2):
            assert ask("get", b"k").value == b"2"
            assert ask("get", b"k2").value == b""
            assert ask("get", b"k", space=b"t").value == b"other"
            assert ask("list", b"").keys == [b"k", b"k2"]
            assert ask("list", b"k2").keys == [b"k2"]
            assert ask("exists", b"k").count == 1
            world.kill_head()
        assert ask("delete", b"k").count == 1
        assert ask("delete", b"k").count == 0
        world.kill_head()
        assert ask("exists", b"k").count == 0


def test_numbers_of_jobs_are_never_given_twice(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        numbers = [a.job()[0], b.job()[0]]
        world.kill_head()
        numbers.append(b.job()[0])
        a.link.report(m.JobEnded(numbers[0]))
        a.link.report(m.JobEnded(numbers[1]))
        a.link.report(m.JobEnded(numbers[2]))

        def hears(node: FakeNode) -> bool:
            return len(node.ended) == 3

        for node in (a, b):
            world.until(partial(hears, node), "all nodes hear of all ends")
            assert sorted(node.ended) == sorted(numbers)
        world.kill_head()
        numbers.append(a.job()[0])
        assert len(set(numbers)) == 4


def test_settings_of_jobs_reach_other_nodes(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        job, driver = a.job()
        world.kill_head()
        found: list[m.JobSettings] = []
        b.link.get_job(job, found.append)
        b.link.get_job(job, found.append)
        b.link.get_job(99, found.append)
        world.until(lambda: len(found) == 3, "all are answered")
        config = msgspec.msgpack.decode(found[0].config, type=m.JobConfig)
        assert config.namespace == "space"
        assert found[0].driver == (driver, 4242, "tcp://driver")
        assert found[2].config == b""
        a.link.report(m.JobEnded(job))
        world.until(lambda: b.ended, "it ends")
        b.link.get_job(job, found.append)
        world.until(lambda: len(found) == 4, "it is answered")
        assert found[3].config == b""


def test_a_driver_that_dies_with_its_node_ends_its_job(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        job, _driver = b.job()
        b.die()
        world.until(lambda: a.ended == [job], "the job ends with its driver's node")


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.long), pytest.param(2, marks=pytest.mark.long)])
def test_nothing_is_lost_or_done_twice_while_heads_and_connections_die(seed: int, tmp_path: Path) -> None:
    """Each message counts once: "put_new" of a fresh key answers 1 the first time and 0 ever after, and every request
    has exactly one answer, in order."""
    with running_world(tmp_path) as world:
        node = world.node()
        job, driver = node.job()
        pick = random.Random(seed)
        sent, kills = 0, 0
        while kills < 6:
            for _ in range(pick.randrange(1, 200)):
                sent += 1
                node.say(driver, job, m.KvRequest(sent, "put_new", b"", str(sent).encode(), b"x"))
            for _ in range(pick.randrange(4)):
                world.reactor.turn(0.001)
            if pick.random() < 0.5:
                world.kill_head(wait=pick.random() < 0.5)
                kills += 1
            elif node.link._wire is not None:
                node.link._wire.close("lost")
        world.until(lambda: len(node.inbox) >= sent, "all are answered")
        world.pass_time(0.3)
        answers = [message for _process, message in node.inbox]
        assert [answer.request for answer in answers if isinstance(answer, m.KvAnswer)] == list(range(1, sent + 1))
        assert all(answer.count == 1 for answer in answers if isinstance(answer, m.KvAnswer))
        node.say(driver, job, m.KvRequest(sent + 1, "list", b"", b""))
        assert len(node.expect(m.KvAnswer, lambda answer: answer.request == sent + 1).keys) == sent


def test_what_was_delivered_is_not_kept(tmp_path: Path) -> None:
    import sqlite3

    with running_world(tmp_path) as world:
        node = world.node()
        job, driver = node.job()
        for request in range(50):
            node.say(driver, job, m.KvRequest(request, "get", b"", b"k"))
        world.until(lambda: len(node.inbox) == 50, "all are answered")

        def kept() -> int:
            with sqlite3.connect(tmp_path / "head.db") as database:
                (count,) = database.execute("SELECT count(*) FROM rows WHERE tab = 'outgoing'").fetchone()
            database.close()
            return int(count)

        world.until(lambda: kept() == 0, "the node has said that it has them")
        assert not node.link._kept


def test_a_message_to_a_node_that_is_away_waits_for_it(tmp_path: Path) -> None:
    with running_world(tmp_path, lease_s=LEASE_S * 2) as world:
        a, b = world.node(), world.node()
        job, driver = a.job()
        other = b.process()
        b.link._wire.close("lost")  # type: ignore[union-attr]
        b.link._retry_timer.cancel()  # type: ignore[union-attr]
        a.say(driver, job, m.KvRequest(1, "get", b"", b"k"))
        a.expect(m.KvAnswer)
        # As a service would: the job's end is told to all nodes.
        a.link.report(m.JobEnded(job))
        world.until(lambda: a.ended, "the others hear of it")
        world.kill_head()
        b.link._retry_later("again")
        world.until(lambda: b.ended == [job], "and b when it is back, by the next head")
        assert other


def test_what_cannot_be_read_is_noted_and_passed_over(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        node = world.node()
        job, driver = node.job()
        link = node.link
        link._said += 1
        from moray.protocol.connection import encode_frame

        frame = encode_frame(m.ToHead(link._said, driver, 1, job, b"\xc1 not msgpack"))
        link._kept.append((link._said, frame))
        link._wire.send_frame(frame)  # type: ignore[union-attr]
        node.say(driver, job, m.Shutdown("no request"))
        node.say(driver, job, m.KvRequest(1, "get", b"", b"k"))
        node.expect(m.KvAnswer)
        assert len(world.ready) == 1, "the head lives"
