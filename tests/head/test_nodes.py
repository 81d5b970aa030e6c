"""A real head and nodes over real sockets: joining, leases, deaths, versions, heads that are killed."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from moray.node.head_link import dial_plain
from moray.platform import process_control
from moray.platform.lease_page import LeasePage, boottime_ns
from moray.protocol import messages as m
from tests.head.world import LEASE_S, ONE_CPU, FakeNode, running_world
from tests.support.redis import RedisServer

#: Processes are started, killed, and waited for.
pytestmark = pytest.mark.slow


def knows(node: FakeNode, *others: FakeNode) -> bool:
    return node.link.nodes().keys() == {other.tag for other in others}


def test_nodes_join_and_know_each_other(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        world.until(lambda: knows(a, a, b) and knows(b, a, b), "both know both")
        b.free = dict(ONE_CPU)
        b.link.changed()
        began = time.monotonic()
        world.until(lambda: a.link.nodes()[b.tag].available == ONE_CPU, "changes are told")
        assert time.monotonic() - began < 0.9, "at once, not with the next renewal"
        assert a.link.cluster_id == b.link.cluster_id
        assert a.link.epoch == 1


def test_a_lease_stands_in_the_shared_page_and_is_renewed(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        node = world.node()
        worker = LeasePage.open(str(tmp_path / "node0"))
        first = worker.end_ns
        assert boottime_ns() < first <= boottime_ns() + LEASE_S * 1e9
        world.until(lambda: worker.end_ns > first, "it is renewed")
        assert not worker.expired()
        node.hang()
        world.until(worker.expired, "a lease that nobody renews ends")
        worker.close()


def test_a_silent_node_is_dead_after_its_lease_and_has_stopped_before(tmp_path: Path) -> None:
    """FENCE: when others hear of its death, its own page has said so already."""
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        world.until(lambda: knows(a, a, b), "they know each other")
        b.hang()
        began = time.monotonic()
        world.until(lambda: a.deaths, "its death is told")
        assert time.monotonic() - began > LEASE_S - 1.1
        assert b.page.expired()
        assert a.deaths[0][0] == b.node_id
        assert "nothing was heard of it for 2" in a.deaths[0][1]
        assert knows(a, a)


def test_a_node_whose_process_is_gone_is_dead_at_once(tmp_path: Path) -> None:
    with running_world(tmp_path, lease_s=15.0) as world:
        a, b = world.node(), world.node()
        world.until(lambda: knows(a, a, b), "they know each other")
        began = time.monotonic()
        b.die()
        world.until(lambda: a.deaths, "its death is told")
        assert time.monotonic() - began < 10, "long before its lease has ended"
        assert "refuses" in a.deaths[0][1]


def test_a_lost_connection_is_no_death(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        for _ in range(3):
            b.link._wire.close("lost")  # type: ignore[union-attr]
            world.until(lambda: b.link.welcomed, "it comes back")
        world.pass_time(LEASE_S * 1.3)
        assert not a.deaths
        assert not b.fenced_because


def test_where_a_relay_was_says_nothing_of_the_nodes_behind_it(tmp_path: Path) -> None:
    """Their address is that of the head's node, which may come back with another port before they do."""
    with running_world(tmp_path, lease_s=4.0) as world:
        a, b = world.node(), world.node(relayed=True)
        world.until(lambda: knows(a, a, b), "they know each other")
        began = time.monotonic()
        b.die()
        world.until(lambda: a.deaths, "its death is told")
        assert time.monotonic() - began > 2.9, "after its lease, of which up to a second was over"
        assert "nothing was heard of it" in a.deaths[0][1]


