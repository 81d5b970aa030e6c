"""Streams over a connection that is lost: the promises of the tunnel one by one, and a hypothesis machine.

Cited rules: TUNNEL-1 to TUNNEL-4 of the core.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moray.core.tunnel import (
    CREDIT,
    DATA,
    EOF,
    FRAME_COST,
    OPEN,
    RESET,
    Frame,
    Limits,
    TooManyStreamsError,
    Tunnel,
    TunnelError,
)
from tests.support.machines import search, walk_fixed

SMALL = Limits(streams=3, window=8, most_window=32, pool=40, kept_bytes=8 * FRAME_COST, kept_frames=500)


class Wire:
    """One attempt: what is under way, each way. It may be lost with it; what it still delivers may be late."""

    def __init__(self, attempt: int, hello: int) -> None:
        self.attempt = attempt
        self.hello: int | None = hello
        #: Side → what comes to it: ("welcome" | "frame", how many have arrived there, the frame).
        self.coming: tuple[deque[tuple[int, Frame | None]], ...] = (deque(), deque())
        self.lost = False


class Side:
    """One side, as its shell sees it."""

    def __init__(self, number: int, limits: Limits) -> None:
        self.core = Tunnel(number, limits)
        self.number = number
        #: Stream → what arrived and was not taken; in all; whether the end has come: EOF or RESET.
        self.waiting: dict[int, bytearray] = {}
        self.arrived: dict[int, bytearray] = {}
        self.ends: dict[int, int] = {}
        #: Stream → what this side has sent; and how it has ended its direction.
        self.sent: dict[int, bytearray] = {}
        self.ended: dict[int, int] = {}
        self.credited: list[int] = []

    def on_frame(self, attempt: int, frame: Frame) -> None:
        if not self.core.receive(attempt, frame):
            return
        stream = frame.stream
        if frame.kind == OPEN:
            assert stream not in self.arrived, "TUNNEL-1: opened once"
            self.begin(stream)
        elif frame.kind == DATA:
            assert stream not in self.ends
            self.arrived[stream] += frame.data
            self.waiting[stream] += frame.data
        elif frame.kind in (EOF, RESET):
            assert self.ends.get(stream) in (None, EOF), "TUNNEL-1: ended once"
            self.ends[stream] = frame.kind
            if frame.kind == RESET:
                self.ended.setdefault(stream, RESET)
        else:
            self.credited.append(stream)

    def begin(self, stream: int) -> None:
        self.waiting[stream], self.arrived[stream], self.sent[stream] = bytearray(), bytearray(), bytearray()

    def open(self) -> int:
        stream = self.core.open(b"there")
        self.begin(stream)
        return stream

    def send(self, stream: int, count: int) -> int:
        count = min(count, self.core.sendable(stream))
        if count:
            begin = len(self.sent[stream])
            data = bytes((begin + i) % 251 for i in range(count))
            self.sent[stream] += data
            self.core.send(stream, data)
        return count

    def take(self, stream: int, count: int) -> None:
        taken = self.waiting[stream][:count]
        del self.waiting[stream][:count]
        self.core.consumed(stream, len(taken))

    def end(self, stream: int) -> None:
        self.ended.setdefault(stream, EOF)
        self.core.end(stream)

    def reset(self, stream: int) -> None:
        self.ended[stream] = RESET
        self.waiting[stream].clear()
        self.core.reset(stream)


class World:
    """Two sides and what is between them."""

    def __init__(self, limits: Limits = SMALL) -> None:
        self.sides = (Side(0, limits), Side(1, limits))
        self.limits = limits
        self.attempt = 0
        self.wires: list[Wire] = []

    def dial(self) -> Wire:
        core = self.sides[0].core
        core.detach()
        self.attempt += 1
        wire = Wire(self.attempt, core.received)
        self.wires.append(wire)
        return wire

    def hello_arrives(self, wire: Wire) -> None:
        hello, wire.hello = wire.hello, None
        core = self.sides[1].core
        if hello is not None and not wire.lost and core.attach(wire.attempt, hello):
            wire.coming[0].append((core.acknowledgement(), None))

    def put(self, side: int, most: int) -> None:
        """What waits goes to the present connection of a side."""
        core = self.sides[side].core
        for wire in self.wires:
            if wire.attempt == core.attempt and core.attached:
                for _ in range(most):
                    frame = core.take()
                    if frame is None:
                        break
                    if not wire.lost:
                        wire.coming[1 - side].append((core.acknowledgement(), frame))
                return

    def deliver(self, wire: Wire, side: int, most: int) -> None:
        coming, core = wire.coming[side], self.sides[side].core
        for acknowledged, frame in [coming.popleft() for _ in range(min(most, len(coming)))]:
            if frame is None:
                if wire.attempt == self.attempt:
                    assert core.attach(wire.attempt, acknowledged)
            else:
                core.acknowledged(wire.attempt, acknowledged)
                self.sides[side].on_frame(wire.attempt, frame)

    def lose(self, wire: Wire, left: int) -> None:
        """The connection breaks: of what is under way, so much still arrives."""
        wire.lost = True
        for coming in wire.coming:
            kept = list(islice(coming, left))
            coming.clear()
            coming.extend(kept)

    def connect(self) -> Wire:
        wire = self.dial()
        self.hello_arrives(wire)
        self.deliver(wire, 0, 1)
        return wire

    def settle(self, wire: Wire) -> None:
        """Everything arrives that can."""
        while any(side.core.waits() for side in self.sides) or any(wire.coming):
            for side in (0, 1):
                self.put(side, 100)
                self.deliver(wire, 1 - side, 100)

    def check(self) -> None:
        for side in self.sides:
            side.core.validate()
            other = self.sides[1 - side.number]
            buffered = sum(map(len, side.waiting.values()))
            for stream, arrived in side.arrived.items():
                sent = other.sent.get(stream, b"")
                assert sent[: len(arrived)] == arrived, "TUNNEL-1"
                most = self.limits.most_window
                assert len(side.waiting[stream]) <= most, "TUNNEL-3"
                if stream in side.ends and side.ends[stream] == EOF and stream not in side.ended:
                    assert sent == arrived, "TUNNEL-1: all came before the end"
            open_streams = 2 * self.limits.streams
            if not side.ends:  # What waits of streams that have ended is not counted by the credits.
                assert buffered <= open_streams * self.limits.window + self.limits.pool, "TUNNEL-3"


class TunnelMachine(RuleBasedStateMachine):
    """Losses anywhere, attempts that overtake each other, readers that do not read."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()

    side = st.integers(0, 1)
    pick = st.integers(0, 30)

    def stream(self, side: int, pick: int) -> int | None:
        streams = list(self.world.sides[side].arrived)
        return streams[pick % len(streams)] if streams else None

    def wire(self, pick: int) -> Wire:
        wires = self.world.wires
        return wires[-1 - pick % min(3, len(wires))]

    @rule()
    def dials(self) -> None:
        self.world.dial()

    @rule()
    def connects(self) -> None:
        self.world.connect()

    @precondition(lambda self: self.world.wires)
    @rule(pick=pick)
    def hello_arrives(self, pick: int) -> None:
        self.world.hello_arrives(self.wire(pick))

    @rule(side=side, most=st.integers(1, 20))
    def puts(self, side: int, most: int) -> None:
        self.world.put(side, most)

    @precondition(lambda self: self.world.wires)
    @rule(pick=pick, side=side, most=st.integers(1, 20))
    def delivers(self, pick: int, side: int, most: int) -> None:
        self.world.deliver(self.wire(pick), side, most)

    @precondition(lambda self: self.world.wires)
    @rule(pick=pick, left=st.integers(0, 3))
    def loses(self, pick: int, left: int) -> None:
        self.world.lose(self.wire(pick), left)

    @rule(side=side)
    def opens(self, side: int) -> None:
        try:
            self.world.sides[side].open()
        except TooManyStreamsError:
            pass

    @rule(side=side, pick=pick, count=st.integers(1, 40))
    def sends(self, side: int, pick: int, count: int) -> None:
        stream = self.stream(side, pick)
        if stream is not None:
            self.world.sides[side].send(stream, count)

    @rule(side=side, pick=pick, count=st.integers(1, 40))
    def takes(self, side: int, pick: int, count: int) -> None:
        stream = self.stream(side, pick)
        if stream is not None:
            self.world.sides[side].take(stream, count)

    @rule(side=side, pick=pick)
    def ends(self, side: int, pick: int) -> None:
        stream = self.stream(side, pick)
        if stream is not None:
            self.world.sides[side].end(stream)

    @rule(side=side, pick=pick)
    def resets(self, side: int, pick: int) -> None:
        stream = self.stream(side, pick)
        if stream is not None:
            self.world.sides[side].reset(stream)

    @invariant()
    def agrees(self) -> None:
        self.world.check()

    def teardown(self) -> None:
        """With a connection that lasts, everything arrives, also past streams that nobody reads."""
        world = self.world
        wire = world.connect()
        world.settle(wire)
        world.check()
        for side in world.sides:
            other = world.sides[1 - side.number]
            for stream in side.arrived:
                if stream in side.ended or stream in other.ended:
                    continue
                goal = len(side.sent[stream]) + 100
                for _ in range(200):
                    side.send(stream, goal - len(side.sent[stream]))
                    world.settle(wire)
                    other.take(stream, 1000)
                assert len(other.arrived[stream]) == goal, "TUNNEL-4"
        world.check()
        for side in world.sides:
            for stream in list(side.arrived):
                side.end(stream)
        world.settle(wire)
        for side in world.sides:
            other = world.sides[1 - side.number]
            assert set(side.arrived) == set(other.arrived), "TUNNEL-1: what was opened is known there"
            for stream, how in side.ended.items():
                assert stream in other.ends or stream in other.ended, how
                if how == EOF and other.ended[stream] == EOF:
                    assert other.arrived[stream] == side.sent[stream], "TUNNEL-1"
            assert side.core.open(b"again") > 0 or side.number == 0


