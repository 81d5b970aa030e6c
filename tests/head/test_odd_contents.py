"""A member may say anything that its protocol can express: the head lives, and so does what it has stored.

Messages of every kind that the head hears, well formed and with odd contents (ids of wrong lengths, numbers that are
negative or do not fit, names that look like others'), in random order, to a real head over real sockets. After each
sequence a next head starts from what was stored, and serves a member that does nothing wrong.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterable
from typing import Any, Final

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from msgspec import inspect

from moray.head.config import HeadConfig
from moray.head.head import Head
from moray.head.storage import MemoryDatabase, MemoryStorage
from moray.protocol import messages as m
from moray.protocol.connection import Connection, body_of, decode_body
from moray.protocol.reactor import Reactor
from tests.support.procs import wait_until

NODES: Final = [b"one!" + bytes(24), b"two!" + bytes(24)]
GOOD_NODE: Final = b"good" + bytes(24)
PROCESSES: Final = [node[:4] + bytes([number]) * 8 for node in NODES for number in (1, 2)]
ACTORS: Final = [bytes([number]) * 12 + bytes(3) + b"\1" for number in range(1, 7)]
GROUPS: Final = [bytes([number]) * 14 + bytes(3) + b"\1" for number in (1, 2)]
CONFIG: Final = m.JobConfig([], "/", {}, "python", "space", "a test")
#: What a creation must be to be one.
CREATION: Final = msgspec.msgpack.encode(m.Creation("Counter", b"class", b"arguments"))

_ODD_BYTES: Final = st.sampled_from([b"", b"x", b"\xff" * 12, b"\0" * 16, b"long" * 30])
_BYTES: Final = st.one_of(
    *(st.sampled_from(each) for each in (NODES, PROCESSES, ACTORS, GROUPS)),
    _ODD_BYTES,
    st.sampled_from([CREATION, msgspec.msgpack.encode(CONFIG)]),
)
_INTS: Final = st.sampled_from([0, 1, 1, 2, 3, 7, 10_000, -1, -5, 2**31, 2**32, 2**53, 2**63 - 1, -(2**63), 2**64 - 1])
_FLOATS: Final = st.sampled_from([0.0, 1.0, 1e9, 4e9, -1.0, 1e308, math.inf, -math.inf, math.nan])
_IN_GROUP: Final = ["bundle_group_" + GROUPS[0].hex(), "CPU_group_1_" + GROUPS[1].hex(), "CPU_group_0_" + "z" * 36]
_TEXTS: Final = st.sampled_from(
    [
        *("CPU", "GPU", "node:1", "", "x" * 3000, "\0", *_IN_GROUP, "name", "PACK", "SPREAD", "STRICT_SPREAD"),
        *(
            "get",
            "put",
            "delete",
            "list",
            "prepare",
            "in(",
            "!in()",
            "DEFAULT",
            "NODE",
            "LABELS",
            "in",
            "!in",
            "exists",
        ),
        *("127.0.0.1:1", "nowhere", "host:port", "127.0.0.1:99999", "[::1]:1", ":-3"),
    ]
)
#: Stands for an address where somebody listens: who is called there is not dead.
_HERE: Final = "here"
_AMOUNTS: Final[list[Any]] = [{}, {"CPU": 10_000}, {"CPU": 10_000, "GPU": 1}, *({name: 1} for name in _IN_GROUP)]
#: What a field of this name usually has, so that odd ones come far.
_USUAL: Final[dict[str, list[Any]]] = {
    "process": PROCESSES,
    "creator": PROCESSES,
    "actor": ACTORS,
    "group": GROUPS,
    "node_id": NODES,
    "target_node": [b"", *NODES],
    "node": [b"", *NODES],
    "address": [_HERE],
    "creation": [CREATION],
    "config": [msgspec.msgpack.encode(CONFIG)],
    "job": [1, 2, 0],
    "incarnation": [0, 1],
    "waiting": [False],
    "get_if_exists": [False],
    "version": [m.PROTOCOL_VERSION],
    "resources": _AMOUNTS,
    "placement": _AMOUNTS,
    "available": _AMOUNTS,
    "bundles": [[{"CPU": 10_000}], [{"CPU": 10_000}] * 3],
    "selectors": [[]],
    "devices": [{}],
    "labels": [{}],
    "demand": [[]],
    "strategy": [None, "PACK", "SPREAD"],
    "name": ["", "name0"],
    "namespace": [""],
    "detached": [False, True],
    "max_restarts": [0, -1, 3],
    "deadline": [4e9],
    "lease_s": [0.0],
    "drain_deadline": [0.0],
    "request": [1, 2, 3],
    "reason": [""],
    "view": [0, 1],
    "relayed": [0],
    "heard": [0, 1],
    "epoch": [0],
    "driver": [False],
    "head": [False],
    "committed": [True, False],
}


def _of_type(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Values of a type as msgspec describes it."""
    match kind:
        case inspect.IntType():
            return _INTS
        case inspect.FloatType():
            return _FLOATS
        case inspect.BoolType():
            return st.booleans()
        case inspect.StrType():
            return _TEXTS
        case inspect.BytesType():
            return _BYTES
        case inspect.NoneType():
            return st.none()
        case inspect.ListType() | inspect.VarTupleType():
            values = st.lists(_of_type(kind.item_type), max_size=3)
            return values if isinstance(kind, inspect.ListType) else values.map(tuple)
        case inspect.TupleType():
            return st.tuples(*map(_of_type, kind.item_types))
        case inspect.DictType():
            return st.dictionaries(_of_type(kind.key_type), _of_type(kind.value_type), max_size=3)
        case inspect.UnionType():
            return st.one_of(*map(_of_type, kind.types))
        case inspect.StructType():
            return _struct(kind.cls)
        case _:
            return st.sampled_from([0, "x", b"y", None])