def test_a_node_that_moves_tells_where_it_is(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        world.until(lambda: knows(a, a, b), "they know each other")
        b.link.set_address("127.0.0.1:4242")
        world.until(lambda: a.link.nodes()[b.tag].address == "127.0.0.1:4242", "the others hear of it")
        world.until(lambda: b.link.welcomed, "it is back")
        b.link.set_address("127.0.0.1:4242")
        assert b.link.welcomed, "nothing has changed"
        assert not a.deaths


def test_a_node_that_leaves_says_so(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        world.until(lambda: knows(a, a, b), "they know each other")
        b.link._wire.send(m.NodeLeaves("it was told to"))  # type: ignore[union-attr]
        world.until(lambda: a.deaths, "the others hear of it")
        assert a.deaths == [(b.node_id, "it was told to")]


def test_a_fenced_node_joins_anew(tmp_path: Path) -> None:
    """It was away for longer than its lease, and comes back as if nothing had been."""
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        world.until(lambda: knows(a, a, b), "they know each other")
        b.hang()
        old = b.node_id
        world.until(lambda: a.deaths, "it is declared dead")
        b.link._wire.close("it wakes up")  # type: ignore[union-attr]
        world.until(lambda: b.fenced_because, "it is told that it is nobody")
        assert "declared dead" in b.fenced_because[0]
        assert b.page.expired()
        b.rejoin()
        world.until(lambda: b.link.welcomed, "it is welcome with another id")
        world.until(lambda: knows(a, a, b), "and known")
        assert not b.page.expired()
        assert b.node_id != old


def test_a_second_node_with_a_tag_is_refused(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a = world.node()
        b = world.node(node_id=a.tag + os.urandom(24), join=False)
        world.until(lambda: b.fenced_because, "it is refused")
        assert "tag" in b.fenced_because[0]
        b.rejoin()
        world.until(lambda: knows(a, a, b), "with another id it is welcome")


def test_drained_nodes_are_told_and_seen(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        deadline = time.time() + 100
        a.link.report(m.DrainNode(1, b.node_id, "maintenance", deadline))
        assert b.expect_told(m.DrainNode).reason == "maintenance"
        world.until(lambda: a.link.nodes()[b.tag].drain_deadline == deadline, "the others see it")
        world.kill_head()
        world.until(lambda: b.link.epoch == 2 and b.link.welcomed, "the next head welcomes it")
        world.until(lambda: a.link.nodes()[b.tag].drain_deadline == deadline, "and has not forgotten")


# --- heads that die ---------------------------------------------------------------------------------------------


def test_nodes_survive_their_head(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        for epoch in (2, 3, 4):
            world.kill_head()
            world.until(lambda: a.link.welcomed and b.link.welcomed, "both register again")
            assert a.link.epoch == b.link.epoch == epoch
        assert len({ready.address for ready in world.ready}) == 1, "where the first one listened"
        assert [ready.epoch for ready in world.ready] == [1, 2, 3, 4]
        world.until(lambda: knows(a, a, b) and knows(b, a, b), "both know both")
        assert not a.deaths
        assert not a.page.expired()


def test_a_node_that_dies_with_the_head_is_dead_to_the_next(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        number, _driver = b.job()
        world.until(lambda: knows(a, a, b), "they know each other")
        world.kill_head(wait=False)
        b.die()
        # The next head calls at its address; and may know before the other node is back.
        world.until(lambda: a.deaths, "its death is told")
        assert a.deaths[0][0] == b.node_id
        world.until(lambda: number in a.ended, "its driver's job has ended")


def test_a_node_that_stops_with_the_head_has_its_time(tmp_path: Path) -> None:
    """It may be looking for the new head: it is dead after twice its lease."""
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        world.until(lambda: knows(a, a, b), "they know each other")
        b.hang()
        world.kill_head()
        began = time.monotonic()
        world.until(lambda: a.deaths, "its death is told")
        assert time.monotonic() - began > LEASE_S
        assert "nothing was heard of it" in a.deaths[0][1]


def test_an_old_head_is_left_alone(tmp_path: Path) -> None:
    """HEAD-EPOCH: a node that has seen a later head does not listen to this one, which steps down when it hears."""
    with running_world(tmp_path, storage="memory:") as world:
        node = world.node()
        node.link.epoch = 7
        node.link._wire.close("lost")  # type: ignore[union-attr]
        count = len(world.ready)
        world.until(lambda: len(world.ready) > count, "the head that heard of epoch 7 has ended")
        world.pass_time(0.5)
        assert not node.link.welcomed


def test_a_head_ends_with_its_node(tmp_path: Path) -> None:
    """The node is killed: no head stays behind."""
    program = tmp_path / "node.py"
    program.write_text(
        "import sys\n"
        "from moray.head.config import HeadConfig\n"
        "from moray.node.head_process import HeadProcess\n"
        "from moray.protocol.reactor import Reactor\n"
        "reactor = Reactor()\n"
        "head = HeadProcess(HeadConfig(), sys.argv[1], 'test', reactor, lambda ready: print(ready.pid, flush=True))\n"
        "while True: reactor.turn()\n"
    )
    import subprocess
    import sys

    with subprocess.Popen([sys.executable, str(program), str(tmp_path)], stdout=subprocess.PIPE) as node:
        assert node.stdout is not None
        pidfd = os.pidfd_open(int(node.stdout.readline()))
        node.send_signal(signal.SIGKILL)
        assert process_control.wait_pidfd(pidfd, 10)
        os.close(pidfd)


def test_a_head_that_cannot_start_says_why_and_is_tried_again(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        world.node()
        storage = tmp_path / "head.db"
        # Something else listens at its port for a while.
        address = world.ready[-1].address
        world.kill_head(wait=False)
        port = int(address.rpartition(":")[2])
        deadline = time.monotonic() + 10
        while True:
            try:
                blocker = socket.create_server(("127.0.0.1", port))
                break
            except OSError:
                assert time.monotonic() < deadline
        log = tmp_path / "head.log"
        world.until(lambda: "cannot listen" in log.read_text(encoding="utf-8"), "the log says why")
        blocker.close()
        world.until(lambda: len(world.ready) == 2, "it is tried again")
        assert storage.exists()


def test_strangers_do_not_disturb(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        node = world.node()
        host, _, port = world.ready[-1].address.rpartition(":")
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0" * 100, b"moray1\n\x01" + bytes(12) + b"\xff" * 50):
            with socket.create_connection((host, int(port))) as stranger:
                stranger.sendall(garbage)
                world.pass_time(0.1)
        # A connection on which the first word is no NodeHello.
        closed: list[str] = []
        wire = dial_plain(world.ready[-1].address, world.reactor)(
            lambda _w, _m: None, lambda _w, why: closed.append(why)
        )
        wire.send(m.RenewLease(1, {}))
        world.until(lambda: closed, "it is closed")
        number, _driver = node.job()
        assert number == 1


def test_certificates_are_asked_for(tmp_path: Path) -> None:
    from moray.security import token
    from moray.security.authority import Authority
    from moray.security.identity import Identity
    from moray.security.join import join

    directory = tmp_path / "security"
    directory.mkdir(mode=0o700)
    authority = Authority.create()
    authority.save(directory)
    authority.issue("head").save(directory)
    made = token.make(authority.public_key)
    token.save(made, directory / "token")
    with running_world(tmp_path, security_dir=str(directory)) as world:
        node = world.node()
        number, driver = node.job()
        node.say(driver, number, m.KvRequest(1, "put", b"", b"k", b"v" * 1_000_000))
        assert node.expect(m.KvAnswer).count == 1
        host, _, port = world.ready[-1].address.rpartition(":")
        assert isinstance(join(host, int(port), made, "a new node"), Identity)
        plain = dial_plain(world.ready[-1].address, world.reactor)
        closed: list[str] = []
        wire = plain(lambda _wire, _message: None, lambda _wire, why: closed.append(why))
        wire.send(m.NodeHello(m.PROTOCOL_VERSION, node.info))
        world.until(lambda: closed, "who does not speak TLS is closed")
        world.kill_head()
        world.until(lambda: node.link.welcomed, "the next head is as well guarded")
        other = world.node()
        world.until(lambda: knows(node, node, other), "they know each other")
        other.link.close("it was told to")
        world.until(lambda: node.deaths, "the others hear of it")
        assert node.deaths == [(other.node_id, "it was told to")]


def test_a_head_that_cannot_be_sure_renews_no_lease(tmp_path: Path) -> None:
    """FENCE: its Redis is gone, so another head may have taken over: nobody may rely on this one's word."""
    server = RedisServer(tmp_path)
    try:
        with running_world(tmp_path, storage=server.url) as world:
            node = world.node()
            world.pass_time(LEASE_S * 1.2)
            assert not node.page.expired()
            server.kill()
            world.until(node.page.expired, "its lease ends")
            server.start()
            world.until(lambda: not node.page.expired(), "it is renewed when Redis is back")
            assert len(world.ready) == 1
            number, _driver = node.job()
            world.kill_head()
            assert node.job()[0] == number + 1
            assert node.link.epoch == 2
    finally:
        server.kill()


def test_what_a_node_has_in_all_may_change(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        a, b = world.node(), world.node()
        total = {"CPU": 4 * m.RESOURCE_UNIT, "CPU_group_x": m.RESOURCE_UNIT}
        b.free = dict(total)
        b.link.set_total(total)
        b.link._wire.close("lost")  # type: ignore[union-attr]
        world.until(lambda: a.link.nodes()[b.tag].resources == total, "the others know")
        b.free = dict(ONE_CPU)
        b.link.set_total(ONE_CPU)
        world.until(lambda: a.link.view.nodes[b.node_id].total == ONE_CPU, "and when it has less")


def test_a_head_that_was_replaced_is_not_started_again(tmp_path: Path) -> None:
    """A second head takes over the Redis: the first one ends, and they do not fight for it (HEAD-EPOCH)."""
    server = RedisServer(tmp_path)
    (tmp_path / "second").mkdir()
    try:
        with (
            running_world(tmp_path, storage=server.url) as first,
            running_world(tmp_path / "second", storage=server.url) as second,
        ):
            assert second.ready[0].epoch == 2
            first.until(lambda: first.head.replaced, "the first one says that it was replaced")
            first.until(lambda: not first.head.pid, "it has ended")
            first.pass_time(0.5)
            assert not first.head.pid
            number, _driver = second.node().job()
            assert number == 1
            second.kill_head()
            assert second.ready[-1].epoch == 3, "one that was killed is"
    finally:
        server.kill()