def test_random_walks() -> None:
    search(TunnelMachine)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(TunnelMachine, 150, steps=40)


# --- one by one ---------------------------------------------------------------------------------------


def test_a_lost_connection_loses_nothing() -> None:
    world = World()
    wire = world.connect()
    stream = world.sides[0].open()
    world.sides[0].send(stream, 5)
    world.put(0, 10)
    world.deliver(wire, 1, 1)
    world.lose(wire, 0)
    wire = world.connect()
    world.settle(wire)
    assert world.sides[1].arrived[stream] == world.sides[0].sent[stream]
    assert len(world.sides[1].arrived[stream]) == 5


def test_an_older_attempt_is_refused() -> None:
    """TUNNEL-2: it was under way for longer than a later one."""
    world = World()
    late = world.dial()
    world.connect()
    assert late.hello is not None
    assert not world.sides[1].core.attach(late.attempt, late.hello)
    assert world.sides[1].core.attempt == 2


def test_what_an_older_attempt_brings_is_not_heard() -> None:
    world = World()
    old = world.connect()
    stream = world.sides[0].open()
    world.put(0, 1)
    new = world.connect()
    world.settle(new)
    world.sides[0].send(stream, 3)
    world.put(0, 1)
    frame = new.coming[1][0][1]
    assert frame is not None
    assert not world.sides[1].core.receive(old.attempt, frame)
    assert world.sides[1].core.receive(new.attempt, frame)