def _struct(cls: type[Any]) -> st.SearchStrategy[Any]:
    info = inspect.type_info(cls)
    assert isinstance(info, inspect.StructType)
    return st.builds(cls, **{field.encode_name: _field(field) for field in info.fields})


def _field(field: inspect.Field) -> st.SearchStrategy[Any]:
    odd = _of_type(field.type)
    values = [value for value in _USUAL.get(field.encode_name, []) if _fits(value, field.type)]
    if not values:
        return odd
    usual = st.sampled_from(values)
    # A head must believe that there is a newer one, and end.
    return usual if field.encode_name == "epoch" else st.one_of(usual, usual, usual, odd)


def _fits(value: Any, kind: inspect.Type) -> bool:
    """Whether this is a value of the type: some fields of equal names are different things."""
    if isinstance(kind, inspect.UnionType):
        return any(_fits(value, each) for each in kind.types)
    return {str: inspect.StrType, type(None): inspect.NoneType}.get(type(value), type(kind)) is type(kind)


class World:
    """A head with members, in one thread."""

    def __init__(self, database: MemoryDatabase) -> None:
        self.ends: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.head = Head(HeadConfig(), MemoryStorage(database), self.ends.append)
        self.head.start()
        self.members = {node_id: Member(self, node_id) for node_id in NODES}

    def turn(self, timeout_s: float = 0.0) -> None:
        """Until nothing happens any more, but for timers."""
        quiet = 0
        while quiet < 3:
            with self.head.reactor.lead:
                busy = self.head.reactor.turn(timeout_s)
            quiet = 0 if busy or self.head.commits._writing is not None else quiet + 1

    def close(self) -> None:
        if not self.head.commits.failed:
            self.turn(0.002)  # Calls at nodes' addresses come to their ends.
        for member in self.members.values():
            member.close()
        self._listener.close()
        if not self.head.commits.failed:
            self.head.commits.close()
        self.head.reactor.close()


