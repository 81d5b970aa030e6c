"""Placement groups: resources reserved together, for tasks and actors that belong together.

The name ``moray.util.placement_group`` is this module's and that of the function :func:`placement_group`: the module
can be called.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from moray.api import connected
from moray.config import RESOURCE_UNIT
from moray.ids import NodeID, PlacementGroupID
from moray.labels import parse_selector
from moray.protocol import messages as m
from moray.runtime import state
from moray.runtime.groups import Group, check_fits, groups_of, new_group_id
from moray.serialization import serialize

if TYPE_CHECKING:
    from moray.object_ref import ObjectRef

__all__ = [
    "PlacementGroup",
    "check_placement_group_index",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
    "validate_placement_group",
]

#: State of a group → what programs for Ray know the state of its scheduling as.
_SCHEDULING_STATES: Final = {"pending": "NO_RESOURCES", "rescheduling": "NO_RESOURCES", "created": "FINISHED"}

STRATEGIES: Final = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


class PlacementGroup:
    """Resources that are reserved together: some *bundles*, each on one machine.

    It comes from :func:`placement_group` or :func:`get_placement_group`. It can be passed to tasks and actors and put
    into objects like any value. Groups are equal if their ids are.

    Attributes:
        id: its id.
    """

    def __init__(self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None) -> None:
        self.id = id
        self.bundle_cache = bundle_cache

    @staticmethod
    def empty() -> PlacementGroup:
        """A group that is none: what is to run in it runs outside of groups."""
        return PlacementGroup(PlacementGroupID.nil(), [])

    @property
    def is_empty(self) -> bool:
        """Whether it is none."""
        return self.id.is_nil()

    def ready(self) -> ObjectRef[PlacementGroup]:
        """An object that is ready when all bundles are reserved; its value is the group. No task runs for it.

        ``get`` of it raises TaskPlacementGroupRemoved if the group is removed before.

        Example:
            >>> import moray
            >>> from moray.util import placement_group, remove_placement_group
            >>> group = placement_group([{"CPU": 1}])
            >>> moray.get(group.ready()) == group
            True
            >>> remove_placement_group(group)
        """
        groups, group = self._known()
        unused = group.unused
        blob = b"" if group.ref is not None else serialize(PlacementGroup(self.id, self.bundle_specs)).to_bytes()
        group.unused = unused  # Nobody else has got it yet.
        ref: ObjectRef[PlacementGroup] = groups.ready_ref(group, blob)
        return ref

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Wait for all bundles, `timeout_seconds` at most; whether they are reserved. Not if the group is removed."""
        if timeout_seconds < 0:
            raise ValueError(f"wait(timeout_seconds={timeout_seconds}): give seconds ≥ 0")
        ref = self.ready()
        connected().values.wait([ref], 1, timeout_seconds)
        return self._known()[1].state == "created"

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The bundles as they were asked for."""
        if self.bundle_cache is None:
            self.bundle_cache = [_shown(bundle) for bundle in self._known()[1].bundles]
        return self.bundle_cache

    @property
    def bundle_count(self) -> int:
        """How many bundles it has."""
        return len(self.bundle_specs)

    def to_dict(self) -> dict[str, Any]:
        """Its id and bundles as a dict that JSON can hold; :meth:`from_dict` makes the group of it again."""
        self._told()
        return {"id": self.id.hex(), "bundle_cache": self.bundle_cache}

    @staticmethod
    def from_dict(pg_dict: Mapping[str, Any]) -> PlacementGroup:
        """What :meth:`to_dict` was called on."""
        return PlacementGroup(PlacementGroupID(bytes.fromhex(pg_dict["id"])), pg_dict["bundle_cache"])

    def _known(self) -> tuple[Any, Group]:
        groups = groups_of(connected())
        if self.is_empty:
            raise ValueError("this is the empty placement group: it has no bundles, and nothing to wait for")
        return groups, groups.find(self.id.binary())

    def __eq__(self, other: object) -> bool:
        return self.id == other.id if isinstance(other, PlacementGroup) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.id)

    def _told(self) -> None:
        """Others may use it now."""
        groups = getattr(state.runtime, "groups", None)
        if (known := getattr(groups, "records", {}).get(self.id.binary())) is not None:
            known.unused = False

    def __reduce__(self) -> tuple[Any, ...]:
        self._told()
        return PlacementGroup, (self.id, self.bundle_cache)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"


def placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> PlacementGroup:
    """Reserve resources together: all bundles, or none. It returns at once; see :meth:`PlacementGroup.ready`.

    Args:
        bundles: per bundle its resources, such as ``{"CPU": 2, "GPU": 1}``. A bundle is on one machine.
        strategy: "PACK" (on few machines; the default), "SPREAD" (on many), "STRICT_PACK" (on one, or not at all),
            "STRICT_SPREAD" (each on another, or not at all).
        name: to be found by :func:`get_placement_group` in the job's namespace.
        lifetime: "detached": it outlives its job. Default: it is removed when its job ends.
        _soft_target_node_id: with "STRICT_PACK": all bundles on this node.
        bundle_label_selector: per bundle the labels that its machine must have.
        topology_strategy: not supported.

    Raises:
        ValueError: no bundles, bundles without resources, an unknown strategy, or a name that is taken.
        TypeError: a value of the wrong type.

    Example:
        >>> import moray
        >>> from moray.util import placement_group, remove_placement_group
        >>> from moray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
        >>> group = placement_group([{"CPU": 1}], strategy="STRICT_PACK")
        >>> inside = moray.remote(abs).options(scheduling_strategy=PlacementGroupSchedulingStrategy(group))
        >>> moray.get(inside.remote(-7))
        7
        >>> remove_placement_group(group)
    """
    runtime = connected()
    validate_placement_group(
        bundles, strategy, lifetime, _soft_target_node_id, bundle_label_selector, topology_strategy
    )
    if not isinstance(name, str):
        raise TypeError(f"placement_group(): the name must be a string, not {name!r:.80} ({type(name).__name__})")
    message = m.CreateGroup(
        0,
        new_group_id(runtime),
        [{key: _units(amount) for key, amount in bundle.items() if amount} for bundle in bundles],
        strategy or "PACK",
        name=name,
        namespace=runtime.welcome.namespace,
        detached=lifetime == "detached",
        selectors=bundle_label_selector or [],
        target_node=bytes.fromhex(_soft_target_node_id) if _soft_target_node_id else b"",
    )
    groups_of(runtime).create(message)
    return PlacementGroup(PlacementGroupID(message.group), [dict(bundle) for bundle in bundles])


def validate_placement_group(
    bundles: Sequence[Mapping[str, float]],
    strategy: str | None = None,
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> bool:
    """Check arguments for :func:`placement_group`; True, or it raises what that raises."""
    if strategy is not None and strategy not in STRATEGIES:
        near = get_close_matches(str(strategy).upper(), STRATEGIES, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(map(repr, STRATEGIES))}"
        raise ValueError(f"placement_group(): unknown strategy {strategy!r:.80}; {hint}")
    if lifetime not in (None, "detached"):
        raise ValueError(f'placement_group(): lifetime must be "detached" or None, not {lifetime!r:.80}')
    if topology_strategy is not None:
        raise ValueError("placement_group(): topology_strategy is not supported")
    if _soft_target_node_id is not None:
        if strategy != "STRICT_PACK":
            raise ValueError(
                f"placement_group(): _soft_target_node_id goes with STRICT_PACK, not with {strategy or 'PACK'}"
            )
        if not isinstance(_soft_target_node_id, str):
            raise TypeError(
                f"placement_group(): _soft_target_node_id must be a string, not {_soft_target_node_id!r:.80}"
            )
        try:
            NodeID.from_hex(_soft_target_node_id)
        except ValueError as error:
            raise ValueError(f"placement_group(): _soft_target_node_id is no node's id: {error}") from None
    if not isinstance(bundles, list):
        raise TypeError(
            f"placement_group(): bundles={bundles!r:.80} ({type(bundles).__name__}): give a list with a dict for each "
            "bundle"
        )
    if not bundles:
        raise ValueError('placement_group(): there are no bundles; give at least one, such as [{"CPU": 1}]')
    for index, bundle in enumerate(bundles):
        _check_bundle(index, bundle)
    _check_selectors(len(bundles), bundle_label_selector)
    return True


def _check_bundle(index: int, bundle: Any) -> None:
    where = f"placement_group(): bundle {index}"
    if not isinstance(bundle, dict):
        raise TypeError(f"{where} must be a dict of resources, not {bundle!r:.80} ({type(bundle).__name__})")
    if not any(bundle.values()):
        raise ValueError(f"{where} ({bundle!r:.80}) has no resources; each bundle needs some")
    for name, amount in bundle.items():
        if not isinstance(name, str) or not name:
            raise TypeError(f"{where}: resources have names, not {name!r:.80}")
        if name == "bundle":
            raise ValueError(f"{where} asks for a resource named 'bundle', by which a group counts what runs in it")
        if isinstance(amount, bool) or not (hasattr(amount, "__index__") or hasattr(amount, "__float__")):
            raise TypeError(f"{where}: {name} must be a number, not {amount!r:.80} ({type(amount).__name__})")
        number = float(amount)
        if not 0 <= number < math.inf:
            raise ValueError(f"{where}: {name}={amount} must be a finite number of at least 0")
        if 0 < number < 1 / RESOURCE_UNIT:
            raise ValueError(f"{where}: {name}={amount} is too small: the smallest fraction is {1 / RESOURCE_UNIT}")
        if name == "GPU" and number > 1 and number != int(number):
            raise ValueError(f"{where}: GPU={amount}: more than one GPU must be a whole number; a fraction shares one")


def _check_selectors(count: int, selectors: Any) -> None:
    if not selectors:
        return
    if not isinstance(selectors, list) or not all(isinstance(each, dict) for each in selectors):
        raise TypeError(
            f"placement_group(): bundle_label_selector={selectors!r:.80}: give a list with a dict for each bundle"
        )
    if len(selectors) != count:
        raise ValueError(f"placement_group(): there are {count} bundles and {len(selectors)} label selectors")
    for index, selector in enumerate(selectors):
        try:
            parse_selector(selector)
        except ValueError as error:
            raise ValueError(f"placement_group(): bundle_label_selector[{index}]: {error}") from None


def _units(amount: float) -> int:
    return round(amount * RESOURCE_UNIT)


def _shown(bundle: m.Resources) -> dict[str, float]:
    return {name: amount / RESOURCE_UNIT for name, amount in bundle.items()}


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Give a group's resources back. Tasks in it fail with TaskPlacementGroupRemoved, its actors die.

    When it returns the group is removed; what runs in it ends within a moment, and then its resources are free. A group
    that is removed already stays so.

    Raises:
        TypeError: something else than a placement group was given.
    """
    _check_group("remove_placement_group", placement_group)
    if not placement_group.is_empty:
        groups_of(connected()).remove(placement_group.id.binary())


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """The group with this name in the job's namespace.

    Raises:
        ValueError: there is none, or the name is empty.

    Example:
        >>> import moray
        >>> from moray.util import get_placement_group, placement_group, remove_placement_group
        >>> group = placement_group([{"CPU": 1}], name="doc_workers")
        >>> get_placement_group("doc_workers") == group
        True
        >>> remove_placement_group(group)
    """
    runtime = connected()
    if not placement_group_name:
        raise ValueError("get_placement_group(): give the name that the placement group was made with")
    found = groups_of(runtime).find_named(placement_group_name, runtime.welcome.namespace)
    return PlacementGroup(PlacementGroupID(found.group), [_shown(bundle) for bundle in found.bundles])


