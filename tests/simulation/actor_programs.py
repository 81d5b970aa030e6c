"""What users do with actors, generators and cancels, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from moray.protocol import messages as m
from moray.protocol.messages import RESOURCE_UNIT, Resources
from tests.simulation.context import Context, CrashError, Plan, TaskFailedError
from tests.simulation.user_code import Code

#: Actors' names.
_NAMES = ("", "", "", "", "adam", "eve", "noah")
#: Actors that one piece of user code has handles of, at most.
_MOST_HANDLES = 4


def construct(context: Context) -> Code[None]:
    """An actor's constructor. `attempt` is the incarnation."""
    plan = context.plan
    yield from context.process.compute(plan.duration_s)
    if context.attempt < plan.crashes:
        raise CrashError
    if context.attempt < plan.raises:
        raise TaskFailedError("raised")
    context.process.stash += [ref.hold() for ref in context.pick(3)]


def play(context: Context, mean_s: float, most: int) -> Code[None]:
    """Some steps with actors, streams and cancels."""
    random = context.random
    steps: list[Callable[[Context, float], Code[None]]] = [_create, _call, _call, _call, _generate, _take, _others]
    for _ in range(random.randint(0, most)):
        yield from random.choice(steps)(context, mean_s)


def _create(context: Context, mean_s: float) -> Code[None]:
    random, universe = context.random, context.process.universe
    if len(context.handles()) >= _MOST_HANDLES:
        return
    name = random.choice(_NAMES)
    detached = bool(name) and random.random() < 0.3
    crashes = random.choice((0,) * 8 + (1, 2)) if universe.faulty else 0
    raises = random.choice((0,) * 10 + (1,))
    plan = Plan("actor", random.getrandbits(32), 0, 1, random.expovariate(1 / mean_s), crashes, raises)
    spec = m.ActorSpec(
        b"", "Actor", _resources(random, universe.total), random.choice(({}, {"CPU": RESOURCE_UNIT})), name, "space",
        detached, random.choice((0, 0, 1, 2, -1)), random.random() < 0.5,
    )  # fmt: skip
    creation = _draw_kind(random)
    arguments, inside = ([], []) if detached else (context.pick(1), context.pick(2))
    retries = random.choice((0, 0, 2)), random.random() < 0.3
    yield from context.create_actor(plan, spec, creation, retries, arguments, inside)


def _draw_kind(random: Random) -> m.Creation:
    """How its calls run: one after another, in threads, or as coroutines; some in groups of their own."""
    kind = random.choice(("ordinary",) * 5 + ("threaded",) * 2 + ("async",) * 3)
    creation = m.Creation("Actor", b"", b"", asynchronous=kind == "async", unordered=kind != "ordinary")
    if kind == "ordinary":
        return creation
    if random.random() < 0.4:
        creation.groups = {name: random.randint(1, 3) for name in ("io", "disk")[: random.randint(1, 2)]}
    least = 1 if creation.asynchronous or creation.groups else 2
    creation.max_concurrency = random.randint(least, 4)
    return creation


def _resources(random: Random, total: Resources) -> Resources:
    """What an actor holds while it lives."""
    name = random.choice(("", "", "", "", "green", "CPU"))
    return {name: min(RESOURCE_UNIT // 2, total[name])} if name else {}


def draw_call(random: Random, mean_s: float, faults: bool) -> Plan:
    """A method."""
    crashes = raises = 0
    kind = random.choice(("method",) * 5 + ("holder",))
    if faults:
        crashes = random.choice((0,) * 25 + (1, 9))
        if random.random() < 0.02:
            kind = "exit"
    raises = random.choice((0,) * 12 + (1, 2))
    returns = random.choice((1, 1, 1, 1, 2, 0))
    duration_s = random.expovariate(1 / mean_s) / 4
    return Plan(kind, random.getrandbits(32), 1, returns, duration_s, crashes, raises, swallows=random.random() < 0.3)


def _call(context: Context, mean_s: float) -> Code[None]:
    """Several calls of one actor."""
    random, universe = context.random, context.process.universe
    handles = context.handles()
    if not handles:
        return
    handle = random.choice(handles)
    for _ in range(random.choice((1, 2, 4, 9))):
        group = random.choice(["", *handle[0].groups])
        if random.random() < 0.15:
            plan = draw_generator(random, mean_s, universe.faulty)
            context.call(handle, plan, context.pick(1), context.pick(1), draw_stream(random), group)
        else:
            plan = draw_call(random, mean_s, universe.faulty)
            context.call(handle, plan, context.pick(1), context.pick(2), group=group)
            if plan.num_returns and random.random() < 0.1:
                # It has just begun, or waits for those before it.
                yield from context.process.compute(random.random() * 0.005)
                if context.refs:
                    context.process.cancels.cancel(context.refs[-1], False, random.random() < 0.7)
    if random.random() < 0.3:
        yield from context.process.compute(random.random() * 0.01)


def draw_generator(random: Random, mean_s: float, faults: bool) -> Plan:
    crashes = raises = 0
    if faults:
        crashes = random.choice((0,) * 8 + (1, 9))
    raises = random.choice((0,) * 8 + (1, 9))
    kind = "uneven" if random.random() < 0.1 else "stream"
    duration_s = random.expovariate(1 / mean_s) / 8
    items = random.choice((0, 1, 3, 5, 9))
    return Plan(kind, random.getrandbits(32), 1, 1, duration_s, crashes, raises, items, random.random() < 0.3)


def draw_stream(random: Random) -> m.StreamSpec:
    ahead = random.choice((-1, -1, 1, 2, 4))
    dynamic = random.random() < 0.15
    return m.StreamSpec(0, -1 if dynamic else ahead, dynamic)


def _generate(context: Context, mean_s: float) -> Code[None]:
    random, universe = context.random, context.process.universe
    plan = draw_generator(random, mean_s, universe.faulty)
    context.generate(plan, {"CPU": min(RESOURCE_UNIT, universe.total["CPU"])}, context.pick(2), draw_stream(random))
    yield from context.process.compute(random.random() * 0.002)


def _take(context: Context, _mean_s: float) -> Code[None]:
    """Read some items of a generator."""
    if context.inboxes:
        inbox = context.random.choice(context.inboxes)
        for _ in range(context.random.randint(1, 4)):
            ref = yield from inbox.next(0.2)
            if ref is None:
                break
            context.refs.append(ref)
            if context.random.random() < 0.3:
                yield from context.get([ref])
        if inbox.ended and not inbox.items and inbox in context.inboxes:
            context.drop_inbox(inbox)


def _others(context: Context, _mean_s: float) -> Code[None]:
    """Cancel, kill, look for names."""
    random, process = context.random, context.process
    dice = random.random()
    if dice < 0.6:
        for ref in context.pick(2):
            process.cancels.cancel(ref, random.random() < 0.3, random.random() < 0.7)
        if context.inboxes and random.random() < 0.3:
            process.cancels.cancel(random.choice(context.inboxes).ref, random.random() < 0.3, True)
    elif dice < 0.75:
        handles = context.handles()
        if handles:
            process.actors.kill(random.choice(handles)[0].actor, random.random() < 0.5)
    elif dice < 0.95:
        yield from context.find_actor(random.choice(_NAMES[-3:]))
        context.weak = context.weak[-3:]
    else:
        yield from process.ask(lambda number: m.ListActors(number, "space"))
