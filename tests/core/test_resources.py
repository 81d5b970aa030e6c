"""Exact accounting of one machine's resources, with and without device indices."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from moray.core.ranking import Ranking
from moray.core.resources import UNIT, Ledger, show_amount, show_amounts

TOTAL = {"CPU": 4 * UNIT, "GPU": 3 * UNIT, "disk": UNIT}


def ledger() -> Ledger:
    return Ledger(TOTAL, {"GPU": 3})


def test_fractions_fill_a_touched_index_before_breaking_a_whole_one() -> None:
    book = ledger()
    assert book.take({"GPU": UNIT // 2}) == {"GPU": [0]}
    assert book.take({"GPU": UNIT}) == {"GPU": [1]}
    assert book.take({"GPU": UNIT // 2}) == {"GPU": [0]}
    assert book.take({"GPU": UNIT // 10}) == {"GPU": [2]}
    assert not book.fits({"GPU": UNIT})
    assert book.fits({"GPU": UNIT * 9 // 10})


def test_a_sum_that_is_spread_over_indices_does_not_fit_a_whole_device() -> None:
    book = ledger()
    for _ in range(3):
        book.take({"GPU": UNIT * 6 // 10})
    assert book.available["GPU"] == UNIT * 12 // 10
    assert not book.fits({"GPU": UNIT})
    assert not book.fits({"GPU": UNIT // 2})
    assert book.shortage("GPU", UNIT) == UNIT
    assert book.shortage("GPU", UNIT // 2) == UNIT // 10


def test_lent_cpus_come_back_whatever_is_left() -> None:
    book = ledger()
    book.take({"CPU": 4 * UNIT})
    book.lend({"CPU": UNIT})
    book.take({"CPU": UNIT})
    book.reclaim({"CPU": UNIT})
    assert book.available["CPU"] == -UNIT
    assert not book.fits({"CPU": 1})
    assert book.fits({"disk": UNIT})
    book.validate()


@pytest.mark.parametrize(
    ("need", "word"),
    [
        ({"CPU": -UNIT}, "negative"),
        ({"TPU": 1}, "TPU"),
        ({"CPU": 5 * UNIT}, "5 wanted"),
        ({"GPU": UNIT + 1}, "whole number"),
    ],
)
def test_the_impossible_is_named(need: dict[str, int], word: str) -> None:
    assert word in ledger().impossible(need)
    assert not ledger().impossible({"CPU": 4 * UNIT, "GPU": 3 * UNIT})


def test_weight_is_the_scarcest_share() -> None:
    book = ledger()
    assert book.weight({}) == 1
    assert book.weight({"CPU": UNIT, "disk": UNIT}) > book.weight({"CPU": 3 * UNIT})


def test_amounts_are_shown_as_people_write_them() -> None:
    assert [show_amount(n) for n in (UNIT, UNIT // 2, 1, 0, 25 * UNIT)] == ["1", "0.5", "0.0001", "0", "25"]
    assert show_amounts({"GPU": UNIT // 2, "CPU": UNIT}) == "CPU: 1, GPU: 0.5"
    assert show_amounts({}) == "nothing"


NEEDS = st.fixed_dictionaries(
    {},
    optional={
        "CPU": st.integers(0, 4 * UNIT),
        "GPU": st.one_of(st.integers(0, UNIT), st.sampled_from([2 * UNIT, 3 * UNIT])),
        "disk": st.integers(0, UNIT),
    },
)


@given(st.lists(st.tuples(NEEDS, st.booleans()), max_size=30))
def test_what_is_taken_and_given_balances(steps: list[tuple[dict[str, int], bool]]) -> None:
    book = ledger()
    taken: list[tuple[dict[str, int], dict[str, list[int]]]] = []
    for need, give in steps:
        if give and taken:
            book.give(*taken.pop(0))
        elif book.fits(need):
            assert all(book.shortage(name, amount) <= 0 for name, amount in need.items())
            taken.append((need, book.take(need)))
        else:
            assert any(book.shortage(name, amount) > 0 for name, amount in need.items())
        book.validate()
        for name, total in TOTAL.items():
            assert book.available[name] == total - sum(need.get(name, 0) for need, _ in taken)
    for need, devices in taken:
        book.give(need, devices)
    assert book.available == TOTAL
    assert book.take({"GPU": 3 * UNIT}) == {"GPU": [0, 1, 2]}


@given(st.lists(st.tuples(st.integers(0, 5), st.none() | st.integers(0, 9)), max_size=200))
def test_ranking_knows_its_lowest(steps: list[tuple[int, int | None]]) -> None:
    ranking: Ranking[int] = Ranking()
    model: dict[int, int] = {}
    for key, rank in steps:
        if rank is None:
            ranking.discard(key)
            model.pop(key, None)
        else:
            ranking.set(key, (rank, key))
            model[key] = rank
        assert len(ranking) == len(model)
        assert ranking.first() == min(model, key=lambda k: (model[k], k), default=None)
        assert all(k in ranking for k in model)
