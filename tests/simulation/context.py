"""The local variables of user code, and the API that it calls."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import msgspec

from moray.core.leases import Durations
from moray.protocol import messages as m
from moray.protocol.messages import Resources, TaskExtra
from tests.simulation.objects import Entry, Ref, Value
from tests.simulation.streams import Inbox, Stream
from tests.simulation.submission import Call, Function, Task
from tests.simulation.user_code import Code

if TYPE_CHECKING:
    from tests.simulation.process import Process


class TaskFailedError(Exception):
    """The task raises."""


class CrashError(Exception):
    """The task ends its process."""


class ExitError(Exception):
    """The method ends its actor, which wants to."""


class Plan(msgspec.Struct, array_like=True):
    """What a task, a method or a constructor does."""

    kind: str
    seed: int
    depth: int
    num_returns: int
    duration_s: float
    #: How often its tries crash or raise before one succeeds.
    crashes: int = 0
    raises: int = 0
    #: Of a generator.
    items: int = 0
    #: It goes on when it is interrupted.
    swallows: bool = False


class ActorInfo(msgspec.Struct, array_like=True, frozen=True):
    """What a handle knows of its actor."""

    actor: bytes
    #: b"": it is detached.
    creator: bytes
    #: The hidden object that keeps it alive; b"" if it is detached.
    life: bytes
    ordered: bool
    #: max_task_retries; and whether calls that raise are tried again.
    retries: int
    retries_errors: bool
    #: Names of its concurrency groups.
    groups: list[str] = []


class Outcome(msgspec.Struct):
    """What a task returns: (bytes in the store or 0, references) of each value."""

    values: list[tuple[int, list[Ref]]] = []


def load_payload(payload: bytes) -> tuple[Plan, list[bytes]]:
    return msgspec.msgpack.decode(payload, type=tuple[Plan, list[bytes]])


class Context:
    """The local variables of one piece of user code."""

    def __init__(self, process: Process, plan: Plan, attempt: int = 0, work: Any = None) -> None:
        self.process = process
        self.plan = plan
        self.attempt = attempt
        #: The task or call that this is: the parent of what it submits.
        self.work = work
        self.random = Random(plan.seed)
        #: References in local variables, each held once.
        self.refs: list[Ref] = []
        #: Handles that keep nothing alive.
        self.weak: list[ActorInfo] = []
        #: Generators that are being read.
        self.inboxes: list[Inbox] = []

    def hold(self, refs: list[Ref]) -> None:
        self.refs += refs

    def pick(self, most: int) -> list[Ref]:
        """Some of the references, each at most once."""
        unique = list({id(ref): ref for ref in self.refs}.values())
        return self.random.sample(unique, min(len(unique), self.random.randint(0, most)))

    def drop(self, ref: Ref) -> None:
        self.refs.remove(ref)
        ref.drop()

    def drop_some(self, share: float) -> None:
        for ref in list(self.refs):
            if self.random.random() < share:
                self.drop(ref)
        for inbox in list(self.inboxes):
            if self.random.random() < share / 2:
                self.drop_inbox(inbox)

    def drop_inbox(self, inbox: Inbox) -> None:
        self.inboxes.remove(inbox)
        inbox.drop()

    def close(self) -> None:
        """The local variables go."""
        refs, self.refs = self.refs, []
        for ref in refs:
            ref.drop()
        inboxes, self.inboxes = self.inboxes, []
        for inbox in inboxes:
            inbox.drop()

    # --- tasks ----------------------------------------------------------------------------------------

    def submit(self, plan: Plan, resources: Resources, arguments: list[Ref], inside: list[Ref]) -> list[Ref]:
        """Submit a task; its references are held."""
        task, refs = self._task(plan, resources, arguments, inside)
        self.refs += refs
        self.process.submitter.submit(task)
        return refs

    def generate(self, plan: Plan, resources: Resources, inside: list[Ref], spec: m.StreamSpec) -> None:
        """Submit a generator task; its inbox (of a dynamic one: its reference) is held."""
        task, refs = self._task(plan, resources, [], inside)
        self._open_stream(task, refs[0], spec)
        self.process.submitter.submit(task)

    def _open_stream(self, task: Task, ref: Ref, spec: m.StreamSpec) -> None:
        task.extra = msgspec.structs.replace(task.extra or TaskExtra(), stream=spec)
        task.stream = Stream(self.process, spec, ref)
        inbox = task.stream.open(task)
        if spec.dynamic:
            self.refs.append(ref)
        else:
            self.inboxes.append(inbox)

    def _task(
        self, plan: Plan, resources: Resources, arguments: list[Ref], inside: list[Ref]
    ) -> tuple[Task, list[Ref]]:
        submitter = self.process.submitter
        max_calls = self.random.choice((0, 0, 0, 0, 0, 3)) if plan.kind == "leaf" else 0
        function = submitter.function(plan.kind, max_calls)
        runtime_env = self.random.choice(("", "", "", "env")) if plan.kind == "leaf" else ""
        seq, payload, entries, refs, held = self._prepare(plan, arguments, inside)
        task = Task(
            seq, function, function.durations, submitter.pool(resources, runtime_env), payload, entries,
            TaskExtra(num_returns=plan.num_returns) if plan.num_returns != 1 else None,
            retries_left=3, retries_errors=True, held=held, arguments=list(arguments), parent=self.work,
        )  # fmt: skip
        self.process.oracle.submitted(self.process, task)
        return task, refs

    def _prepare(
        self, plan: Plan, arguments: list[Ref], inside: list[Ref]
    ) -> tuple[int, bytes, list[Entry], list[Ref], list[Ref]]:
        process = self.process
        seq = process.next_seq()
        entries = [Entry(process.object_id(seq, index)) for index in range(plan.num_returns)]
        refs = [process.make_ref(entry).hold() for entry in entries]
        payload, held = self._pickle_arguments(plan, arguments, inside)
        return seq, payload, entries, refs, held

    def _pickle_arguments(self, plan: Plan, arguments: list[Ref], inside: list[Ref]) -> tuple[bytes, list[Ref]]:
        for ref in (*arguments, *inside):
            self.process.references.escape(ref)
        payload = msgspec.msgpack.encode((plan, [ref.entry.id for ref in inside]))
        return payload, [ref.hold() for ref in (*arguments, *inside)]

    # --- objects --------------------------------------------------------------------------------------

    def put(self, size: int, inside: list[Ref]) -> Code[None]:
        ref = yield from self.process.values.put(size, inside)
        self.refs.append(ref)

    def get(self, refs: list[Ref], timeout_s: float = 0.0) -> Code[list[Value]]:
        """Wait for the values and keep the references that are in them."""
        if self.process.universe.with_actors and not timeout_s:
            # What waits for actors that wait for each other would wait for ever, by its own doing.
            timeout_s = self.random.choice((0.01, 0.3, 3.0))
        loaded = yield from self.process.values.get(refs, timeout_s)
        for _value, inside in loaded:
            self.refs += inside
        return [value for value, _inside in loaded]

    # --- actors ---------------------------------------------------------------------------------------

    def handles(self) -> list[tuple[ActorInfo, Ref | None]]:
        """Actors that can be called from here."""
        lives = self.process.universe.lives
        strong = {id(ref): ref for ref in self.refs if ref.entry.id in lives}.values()
        return [*((lives[ref.entry.id], ref) for ref in strong), *((info, None) for info in self.weak)]

    def create_actor(
        self, plan: Plan, spec: m.ActorSpec, creation: m.Creation, retries: tuple[int, bool],
        arguments: list[Ref], inside: list[Ref],
    ) -> Code[None]:  # fmt: skip
        """Make an actor, and hold its handle. `spec` and `creation` lack what is known here."""
        process = self.process
        spec.actor = process.universe.next_actor()
        creation.payload, held = self._pickle_arguments(plan, arguments, inside)
        life = b"" if spec.detached else process.object_id(process.next_seq(), 0)
        creator = b"" if spec.detached else process.name
        info = ActorInfo(spec.actor, creator, life, not creation.unordered, *retries, list(creation.groups))
        spec.meta = creation.meta = msgspec.msgpack.encode(info)
        if spec.detached:
            spec.creation = msgspec.msgpack.encode(creation)
        else:
            process.universe.lives[life] = info
        meta, reference = yield from process.actors.creations.create(spec, creation, life, arguments, held)
        for ref in held:
            ref.drop()
        if reference is not None:
            self.refs.append(reference)
        elif meta:
            self.weak.append(msgspec.msgpack.decode(meta, type=ActorInfo))

    def find_actor(self, name: str) -> Code[None]:
        """Hold a weak handle of the actor with a name, if there is one."""
        answer = yield from self.process.ask(lambda number: m.FindActor(number, name, "space"))
        if answer.actor:
            self.weak.append(msgspec.msgpack.decode(answer.meta, type=ActorInfo))

    def call(
        self, handle: tuple[ActorInfo, Ref | None], plan: Plan, arguments: list[Ref], inside: list[Ref],
        spec: m.StreamSpec | None = None, group: str = "",
    ) -> None:  # fmt: skip
        """Call a method; its references (of a stream: its inbox) are held."""
        info, reference = handle
        special = plan.num_returns != 1 or bool(group)
        seq, payload, entries, refs, held = self._prepare(plan, arguments, inside)
        call = Call(
            seq, _FUNCTION, _FUNCTION.durations, None, payload, entries,
            TaskExtra(num_returns=plan.num_returns, group=group) if special else None,
            retries_left=info.retries, retries_errors=info.retries_errors, held=held, arguments=list(arguments),
            parent=self.work, callee=self.process.actors.callee(info.actor, info.creator, info.ordered),
            method=plan.kind, handle=reference.hold() if reference is not None else None,
        )  # fmt: skip
        self.process.oracle.submitted(self.process, call)
        if spec is not None:
            self._open_stream(call, refs[0], spec)
        else:
            self.refs += refs
        self.process.actors.submit(call)


#: Calls have no exported function; their run times decide nothing.
_FUNCTION = Function(0, 0, Durations())