class Member:
    """A node of which nothing is real but its socket."""

    def __init__(self, world: World, node_id: bytes) -> None:
        self.world = world
        self.node_id = node_id
        self.reactor = Reactor()
        self.heard: list[Any] = []
        self.said = 0
        self.workers = 0
        self._obeyed = 0
        self.wire: Connection | None = None
        self.ends: list[Connection] = []

    def connect(self) -> None:
        here, there = socket.socketpair()
        head = self.world.head
        self.ends.append(Connection(there, head.reactor, head.on_message, head.on_close))
        self.wire = Connection(here, self.reactor, lambda _wire, message: self.heard.append(message), self._on_close)
        self.ends.append(self.wire)

    def hello(self) -> None:
        info = m.NodeInfo(self.node_id, self.world.address, {"CPU": 40_000}, {"CPU": 40_000})
        self.send(m.NodeHello(m.PROTOCOL_VERSION, info))

    def say(self, process: bytes, pid: int, job: int, message: m.Message) -> None:
        self.said += 1
        self.send(m.ToHead(self.said, process, pid, job, body_of(message)))

    def send(self, message: m.Message) -> None:
        """And have all that follows from it."""
        if self.wire is None:
            self.connect()
        assert self.wire is not None
        self.wire.send(message)
        self.listen()

    def listen(self) -> None:
        """Have what the head has to do, and hear what it says."""
        self.world.turn()
        with self.reactor.lead:
            while self.reactor.turn(0):
                pass

    def hears(self, message: m.Message) -> bool:
        """Whether this is what the head has said last."""
        self.listen()
        return bool(self.heard[-1] == message)

    def answers(self, kind: type[m.Message]) -> list[Any]:
        """What its clients and itself were told, of one type."""
        bodies = [decode_body(message.body) for message in self.heard if isinstance(message, m.FromHead)]
        return [body for body in bodies if isinstance(body, kind)]

    def obey(self) -> None:
        """Do what it was told, so that words meet things that have happened."""
        told = [decode_body(each.body) for each in self.heard[self._obeyed :] if isinstance(each, m.FromHead)]
        self._obeyed = len(self.heard)
        for message in told:
            if self.wire is None:
                return
            match message:
                case m.ReserveBundles(step="prepare" | "commit"):
                    committed = message.alone or message.step == "commit"
                    self.say(b"", 0, 0, m.BundlesReserved(message.request, message.group, "", committed))
                case m.PlaceWorker(count=1):
                    self.workers += 1
                    worker = self.node_id[:4] + self.workers.to_bytes(8, "big")
                    placed = m.WorkerPlaced(message.actor, message.incarnation, worker, 1, "tcp://x/", message.job)
                    self.say(b"", 0, 0, placed)
                    self.say(worker, 1, message.job, m.ActorStarted(message.actor, message.incarnation))
                case m.StopProcess():
                    self.say(b"", 0, 0, m.ProcessDied(message.process, 1, 0, "told to"))

    def _on_close(self, wire: Connection, _reason: str) -> None:
        if wire is self.wire:
            self.wire = None

    def close(self) -> None:
        for end in self.ends:
            end.on_close = lambda _end, _reason: None
            end.close()
        self.reactor.close()


# --- what members say ------------------------------------------------------------------------------------------

#: (which member, what it says, who of its clients; None: the node says it on its connection, not as a ToHead).
Word = tuple[int, m.Message, tuple[bytes, int, int] | None]
_ENDS: Final[set[type[Any]]] = {m.NodeLeaves, m.JobEnded, m.ProcessDied, m.ActorExiting}


def _words() -> st.SearchStrategy[list[Word]]:
    head = Head(HeadConfig(), MemoryStorage(), lambda _reason: None)
    services, own = set(head.services), {*head._connection_handlers, m.NodeHello}
    head.commits.close()
    head.reactor.close()
    usual = st.sampled_from([b"", *PROCESSES])
    clients = st.tuples(usual | usual | usual | _BYTES, _INTS, st.sampled_from([1, 1, 1, 2]) | _INTS)
    which = st.integers(0, 1)

    def words(kinds: Iterable[Any], client: st.SearchStrategy[Any]) -> st.SearchStrategy[Word]:
        return st.tuples(which, st.one_of([_struct(kind) for kind in sorted(kinds, key=str)]), client)

    relayed, said = words(services - _ENDS, clients), words(own - _ENDS, st.none())
    ends = st.one_of(words(services & _ENDS, clients), words(own & _ENDS, st.none()))
    # What comes after an end does not come far.
    return st.lists(
        st.integers(0, 19).flatmap(lambda n: said if n < 4 else ends if n == 4 else relayed), min_size=10, max_size=40
    )


def _begin(world: World) -> None:
    """Both are here, each with a driver, an actor that lives, and a group."""
    for at, member in enumerate(world.members.values()):
        driver, worker = PROCESSES[2 * at], PROCESSES[2 * at + 1]
        member.hello()
        member.say(b"", 0, 0, m.JobStarted(1, driver, 4242, msgspec.msgpack.encode(CONFIG)))
        spec = m.ActorSpec(ACTORS[at], "Counter", {}, {"CPU": 10_000}, name=f"name{at}", max_restarts=-1)
        member.say(driver, 4242, at + 1, m.RegisterActor(0, spec))
        member.say(b"", 0, 0, m.WorkerPlaced(ACTORS[at], 0, worker, 4243, "tcp://127.0.0.1:1/", at + 1))
        member.say(worker, 4243, at + 1, m.ActorStarted(ACTORS[at], 0))
        member.say(driver, 4242, at + 1, m.CreateGroup(2, GROUPS[at], [{"CPU": 10_000}] * 2, "PACK"))
        world.turn(0.002)
        member.obey()


