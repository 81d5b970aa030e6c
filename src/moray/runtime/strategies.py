"""From the options of a task or actor to what schedulers read (:class:`~moray.core.strategies.Strategy`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from moray import config
from moray.core.strategies import LABELS, NODE, SPREAD, Conditions, Strategy, selector_of
from moray.labels import Condition
from moray.options import ActorOptions, TaskOptions

if TYPE_CHECKING:
    from moray.runtime.tasks import Task

#: What becomes of what no node can run: it waits for a node that can, or it fails.
INFEASIBLE: Final = ("wait", "error")
#: The variable of the environment with the job's word on that; ``init(infeasible=…)`` sets it for workers.
INFEASIBLE_VARIABLE: Final = "INFEASIBLE"

#: Tasks of a queue whose arguments say where workers are best.
_LOOKED_AT: Final = 8

_PLAIN: Final = Strategy()


def strategy_of(options: TaskOptions | ActorOptions, infeasible: str) -> Strategy | None:
    """Where something with these options may run; None: anywhere. What placement groups mean is decided elsewhere.

    Args:
        options: of the task or actor.
        infeasible: the job's word; "": what the environment says.

    Raises:
        ValueError: a selector or the environment's word cannot be read.
    """
    made = Strategy(
        **_fields(options.scheduling_strategy),
        selector=selector_of(options.label_selector or {}),
        fallbacks=tuple(selector_of(each["label_selector"]) for each in options.fallback_strategy or ()),
        refuse_infeasible=(options.infeasible or infeasible or _from_environment()) == "error",
    )
    return None if made == _PLAIN else made


def locality_of(queue: Sequence[Task], own: bytes) -> dict[bytes, int]:
    """Where large arguments of the first tasks in a queue lie: tag of a node → bytes; `own` is this node's.

    Loop only: user threads append to the queue meanwhile, so it is looked at by position.
    """
    found: dict[bytes, int] = {}
    for position in range(min(len(queue), _LOOKED_AT)):
        extra = queue[position].extra
        for argument in extra.arguments if extra is not None else ():
            if argument.stored:
                tag = argument.node or own
                found[tag] = found.get(tag, 0) + argument.size
    return found


def check_infeasible(word: Any, where: str) -> str:
    """The word, if it is one; else ValueError."""
    if word not in INFEASIBLE:
        raise ValueError(f'{where} must be "wait" or "error", not {word!r:.80}')
    return str(word)


def _from_environment() -> str:
    word = config.env_str(INFEASIBLE_VARIABLE)
    return check_infeasible(word, f"the variable {config.env_name(INFEASIBLE_VARIABLE)}") if word else ""


def _fields(given: Any) -> dict[str, Any]:
    """By the names of classes: they live in a library, above this layer."""
    names = {kind.__name__ for kind in type(given).__mro__}
    if given == SPREAD:
        return {"kind": SPREAD}
    if "NodeAffinitySchedulingStrategy" in names:
        return {
            "kind": NODE,
            "node": bytes.fromhex(given.node_id),
            "soft": given.soft,
            "spill": given._spill_on_unavailable,
            "fail": given._fail_on_unavailable,
        }
    if "NodeLabelSchedulingStrategy" in names:
        return {"kind": LABELS, "hard": _conditions(given.hard), "preferred": _conditions(given.soft)}
    return {}


def _conditions(given: Any) -> Conditions:
    return tuple(sorted(Condition(label, each.operator, each.values) for label, each in given.items()))
