"""What users run: drivers and tasks, drawn from a seed.

A task's *plan* is its payload, so that a retry does the same as the first try did. These kinds of tasks exist:
``leaf`` computes; ``tree`` submits others, waits for some of them in ``get`` and returns references; ``holder`` puts
references into a global of its worker, or its actor, which outlives it; ``stream`` and ``uneven`` are generators;
``method`` and ``exit`` are methods (:mod:`tests.simulation.actor_programs`). Tasks that wait
hold CPUs only: a program that waits with a GPU in its hands for another that needs it is stuck by its own doing.
"""

from __future__ import annotations

from random import Random
from typing import Final

from moray.protocol.messages import RESOURCE_UNIT, Resources
from tests.simulation import actor_programs
from tests.simulation.context import Context, CrashError, ExitError, Outcome, Plan, TaskFailedError
from tests.simulation.objects import Ref
from tests.simulation.user_code import Code, InterruptError
from tests.simulation.world import RefusedError

#: Tasks do not nest deeper than this.
_DEEPEST: Final = 3


def draw_plan(random: Random, depth: int, mean_s: float, faults: bool) -> Plan:
    kind = "leaf"
    if depth < _DEEPEST:
        kind = random.choice(("leaf", "leaf", "leaf", "tree", "tree", "holder"))
    returns = random.choice((1, 1, 1, 1, 2, 0))
    crashes = raises = 0
    if faults and kind == "leaf":
        crashes = random.choice((0,) * 12 + (1, 2, 9))
        raises = random.choice((0,) * 8 + (1, 2, 9))
    duration_s, swallows = random.expovariate(1 / mean_s), random.random() < 0.2
    return Plan(kind, random.getrandbits(32), depth, returns, duration_s, crashes, raises, swallows=swallows)


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
    """A task, or a method."""
    try:
        yield from _run(context)
    except InterruptError:
        if not context.plan.swallows:
            raise
    largest = context.process.universe.largest_object
    values = [(draw_size(context.random, largest), context.pick(2)) for _ in range(context.plan.num_returns)]
    return Outcome(values)


def _run(context: Context) -> Code[None]:
    plan = context.plan
    yield from context.process.compute(plan.duration_s)
    if context.attempt < plan.crashes:
        raise CrashError
    if context.attempt < plan.raises:
        raise TaskFailedError("raised")
    if plan.kind == "exit":
        raise ExitError
    if plan.kind == "tree":
        yield from _tree(context)
    elif plan.kind == "method":
        yield from _method(context)
    elif plan.kind == "holder":
        context.process.stash += [ref.hold() for ref in context.pick(2)]
        if context.process.stash and context.random.random() < 0.5:
            context.process.stash.pop(0).drop()


def _method(context: Context) -> Code[None]:
    """Of an actor."""
    random = context.random
    if random.random() < 0.2:
        yield from _put_some(context, 2)
    if random.random() < 0.2:
        plan = draw_plan(random, _DEEPEST, context.plan.duration_s + 1e-4, context.process.universe.faulty)
        context.submit(plan, {"CPU": RESOURCE_UNIT // 2}, context.pick(1), context.pick(1))
    if random.random() < 0.1:
        yield from actor_programs.play(context, context.plan.duration_s + 1e-4, 2)
    if random.random() < 0.2:
        yield from _get_some(context, 2)


def item_count(context: Context) -> int:
    """How many items a generator makes: an uneven one fewer, when it is run again."""
    plan = context.plan
    return max(0, plan.items - context.attempt) if plan.kind == "uneven" else plan.items


def make_item(context: Context, index: int) -> Code[tuple[int, list[Ref]]]:
    """One item of a generator."""
    plan = context.plan
    yield from context.process.compute(plan.duration_s)
    if index == plan.items // 2:
        if context.attempt < plan.crashes:
            raise CrashError
        if context.attempt < plan.raises:
            raise TaskFailedError("raised")
    return draw_size(context.random, context.process.universe.largest_object), context.pick(2)


def _tree(context: Context) -> Code[None]:
    random, universe = context.random, context.process.universe
    yield from _put_some(context, 2)
    for _ in range(random.randint(1, 3)):
        plan = draw_plan(random, context.plan.depth + 1, context.plan.duration_s + 1e-4, universe.faulty)
        context.submit(plan, draw_resources(random, plan.kind, universe.total), context.pick(2), context.pick(1))
        if random.random() < 0.3:
            yield from context.process.compute(random.random() * 0.01)
    if universe.with_actors:
        yield from actor_programs.play(context, context.plan.duration_s + 1e-4, 4)
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
    if universe.with_actors:
        yield from context.get(context.refs, 5.0)
        context.close()
        return
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
    if universe.with_actors:
        yield from actor_programs.play(context, mean_s, 6)
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
