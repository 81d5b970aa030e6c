"""Options of tasks and actors: ``@remote(num_cpus=2)``, ``f.options(name="x")``.

:class:`TaskOptions` and :class:`ActorOptions` are immutable. They are made from keywords by
:meth:`~_Options.make`, which refuses unknown names with a suggestion and checks types and ranges, so that a typo
fails where it is written and not later in a worker. :meth:`~_Options.merge` checks only what is new.
None means the default wherever the default is another value.

Resources come out in integer units of 1/10000 (:data:`moray.config.RESOURCE_UNIT`), memory as well: one
byte is 10000 units. One rule for all names keeps the schedulers free of special cases, and 64 bits hold 900 TB.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from types import NoneType
from typing import Any, ClassVar, Final, Self, TypeAlias

import msgspec

from moray.config import RESOURCE_UNIT
from moray.labels import parse_selector

#: A kind of accelerator is asked for by a trace of a custom resource that its nodes have.
ACCELERATOR_PREFIX: Final = "accelerator_type:"
_ACCELERATOR_UNITS: Final = RESOURCE_UNIT // 1000

_STRATEGY_NAMES: Final = ("DEFAULT", "SPREAD")
_STRATEGY_CLASSES: Final = (
    "PlacementGroupSchedulingStrategy",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
)

#: Takes an option's name and the value given; returns the value to keep, or raises.
_Check: TypeAlias = Callable[[str, Any], Any]


# --- checks ------------------------------------------------------------------------------------


def _wrong_type(name: str, expected: str, value: object) -> TypeError:
    return TypeError(f"option {name} must be {expected}, not {value!r:.80} ({type(value).__name__})")


def _type_of_keyword(name: str, types: tuple[type, ...], value: object) -> TypeError:
    accepted = [each.__name__ for each in types if each is not NoneType]
    return _wrong_type(name, f"{' or '.join(accepted)}, or None", value)


def _number(name: str, value: Any) -> float | int:
    """A finite number ≥ 0 that is 0 or at least one resource unit. Accepts numpy's numbers."""
    if isinstance(value, (bool, str, bytes)) or not (hasattr(value, "__index__") or hasattr(value, "__float__")):
        raise _wrong_type(name, "a number", value)
    number = value.__index__() if hasattr(value, "__index__") else float(value)
    if not 0 <= number < math.inf:
        raise ValueError(f"option {name} must be a finite number of at least 0, not {number}")
    if 0 < number < 1 / RESOURCE_UNIT:
        raise ValueError(
            f"option {name} is {number}, less than the smallest share of a resource: give {1 / RESOURCE_UNIT} or 0"
        )
    return number


def _gpus(name: str, value: Any) -> float | int:
    number = _number(name, value)
    if number > 1 and number != int(number):
        raise ValueError(f"option {name}={number}: more than one GPU must be a whole number; a fraction shares one GPU")
    return number


def _int(least: int, accepts: str, types: tuple[type, ...] = (int, NoneType)) -> _Check:
    """A whole number of at least `least`; `accepts` says which values there are."""

    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise _type_of_keyword(name, types, value)
        number: int = value.__index__()
        if number < least:
            raise ValueError(f"option {name} must be {accepts}, or None, not {number}")
        return number

    return check


def _backpressure(limit: str) -> _Check:
    """How many items a generator may be ahead: at least 1, or -1 for any number."""

    def check(name: str, value: Any) -> int:
        number: int = _int(-1, _COUNT_OR_ENDLESS)(name, value)
        if number == 0:
            raise ValueError(
                f"{name}=0 is not allowed, as the generator could make nothing: {name} must be > 0 to {limit}, or -1"
            )
        return number

    return check


def _of_type(kind: type, expected: str) -> _Check:
    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise _wrong_type(name, expected, value)
        return value

    return check


_bool: Final = _of_type(bool, "True or False")
_str: Final = _of_type(str, "a string")
_dict: Final = _of_type(dict, "a dict")