def _say(member: Member, message: m.Message, client: tuple[bytes, int, int] | None) -> None:
    if client is None:
        if isinstance(message, m.NodeHello):
            member.wire = None  # On a connection of its own.
            if message.info.address == _HERE:
                message.info.address = member.world.address
        member.send(message)
        return
    if member.wire is None:
        member.hello()
        welcomes = [each for each in member.heard if isinstance(each, m.NodeWelcome)]
        member.said = welcomes[-1].relayed if welcomes else 0
    if member.wire is not None:
        member.say(*client, message)


def _check_serves(world: World) -> None:
    """Somebody who does nothing wrong is served."""
    good = world.members[GOOD_NODE] = Member(world, GOOD_NODE)
    good.hello()
    assert good.answers(m.Refused) == []
    good.say(b"", 0, 0, m.JobStarted(7, GOOD_NODE[:12], 1, msgspec.msgpack.encode(CONFIG)))
    (number,) = good.answers(m.JobNumber)
    assert 0 < number.job < 2**31
    for request, op in enumerate(["put", "get"]):
        good.say(GOOD_NODE[:12], 1, number.job, m.KvRequest(request, op, b"space", b"key", b"value"))
    assert good.answers(m.KvAnswer)[-1].value == b"value"
    spec = m.ActorSpec(b"good" * 4, "Counter", {}, {}, name="good", namespace="good", detached=True, creation=CREATION)
    good.say(GOOD_NODE[:12], 1, number.job, m.RegisterActor(9, spec))
    assert [answer.reason for answer in good.answers(m.ActorRegistered)] == [""]


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example])
@given(_words())
def test_the_head_lives_whatever_members_say(words: list[Word]) -> None:
    database = MemoryDatabase()
    world = World(database)
    try:
        _begin(world)
        for number, (at, message, client) in enumerate(words):
            member = world.members[NODES[at]]
            _say(member, message, client)
            if number % 5 == 0:
                world.turn(0.002)  # For what the head does a millisecond later.
                member.obey()
        assert world.ends == []
        for table in (world.head.actors.table, world.head.groups._table, world.head.members.table):
            table.validate()
        _check_serves(world)
    finally:
        world.close()
    world = World(database)
    try:
        world.turn()
        assert world.ends == []
        other = world.members[b"else" + bytes(24)] = Member(world, b"else" + bytes(24))
        other.hello()
        assert any(isinstance(each, m.NodeWelcome) for each in other.heard)
    finally:
        world.close()


# --- some of them, one by one --------------------------------------------------------------------------------------

_SETTINGS: Final = msgspec.msgpack.encode(CONFIG)
_BIG: Final = 1 << 63


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (m.JobStarted(1, PROCESSES[1], 1, _SETTINGS, job=-1), "a job's number is from 1 to 2147483647, not -1"),
        (m.JobStarted(1, PROCESSES[1], 1, _SETTINGS, job=_BIG), "a job's number is from 1 to 2147483647, not"),
        (m.JobStarted(1, PROCESSES[1], 1, b"?"), "the settings of a job cannot be read"),
        (m.WorkerPlaced(ACTORS[0], 0, b"short", 1, "", 1), "the id of a process has 12 bytes, not 5"),
        (m.ProcessDied(b"", 1, 0, ""), "the id of a process has 12 bytes, not 0"),
    ],
)
def test_a_wrong_word_is_noted_and_passed_over(message: m.Message, why: str, capfd: pytest.CaptureFixture[str]) -> None:
    world = World(MemoryDatabase())
    try:
        _begin(world)
        one = world.members[NODES[0]]
        one.say(b"", 0, 0, message)
        assert one.wire is not None, "it is not hung up on for what it relays"
        (line,) = [line for line in capfd.readouterr().err.splitlines() if why in line]
        assert f"sent {type(message).__name__}, which is wrong" in line
        wait_until(lambda: one.hears(m.RelayDone(one.said)))  # It need not repeat it.
        one.heard.append(None)
        one.send(m.ToHead(one.said, b"", 0, 0, body_of(message)))  # It has not heard that.
        wait_until(lambda: one.hears(m.RelayDone(one.said)))
        assert why in world.head.events.latest(1)[0]["text"]
        _check_serves(world)
    finally:
        world.close()