def test_nobody_sends_more_than_was_granted() -> None:
    world = World()
    wire = world.connect()
    stream = world.sides[0].open()
    assert world.sides[0].send(stream, 100) == SMALL.window
    assert world.sides[0].core.sendable(stream) == 0
    world.settle(wire)
    assert world.sides[0].core.sendable(stream) == 0, "arrived is not taken"
    world.sides[1].take(stream, SMALL.window)
    world.settle(wire)
    assert world.sides[0].credited == [stream]
    assert world.sides[0].core.sendable(stream) == 2 * SMALL.window, "it was read quickly: the window has grown"


def test_what_waits_is_not_granted_again() -> None:
    """TUNNEL-3: of a window, half was taken, so half may be sent."""
    world = World(SMALL._replace(most_window=8))
    wire = world.connect()
    stream = world.sides[0].open()
    world.sides[0].send(stream, 8)
    world.settle(wire)
    world.sides[1].take(stream, 4)
    world.settle(wire)
    assert world.sides[0].core.sendable(stream) == 4


def test_a_repeated_frame_has_no_effect() -> None:
    tunnel = Tunnel(1, SMALL)
    tunnel.attach(1, 0)
    assert tunnel.receive(1, Frame(1, OPEN, 0))
    assert tunnel.receive(1, Frame(2, DATA, 0, bytes(5)))
    assert not tunnel.receive(1, Frame(2, DATA, 0, bytes(5)))
    assert not tunnel.receive(1, Frame(1, OPEN, 0))
    assert tunnel.received == 2


