"""Dask's collections over a session: ``ray_dask_get`` is a scheduler for ``compute``.

Each task of the graph becomes a task of the session; what it needs from others arrives by reference, so intermediate
results lie in the store and do not pass through the driver.

>>> import dask
>>> from moray.util.dask import ray_dask_get
>>> dask.delayed(sum)([dask.delayed(abs)(-1), 2]).compute(scheduler=ray_dask_get)
3
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import TYPE_CHECKING, Any

import moray
from moray.object_ref import ObjectRef

if TYPE_CHECKING:
    from moray.util.dask.callbacks import Hooks, RayDaskCallback

__all__ = ["RayDaskCallback", "disable_dask_on_ray", "enable_dask_on_ray", "ray_dask_get", "ray_dask_get_sync"]


def __getattr__(name: str) -> Any:
    # It is dask's class with more to it, and dask is not everybody's.
    if name == "RayDaskCallback":
        from moray.util.dask.callbacks import RayDaskCallback

        return RayDaskCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def ray_dask_get(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Compute `keys` of a graph: give it to ``compute(scheduler=ray_dask_get)``.

    Args:
        dsk: the graph.
        keys: a key, or lists of keys in lists.
        kwargs: ``ray_remote_args``: options of the tasks; ``ray_persist=True``: give references, not values.
            Others, which dask passes to any scheduler, have no meaning here.

    Returns:
        The values, nested as `keys` are, in tuples, as from any scheduler of dask.

    Raises:
        TaskError: a task raised; it is also of the type that was raised.
    """
    from dask._task_spec import convert_legacy_graph
    from dask.core import flatten

    from moray.util.dask.callbacks import active_hooks

    hooks = active_hooks()
    graph = dict(convert_legacy_graph(dsk if isinstance(dsk, Mapping) else dsk.__dask_graph__()))
    run = moray.remote(_run).options(**(kwargs.get("ray_remote_args") or {}))
    wanted = list(flatten([keys]))  # type: ignore[no-untyped-call]
    results = _submit(graph, wanted, run, hooks)
    refs = [found for found in map(results.__getitem__, dict.fromkeys(wanted)) if isinstance(found, ObjectRef)]
    if hooks is not None:
        hooks.postsubmit_all(refs, graph)
    if kwargs.get("ray_persist"):
        return _nested(keys, {key: _reference(results[key]) for key in wanted})
    values = dict(zip(refs, moray.get(list(dict.fromkeys(refs))), strict=False)) if refs else {}
    found = _nested(keys, {key: _value(results[key], values) for key in wanted})
    if hooks is not None:
        hooks.finish(found)
    return found


def ray_dask_get_sync(dsk: Any, keys: Any, **kwargs: Any) -> Any:
    """Compute `keys` of a graph in this process, one task after the other: for debugging.

    Args:
        dsk: the graph.
        keys: a key, or lists of keys in lists.
        kwargs: what dask passes to any scheduler; without meaning here.
    """
    from dask.local import get_sync

    kwargs.pop("ray_persist", None)
    return get_sync(dsk, keys, **kwargs)


def enable_dask_on_ray(shuffle: str | None = "tasks", use_shuffle_optimization: bool | None = True) -> Any:  # noqa: ARG001
    """Make :func:`ray_dask_get` dask's scheduler, until :func:`disable_dask_on_ray`; or for a ``with`` block.

    Args:
        shuffle: dask's way of shuffling data frames, "tasks" or "disk"; None leaves dask's setting.
        use_shuffle_optimization: accepted; without meaning here.
    """
    import dask

    settings: dict[str, Any] = {"scheduler": ray_dask_get}
    if shuffle is not None:
        settings["dataframe.shuffle.method"] = shuffle
    return dask.config.set(**settings)


def disable_dask_on_ray() -> Any:
    """Give dask its own schedulers back; or for a ``with`` block."""
    import dask

    return dask.config.set(scheduler=None)


class _Plain:
    """A value that is in the graph itself."""

    __slots__ = ("ref", "value")

    def __init__(self, value: Any) -> None:
        self.value = value
        #: Made when a task needs it.
        self.ref: ObjectRef[Any] | None = None


def _submit(graph: dict[Hashable, Any], wanted: list[Hashable], run: Any, hooks: Hooks | None) -> dict[Hashable, Any]:
    """Submit what `wanted` needs, each after what it needs itself; key → ObjectRef or _Plain."""
    from dask._task_spec import Alias, DataNode

    results: dict[Hashable, Any] = {}
    stack = list(reversed(wanted))
    while stack:
        key = stack[-1]
        if key in results:
            stack.pop()
            continue
        node = graph[key]
        missing = [needed for needed in node.dependencies if needed not in results]
        if missing:
            stack.extend(missing)
            continue
        stack.pop()
        if isinstance(node, Alias):
            results[key] = results[node.target]
        elif isinstance(node, DataNode):
            results[key] = _Plain(node.value)
        else:
            needs = sorted(node.dependencies, key=str)
            named = run.options(name=f"dask:{_prefix(key)}")
            refs = [_reference(results[needed]) for needed in needs]
            results[key] = (
                named.remote(node, needs, None, *refs)
                if hooks is None
                else (_submit_hooked(hooks, key, node, needs, refs, named))
            )
    return results


def _submit_hooked(
    hooks: Hooks, key: Hashable, node: Any, needs: list[Hashable], refs: list[ObjectRef[Any]], run: Any
) -> Any:
    given = hooks.presubmit(node, key, needs)
    if given is not None:
        return _Plain(given)
    ref = run.remote(node, needs, (hooks.around_tasks, key, refs) if hooks.around_tasks else None, *refs)
    hooks.postsubmit(node, key, needs, ref)
    return ref


def _run(node: Any, needs: list[Hashable], hooked: tuple[Any, Hashable, list[Any]] | None, *values: Any) -> Any:
    def task() -> Any:
        return node(dict(zip(needs, values, strict=True)))

    if hooked is None:
        return task()
    from moray.util.dask.callbacks import run_between

    return run_between(*hooked, task)


def _reference(found: Any) -> ObjectRef[Any]:
    if not isinstance(found, _Plain):
        return found  # type: ignore[no-any-return]
    if found.ref is None:
        found.ref = moray.put(found.value)
    return found.ref


def _value(found: Any, values: dict[ObjectRef[Any], Any]) -> Any:
    return found.value if isinstance(found, _Plain) else values[found]


def _nested(keys: Any, values: dict[Hashable, Any]) -> Any:
    return tuple(_nested(key, values) for key in keys) if isinstance(keys, list) else values[keys]


def _prefix(key: Any) -> str:
    """What a key is called, without its token: ("sum-ab12…", 0) → "sum"."""
    text = str(key[0] if isinstance(key, tuple) and key else key)
    return text.rpartition("-")[0] or text
