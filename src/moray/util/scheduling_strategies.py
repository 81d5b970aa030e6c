"""Where tasks and actors may run: the values of ``scheduling_strategy=``, beside ``"DEFAULT"`` and ``"SPREAD"``.

Wrong values are refused here, where they are written. :mod:`moray.runtime.strategies` makes of them what schedulers
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from moray.ids import NodeID
from moray.labels import DOES_NOT_EXIST, EXISTS, IN, NOT_IN, check_label, check_value

if TYPE_CHECKING:
    from moray.util.placement_group import PlacementGroup

__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]

_NODE_ID_DIGITS = 56


class _Condition:
    """What a label must be."""

    operator = ""
    values: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Condition) and (self.operator, self.values) == (other.operator, other.values)

    def __hash__(self) -> int:
        return hash((self.operator, self.values))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.values))})"


class _Values(_Condition):
    def __init__(self, *values: str) -> None:
        operator = type(self).__name__
        if not values:
            raise ValueError(
                f"{operator}() names no value: give at least one value of the label, such as {operator}('a')"
            )
        for position, value in enumerate(values):
            if not isinstance(value, str):
                raise ValueError(  # noqa: TRY004 - what programs for Ray expect.
                    f"{operator}(): values of labels are strings; argument {position} is {value!r:.80}"
                )
            check_value(operator, value)
        self.values = values


class In(_Values):
    """The label has one of these values."""

    operator = IN


class NotIn(_Values):
    """The label has none of these values, or is not there."""

    operator = NOT_IN


class Exists(_Condition):
    """The label is there."""

    operator = EXISTS


class DoesNotExist(_Condition):
    """The label is not there."""

    operator = DOES_NOT_EXIST


LabelConditions: TypeAlias = Mapping[str, In | NotIn | Exists | DoesNotExist]


class NodeAffinitySchedulingStrategy:
    """Run on this node.

    Args:
        node_id: its id in hex, as ``moray.nodes()`` and ``get_runtime_context().get_node_id()`` have it; or the
            NodeID that is ``get_runtime_context().node_id``.
        soft: if the node is gone, or can never run it, any other will do. Otherwise that is an error.
        _spill_on_unavailable: with `soft`: any other also if the node has no room now.
        _fail_on_unavailable: if the node has no room now, that is an error.

    Example:
        >>> import moray
        >>> from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
        >>> @moray.remote
        ... def where():
        ...     return moray.get_runtime_context().get_node_id()
        >>> here = moray.nodes()[0]["NodeID"]
        >>> strategy = NodeAffinitySchedulingStrategy(here, soft=False)
        >>> moray.get(where.options(scheduling_strategy=strategy).remote()) == here
        True
    """

    def __init__(
        self, node_id: str | NodeID, soft: bool, _spill_on_unavailable: bool = False, _fail_on_unavailable: bool = False
    ) -> None:
        text = node_id.hex() if isinstance(node_id, NodeID) else str(node_id).lower()
        if len(text) != _NODE_ID_DIGITS or not set(text) <= set("0123456789abcdef"):
            raise ValueError(
                f"node_id={node_id!r:.80} is no node's id: give the {_NODE_ID_DIGITS} hexadecimal digits of "
                'moray.nodes()[…]["NodeID"]'
            )
        if _spill_on_unavailable and not soft:
            raise ValueError("_spill_on_unavailable=True needs soft=True: otherwise only this node will do")
        if _spill_on_unavailable and _fail_on_unavailable:
            raise ValueError("_spill_on_unavailable and _fail_on_unavailable exclude each other: give one of them")
        self.node_id = text
        self.soft = bool(soft)
        self._spill_on_unavailable = bool(_spill_on_unavailable)
        self._fail_on_unavailable = bool(_fail_on_unavailable)

    def __repr__(self) -> str:
        return f"NodeAffinitySchedulingStrategy({self.node_id!r}, soft={self.soft})"


class NodeLabelSchedulingStrategy:
    """Run on nodes with certain labels.

    Args:
        hard: label → :class:`In`, :class:`NotIn`, :class:`Exists` or :class:`DoesNotExist`; all must hold.
        soft: the same; nodes for which these hold too are taken if they have room.

    Example:
        >>> from moray.util.scheduling_strategies import Exists, In, NodeLabelSchedulingStrategy
        >>> NodeLabelSchedulingStrategy({"zone": In("a", "b")}, soft={"ssd": Exists()})
        NodeLabelSchedulingStrategy({'zone': In('a', 'b')}, soft={'ssd': Exists()})
    """

    def __init__(self, hard: LabelConditions | None, *, soft: LabelConditions | None = None) -> None:
        self.hard = _conditions("hard", hard)
        self.soft = _conditions("soft", soft)
        if not self.hard and not self.soft:
            raise ValueError(
                "NodeLabelSchedulingStrategy has neither `hard` nor `soft` conditions: give at least one, such as "
                'hard={"zone": In("a")}'
            )

    def __repr__(self) -> str:
        return f"NodeLabelSchedulingStrategy({self.hard!r}, soft={self.soft!r})"


def _conditions(name: str, given: Any) -> dict[str, _Condition]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(  # noqa: TRY004 - what programs for Ray expect.
            f"{name}={given!r:.80}: give a dict of labels and conditions (In, NotIn, Exists, DoesNotExist)"
        )
    for label, condition in given.items():
        if not isinstance(label, str):
            raise ValueError(  # noqa: TRY004 - what programs for Ray expect.
                f"{name}: names of labels are strings, not {label!r:.80}"
            )
        check_label(label)
        if not isinstance(condition, _Condition):
            hint = f"; did you mean In({condition!r})?" if isinstance(condition, str) else ""
            raise ValueError(  # noqa: TRY004 - what programs for Ray expect.
                f"{name}[{label!r}] is {condition!r:.80}, and not a condition: In(...), NotIn(...), Exists() or "
                f"DoesNotExist(){hint}"
            )
    return dict(given)


class PlacementGroupSchedulingStrategy:
    """Run in the resources that a placement group has reserved.

    Args:
        placement_group: the group; None: outside of all groups; "default": the one that the running task passes on,
            if there is one.
        placement_group_bundle_index: in this bundle; -1: in any.
        placement_group_capture_child_tasks: what it submits runs in the group, too.

    Raises:
        ValueError: another word than "default".
    """

    def __init__(
        self,
        placement_group: PlacementGroup | Literal["default"] | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        if isinstance(placement_group, str) and placement_group != "default":
            raise ValueError(f"placement_group={placement_group!r} should be a PlacementGroup, None or 'default'")
        self.placement_group = placement_group
        self.placement_group_bundle_index = placement_group_bundle_index
        self.placement_group_capture_child_tasks = placement_group_capture_child_tasks

    def __repr__(self) -> str:
        return f"PlacementGroupSchedulingStrategy({self.placement_group!r}, {self.placement_group_bundle_index})"