def test_more_than_was_granted_is_a_fault() -> None:
    tunnel = Tunnel(1, SMALL)
    tunnel.attach(1, 0)
    tunnel.receive(1, Frame(1, OPEN, 0))
    tunnel.receive(1, Frame(2, DATA, 0, bytes(8)))
    with pytest.raises(TunnelError, match="9 bytes came on stream 0, and 8 were granted"):
        tunnel.receive(1, Frame(3, DATA, 0, bytes(1)))


def test_a_stream_that_nobody_reads_holds_up_no_other() -> None:
    """TUNNEL-4"""
    world = World()
    wire = world.connect()
    slow = [world.sides[0].open() for _ in range(2)]
    quick = world.sides[0].open()
    for stream in slow:
        world.sides[0].send(stream, 100)
    for _ in range(50):
        assert world.sides[0].send(quick, 100) > 0
        world.settle(wire)
        world.sides[1].take(quick, 1000)
        world.settle(wire)
    assert len(world.sides[1].arrived[quick]) > 50 * SMALL.window


def test_the_pool_is_limited_and_given_back() -> None:
    limits = SMALL._replace(pool=10)
    world = World(limits)
    wire = world.connect()
    first, second = world.sides[0].open(), world.sides[0].open()
    for stream in (first, second):
        for _ in range(20):
            world.sides[0].send(stream, 100)
            world.settle(wire)
            world.sides[1].take(stream, 1000)
            world.settle(wire)
    assert world.sides[0].core.sendable(first) == limits.window + 10
    assert world.sides[0].core.sendable(second) == limits.window
    for side in world.sides:
        side.end(first)
    world.settle(wire)
    for _ in range(20):
        world.sides[0].send(second, 100)
        world.settle(wire)
        world.sides[1].take(second, 1000)
        world.settle(wire)
    assert world.sides[0].core.sendable(second) == limits.window + 10


def test_what_waits_of_a_stream_that_has_ended_keeps_its_room() -> None:
    """TUNNEL-3: or endless streams, each ended and not read, would fill the memory."""
    limits = SMALL._replace(pool=10)
    world = World(limits)
    wire = world.connect()

    def grow(stream: int) -> int:
        for _ in range(20):
            world.sides[0].send(stream, 100)
            world.settle(wire)
            world.sides[1].take(stream, 1000)
            world.settle(wire)
        return world.sides[0].core.sendable(stream)

    first = world.sides[0].open()
    assert grow(first) == limits.window + 10
    world.sides[0].send(first, 100)
    for side in world.sides:
        side.end(first)
    world.settle(wire)
    second = world.sides[0].open()
    world.settle(wire)
    assert grow(second) == limits.window
    world.sides[1].take(first, 1000)
    assert grow(second) == limits.window + 10


def test_what_is_kept_is_limited() -> None:
    """Without a word of the other side no more is sent; its word, not its readers, makes room."""
    tunnel = Tunnel(0, SMALL._replace(window=10_000))
    stream = tunnel.open(b"")
    sent = 0
    while count := tunnel.sendable(stream):
        tunnel.send(stream, bytes(count))
        sent += count
    assert 0 < sent <= SMALL.kept_bytes
    assert tunnel.attach(1, 0)
    assert tunnel.sendable(stream) == 0
    frames = [frame for _ in range(100) if (frame := tunnel.take()) is not None]
    tunnel.acknowledged(1, frames[-1].number)
    assert tunnel.sendable(stream) > 0


def test_a_reset_is_answered_and_both_forget() -> None:
    world = World()
    wire = world.connect()
    for side in world.sides:
        stream = side.open()
        world.settle(wire)
        other = world.sides[1 - side.number]
        other.send(stream, 4)
        side.reset(stream)
        world.settle(wire)
        assert other.ends[stream] == RESET
        assert not side.arrived[stream], "it takes nothing any more"
        for _ in range(3 * SMALL.streams):
            stream = side.open()
            side.reset(stream)
            world.settle(wire)


