"""Labels of nodes and conditions on them: the grammar of ``label_selector``.

A selector maps labels to conditions. A condition is a string: ``"a"`` (the label has this value), ``"!a"`` (it has not,
or the node has no such label), ``"in(a, b)"`` (one of these), ``"!in(a, b)"`` (none of these, or no such label).
Conditions that only ask whether the label is there come from
:class:`~moray.util.scheduling_strategies.NodeLabelSchedulingStrategy`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

#: Operators of conditions, as people and messages write them.
IN: Final = "in"
NOT_IN: Final = "!in"
EXISTS: Final = "exists"
DOES_NOT_EXIST: Final = "!exists"
OPERATORS: Final = (IN, NOT_IN, EXISTS, DOES_NOT_EXIST)

#: An optional domain and a slash before the name; up to 63 letters, digits, and in their midst "-", "_", ".".
_WORD: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL: Final = re.compile(rf"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{{0,251}}[A-Za-z0-9])?/)?{_WORD}")
_VALUE: Final = re.compile(rf"(?:{_WORD})?")
_LIST: Final = re.compile(r"in\s*\((.*)\)", re.DOTALL)


class Condition(msgspec.Struct, array_like=True, frozen=True, gc=False, order=True):
    """What a node's label must be."""

    label: str
    operator: str
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels meets it."""
        value = labels.get(self.label)
        if self.operator == IN:
            return value in self.values
        if self.operator == NOT_IN:
            return value not in self.values
        return (value is not None) == (self.operator == EXISTS)

    def __str__(self) -> str:
        if self.operator == EXISTS:
            return f"label {self.label!r} present"
        if self.operator == DOES_NOT_EXIST:
            return f"no label {self.label!r}"
        words = ", ".join(map(repr, self.values))
        if len(self.values) == 1:
            return f"label {self.label!r} {'=' if self.operator == IN else '≠'} {words}"
        return f"label {self.label!r} {'in' if self.operator == IN else 'not in'} ({words})"


def parse_selector(selector: Mapping[str, str]) -> tuple[Condition, ...]:
    """The conditions of a ``label_selector``; ValueError naming the one that is wrong. Equal selectors are equal."""
    return tuple(sorted(parse_condition(label, text) for label, text in selector.items()))


def parse_condition(label: str, text: str) -> Condition:
    """One item of a ``label_selector``; ValueError if it cannot be read."""
    check_label(label)
    body = text.strip()
    negated = body.startswith("!")
    body = body[1:].strip() if negated else body
    listed = _LIST.fullmatch(body)
    if listed is None and not body and negated:
        raise ValueError(f'label {label!r}: the condition {text!r} negates nothing: write "!value" or "!in(a, b)"')
    values = tuple(dict.fromkeys(item.strip() for item in listed[1].split(","))) if listed else (body,)
    for value in values:
        if listed is not None and not value:
            raise ValueError(f"label {label!r}: the condition {text!r} has an empty value between its parentheses")
        check_value(label, value, text)
    return Condition(label, NOT_IN if negated else IN, values)


def check_label(label: Any) -> None:
    """ValueError if this cannot be the name of a label."""
    if not isinstance(label, str) or not _LABEL.fullmatch(label):
        raise ValueError(
            f"{label!r:.80} is no label: up to 63 letters, digits, '-', '_' and '.', the first and the last a letter "
            "or digit, maybe after a domain and '/'"
        )


def check_value(label: str, value: Any, where: str = "") -> None:
    """ValueError if a label cannot have this value."""
    if not isinstance(value, str) or not _VALUE.fullmatch(value):
        found = f" in {where!r:.80}" if where and where != value else ""
        raise ValueError(
            f"label {label!r} cannot have the value {value!r:.80}{found}: up to 63 letters, digits, '-', '_' and '.', "
            'the first and the last a letter or digit; conditions are "a", "!a", "in(a, b)" and "!in(a, b)"'
        )


def check_labels(labels: Mapping[Any, Any]) -> dict[str, str]:
    """The labels of a node; ValueError naming what cannot be one."""
    for label, value in labels.items():
        check_label(label)
        check_value(label, value)
    return dict(labels)