def _metadata(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _type_of_keyword(name, (dict, NoneType), value)
    return value


def _filled_str(name: str, value: Any) -> str:
    text: str = _str(name, value)
    if not text:
        raise ValueError(f"option {name} must not be empty")
    return text


def _label_selector(name: str, value: Any) -> dict[str, str]:
    selector = _str_dict(name, value)
    try:
        parse_selector(selector)
    except ValueError as error:
        raise ValueError(f"option {name}: {error}") from None
    return selector


def _infeasible(name: str, value: Any) -> str:
    if value not in ("wait", "error"):
        raise ValueError(f'option {name} must be "wait", "error" or None, not {value!r:.80}')
    return str(value)


def _str_dict(name: str, value: Any) -> dict[str, str]:
    for key, item in _dict(name, value).items():
        if not isinstance(key, str) or not isinstance(item, str):
            raise _wrong_type(f"{name}[{key!r}]", "a string, under a string", item)
    return dict(value)


def _resources(name: str, value: Any) -> dict[str, float | int]:
    kept = {}
    for key, amount in _dict(name, value).items():
        if not isinstance(key, str) or not key:
            raise _wrong_type(name, "a dict from names of resources to amounts", value)
        if key in _OWN_KEYWORDS:
            raise ValueError(f"option {name} must not contain {key!r}: use {_OWN_KEYWORDS[key]}=… instead")
        kept[key] = _number(f"{name}[{key!r}]", amount)
    return kept


_OWN_KEYWORDS: Final = {
    "CPU": "num_cpus",
    "GPU": "num_gpus",
    "memory": "memory",
    "object_store_memory": "object_store_memory",
}


def _num_returns(name: str, value: Any) -> int | str:
    if isinstance(value, str):
        if value not in ("dynamic", "streaming"):
            raise ValueError(f'option {name} must be a whole number, "dynamic" or "streaming", not {value!r:.80}')
        return value
    number: int = _int(0, _RETURNS, (int, str, NoneType))(name, value)
    return number


def _retry_exceptions(name: str, value: Any) -> bool | tuple[type[BaseException], ...]:
    if isinstance(value, bool):
        return value
    if not isinstance(value, (list, tuple)):
        raise _wrong_type(name, "True, False or a list of exception classes", value)
    for kind in value:
        if not (isinstance(kind, type) and issubclass(kind, BaseException)):
            message = f"option {name} must list exception classes only; {kind!r:.80} is none"
            raise ValueError(message)  # noqa: TRY004 (as in Ray)
    return tuple(value)


def _class_names(value: object) -> set[str]:
    return {kind.__name__ for kind in type(value).__mro__}


def _strategy(name: str, value: Any) -> Any:
    """By the name of its class: the classes live in a library, above this layer."""
    if isinstance(value, str):
        if value not in _STRATEGY_NAMES:
            raise ValueError(f"option {name} must be one of {_STRATEGY_NAMES} or a strategy object, not {value!r:.80}")
        return value
    if _class_names(value).isdisjoint(_STRATEGY_CLASSES):
        raise _wrong_type(name, f"one of {_STRATEGY_NAMES} or a {', '.join(_STRATEGY_CLASSES)}", value)
    return value


def _placement_group(name: str, value: Any) -> Any:
    if value != "default" and "PlacementGroup" not in _class_names(value):
        raise _wrong_type(name, 'a PlacementGroup, "default" or None', value)
    return value


def _fallback_strategy(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise _wrong_type(name, "a list of dicts", value)
    for number, item in enumerate(value):
        if set(item) != {"label_selector"}:
            given = ", ".join(sorted(map(repr, item))) or "nothing"
            raise ValueError(f"option {name}[{number}] must have 'label_selector' and nothing else; it has {given}")
        _label_selector(f"{name}[{number}]['label_selector']", item["label_selector"])
    return list(value)


def _lifetime(name: str, value: Any) -> str:
    if value not in ("detached", "non_detached"):
        raise ValueError(f'option {name} must be "detached", "non_detached" or None, not {value!r:.80}')
    return str(value)


def _concurrency_groups(name: str, value: Any) -> dict[str, int]:
    """``{"io": 2}``, or a list of ``{"name": "io", "max_concurrency": 2}``."""
    if isinstance(value, list):
        if not all(isinstance(group, dict) and "name" in group for group in value):
            raise _wrong_type(name, 'a list of {"name": …, "max_concurrency": …}', value)
        value = {group["name"]: group.get("max_concurrency", 1) for group in value}
    groups = _dict(name, value)
    return {_filled_str(name, group): _int(1, _POSITIVE)(f"{name}[{group!r}]", size) for group, size in groups.items()}


def _tasks_have_none(name: str, value: Any) -> None:
    raise ValueError(
        f"option {name}={value!r:.80}: tasks cannot reserve object store memory; use memory=… for the heap"
    )


# --- options -------------------------------------------------------------------------------------

_COUNT: Final = "a whole number of at least 0"
_POSITIVE: Final = "a whole number of at least 1"
_COUNT_OR_ENDLESS: Final = "a whole number of at least 0, or -1 for no limit"
_RETURNS: Final = "a whole number of at least 0, 'streaming' or 'dynamic'"

_COMMON_CHECKS: Final[dict[str, _Check]] = {
    "infeasible": _infeasible,
    "label_selector": _label_selector,
    "fallback_strategy": _fallback_strategy,
    "accelerator_type": _filled_str,
    "memory": _number,
    "num_cpus": _number,
    "num_gpus": _gpus,
    "placement_group": _placement_group,
    "placement_group_bundle_index": _int(-(1 << 31), "the index of a bundle, or -1 for any"),
    "placement_group_capture_child_tasks": _bool,
    "resources": _resources,
    "runtime_env": _dict,
    "scheduling_strategy": _strategy,
    "enable_task_events": _bool,
    "_labels": _str_dict,
    "_metadata": _metadata,
}


class _Options(msgspec.Struct, frozen=True, kw_only=True):
    """What tasks and actors have in common. Instances come from :meth:`make`, which checks."""

    label_selector: dict[str, str] | None = None
    fallback_strategy: list[dict[str, Any]] | None = None
    accelerator_type: str | None = None
    memory: float | int | None = None
    name: str | None = None
    num_gpus: float | int | None = None
    object_store_memory: int | None = None
    placement_group: Any = "default"
    placement_group_bundle_index: int = -1
    placement_group_capture_child_tasks: bool | None = None
    #: What no node can run waits for one ("wait"), or fails ("error"); None: what the job says.
    infeasible: str | None = None
    resources: dict[str, float | int] | None = None
    runtime_env: dict[str, Any] | None = None
    scheduling_strategy: Any = None
    enable_task_events: bool = True
    _labels: dict[str, str] | None = None
    _metadata: dict[str, Any] | None = None
    #: Names that the user gave: some defaults depend on whether one was given.
    given: frozenset[str] = frozenset()

    _kind: ClassVar[str]
    _checks: ClassVar[dict[str, _Check]]

    @classmethod
    def make(cls, keywords: Mapping[str, Any] | None = None, /, **more: Any) -> Self:
        """The options given by keywords; the rest have their defaults.

        Raises:
            ValueError: an unknown name (the message has the nearest), a value out of range, or two
                options that contradict each other.
            TypeError: a value of the wrong type.
        """
        return cls().merge(**{**(keywords or {}), **more})

    def merge(self, **overrides: Any) -> Self:
        """These options with some replaced, as ``.options(...)`` does. Raises what :meth:`make` raises."""
        if not overrides:
            return self
        checked = {name: self._checked(name, value) for name, value in overrides.items()}
        merged = msgspec.structs.replace(self, **checked, given=self.given.union(overrides))
        merged._check_together()
        return merged

    def _checked(self, name: str, value: Any) -> Any:
        check = self._checks.get(name)
        if check is None:
            raise ValueError(_unknown(type(self), name))
        return _DEFAULTS[type(self)][name] if value is None else check(name, value)

    def _check_together(self) -> None:
        in_group = self.placement_group not in ("default", None)
        if in_group and self.scheduling_strategy is not None:
            raise ValueError("options placement_group and scheduling_strategy exclude each other: give one of them")

    def _num_cpus(self) -> float | int:
        raise NotImplementedError

    def resources_units(self) -> dict[str, int]:
        """What it needs, by name, in units of 1/10000; names with nothing asked for are left out."""
        amounts: dict[str, float | int | None] = {
            "CPU": self._num_cpus(),
            "GPU": self.num_gpus,
            "memory": self.memory and int(self.memory),
            "object_store_memory": self.object_store_memory,
            **(self.resources or {}),
        }
        units = {name: round(amount * RESOURCE_UNIT) for name, amount in amounts.items() if amount}
        if self.accelerator_type is not None:
            units[ACCELERATOR_PREFIX + self.accelerator_type] = _ACCELERATOR_UNITS
        return units

    def scheduling_key(self) -> Hashable:
        """Equal for options whose tasks may share workers: resources, placement and environment.

        Raises:
            TypeError: a value in them cannot be compared by hash; the message names it.
        """
        return (
            tuple(sorted(self.resources_units().items())),
            *(_frozen(name, getattr(self, name)) for name in _PLACING),
        )


#: Options beside resources that decide where, and in which kind of worker, something can run.
_PLACING: Final = (
    "scheduling_strategy",
    "placement_group",
    "placement_group_bundle_index",
    "label_selector",
    "fallback_strategy",
    "infeasible",
    "runtime_env",
)


class TaskOptions(_Options, frozen=True, kw_only=True):
    """The options of a remote function."""

    num_cpus: float | int = 1
    max_calls: int = 0
    max_retries: int = 3
    #: None: 1, or "streaming" for generator functions.
    num_returns: int | str | None = None
    retry_exceptions: bool | tuple[type[BaseException], ...] = False
    _generator_backpressure_num_objects: int | None = None
    _num_objects_per_yield: int = 1

    _kind: ClassVar[str] = "tasks"
    _checks: ClassVar[dict[str, _Check]] = {
        **_COMMON_CHECKS,
        "name": _str,
        "object_store_memory": _tasks_have_none,
        "max_calls": _int(0, _COUNT),
        "max_retries": _int(-1, _COUNT_OR_ENDLESS),
        "num_returns": _num_returns,
        "retry_exceptions": _retry_exceptions,
        "_generator_backpressure_num_objects": _backpressure("limit how far it may be ahead"),
        "_num_objects_per_yield": _int(1, _POSITIVE),
    }

    def calls_per_worker(self) -> int:
        """How many calls of the function one worker serves; 0 is any number.

        Unless `max_calls` was given, a function with GPUs gets a worker of its own for each call: only the end of
        a process gives back the GPU memory that frameworks keep.
        """
        return 1 if self.num_gpus and "max_calls" not in self.given else self.max_calls

    def _num_cpus(self) -> float | int:
        return self.num_cpus


class ActorOptions(_Options, frozen=True, kw_only=True):
    """The options of an actor class."""

    #: None: none while the actor runs.
    num_cpus: float | int | None = None
    concurrency_groups: dict[str, int] | None = None
    enable_tensor_transport: bool | None = None
    lifetime: str | None = None
    #: None: 1, or 1000 for async actors.
    max_concurrency: int | None = None
    max_restarts: int = 0
    max_task_retries: int = 0
    max_pending_calls: int = -1
    namespace: str | None = None
    get_if_exists: bool = False
    allow_out_of_order_execution: bool | None = None
    _actor_generator_backpressure_num_objects: int | None = None

    _kind: ClassVar[str] = "actors"
    _checks: ClassVar[dict[str, _Check]] = {
        **_COMMON_CHECKS,
        "name": _filled_str,
        "object_store_memory": _int(0, _COUNT),
        "concurrency_groups": _concurrency_groups,
        "enable_tensor_transport": _bool,
        "lifetime": _lifetime,
        "max_concurrency": _int(1, _POSITIVE),
        "max_restarts": _int(-1, _COUNT_OR_ENDLESS),
        "max_task_retries": _int(-1, _COUNT_OR_ENDLESS),
        "max_pending_calls": _int(-1, _COUNT_OR_ENDLESS),
        "namespace": _filled_str,
        "get_if_exists": _bool,
        "allow_out_of_order_execution": _bool,
        "_actor_generator_backpressure_num_objects": _backpressure(
            "limit how far its generators may be ahead together"
        ),
    }

    def _check_together(self) -> None:
        super()._check_together()
        if self.get_if_exists and self.name is None:
            raise ValueError("option get_if_exists needs a name=… to look for")

    def _num_cpus(self) -> float | int:
        return self.num_cpus or 0


#: What None stands for, per class and option. `placement_group=None` is a value of its own: no group.
_DEFAULTS: Final[dict[type[_Options], dict[str, Any]]] = {
    kind: {**{name: getattr(kind(), name) for name in kind._checks}, "placement_group": None}
    for kind in (TaskOptions, ActorOptions)
}


def _unknown(kind: type[_Options], name: str) -> str:
    other = ActorOptions if kind is TaskOptions else TaskOptions
    if name in other._checks:
        return f"{name!r} is an option of {other._kind}, not of {kind._kind}"
    from difflib import get_close_matches

    near = get_close_matches(name, kind._checks, n=1, cutoff=0.6)
    if near:
        return f"unknown option {name!r} of {kind._kind}: did you mean {near[0]!r}?"
    public = ", ".join(sorted(known for known in kind._checks if not known.startswith("_")))
    return f"unknown option {name!r} of {kind._kind}; there are: {public}"


def _frozen(name: str, value: Any) -> Hashable:
    """`value` with its containers made hashable."""
    if isinstance(value, Mapping):
        return tuple((key, _frozen(f"{name}[{key!r}]", value[key])) for key in sorted(value, key=repr))
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(f"{name}[{index}]", item) for index, item in enumerate(value))
    if isinstance(value, (set, frozenset)):
        return frozenset(_frozen(name, item) for item in value)
    if not _is_hashable(value):
        raise _wrong_type(name, "hashable (numbers, strings, or dicts and lists of them)", value)
    hashable: Hashable = value
    return hashable


def _is_hashable(value: object) -> bool:
    """By trying: a tuple of lists has a ``__hash__`` too."""
    try:
        hash(value)
    except TypeError:
        return False
    return True
