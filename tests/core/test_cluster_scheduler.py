"""The choice of nodes: its promises one by one, and a hypothesis machine against a model that looks at every node."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moray.core.cluster_scheduler import ClusterScheduler, Demand, Knobs
from moray.core.cluster_view import IN_FLIGHT_S, ClusterView, Node
from moray.core.strategies import LABELS, NODE, SPREAD, Strategy, choices, selector_of
from moray.core.wishes import Choice
from tests.support.machines import search, walk_fixed

UNIT = 10_000
CPU = {"CPU": UNIT}


@dataclass
class Info:
    """What the head says of a node."""

    node_id: bytes
    resources: dict[str, int]
    available: dict[str, int]
    labels: dict[str, str] = field(default_factory=dict)
    drain_deadline: float = 0.0
    demand: list[tuple[dict[str, int], int]] = field(default_factory=list)
    address: str = ""
    hostname: str = "host"


@dataclass
class Load:
    """All that the head says of a node that is otherwise as it was."""

    node_id: bytes
    available: dict[str, int]
    demand: list[tuple[dict[str, int], int]] = field(default_factory=list)


def node_id(number: int) -> bytes:
    return number.to_bytes(4, "big") + bytes(24)


def info(number: int, cpus: int = 4, free: int | None = None, **more: Any) -> Info:
    total = {"CPU": cpus * UNIT, **more.pop("also", {})}
    available = {**total, "CPU": (cpus if free is None else free) * UNIT}
    return Info(node_id(number), total, available, **more)


def make(*infos: Info, own: int = 99, knobs: Knobs = Knobs()) -> tuple[ClusterView, ClusterScheduler]:  # noqa: B008
    view = ClusterView(node_id(own))
    scheduler = ClusterScheduler(view, knobs)
    view.reset(1, infos)
    return view, scheduler


def first(_n: int) -> int:
    return 0


def numbers(choice: Choice) -> dict[int, int]:
    return {int.from_bytes(node[:4], "big"): count for node, count in choice.now}


def decide(scheduler: ClusterScheduler, holder: object, count: int = 1, now: float = 0.0, **more: Any) -> Choice:
    pick = more.pop("pick", first)
    choice = scheduler.decide(Demand(holder, more.pop("need", CPU), count, **more), pick, now)
    scheduler.view.validate()
    scheduler.validate()
    return choice


# --- DEFAULT ------------------------------------------------------------------------------------------


def test_below_the_threshold_work_is_packed_then_goes_to_the_least_loaded() -> None:
    _view, scheduler = make(info(1), info(2), info(3))
    assert [numbers(decide(scheduler, i)) for i in range(6)] == [{1: 1}, {1: 1}, {3: 1}, {3: 1}, {2: 1}, {2: 1}]
    placed = [numbers(decide(scheduler, 6 + i)) for i in range(6)]
    assert Counter(next(iter(each)) for each in placed) == {1: 2, 2: 2, 3: 2}
    # Each is half full before one is three quarters full: never two on one node in a row.
    assert {next(iter(each)) for each in placed[:3]} == {1, 2, 3}
    assert decide(scheduler, "more").now == []


def test_own_node_first_below_the_threshold() -> None:
    _view, scheduler = make(info(1), info(2), own=2)
    assert numbers(decide(scheduler, "a", 2)) == {2: 2}
    assert numbers(decide(scheduler, "b", 3)) == {1: 3} or numbers(decide(scheduler, "b", 3)) == {1: 2, 2: 1}
    assert sum(numbers(decide(scheduler, "c", 9)).values()) == 3


def test_arguments_attract_while_there_is_room() -> None:
    _view, scheduler = make(info(1), info(2), info(3), own=1)
    near = {node_id(3)[:4]: 10, node_id(2)[:4]: 5}
    assert numbers(decide(scheduler, "a", 3, locality=near)) == {3: 3}
    assert numbers(decide(scheduler, "b", 3, locality=near)) == {3: 1, 1: 2}
    assert numbers(decide(scheduler, "c", 1, locality={b"gone": 1})) == {2: 1}


def test_chance_decides_among_the_best_fifth() -> None:
    chosen: Counter[int] = Counter()
    dice = random.Random(3)
    for _ in range(200):
        _view, scheduler = make(*[info(i) for i in range(10)])
        scheduler.decide(Demand("a", CPU, 1), dice.randrange, 0.0)
        chosen += Counter(numbers(scheduler.decide(Demand("b", CPU, 1), dice.randrange, 0.0)))
    assert set(chosen) == {0, 1}
    assert min(chosen.values()) > 50


def test_the_knobs() -> None:
    _view, scheduler = make(*[info(i) for i in range(4)], knobs=Knobs(spread_threshold=0.0, top_k_fraction=0.0))
    placed = [numbers(decide(scheduler, i)) for i in range(4)]
    assert Counter(next(iter(each)) for each in placed) == {0: 1, 1: 1, 2: 1, 3: 1}
    _view, scheduler = make(*[info(i) for i in range(4)], knobs=Knobs(top_k_fraction=0.0, top_k_absolute=3))
    best = []

    def last(n: int) -> int:
        best.append(n)
        return n - 1

    assert numbers(decide(scheduler, "a", pick=last)) == {2: 1}
    assert best == [3]


def test_two_decisions_in_a_row_do_not_pile_up() -> None:
    _view, scheduler = make(info(1, 2), info(2, 2))
    assert numbers(decide(scheduler, "a", 2)) == {1: 1, 2: 1}
    assert numbers(decide(scheduler, "b", 2)) == {1: 1, 2: 1}
    choice = decide(scheduler, "c", 1)
    assert choice.now == []
    assert choice.rest in (node_id(1), node_id(2))


def test_deciding_anew_moves_nothing() -> None:
    _view, scheduler = make(*[info(i) for i in range(10)])
    dice = random.Random(1)
    before = scheduler.decide(Demand("a", CPU, 9), dice.randrange, 0.0)
    for _ in range(20):
        again = scheduler.decide(Demand("a", CPU, 9), dice.randrange, 0.0)
        assert sorted(again.now) == sorted(before.now)


def test_what_waits_moves_to_a_node_that_gets_room_and_else_stays() -> None:
    view, scheduler = make(info(1, free=0), info(2, free=0), info(3, free=0))
    waits = decide(scheduler, "a", 2).rest
    assert decide(scheduler, "a", 2).rest == waits
    other = 1 if waits != node_id(1) else 2
    assert view.apply(2, [info(other, free=1)], [])
    choice = decide(scheduler, "a", 2)
    assert (numbers(choice), choice.rest) == ({other: 1}, waits)


def test_what_waits_goes_where_least_waits() -> None:
    _view, scheduler = make(info(1, free=0, demand=[(CPU, 9)]), info(2, free=0), info(3, free=0, demand=[(CPU, 5)]))
    assert decide(scheduler, "a").rest == node_id(2)
    _view, scheduler = make(info(1, free=0, demand=[(CPU, 9)]), info(2, free=0), own=1)
    assert decide(scheduler, "a").rest == node_id(1)


# --- other strategies ------------------------------------------------------------------------------------


def test_spread_takes_turns_and_leaves_out_the_full() -> None:
    _view, scheduler = make(info(1), info(2, free=0), info(3), info(4))
    strategy = Strategy(SPREAD)
    turns = [next(iter(numbers(decide(scheduler, i, strategy=strategy)))) for i in range(6)]
    assert sorted(turns[:3]) == [1, 3, 4]
    assert turns[:3] == turns[3:]
    assert numbers(decide(scheduler, "many", 3, strategy=strategy)) == {1: 1, 3: 1, 4: 1}


def waits(choice: Choice, count: int) -> dict[int, int]:
    """Where what has no room waits, of so many in all."""
    waiting = Counter(dict(choice.waiting))
    waiting[choice.rest] += count - sum(waiting.values()) - sum(some for _node, some in choice.now)
    return {int.from_bytes(node[:4], "big"): some for node, some in waiting.items() if some}


def test_spread_waits_where_nothing_of_it_runs_first() -> None:
    """Full nodes may be full of idle workers, and give them up for those who wait: what waits at the one with room
    would run there twice as often as elsewhere."""
    _view, scheduler = make(info(1, 1), info(2, 1, free=0))
    strategy = Strategy(SPREAD)
    for chance in range(2):
        choice = decide(scheduler, "two", 2, strategy=strategy, pick=lambda n, chance=chance: chance % n)
        assert (numbers(choice), waits(choice, 2)) == ({1: 1}, {2: 1})
    choice = decide(scheduler, "many", 11, strategy=strategy)
    assert sum(waits(choice, 11).values()) == 11
    assert sorted(waits(choice, 11).values()) == [5, 6]
    view, scheduler = make(info(1, 3), info(2, 1, free=0), info(3, 1, free=0))
    choice = decide(scheduler, "seven", 7, strategy=strategy)
    assert (numbers(choice), waits(choice, 7)) == ({1: 3}, {1: 1, 2: 2, 3: 1})
    assert view.held("seven") == {node_id(1): 4, node_id(2): 2, node_id(3): 1}


def test_what_waits_by_spread_stays_where_it_waits() -> None:
    view, scheduler = make(*(info(number, 1, free=0) for number in range(1, 7)))
    strategy = Strategy(SPREAD)
    began = waits(decide(scheduler, "a", 3, strategy=strategy, pick=lambda _n: 4), 3)
    assert sorted(began.values()) == [1, 1, 1]
    for chance in range(6):
        view.apply(view.version + 1, [], [], [Load(node_id(chance + 1), {"CPU": -UNIT})])
        choice = decide(scheduler, "a", 3, strategy=strategy, pick=lambda n, chance=chance: chance % n)
        assert waits(choice, 3) == began


def test_affinity() -> None:
    view, scheduler = make(info(1), info(2, free=0), info(3))
    hard = Strategy(NODE, node_id(2))
    assert decide(scheduler, "a", 1, strategy=hard) == Choice([], node_id(2))
    soft = Strategy(NODE, node_id(2), soft=True)
    assert decide(scheduler, "b", 1, strategy=soft).rest == node_id(2)
    spill = Strategy(NODE, node_id(2), soft=True, spill=True)
    assert numbers(decide(scheduler, "c", 1, strategy=spill)) == {1: 1}
    fail = Strategy(NODE, node_id(2), fail=True)
    assert decide(scheduler, "d", 1, strategy=fail).rest == node_id(2)  # Which then says so.
    assert view.apply(2, [], [(node_id(2), "it died")])
    assert "is not in the cluster" in decide(scheduler, "a", 1, strategy=hard).reason
    assert numbers(decide(scheduler, "b", 1, strategy=soft)) == {1: 1}


def test_labels() -> None:
    _view, scheduler = make(
        info(1, labels={"zone": "a"}), info(2, labels={"zone": "b"}), info(3, 1, labels={"zone": "b", "disk": "ssd"})
    )
    zone = selector_of({"zone": "b"})
    strategy = Strategy(LABELS, hard=zone, preferred=selector_of({"disk": "ssd"}))
    assert numbers(decide(scheduler, "a", 1, strategy=strategy)) == {3: 1}
    assert numbers(decide(scheduler, "a", 3, strategy=strategy)) == {3: 1, 2: 2}
    this = Strategy(selector=selector_of({"ray.io/node-id": node_id(2).hex()}))
    assert numbers(decide(scheduler, "this", strategy=this)) == {2: 1}
    wrong = Strategy(selector=selector_of({"zone": "c"}))
    reason = decide(scheduler, "b", strategy=wrong).reason
    assert reason.startswith("no node of 3 has label 'zone' = 'c'; the nearest, node 00000001 (host): ")
    either = Strategy(selector=selector_of({"zone": "c"}), fallbacks=(selector_of({"zone": "a"}),))
    assert numbers(decide(scheduler, "c", strategy=either)) == {1: 1}


def test_actors_that_hold_nothing_go_anywhere_where_they_could_start() -> None:
    _view, scheduler = make(info(1), info(2, 0), info(3, free=0), own=1)
    dice = random.Random(0)
    chosen: Counter[int] = Counter()
    for holder in range(100):
        demand = Demand(holder, {}, 1, placement=CPU)
        chosen += Counter(numbers(scheduler.decide(demand, dice.randrange, 0.0)))
    assert set(chosen) == {1, 3}
    assert min(chosen.values()) > 25


@pytest.mark.parametrize(
    ("need", "words"),
    [
        ({"CPU": 64 * UNIT}, "CPU: 64 wanted, no node of 2 has more than 8 (node 00000002 (host))"),
        ({"oil": UNIT}, "no node of 2 has a resource named 'oil'"),
        ({"CPU": 8 * UNIT, "GPU": UNIT}, "no node of 2 has all of CPU: 8, GPU: 1 together; the nearest, node "),
    ],
)
def test_infeasible_says_what_is_missing(need: dict[str, int], words: str) -> None:
    view, scheduler = make(info(1, also={"GPU": UNIT}), info(2, 8))
    choice = decide(scheduler, "a", need=need)
    assert choice.reason.startswith(words)
    assert (choice.now, choice.rest) == ([], b"")
    view.apply(2, [info(3, 64, also={"GPU": UNIT, "oil": UNIT})], [])
    assert numbers(decide(scheduler, "a", need=need)) == {3: 1}


def test_infeasible_of_no_nodes_and_of_draining_ones() -> None:
    view, scheduler = make()
    assert decide(scheduler, "a").reason == "the cluster has no nodes"
    view.apply(2, [info(1, drain_deadline=5.0)], [])
    assert decide(scheduler, "a").reason == "all 1 nodes are draining: no new work is taken"
    assert "is draining" in decide(scheduler, "a", strategy=Strategy(NODE, node_id(1))).reason


# --- the view ------------------------------------------------------------------------------------------------


def test_deltas_apply_in_order_only() -> None:
    view, _scheduler = make(info(1))
    assert not view.apply(3, [info(2)], [])
    assert not view.apply(1, [info(2)], [])
    assert view.by_tag(node_id(2)[:4]) is None
    assert view.apply(2, [info(2)], [(node_id(1), "gone")])
    assert set(view.nodes) == {node_id(2)}
    assert view.reset(9, [info(3)]) == [node_id(2)]


def test_a_load_is_a_report() -> None:
    view, scheduler = make(info(1, 1), info(2, 1, free=0))
    assert numbers(decide(scheduler, "a")) == {1: 1}
    layout = view.layout
    assert view.apply(2, [], [], [Load(node_id(1), {"CPU": 0}), Load(node_id(2), {"CPU": UNIT}, [(CPU, 3)])])
    assert numbers(decide(scheduler, "a")) == {2: 1}
    assert view.layout == layout
    told = view.nodes[node_id(2)].info
    assert told is not None
    assert (told.available, told.demand, told.resources) == ({"CPU": UNIT}, [(CPU, 3)], {"CPU": UNIT})
    assert view.nodes[node_id(2)].waiting == {"CPU": 3 * UNIT}
    assert view.apply(3, [], [(node_id(1), "gone")], [Load(node_id(9), {"CPU": UNIT})])
    assert set(view.nodes) == {node_id(2)}, "a node that nobody has described"


def test_nothing_is_held_at_a_dead_node() -> None:
    view, scheduler = make(info(1, 1), info(2, 1))
    decide(scheduler, "a", 2)
    view.apply(2, [], [(node_id(1), "gone")])
    assert view.held("a") == {node_id(2): 1}
    view.apply(3, [], [(node_id(2), "gone")])
    assert view.held("a") == {}


def test_a_grant_counts_until_loads_show_it() -> None:
    view, scheduler = make(info(1, 1))
    decide(scheduler, "a")
    view.granted("a", node_id(1), 10.0)
    view.apply(2, [], [], [Load(node_id(1), {"CPU": UNIT})])
    assert decide(scheduler, "b", now=10.0).now == []
    view.apply(3, [], [], [Load(node_id(1), {"CPU": UNIT})])
    assert numbers(decide(scheduler, "b", now=10.0)) == {1: 1}


def test_a_report_costs_nothing_where_the_node_could_never_serve() -> None:
    view, scheduler = make(*(info(number, also={f"own{number}": UNIT}) for number in range(20)))
    for number in range(20):
        decide(scheduler, number, need={f"own{number}": UNIT})
    view.apply(2, [], [], [Load(node_id(number), {"CPU": 0}) for number in range(20)])
    assert [len(index.marked) for index in scheduler._indexes.values()] == [1] * 20
    view.apply(3, [info(7, also={"own3": UNIT})], [])
    assert all(node_id(7) in index.marked for index in scheduler._indexes.values())
    view.granted(3, node_id(3), 0.0)
    assert numbers(decide(scheduler, "b", need={"own3": UNIT})) == {7: 1}


def test_a_grant_counts_until_reports_show_it() -> None:
    view, scheduler = make(info(1, 1))
    decide(scheduler, "a")
    view.granted("a", node_id(1), 10.0)
    assert decide(scheduler, "b", now=10.0).now == []
    view.apply(2, [info(1, 1)], [])  # It may have been sent before the grant.
    assert decide(scheduler, "b", now=10.0).now == []
    view.apply(3, [info(1, 1)], [])  # The worker has come back meanwhile.
    assert numbers(decide(scheduler, "b", now=10.0)) == {1: 1}


def test_a_grant_is_forgotten_in_time() -> None:
    view, scheduler = make(info(1, 1))
    decide(scheduler, "a")
    view.granted("a", node_id(1), 10.0)
    view.granted("a", node_id(1), 10.0)  # One too many: it crossed a move.
    assert decide(scheduler, "b", now=10.0 + IN_FLIGHT_S - 0.1).now == []
    assert numbers(decide(scheduler, "b", now=10.0 + IN_FLIGHT_S)) == {1: 1}


def test_own_grants_need_no_flight() -> None:
    view, scheduler = make(info(1, 2), own=1)
    decide(scheduler, "a")
    view.granted("a", node_id(1), 0.0)
    view.report(node_id(1), {"CPU": UNIT})
    assert view.nodes[node_id(1)].booked == {}
    assert numbers(decide(scheduler, "b")) == {1: 1}


def test_many_kinds_of_demand_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moray.core.cluster_scheduler.INDEXED_NODES", 12)
    _view, scheduler = make(info(1), info(2), info(3))
    for amount in range(1, 30):
        either = Strategy(selector=selector_of({"no": "x"}), fallbacks=((),))
        assert decide(scheduler, "a", need={"CPU": amount * UNIT // 10}, strategy=either).now
        assert len(scheduler._indexes) <= 5


# --- machine ------------------------------------------------------------------------------------------------------

ZONES = ("a", "b", "c")
NEEDS: list[dict[str, int]] = [CPU, {"CPU": 2 * UNIT}, {"CPU": UNIT, "GPU": UNIT}, {"GPU": UNIT // 2}, {}, {"oil": 1}]
OWN = 0
STRATEGIES: list[Strategy | None] = [
    None,
    Strategy(SPREAD),
    Strategy(NODE, node_id(1)),
    Strategy(NODE, node_id(2), soft=True),
    Strategy(NODE, node_id(1), soft=True, spill=True),
    Strategy(NODE, node_id(1), fail=True),
    Strategy(LABELS, hard=selector_of({"zone": "!a"}), preferred=selector_of({"zone": "b"})),
    Strategy(selector=selector_of({"zone": "in(a,b)"}), fallbacks=(selector_of({"zone": "c"}),)),
]


class ClusterMachine(RuleBasedStateMachine):
    """Random life of a cluster as one node sees it. The model knows what every node has, and looks at all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.view, self.scheduler = make(own=OWN)
        self.version = 1
        self.now = 0.0
        self.nodes: dict[bytes, Info] = {}
        #: Holder → (need, node → asked).
        self.asked: dict[int, tuple[dict[str, int], dict[bytes, int]]] = {}
        #: (need, node, until, reports then).
        self.flights: list[tuple[dict[str, int], bytes, float, int]] = []
        self.reports: Counter[bytes] = Counter()

    def apply(self, changed: list[Info], dead: list[bytes]) -> None:
        self.version += 1
        # As the head does: of those that are as they were told last but for their loads, only these.
        loads = [each for each in changed if self.is_as_before(each)]
        told = [replace(each) for each in changed if each not in loads]
        assert self.view.apply(
            self.version,
            told,
            [(each, "dead") for each in dead],
            [Load(each.node_id, each.available, each.demand) for each in loads],
        )
        for each in changed:
            self.nodes[each.node_id] = each
            self.reports[each.node_id] += 1
        for victim in dead:
            self.nodes.pop(victim, None)
            self.flights = [flight for flight in self.flights if flight[1] != victim]
            for _need, asked in self.asked.values():
                asked.pop(victim, None)
        self.flights = [f for f in self.flights if f[3] + 2 > self.reports[f[1]]]

    def is_as_before(self, info: Info) -> bool:
        before = self.nodes.get(info.node_id)
        return before is not None and replace(info, available=before.available, demand=before.demand) == before

    def booked(self, node: bytes, name: str) -> int:
        """What the model has booked at a node."""
        held = sum(need.get(name, 0) * asked.get(node, 0) for need, asked in self.asked.values())
        return held + sum(need.get(name, 0) for need, where, _until, _n in self.flights if where == node)

    def room(self, node: bytes, need: dict[str, int]) -> int:
        free = self.nodes[node].available
        counts = [(free.get(name, 0) - self.booked(node, name)) // amount for name, amount in need.items()]
        return max(0, min(counts, default=10**9))

    @rule(
        number=st.integers(0, 5),
        cpus=st.integers(0, 4),
        free=st.integers(-1, 4),
        gpus=st.integers(0, 2),
        zone=st.sampled_from((*ZONES, "")),
        draining=st.sampled_from([False, False, False, True]),
        waiting=st.integers(0, 3),
    )
    def reports_change(
        self, number: int, cpus: int, free: int, gpus: int, zone: str, draining: bool, waiting: int
    ) -> None:
        total = {"CPU": cpus * UNIT, "GPU": gpus * UNIT}
        available = {"CPU": min(cpus, free) * UNIT, "GPU": gpus * UNIT}
        labels = {"zone": zone} if zone else {}
        demand = [(CPU, waiting)] if waiting else []
        self.apply([Info(node_id(number), total, available, labels, float(draining), demand)], [])

    @precondition(lambda self: self.nodes)
    @rule(data=st.data())
    def node_dies(self, data: st.DataObject) -> None:
        victim: bytes = data.draw(st.sampled_from(sorted(self.nodes)))
        self.apply([], [victim])

    @precondition(lambda self: node_id(OWN) in self.nodes)
    @rule(free=st.integers(-1, 4))
    def own_report(self, free: int) -> None:
        own = self.nodes[node_id(OWN)]
        own.available = {**own.available, "CPU": min(free * UNIT, own.resources["CPU"])}
        own.demand = []
        self.view.report(own.node_id, own.available)

    @rule(
        holder=st.integers(0, 4),
        need=st.sampled_from(NEEDS),
        count=st.integers(0, 6),
        strategy=st.sampled_from(STRATEGIES),
        near=st.dictionaries(st.integers(0, 5), st.integers(1, 9), max_size=2),
        actor=st.booleans(),
        seed=st.integers(0, 3),
    )
    def decides(
        self,
        holder: int,
        need: dict[str, int],
        count: int,
        strategy: Strategy | None,
        near: dict[int, int],
        actor: bool,
        seed: int,
    ) -> None:
        placement = CPU if actor else {}
        locality = {node_id(number)[:4]: amount for number, amount in near.items()}
        demand = Demand(holder, need, count, strategy, locality, placement)
        self.expire()
        self.asked.pop(holder, None)
        choice = self.scheduler.decide(demand, random.Random(seed).randrange, self.now)
        options = self.options(need, placement, strategy)
        self.check(demand, choice, options)
        asked = Counter(dict(choice.now))
        for node, waiting in choice.waiting:
            asked[node] += waiting
        if choice.rest:
            asked[choice.rest] += count - sum(asked.values())
        if asked:
            self.asked[holder] = need, dict(asked)

    def options(self, need: dict[str, int], placement: dict[str, int], strategy: Strategy | None) -> list[list[bytes]]:
        """The feasible nodes of each choice that is open, by looking at every node."""

        def could(node: Info) -> bool:
            wanted = [*need.items(), *placement.items()]
            return not node.drain_deadline and all(node.resources.get(name, 0) >= amount for name, amount in wanted)

        found = [
            [
                node.node_id
                for node in self.nodes.values()
                if could(node) and not choice.mismatch(node.node_id, node.labels)
            ]
            for choice in choices(strategy)
        ]
        found = [each for each in found if each]
        return found[:1] if strategy is not None and strategy.kind == NODE and not strategy.spill else found

    def check(self, demand: Demand, choice: Choice, options: list[list[bytes]]) -> None:
        placed = dict(choice.now)
        allowed = {node for option in options for node in option}
        if demand.count == 0:
            assert choice == Choice([], b"")
            return
        assert bool(choice.reason) == (not options)
        assert set(placed) <= allowed, "a node that must not or cannot run it"
        assert len(placed) == len(choice.now), "a node is named twice"
        assert {node for node, _waiting in choice.waiting} <= allowed, "it waits where it never can run"
        for node, count in placed.items():
            assert 0 < count <= self.room(node, demand.need), "more than there is room for"
        room = sum(self.room(node, demand.need) for node in allowed)
        assert sum(placed.values()) == min(demand.count, room), "there was room"
        left = demand.count - sum(placed.values())
        if left and options and not choice.reason:
            assert choice.rest in options[0], "it waits where it cannot run, or not at the best"
        else:
            assert not choice.rest
        # The first choice is filled before the second.
        if len(options) > 1 and set(placed) - set(options[0]):
            assert all(placed.get(node, 0) == self.room(node, demand.need) for node in options[0])

    @precondition(lambda self: any(asked for _need, asked in self.asked.values()))
    @rule(data=st.data())
    def grants(self, data: st.DataObject) -> None:
        pairs = sorted((holder, node) for holder, (_n, asked) in self.asked.items() for node in asked)
        holder, node = data.draw(st.sampled_from(pairs))
        need, asked = self.asked[holder]
        self.expire()
        self.view.expire(self.now)
        self.view.granted(holder, node, self.now)
        asked[node] -= 1
        if not asked[node]:
            del asked[node]
        if node != node_id(OWN):
            self.flights.append((need, node, self.now + IN_FLIGHT_S, self.reports[node]))

    @rule(holder=st.integers(0, 4))
    def gives_up(self, holder: int) -> None:
        self.view.release(holder)
        self.asked.pop(holder, None)

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    def expire(self) -> None:
        self.flights = [flight for flight in self.flights if flight[2] > self.now]

    @invariant()
    def books_agree(self) -> None:
        self.view.expire(self.now)
        self.expire()
        self.view.validate()
        self.scheduler.validate()
        for node in self.nodes:
            known = self.view.nodes[node]
            for name in ("CPU", "GPU", "oil"):
                assert known.booked.get(name, 0) == self.booked(node, name), "booked twice, or forgotten"


def test_random_walks() -> None:
    search(ClusterMachine)


@pytest.mark.long
def test_fixed_walks() -> None:
    walk_fixed(ClusterMachine, 80, steps=40)


@pytest.mark.parametrize("strategy", [None, Strategy(SPREAD), Strategy(selector=selector_of({"zone": "!b"}))])
def test_a_decision_looks_at_as_many_nodes_in_a_large_cluster(
    strategy: Strategy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = 0
    load = Node.load

    def counted(node: Node, need: dict[str, int]) -> float:
        nonlocal looks
        looks += 1
        return load(node, need)

    monkeypatch.setattr(Node, "load", counted)
    seen = []
    for size in (10, 2_000):
        view, scheduler = make(*[info(number, 16) for number in range(size)])
        scheduler.decide(Demand("first", CPU, 1, strategy), first, 0.0)
        looks = 0
        for holder in range(50):
            scheduler.decide(Demand(holder, CPU, 1, strategy), first, 0.0)
            view.release(holder)
        seen.append(looks)
    assert seen[1] <= seen[0] + 50
    assert seen[1] <= 50 * 4
