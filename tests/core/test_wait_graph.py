"""What waits for what: the path that is told, and what counts as a deadlock."""

from __future__ import annotations

from moray.core.wait_graph import Finding, Target, WaitGraph


def target(name: str) -> Target:
    return Target("object", b"process", name.encode())


def targets(names: str) -> list[Target]:
    return [target(name) for name in names.split()]


def graph(**found: dict[str, str]) -> WaitGraph:
    """Findings by name: what each waits for, as {"every": "a b", "some": …, "perhaps": …}; the first is the start."""
    made = WaitGraph(target(next(iter(found))))
    for name, waits in found.items():
        made.found[target(name)] = Finding(
            f"{name} waits.",
            name,
            every=targets(waits.get("every", "")),
            some=targets(waits.get("some", "")),
            perhaps=targets(waits.get("perhaps", "")),
        )
    return made


def test_a_chain_is_told_to_its_end() -> None:
    chain = graph(a={"every": "b"}, b={"every": "c"}, c={})
    assert chain.story() == ["a waits.", "b waits.", "c waits."]
    assert not chain.is_deadlock()


def test_a_circle_is_a_deadlock_with_all_its_names() -> None:
    circle = graph(start={"every": "a"}, a={"every": "b"}, b={"every": "a"})
    assert circle.is_deadlock()
    assert circle.story()[-1] == "This is a deadlock: a waits for b, which waits for a. None of them can go on."
    assert circle.circle() == targets("a b")


def test_what_waits_for_itself() -> None:
    assert graph(a={"every": "a"}).story()[-1] == "This is a deadlock: a waits for itself."


def test_one_way_out_of_several_is_enough() -> None:
    free = graph(a={"some": "b c"}, b={"every": "a"}, c={})
    assert not free.is_deadlock()
    closed = graph(a={"some": "b c"}, b={"every": "a"}, c={"every": "b"})
    assert closed.is_deadlock()


def test_all_must_come_so_one_that_cannot_is_a_deadlock() -> None:
    assert graph(a={"every": "free b"}, free={}, b={"every": "a"}).is_deadlock()


def test_the_story_of_a_deadlock_follows_what_is_stuck() -> None:
    stuck = graph(a={"every": "free b"}, free={}, b={"every": "a"})
    assert stuck.story()[:-1] == ["a waits.", "b waits."]


def test_a_circle_that_a_timeout_ends_is_none() -> None:
    limited = graph(a={"every": "b"}, b={"perhaps": "a"})
    assert not limited.is_deadlock()
    assert limited.story()[-1] == "That leads back to a."


def test_what_did_not_answer_counts_as_a_way_out() -> None:
    unknown = graph(a={"some": "b c"}, b={"every": "a"})
    assert not unknown.is_deadlock()


def test_a_wait_on_something_that_runs_is_not_notable() -> None:
    assert not graph(a={"every": "b"}, b={}).is_notable()


def test_a_deadlock_is_notable_whoever_else_warns() -> None:
    circle = graph(a={"every": "b"}, b={"every": "a"})
    circle.found[target("b")].covered = True
    assert circle.is_notable()


def test_what_another_warns_of_is_not_notable() -> None:
    chain = graph(a={"every": "b"}, b={})
    chain.found[target("a")].notable = True
    assert chain.is_notable()
    chain.found[target("b")].covered = True
    assert not chain.is_notable()


def test_long_stories_are_shortened_in_the_middle() -> None:
    found = {f"s{i}": {"every": f"s{i + 1}"} for i in range(100)}
    story = graph(**found, s100={}).story()
    assert len(story) < 30
    assert story[0] == "s0 waits."
    assert story[-1] == "s100 waits."
    assert any("left out" in line for line in story)
