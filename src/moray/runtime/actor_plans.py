"""How the methods of one actor class are called: all that a call needs beside its actor and its arguments.

A :class:`ClassPlans` is made from the encoded :class:`~moray.runtime.actor_meta.ActorMeta` once per process; a
:class:`CallPlan` once per method, and once per ``.options()`` of it.
"""

from __future__ import annotations

from moray.protocol import messages as m
from moray.runtime import actor_meta
from moray.runtime.actor_meta import ActorMeta, MethodMeta
from moray.runtime.arguments import LargeArguments
from moray.runtime.signatures import Signature
from moray.runtime.tasks import CallSettings


class CallPlan:
    """What all calls of one method with one set of options share."""

    __slots__ = ("label", "large", "method", "settings", "shared", "signature")

    def __init__(self, shared: ClassPlans, method: MethodMeta) -> None:
        meta = shared.meta
        self.shared = shared
        self.method = method
        self.label = f"{meta.class_name}.{method.name}"
        self.signature = Signature(method.parameters)
        self.large = LargeArguments()
        num_returns = method.num_returns
        if num_returns is None:
            num_returns = "streaming" if method.generator else 1
        stream = None
        if isinstance(num_returns, str):
            if num_returns == "dynamic":
                stream = m.StreamSpec(dynamic=True)  # Nobody can take an item before all are made: it waits for nobody.
            else:
                stream = m.StreamSpec(ahead=-1 if method.ahead is None else method.ahead, together=meta.ahead)
            num_returns = 1
        retries = meta.max_task_retries if method.max_task_retries is None else method.max_task_retries
        extra = None
        if (
            num_returns != 1
            or stream is not None
            or method.generator
            or method.retry is not None
            or method.group
            or method.task_name
        ):
            extra = m.TaskExtra(
                num_returns=num_returns,
                name=method.task_name,
                retry=method.retry,
                stream=stream,
                group=method.group,
            )
        self.settings = CallSettings(
            None,
            method.task_name or self.label,
            retries,
            num_returns,
            extra,
            retries_errors=method.retry is not None,
            streaming=stream is not None,
            method=method.name,
        )


class ClassPlans:
    """What all handles of one class with one set of options share. The handles' class holds it."""

    def __init__(self, blob: bytes) -> None:
        #: The encoded `meta`, for pickles.
        self.blob = blob
        self.meta: ActorMeta = actor_meta.decode(blob)
        #: The class's own special methods: found by name only, so that they do not change what handles are.
        self.special: dict[str, CallPlan] = {}
        self.plans: dict[str, CallPlan] = {}
        for method in (*self.meta.methods, *actor_meta.BUILT_IN):
            plan = CallPlan(self, method)
            is_special = method.name.startswith("__") and method.name.endswith("__")
            (self.special if is_special and method.name != "__call__" else self.plans)[method.name] = plan

    def no_method(self, name: str) -> str:
        """Why a handle has no attribute of this name."""
        meta = self.meta
        what = meta.others.get(name)
        if what is not None:
            return (
                f"actor {meta.class_name}: {name!r} is a {what}, and only methods can be called on an actor; "
                f"write a method that returns it, or use handle.__ray_call__.remote(lambda self: self.{name})"
            )
        from difflib import get_close_matches

        near = get_close_matches(name, self.plans, n=1, cutoff=0.6)
        public = ", ".join(method for method in self.plans if not method.startswith("_"))
        hint = f"did you mean {near[0]!r}?" if near else f"it has: {public or 'none'}"
        return f"actor {meta.class_name} has no method {name!r}; {hint}"
