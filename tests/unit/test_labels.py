"""Conditions on labels: what selectors mean, and what is refused."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, strategies as st

from moray.labels import Condition, check_labels, parse_condition, parse_selector


@pytest.mark.parametrize(
    ("text", "matching", "others"),
    [
        ("a", ["a"], ["b", "", None]),
        ("!a", ["b", "", None], ["a"]),
        ("in(a,b)", ["a", "b"], ["c", None]),
        ("in ( a , b )", ["a", "b"], ["c", None]),
        ("!in(a,b)", ["c", None], ["a", "b"]),
        ("in(a)", ["a"], ["b", None]),
        ("index", ["index"], ["a", None]),
        ("", [""], ["a", None]),
    ],
)
def test_what_a_condition_means(text: str, matching: list[str | None], others: list[str | None]) -> None:
    condition = parse_condition("zone", text)
    for value in matching:
        assert condition.holds({} if value is None else {"zone": value})
    for value in others:
        assert not condition.holds({} if value is None else {"zone": value})


@pytest.mark.parametrize("text", ["a b", "in(a", "in()", "in(a,,b)", "!", "!!a", "a,b", "-a", "x" * 64, "in(a b)"])
def test_what_cannot_be_read_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="zone"):
        parse_selector({"zone": text})


@pytest.mark.parametrize("label", ["", "a b", "/a", "a/", "a/b/c", "_a", "x" * 64])
def test_what_cannot_be_a_label_is_refused(label: str) -> None:
    with pytest.raises(ValueError, match="is no label"):
        parse_selector({label: "a"})
    with pytest.raises(ValueError, match="is no label"):
        check_labels({label: "a"})


def test_labels_of_nodes_are_strings() -> None:
    assert check_labels({"ray.io/zone": "a-1", "empty": ""}) == {"ray.io/zone": "a-1", "empty": ""}
    with pytest.raises(ValueError, match="zone"):
        check_labels({"zone": 3})


def test_equal_selectors_are_equal_and_travel() -> None:
    one = parse_selector({"a": "in(x,x,y)", "b": "!z"})
    assert one == parse_selector({"b": " !z", "a": "in(x, y)"})
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(one), type=tuple[Condition, ...]) == one


@given(values=st.lists(st.from_regex(r"[a-z0-9]{1,5}", fullmatch=True), min_size=1), negated=st.booleans())
def test_lists_are_read_back(values: list[str], negated: bool) -> None:
    condition = parse_condition("k", f"{'!' if negated else ''}in({', '.join(values)})")
    assert set(condition.values) == set(values)
    assert condition.holds({"k": values[0]}) is not negated
    assert repr(values[0]) in str(condition)