def test_too_many_streams() -> None:
    tunnel = Tunnel(0, SMALL)
    for _ in range(SMALL.streams):
        tunnel.open(b"")
    with pytest.raises(TooManyStreamsError, match="3 streams"):
        tunnel.open(b"")
    other = Tunnel(1, SMALL)
    other.attach(1, 0)
    for number in range(SMALL.streams):
        other.receive(1, Frame(number + 1, OPEN, 2 * number))
    with pytest.raises(TunnelError, match="more than 3 streams"):
        other.receive(1, Frame(SMALL.streams + 1, OPEN, 2 * SMALL.streams))


@pytest.mark.parametrize(
    ("frames", "match"),
    [
        ([Frame(2, OPEN, 0)], "frame 2 came after frame 0"),
        ([Frame(1, OPEN, 1)], "stream 1 was opened"),
        ([Frame(1, DATA, 0, b"x")], "was not opened"),
        ([Frame(1, DATA, 1, b"x")], "was not opened"),
        ([Frame(1, OPEN, 0), Frame(2, EOF, 0), Frame(3, DATA, 0, b"x")], "after its end"),
        ([Frame(1, OPEN, 0), Frame(2, EOF, 0), Frame(3, EOF, 0)], "ended twice"),
        ([Frame(1, OPEN, 0), Frame(2, DATA, 0)], "no bytes"),
        ([Frame(1, OPEN, 0), Frame(2, OPEN, 0)], "2 is the next"),
        ([Frame(1, OPEN, 0), Frame(2, CREDIT, 0)], "a credit of 0"),
        ([Frame(1, OPEN, 0), Frame(2, 9, 0)], "kind 9"),
        ([Frame(1, OPEN, 0), Frame(2, RESET, 0), Frame(3, EOF, 0)], "after its end"),
    ],
)
def test_faults_of_the_other_side(frames: list[Frame], match: str) -> None:
    tunnel = Tunnel(1, SMALL)
    tunnel.attach(1, 0)
    with pytest.raises(TunnelError, match=match):
        for frame in frames:
            tunnel.receive(1, frame)


def test_impossible_counts() -> None:
    tunnel = Tunnel(0, SMALL)
    tunnel.open(b"")
    with pytest.raises(TunnelError, match="2 frames arrived, of 1"):
        tunnel.attach(1, 2)
    tunnel.attach(1, 1)
    with pytest.raises(TunnelError, match="0 frames arrived, of 1 that were sent, of which 1"):
        tunnel.attach(2, 0)
    with pytest.raises(TunnelError, match="acknowledges frame 7"):
        tunnel.acknowledged(1, 7)


def test_who_acknowledges_nothing_cannot_make_the_other_keep_much() -> None:
    tunnel = Tunnel(1, SMALL)
    tunnel.attach(1, 0)
    number = 0
    with pytest.raises(TunnelError, match="has not acknowledged"):
        for stream in range(0, 4 * SMALL.kept_frames, 2):
            for kind in (OPEN, RESET):
                number += 1
                tunnel.receive(1, Frame(number, kind, stream))


def test_only_what_was_sent_can_be_acknowledged() -> None:
    """Else what waits for somebody who takes nothing would not count as kept, and have no limit."""
    tunnel = Tunnel(0, SMALL)
    stream = tunnel.open(b"")
    tunnel.attach(1, 0)
    tunnel.send(stream, bytes(5))
    assert tunnel.take() is not None
    tunnel.acknowledged(1, 1)
    with pytest.raises(TunnelError, match="acknowledges frame 2, of 1 that were sent"):
        tunnel.acknowledged(1, 2)


def test_an_acknowledgement_is_due_by_bytes_or_frames() -> None:
    tunnel = Tunnel(1, Limits(window=1 << 20))
    tunnel.attach(1, 0)
    tunnel.receive(1, Frame(1, OPEN, 0))
    assert not tunnel.ack_due()
    tunnel.receive(1, Frame(2, DATA, 0, bytes(1 << 18)))
    assert tunnel.ack_due()
    assert tunnel.acknowledgement() == 2
    for number in range(3, 3 + 32):
        assert not tunnel.ack_due()
        tunnel.consumed(0, 1)
        tunnel.receive(1, Frame(number, CREDIT, 0, amount=1))
    assert tunnel.ack_due()