def get_current_placement_group() -> PlacementGroup | None:
    """The group in which the calling task or actor runs; None if it runs in none, and in a driver."""
    runtime = connected()
    extra = getattr(runtime, "task_extra", None)
    placement = extra.placement if extra is not None else None
    return PlacementGroup(PlacementGroupID(placement.group)) if placement is not None else None


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """All groups of the session and the last removed ones, id → a dict; or that of one group ({} if it is not known).

    ``state`` is PENDING, CREATED, RESCHEDULING or REMOVED. ``stats["scheduling_state"]`` says of groups that wait
    whether nodes have no room now, NO_RESOURCES, or never will, INFEASIBLE, and ``stats["reason"]`` what is missing.
    """
    if placement_group is not None:
        _check_group("placement_group_table", placement_group)
    table = {entry["group"]: _described(entry) for entry in groups_of(connected()).table()}
    return table if placement_group is None else table.get(placement_group.id.hex(), {})


def _described(entry: dict[str, Any]) -> dict[str, Any]:
    return {
        "placement_group_id": entry["group"],
        "name": entry["name"],
        "namespace": entry["namespace"],
        "bundles": {index: _shown(bundle) for index, bundle in enumerate(entry["bundles"])},
        "bundles_to_node_id": dict(enumerate(entry["nodes"] or [""] * len(entry["bundles"]))),
        "strategy": entry["strategy"],
        "state": "PENDING" if entry["state"] == "infeasible" else entry["state"].upper(),
        "is_detached": entry["detached"],
        "creator_job_id": entry["job"].to_bytes(4, "big").hex(),
        "stats": {
            "scheduling_state": _SCHEDULING_STATES.get(entry["state"], entry["state"].upper()),
            "reason": entry["reason"],
        },
    }


def check_placement_group_index(placement_group: PlacementGroup, bundle_index: int) -> None:
    """Raise ValueError unless the group has a bundle with this index; -1 is any."""
    _check_group("check_placement_group_index", placement_group)
    if placement_group.is_empty:
        if bundle_index != -1:
            raise ValueError(f"bundle index {bundle_index} was given without a placement group")
        return
    check_fits(placement_group._known()[1], {}, bundle_index, "")


def _check_group(function: str, value: Any) -> None:
    if not isinstance(value, PlacementGroup):
        raise TypeError(f"{function}() takes a PlacementGroup, not {value!r:.80} ({type(value).__name__})")


class _CallableModule(ModuleType):
    """The module, which has the function's name."""

    def __call__(self, *args: Any, **kwargs: Any) -> PlacementGroup:
        return placement_group(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        # Functions that use it carry it along; the pickler knows plain modules only.
        return import_module, (self.__name__,)


sys.modules[__name__].__class__ = _CallableModule