@pytest.mark.parametrize(
    ("message", "answer"),
    [
        (
            m.RegisterActor(7, m.ActorSpec(ACTORS[3], "C", {"x": _BIG}, {})),
            m.ActorRegistered(7, b"", reason="there cannot be 9.22337e+14 of 'x': from 0 to 4.61169e+14 is possible"),
        ),
        (
            m.CreateGroup(8, b"g" * 18, [{"CPU": 1}], "PACK", selectors=[{"a": "!"}]),
            m.GroupState(
                8,
                b"g" * 18,
                "refused",
                reason="label 'a': the condition '!' negates nothing: write \"!value\" or \"!in(a, b)\"",
            ),
        ),
        (
            m.DrainNode(9, NODES[1], "", math.nan),
            m.StoreError(9, "refused", "a node cannot leave at nan seconds of the epoch"),
        ),
    ],
)
def test_a_client_hears_what_is_wrong(message: m.Message, answer: m.Message) -> None:
    world = World(MemoryDatabase())
    try:
        _begin(world)
        one = world.members[NODES[0]]
        one.say(PROCESSES[0], 4242, 1, message)
        assert one.answers(type(answer))[-1] == answer
        _check_serves(world)
    finally:
        world.close()


@pytest.mark.parametrize(
    "message",
    [
        m.RenewLease(1, {"CPU": _BIG}),
        m.RenewLease(1, {}, [({}, -1)]),
        m.ToHead(99, b"x", 0, 0, b""),
        m.NodeHello(m.PROTOCOL_VERSION, m.NodeInfo(b"short", "127.0.0.1:1", {}, {})),
        m.NodeHello(m.PROTOCOL_VERSION, m.NodeInfo(NODES[0], "nowhere", {}, {})),
        m.NodeHello(m.PROTOCOL_VERSION, m.NodeInfo(NODES[0], "127.0.0.1:1", {}, {}, lease_s=math.inf)),
        m.NodeHello(m.PROTOCOL_VERSION, m.NodeInfo(NODES[0], "127.0.0.1:1", {}, {}, drain_deadline=math.nan)),
    ],
)
def test_a_node_that_says_wrong_things_of_itself_is_hung_up_on(
    message: m.Message, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(MemoryDatabase())
    try:
        _begin(world)
        one = world.members[NODES[0]]
        _say(one, message, None)
        assert one.wire is None
        (line,) = [line for line in capfd.readouterr().err.splitlines() if "hung up on" in line]
        assert f"its {type(message).__name__} is wrong: " in line
        _say(one, m.RenewCertificate(), None)
        _check_serves(world)
    finally:
        world.close()


def test_one_process_is_not_two_actors() -> None:
    world = World(MemoryDatabase())
    try:
        _begin(world)
        one, (driver, worker) = world.members[NODES[0]], PROCESSES[:2]
        one.say(driver, 4242, 1, m.RegisterActor(0, m.ActorSpec(ACTORS[4], "Counter", {}, {})))
        one.say(b"", 0, 0, m.WorkerPlaced(ACTORS[4], 0, worker, 4243, "tcp://127.0.0.1:1/", 1))
        world.head.actors.table.validate()
        assert f"and is {ACTORS[0].hex()}" in world.head.events.latest(1)[0]["text"]
        one.say(worker, 4243, 1, m.ActorStarted(ACTORS[4], 0, b"error"))
        one.say(b"", 0, 0, m.ProcessDied(worker, 4243, 0, "killed"))
        world.head.actors.table.validate()
        _check_serves(world)
    finally:
        world.close()


def test_what_ended_a_head_does_not_end_the_next_one(capfd: pytest.CaptureFixture[str]) -> None:
    database = MemoryDatabase()
    world = World(database)

    def fails(*_said: Any) -> None:
        raise RuntimeError("a fault of ours")

    try:
        one = world.members[NODES[0]]
        one.hello()
        one.say(b"", 0, 0, m.JobStarted(1, PROCESSES[0], 1, _SETTINGS))
        world.head.services[m.KvRequest] = fails
        with pytest.raises(RuntimeError, match="a fault of ours"):
            one.say(PROCESSES[0], 1, 1, m.KvRequest(5, "put", b"", b"key", b"value"))
    finally:
        world.close()
    world = World(database)
    try:
        one = world.members[NODES[0]]
        one.hello()
        one.said = 1
        for _ in range(2):  # It is repeated, as what was not answered is; and then something else is said.
            one.say(PROCESSES[0], 1, 1, m.KvRequest(5, "put", b"", b"key", b"value"))
        assert [answer.count for answer in one.answers(m.KvAnswer)] == [1], "the first one was passed over"
        assert "sent KvRequest, which is wrong: the last head failed at it" in capfd.readouterr().err
        assert not database.tables["faults"]
    finally:
        world.close()
