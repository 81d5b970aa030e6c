"""The reference protocol against a dumb model (REF-FREE, REF-COVER, REF-SEND, REF-EPOCH).

Five processes, a FIFO per ordered pair, any interleaving, deaths and broken connections at any step.
:mod:`tests.core.references_world` says what is checked. The random walks are the same world driven by a seed:
cheaper per step than hypothesis, so they go deeper; what they find, the machine shrinks.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.core.references_world import World

COUNT = 5
#: How much to look at, of the machine and of each block of walks: 30 in the default profile, 1 200 in the long one, and
#: 60 for the seeded faults, which take hypothesis's own.
EXAMPLES = settings().max_examples * 3 // 5

process = st.integers(0, COUNT - 1)
choice = st.integers(0, 5)
picks = st.lists(choice, max_size=3)
flag = st.booleans()


class ReferencesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(COUNT)

    def after(self, p: int, flush: bool) -> None:
        if p in self.world.alive:
            self.world.pump(p, flush)
        self.world.check()

    @rule(p=process, picks=picks, move=flag, flush=flag)
    def create(self, p: int, picks: list[int], move: bool, flush: bool) -> None:
        if p in self.world.alive:
            self.world.create(p, picks, move)
        self.after(p, flush)

    @rule(p=process, w=process, picks=picks, returns=st.integers(1, 2), move=flag, flush=flag)
    def submit(self, p: int, w: int, picks: list[int], returns: int, move: bool, flush: bool) -> None:
        if p in self.world.alive and p != w:
            self.world.submit(p, w, picks, returns, move)
        self.after(p, flush)

    @rule(w=process, choice=choice, actor=flag, flush=flag)
    def start(self, w: int, choice: int, actor: bool, flush: bool) -> None:
        if w in self.world.alive:
            self.world.start(w, choice, actor)
        self.after(w, flush)

    @rule(w=process, choice=choice, picks=picks, keep=flag, flush=flag)
    def finish(self, w: int, choice: int, picks: list[int], keep: bool, flush: bool) -> None:
        if w in self.world.alive:
            self.world.finish(w, choice, picks, keep)
        self.after(w, flush)

    @rule(p=process, choice=choice, direct=flag, move=flag, flush=flag)
    def get(self, p: int, choice: int, direct: bool, move: bool, flush: bool) -> None:
        if p in self.world.alive:
            self.world.get(p, choice, direct, move)
        self.after(p, flush)

    @rule(p=process, choice=choice, flush=flag)
    def drop(self, p: int, choice: int, flush: bool) -> None:
        if p in self.world.alive:
            self.world.drop(p, choice)
        self.after(p, flush)

    @rule(a=process, b=process, count=st.integers(1, 3), late=flag, flush=flag)
    def deliver(self, a: int, b: int, count: int, late: bool, flush: bool) -> None:
        for _ in range(count):
            self.world.deliver(a, b, late)
            self.after(b, flush)

    @rule(a=process, b=process, kept_a=choice, kept_b=choice)
    def break_connection(self, a: int, b: int, kept_a: int, kept_b: int) -> None:
        if a != b:
            self.world.break_connection(a, b, kept_a, kept_b)
            self.after(a, flush=False)
            self.after(b, flush=False)

    @rule(p=process, x=process)
    def notice(self, p: int, x: int) -> None:
        if p in self.world.alive:
            self.world.notice(p, x)
        self.after(p, flush=True)

    @rule(x=process, kept=choice)
    def kill(self, x: int, kept: int) -> None:
        self.world.kill(x, kept)
        self.world.check()

    def teardown(self) -> None:
        self.world.wind_down()


TestReferencesMachine = ReferencesMachine.TestCase
TestReferencesMachine.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

#: Relative frequency of each operation in a walk; deaths and breaks are rare enough that something happens between.
WEIGHTS = {
    "create": 4, "submit": 8, "start": 9, "finish": 8, "get": 8, "drop": 4, "deliver": 30, "notice": 2,
    "break": 2, "kill": 0.3,
}  # fmt: skip


def walk(seed: int, steps: int = 250, faults: bool = True) -> None:
    """One seeded run from creation to rest."""
    dice = random.Random(seed)
    world = World(COUNT)
    names = [name for name in WEIGHTS if faults or name not in {"break", "kill"}]
    weights = [WEIGHTS[name] for name in names]
    busy = dice.randint(3, COUNT)  # few processes meet more often
    if seed % 2:
        _hand_over(world, *dice.sample(range(COUNT), 3))
    if seed % 4 == 2:
        _borrow_often(world, *dice.sample(range(COUNT), 2))
    # Slow connections, so that what goes around them overtakes.
    slow = {(a, b, late) for a in range(COUNT) for b in range(COUNT) for late in (0, 1) if dice.random() < 0.3}
    for name in dice.choices(names, weights, k=steps):
        if faults and dice.random() < 0.3:
            sent = dice.random() < 0.8  # its value has left, too
            for p in [p for p in world.alive if world.is_handing_over(p, sent)][:1]:
                world.kill(p, dice.randrange(4))
                last_words = {(p, b, late) for b in range(COUNT) for late in (0, 1) if dice.random() < 0.5}
                slow |= last_words  # some hear of the death before others have read its last messages
                for q in sorted(world.alive):
                    if dice.random() < 0.5:
                        world.notice(q, p)
                        world.pump(q, flush=True)
        _step(world, dice, name, dice.randrange(busy), dice.randrange(busy), slow)
        world.check()
        if len(world.alive) < 3:
            break
    world.wind_down()


def _hand_over(world: World, owner: int, middle: int, receiver: int) -> None:
    """Start in the middle of REF-SEND: `middle` alone has an object of `owner` and is returning it to `receiver`."""
    world.create(owner, [], move=False)
    world.submit(owner, middle, [0], 1, move=True)
    world.submit(receiver, middle, [], 1, move=False)
    world.deliver_all()
    world.start(middle, 0, actor=False)
    world.start(middle, 0, actor=False)
    of_owner = next(n for n, running in enumerate(world.processes[middle].running) if running.submitter == owner)
    world.finish(middle, of_owner, [], keep=True)
    world.deliver_all()
    world.finish(middle, 0, [0], keep=False)
    world.pump(middle, flush=True)


def _borrow_often(world: World, owner: int, borrower: int) -> None:
    """Start in the middle of REF-EPOCH: a reference taken out of a container, dropped, taken out again and kept."""
    world.create(owner, [], move=False)
    world.create(owner, [0], move=True)
    world.submit(owner, borrower, [0], 1, move=True)
    world.deliver_all()
    world.start(borrower, 0, actor=False)
    world.finish(borrower, 0, [], keep=True)
    world.deliver_all()
    for move in (False, True):
        world.get(borrower, 0, direct=True, move=move)
        world.pump(borrower, flush=True)
        if not move:
            world.drop(borrower, 1)
            world.pump(borrower, flush=True)


def _step(world: World, dice: random.Random, name: str, a: int, b: int, slow: set[tuple[int, int, int]]) -> None:
    some = [dice.randrange(6) for _ in range(dice.randrange(3))]
    n = dice.randrange(6)
    move = dice.random() < 0.7
    borrowed = world.borrowed(a)
    if borrowed and dice.random() < 0.6:
        some = [dice.choice(borrowed)]  # a third process's reference is what makes hand-overs hard
    if name == "deliver":
        a = _deliver(world, dice, slow, 1 + n % 2)
    elif name == "notice" and world.notices:
        a, b = dice.choice(sorted(world.notices))
        world.notice(a, b)
    elif name == "kill":
        world.kill(a, n % 3)
    elif name == "break" and a != b:
        world.break_connection(a, b, n, dice.randrange(6))
    elif a in world.alive:
        _act(world, dice, name, a, b, some, move)
    if a in world.alive:
        world.pump(a, flush=dice.random() < 0.5)


def _deliver(world: World, dice: random.Random, slow: set[tuple[int, int, int]], count: int) -> int:
    """Deliver from one connection on which something waits; who received."""
    full = [(wire, late) for late in (False, True) for wire, frames in world.frames(late) if frames]
    if not full:
        return 0
    fast = [(wire, late) for wire, late in full if (*wire, late) not in slow]
    (a, b), late = dice.choice(full if not fast or dice.random() < 0.05 else fast)
    for _ in range(count):
        world.deliver(a, b, late)
    return b


def _act(world: World, dice: random.Random, name: str, a: int, b: int, some: list[int], move: bool) -> None:
    """What a program does."""
    n = dice.randrange(6)
    if name == "create":
        world.create(a, some, move)
    elif name == "submit" and a != b:
        world.submit(a, b, some, 1 + n % 2, move)
    elif name == "start":
        world.start(a, n, actor=dice.random() < 0.3)
    elif name == "finish":
        world.finish(a, n, some, keep=not move)
    elif name == "get":
        containers = [i for i, object_id in enumerate(world.processes[a].locals) if world.graph.get(object_id)]
        world.get(a, dice.choice(containers or [n]), dice.random() < 0.5, move)
    elif name == "drop":
        world.drop(a, n)


@pytest.mark.parametrize("block", range(4))
def test_walks(block: int) -> None:
    for seed in range(block * EXAMPLES, (block + 1) * EXAMPLES):
        try:
            walk(seed, faults=block > 0)
        except Exception as error:
            error.add_note(f"replay: walk({seed}, faults={block > 0})")
            raise
