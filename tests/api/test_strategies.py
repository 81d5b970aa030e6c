"""Scheduling strategies and label selectors on one machine: what may run here does, anything else waits or fails."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

import moray
from moray.util.scheduling_strategies import (
    DoesNotExist,
    Exists,
    In,
    NodeAffinitySchedulingStrategy,
    NodeLabelSchedulingStrategy,
    NotIn,
)
from tests.support.procs import poll_until, run_driver

ELSEWHERE = "ab" * 28


@pytest.fixture(name="shared_session", scope="module", autouse=True)
def _shared_session(module_leaks: set[str]) -> Iterator[None]:
    with moray.init(num_cpus=2, labels={"zone": "a", "ray.io/market-type": "spot"}):
        yield


@moray.remote
def where() -> str:
    return moray.get_runtime_context().get_node_id()


@moray.remote
class Place:
    def where(self) -> str:
        return moray.get_runtime_context().get_node_id()


def here() -> str:
    return str(moray.nodes()[0]["NodeID"])


def allowed() -> list[dict[str, Any]]:
    return [
        {"scheduling_strategy": "DEFAULT"},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy(here(), soft=False)},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy(here().upper(), soft=True)},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy(ELSEWHERE, soft=True)},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy(ELSEWHERE, soft=True, _spill_on_unavailable=True)},
        {"scheduling_strategy": NodeAffinitySchedulingStrategy(here(), soft=False, _fail_on_unavailable=True)},
        {"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": In("a", "b")})},
        {"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": NotIn("b"), "ssd": DoesNotExist()})},
        {"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": Exists()}, soft={"ssd": Exists()})},
        {"label_selector": {"zone": "a"}},
        {"label_selector": {"zone": "in(a, b)", "ray.io/market-type": "!on-demand", "ssd": "!in(x)"}},
        {"label_selector": {"ray.io/node-id": here()}},
        {"label_selector": {"zone": "b"}, "fallback_strategy": [{"label_selector": {"zone": "a"}}]},
        {"label_selector": {"zone": "a"}, "scheduling_strategy": "SPREAD", "infeasible": "error"},
    ]


@pytest.mark.parametrize("number", range(15))
def test_what_is_allowed_here_runs_here(number: int) -> None:
    options = allowed()[number]
    assert moray.get(where.options(**options).remote(), timeout=20) == here()
    place = Place.options(**options).remote()
    assert moray.get(place.where.remote(), timeout=20) == here()


def test_all_cases_are_run() -> None:
    assert len(allowed()) == 15


# --- elsewhere --------------------------------------------------------------------------------------------


def elsewhere() -> list[tuple[dict[str, Any], str]]:
    return [
        ({"label_selector": {"zone": "b"}}, "label 'zone' = 'b' wanted, the node has 'a'"),
        ({"label_selector": {"zone": "!a"}}, "label 'zone' ≠ 'a' wanted, the node has 'a'"),
        ({"label_selector": {"ssd": "in(x,y)"}}, "label 'ssd' in ('x', 'y') wanted, the node has no such label"),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"ssd": Exists()})}, "label 'ssd' present wanted"),
        ({"scheduling_strategy": NodeLabelSchedulingStrategy({"zone": DoesNotExist()})}, "no label 'zone' wanted"),
        (
            {"label_selector": {"zone": "b"}, "fallback_strategy": [{"label_selector": {"zone": "c"}}]},
            "label 'zone' = 'b' wanted, the node has 'a'; nor: label 'zone' = 'c' wanted, the node has 'a'",
        ),
    ]


@pytest.mark.parametrize("number", range(6))
def test_what_is_not_allowed_here_waits_and_says_why(number: int) -> None:
    options, words = elsewhere()[number]
    ref = where.options(**options).remote()
    assert moray.wait([ref], timeout=0.1) == ([], [ref])
    assert poll_until(lambda: words in moray.explain(ref), 10), moray.explain(ref)
    place = Place.options(**options).remote()
    assert poll_until(lambda: words in moray.explain(place), 10), moray.explain(place)
    moray.cancel(ref)
    with pytest.raises(moray.exceptions.TaskCancelledError):
        moray.get(ref, timeout=10)


@pytest.mark.parametrize("number", range(6))
def test_what_is_not_allowed_here_fails_if_it_is_not_to_wait(number: int) -> None:
    options, words = elsewhere()[number]
    # Each request is judged anew: not only the first one is answered.
    for _ in range(2):
        with pytest.raises(moray.exceptions.TaskUnschedulableError, match=re.escape(words)):
            moray.get(where.options(**options, infeasible="error").remote(), timeout=10)
    place = Place.options(**options, infeasible="error").remote()
    with pytest.raises(moray.exceptions.ActorUnschedulableError, match=re.escape(words)):
        moray.get(place.where.remote(), timeout=10)


def test_a_node_that_is_not_there_is_an_error() -> None:
    strategy = NodeAffinitySchedulingStrategy(ELSEWHERE, soft=False)
    refs = [where.options(scheduling_strategy=strategy).remote() for _ in range(20)]
    for ref in refs:
        with pytest.raises(moray.exceptions.TaskUnschedulableError, match=ELSEWHERE):
            moray.get(ref, timeout=10)
    place = Place.options(scheduling_strategy=strategy, name="nowhere").remote()
    with pytest.raises(moray.exceptions.ActorUnschedulableError, match=ELSEWHERE):
        moray.get(place.where.remote(), timeout=10)
    # Its name is free again.
    assert moray.get(Place.options(name="nowhere").remote().where.remote(), timeout=10) == here()


def test_no_room_now_is_an_error_if_asked_for() -> None:
    fail = NodeAffinitySchedulingStrategy(here(), soft=False, _fail_on_unavailable=True)
    holder = Place.options(num_cpus=2).remote()
    moray.get(holder.where.remote(), timeout=10)
    with pytest.raises(moray.exceptions.TaskUnschedulableError, match=r"no room for CPU: 1 in 1 s .free now: CPU: 0"):
        moray.get(where.options(scheduling_strategy=fail).remote(), timeout=10)
    another = Place.options(num_cpus=1, scheduling_strategy=fail).remote()
    with pytest.raises(moray.exceptions.ActorUnschedulableError, match="no room for CPU: 1 in 1 s"):
        moray.get(another.where.remote(), timeout=10)
    moray.kill(holder)
    assert poll_until(lambda: moray.available_resources().get("CPU") == 2, 10)
    assert moray.get(where.options(scheduling_strategy=fail).remote(), timeout=10) == here()


def test_too_much_is_an_error_if_asked_for_and_ordinary_work_goes_on() -> None:
    large = where.options(num_cpus=64, infeasible="error")
    waiting = where.options(num_cpus=64).remote()
    with pytest.raises(moray.exceptions.TaskUnschedulableError, match="CPU: 64 wanted, the machine has 2"):
        moray.get(large.remote(), timeout=10)
    assert moray.get(where.remote(), timeout=10) == here()
    assert moray.wait([waiting], timeout=0.1) == ([], [waiting])
    moray.cancel(waiting)


def test_the_jobs_word_reaches_tasks_of_tasks() -> None:
    finished = run_driver(
        """
        import moray
        moray.init(num_cpus=1, infeasible="error")

        @moray.remote(num_cpus=9)
        def large():
            pass

        @moray.remote(num_cpus=0)
        def outer(options):
            try:
                moray.get(large.options(**options).remote(), timeout=1)
            except Exception as error:
                return type(error).__name__

        try:
            moray.get(large.remote(), timeout=10)
        except moray.exceptions.TaskUnschedulableError:
            print("driver: refused")
        print("task:", moray.get(outer.remote({})))
        print("task that waits:", moray.get(outer.remote({"infeasible": "wait"})))
        """
    )
    assert finished.stdout.splitlines() == [
        "driver: refused",
        "task: TaskUnschedulableError",
        "task that waits: GetTimeoutError",
    ]


# --- mistakes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label_selector": {"zone": "in(a"}}, "option label_selector: label 'zone' cannot have the value 'in\\(a'"),
        ({"label_selector": {"a b": "x"}}, "option label_selector: 'a b' is no label"),
        ({"fallback_strategy": [{"num_cpus": 2}]}, "fallback_strategy\\[0\\] must have 'label_selector' and nothing"),
        ({"fallback_strategy": [{"label_selector": {"zone": "!"}}]}, "negates nothing"),
        ({"infeasible": "never"}, 'must be "wait", "error" or None'),
        ({"scheduling_strategy": "PACK"}, "must be one of"),
    ],
)
def test_wrong_options_are_refused_where_they_are_written(options: dict[str, Any], words: str) -> None:
    for target in (where, Place):
        with pytest.raises(ValueError, match=words):
            target.options(**options)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: NodeAffinitySchedulingStrategy("abc", False), ValueError, "56 hexadecimal digits"),
        (lambda: NodeAffinitySchedulingStrategy("zz" * 28, False), ValueError, "is no node's id"),
        (lambda: NodeAffinitySchedulingStrategy(ELSEWHERE, False, _spill_on_unavailable=True), ValueError, "soft=True"),
        (lambda: NodeAffinitySchedulingStrategy(ELSEWHERE, True, True, True), ValueError, "exclude each other"),
        (lambda: NodeLabelSchedulingStrategy({}), ValueError, "neither `hard` nor `soft`"),
        (lambda: NodeLabelSchedulingStrategy({"zone": "a"}), ValueError, "did you mean In\\('a'\\)"),  # type: ignore[dict-item]
        (lambda: NodeLabelSchedulingStrategy({"z z": In("a")}), ValueError, "is no label"),
        (lambda: NodeLabelSchedulingStrategy([In("a")]), ValueError, "give a dict of labels and conditions"),  # type: ignore[arg-type]
        (lambda: In(), ValueError, "names no value"),
        (lambda: NotIn("a b"), ValueError, "cannot have the value"),
    ],
)
def test_wrong_strategies_are_refused_where_they_are_made(make: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        make()


def test_init_checks_labels_and_its_word() -> None:
    finished = run_driver(
        """
        import moray
        for options in ({"labels": {"a b": "c"}}, {"labels": {"a": 3}}, {"labels": "a"}, {"infeasible": "no"}):
            try:
                moray.init(num_cpus=1, **options)
            except ValueError as error:
                print(error)
        """
    )
    lines = finished.stdout.splitlines()
    assert len(lines) == 4, finished.stdout
    assert all(line.startswith("init(): ") for line in lines)
