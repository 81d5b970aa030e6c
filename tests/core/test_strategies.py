"""Strategies: the sets of nodes that they allow, in order, and the texts of refusals."""

from __future__ import annotations

import msgspec
import pytest

from moray.core.strategies import (
    ANYWHERE,
    LABELS,
    NODE,
    SPREAD,
    Choice,
    Strategy,
    choices,
    matches,
    refusal,
    selector_of,
)
from moray.labels import EXISTS, Condition

HERE = bytes(28)
THERE = bytes([1]) * 28
GPU = Condition("gpu", EXISTS)
EU = selector_of({"zone": "eu"})
US = selector_of({"zone": "us"})


def test_the_default_allows_every_node() -> None:
    assert choices(None) == choices(Strategy()) == choices(Strategy(SPREAD)) == (ANYWHERE,)
    assert refusal(None, HERE, {}) == refusal(Strategy(SPREAD), HERE, {}) == ""


def test_affinity() -> None:
    hard = Strategy(NODE, THERE)
    assert choices(hard) == (Choice(THERE),)
    assert THERE.hex() in refusal(hard, HERE, {})
    assert refusal(hard, THERE, {}) == ""
    soft = Strategy(NODE, THERE, soft=True)
    assert choices(soft) == (Choice(THERE), ANYWHERE)
    assert refusal(soft, HERE, {}) == ""


def test_labels_are_preferred_or_required() -> None:
    strategy = Strategy(LABELS, hard=EU, preferred=(GPU,))
    assert choices(strategy) == (Choice(b"", (GPU, *EU)), Choice(b"", EU))
    assert refusal(strategy, HERE, {"zone": "eu"}) == ""
    assert refusal(strategy, HERE, {"zone": "us", "gpu": "a"}).endswith("label 'zone' = 'eu' wanted, the node has 'us'")


def test_selectors_hold_beside_a_strategy_and_fallbacks_in_their_place() -> None:
    strategy = Strategy(NODE, THERE, selector=EU, fallbacks=(US,))
    assert choices(strategy) == (Choice(THERE, EU), Choice(THERE, US))
    reason = refusal(Strategy(selector=EU, fallbacks=(US,)), HERE, {})
    assert reason == (
        "label 'zone' = 'eu' wanted, the node has no such label; "
        "nor: label 'zone' = 'us' wanted, the node has no such label"
    )
    assert refusal(Strategy(selector=EU, fallbacks=(US,)), HERE, {"zone": "us"}) == ""


@pytest.mark.parametrize(
    ("strategy", "fails"),
    [
        (Strategy(), False),
        (Strategy(selector=EU), False),
        (Strategy(NODE, THERE, soft=True), False),
        (Strategy(NODE, THERE), True),
        (Strategy(refuse_infeasible=True), True),
    ],
)
def test_who_fails_instead_of_waiting(strategy: Strategy, fails: bool) -> None:
    assert strategy.fails is fails


def test_they_travel_and_are_keys() -> None:
    strategy = Strategy(LABELS, hard=EU, preferred=(GPU,), selector=US, fallbacks=(EU, ()))
    back = msgspec.msgpack.decode(msgspec.msgpack.encode(strategy), type=Strategy)
    assert back == strategy
    assert {strategy: 1}[back] == 1
    assert matches({"zone": "!us"}, {"zone": "eu"})
    assert not matches({"zone": "!us"}, {"zone": "us"})
    assert not matches({"zone": "eu", "disk": "ssd"}, {"zone": "eu", "disk": "hdd"})
