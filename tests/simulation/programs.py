"""What users run: drivers and tasks, drawn from a seed.

A task's *plan* is its payload, so that a retry does the same as the first try did. Three kinds of tasks exist:
``leaf`` computes; ``tree`` submits others, waits for some of them in ``get`` and returns references; ``holder`` puts
references into a global of its worker, which outlives it. Tasks that wait hold CPUs only: a program that waits with
a GPU in its hands for another that needs it is stuck by its own doing.
"""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Final

import msgspec

from moray.protocol.messages import RESOURCE_UNIT, Resources, TaskExtra
from tests.simulation.objects import Entry, Ref, Value
from tests.simulation.submission import Task
from tests.simulation.user_code import Code
from tests.simulation.world import RefusedError

if TYPE_CHECKING:
    from tests.simulation.process import Process

#: Tasks do not nest deeper than this.
_DEEPEST: Final = 3


class TaskFailedError(Exception):
    """The task raises."""


class CrashError(Exception):
    """The task ends its process."""


class Plan(msgspec.Struct, array_like=True):
    """What a task does."""

    kind: str
    seed: int
    depth: int
    num_returns: int
    duration_s: float
    #: How often its tries crash or raise before one succeeds.
    crashes: int = 0
    raises: int = 0


class Outcome(msgspec.Struct):
    """What a task returns: (bytes in the store or 0, references) of each value."""

    values: list[tuple[int, list[Ref]]] = []


class Context:
    """The local variables of one piece of user code."""

    def __init__(self, process: Process, plan: Plan, attempt: int = 0) -> None:
        self.process = process
        self.plan = plan
        self.attempt = attempt
        self.random = Random(plan.seed)
        #: References in local variables, each held once.
        self.refs: list[Ref] = []

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

    def close(self) -> None:
        """The local variables go."""
        refs, self.refs = self.refs, []
        for ref in refs:
            ref.drop()

    # --- the API ------------------------------------------------------------------------------------

    def submit(self, plan: Plan, resources: Resources, arguments: list[Ref], inside: list[Ref]) -> list[Ref]:
        """Submit a task; its references are held."""
        process, submitter = self.process, self.process.submitter
        seq = process.next_seq()
        entries = [Entry(process.object_id(seq, index)) for index in range(plan.num_returns)]
        refs = [process.make_ref(entry).hold() for entry in entries]
        for ref in (*arguments, *inside):
            process.references.escape(ref)
        payload = msgspec.msgpack.encode((plan, [ref.entry.id for ref in inside]))
        max_calls = self.random.choice((0, 0, 0, 0, 0, 3)) if plan.kind == "leaf" else 0
        function = submitter.function(plan.kind, max_calls)
        runtime_env = self.random.choice(("", "", "", "env")) if plan.kind == "leaf" else ""
        task = Task(
            seq, function, function.durations, submitter.pool(resources, runtime_env), payload, entries,
            TaskExtra(num_returns=plan.num_returns) if plan.num_returns != 1 else None,
            retries_left=3, retries_errors=True,
            held=[ref.hold() for ref in (*arguments, *inside)], arguments=list(arguments),
        )  # fmt: skip
        process.oracle.submitted(process, task)
        self.refs += refs
        submitter.submit(task)
        return refs

    def put(self, size: int, inside: list[Ref]) -> Code[None]:
        ref = yield from self.process.values.put(size, inside)
        self.refs.append(ref)

    def get(self, refs: list[Ref]) -> Code[list[Value]]:
        """Wait for the values and keep the references that are in them."""
        loaded = yield from self.process.values.get(refs)
        for _value, inside in loaded:
            self.refs += inside
        return [value for value, _inside in loaded]


def draw_plan(random: Random, depth: int, mean_s: float, faults: bool) -> Plan:
    kind = "leaf"
    if depth < _DEEPEST:
        kind = random.choice(("leaf", "leaf", "leaf", "tree", "tree", "holder"))
    returns = random.choice((1, 1, 1, 1, 2, 0))
    crashes = raises = 0
    if faults and kind == "leaf":
        crashes = random.choice((0,) * 12 + (1, 2, 9))
        raises = random.choice((0,) * 8 + (1, 2, 9))
    return Plan(kind, random.getrandbits(32), depth, returns, random.expovariate(1 / mean_s), crashes, raises)


