"""What is called while a graph is computed by :func:`moray.util.dask.ray_dask_get`: for progress, caches, tests.

A callback is active inside its ``with`` block, or all the time after ``register()``, like dask's own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from time import monotonic
from typing import Any, ClassVar, Self

from dask.callbacks import Callback

__all__ = ["ProgressBarCallback", "RayDaskCallback"]

_HOOKS = ("presubmit", "postsubmit", "pretask", "posttask", "postsubmit_all", "finish")


class RayDaskCallback(Callback):
    """Hooks: as keyword arguments, or as methods with an underscore before the name in a subclass.

    ``ray_presubmit(task, key, deps)``, in the driver, before a task is submitted; what it returns, unless None, is the
    task's value, and the task is not submitted.
    ``ray_postsubmit(task, key, deps, object_ref)``, in the driver, after that.
    ``ray_pretask(key, object_refs)``, in the worker, before the task runs.
    ``ray_posttask(key, result, pre_state)``, in the worker, after that; `pre_state` is what the former returned.
    ``ray_postsubmit_all(object_refs, dsk)``, in the driver, when all tasks are submitted.
    ``ray_finish(result)``, in the driver, with all values, before they are returned.

    Example:
        >>> import dask
        >>> from moray.util.dask import ray_dask_get
        >>> from moray.util.dask.callbacks import RayDaskCallback
        >>> with RayDaskCallback(ray_finish=lambda result: print("got", result)):
        ...     value = dask.delayed(abs)(-1).compute(scheduler=ray_dask_get)
        got (1,)
    """

    #: Those that are active.
    ray_active: ClassVar[set[RayDaskCallback]] = set()

    def __init__(self, **hooks: Any) -> None:
        for name in _HOOKS:
            hook = hooks.pop(f"ray_{name}", None)
            if hook is not None:
                setattr(self, f"_ray_{name}", hook)
        super().__init__(**hooks)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Self:
        self.ray_active.add(self)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        self.ray_active.discard(self)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def register(self) -> None:
        """Activate it until :meth:`unregister`."""
        self.ray_active.add(self)
        super().register()

    def unregister(self) -> None:
        """Undo :meth:`register`."""
        self.ray_active.discard(self)
        super().unregister()


class Hooks:
    """The hooks of the callbacks that are active when a computation begins, in no order."""

    def __init__(self, callbacks: Sequence[Any]) -> None:
        self._callbacks = callbacks
        #: (before, after) per callback that has one of both; they go to the workers.
        self.around_tasks = [
            (getattr(each, "_ray_pretask", None), getattr(each, "_ray_posttask", None))
            for each in callbacks
            if hasattr(each, "_ray_pretask") or hasattr(each, "_ray_posttask")
        ]

    def _call(self, name: str, *args: Any) -> list[Any]:
        return [getattr(each, name)(*args) for each in self._callbacks if hasattr(each, name)]

    def presubmit(self, task: Any, key: Hashable, deps: Any) -> Any:
        """The value that the first of them gives instead of the task's; None: none does."""
        return next((found for found in self._call("_ray_presubmit", task, key, deps) if found is not None), None)

    def postsubmit(self, task: Any, key: Hashable, deps: Any, ref: Any) -> None:
        """A task was submitted."""
        self._call("_ray_postsubmit", task, key, deps, ref)

    def postsubmit_all(self, refs: Any, graph: Any) -> None:
        """All were."""
        self._call("_ray_postsubmit_all", refs, graph)

    def finish(self, result: Any) -> None:
        """All values are here."""
        self._call("_ray_finish", result)


def active_hooks() -> Hooks | None:
    """Of all active callbacks; None if there are none."""
    return Hooks(list(RayDaskCallback.ray_active)) if RayDaskCallback.ray_active else None


def run_between(
    around: Sequence[tuple[Callable[..., Any] | None, Callable[..., Any] | None]],
    key: Hashable,
    refs: Sequence[Any],
    task: Callable[[], Any],
) -> Any:
    """In the worker: the task, and what is called before and after it."""
    states = [before(key, refs) if before is not None else None for before, _after in around]
    result = task()
    for (_before, after), state in zip(around, states, strict=True):
        if after is not None:
            after(key, result, state)
    return result


class ProgressBarCallback(RayDaskCallback):
    """Says on stderr how many tasks a computation has, and when it is done."""

    _began = 0.0

    def _ray_postsubmit_all(self, object_refs: Any, dsk: Any) -> None:  # noqa: ARG002 - the hook's
        self._began = monotonic()
        sys.stderr.write(f"dask: {len(dsk)} tasks submitted\n")

    def _ray_finish(self, result: Any) -> None:  # noqa: ARG002 - the hook's
        sys.stderr.write(f"dask: done after {monotonic() - self._began:.1f} s\n")