def draw_resources(random: Random, kind: str, total: Resources) -> Resources:
    """What a task asks for."""
    cpus = random.choice((1.0, 1.0, 1.0, 0.5, 0.25, 0.0, 2.0))
    need = {"CPU": min(int(cpus * RESOURCE_UNIT), total["CPU"])} if cpus else {}
    if kind == "leaf" and random.random() < 0.3:
        name = random.choice(sorted(total))
        if name != "CPU":
            need[name] = min(random.choice((RESOURCE_UNIT, RESOURCE_UNIT // 2)), total[name])
    return need


def draw_size(random: Random, largest: int) -> int:
    """Bytes in the store; 0 is an inline value."""
    return random.randint(1, largest) if random.random() < 0.35 else 0


def run(context: Context) -> Code[Outcome]:
    """A task."""
    plan = context.plan
    yield from context.process.compute(plan.duration_s)
    if context.attempt < plan.crashes:
        raise CrashError
    if context.attempt < plan.raises:
        raise TaskFailedError("raised")
    if plan.kind == "tree":
        yield from _tree(context)
    elif plan.kind == "holder":
        context.process.stash += [ref.hold() for ref in context.pick(2)]
        if context.process.stash and context.random.random() < 0.5:
            context.process.stash.pop(0).drop()
    largest = context.process.universe.largest_object
    values = [(draw_size(context.random, largest), context.pick(2)) for _ in range(plan.num_returns)]
    return Outcome(values)


def _tree(context: Context) -> Code[None]:
    random, universe = context.random, context.process.universe
    yield from _put_some(context, 2)
    for _ in range(random.randint(1, 3)):
        plan = draw_plan(random, context.plan.depth + 1, context.plan.duration_s + 1e-4, universe.faulty)
        context.submit(plan, draw_resources(random, plan.kind, universe.total), context.pick(2), context.pick(1))
        if random.random() < 0.3:
            yield from context.process.compute(random.random() * 0.01)
    if random.random() < 0.8:
        yield from _get_some(context, 3)
    context.drop_some(0.3)
    if random.random() < 0.5:
        yield from _get_some(context, 2)


def _put_some(context: Context, most: int) -> Code[None]:
    for _ in range(context.random.randint(0, most)):
        try:
            yield from context.put(draw_size(context.random, context.process.universe.largest_object), context.pick(2))
        except RefusedError:
            pass


def _get_some(context: Context, most: int) -> Code[None]:
    """A get that may raise, like any."""
    values = yield from context.get(context.pick(most))
    if any(value.error for value in values) and context.random.random() < 0.3:
        raise TaskFailedError("got an error")


def driver(context: Context, style: str) -> Code[None]:
    """A driver's main program: until the workload ends, then wait for everything and let go."""
    random, process = context.random, context.process
    universe = process.universe
    mean_s = random.choice((0.0002, 0.0005, 0.01, 0.1, 0.5))
    while not universe.winding_down:
        if style == "flood":
            _flood(context)
            yield from process.compute(random.random() * 0.2)
        elif style == "probe":
            yield from _probe(context)
            continue
        else:
            yield from _mixed(context, mean_s)
        context.drop_some(0.3)
        while len(process.submitter.pending) > 60 and not universe.winding_down:
            yield from process.compute(0.01)
    last = [ref for ref in context.refs if random.random() < 0.7]
    unique = list({id(ref): ref for ref in last}.values())
    for ref in unique:
        yield from context.get([ref])
    context.close()


def _mixed(context: Context, mean_s: float) -> Code[None]:
    random, universe = context.random, context.process.universe
    yield from _put_some(context, 2)
    for _ in range(random.randint(1, 6)):
        plan = draw_plan(random, 0, mean_s, universe.faulty)
        context.submit(plan, draw_resources(random, plan.kind, universe.total), context.pick(3), context.pick(2))
    if random.random() < 0.6:
        yield from context.get(context.pick(4))
    yield from context.process.compute(random.random() * 0.05)


def _flood(context: Context) -> None:
    """Many short tasks of one function."""
    duration_s = context.random.choice((0.0001, 0.0003, 0.02))
    for _ in range(context.random.randint(5, 40)):
        context.submit(Plan("leaf", context.random.getrandbits(32), 0, 1, duration_s), {"CPU": RESOURCE_UNIT}, [], [])


def _probe(context: Context) -> Code[None]:
    """A short task now and then, whose time is watched."""
    yield from context.process.compute(0.1 + context.random.random() * 0.5)
    plan = Plan("probe", context.random.getrandbits(32), 0, 1, 0.001)
    refs = context.submit(plan, {"CPU": RESOURCE_UNIT}, [], [])
    yield from context.get(refs)
    context.close()
