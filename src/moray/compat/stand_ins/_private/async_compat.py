"""``ray._private.async_compat``: which functions are coroutines."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["has_async_methods", "is_async_func", "sync_to_async"]


def is_async_func(func: Callable[..., Any]) -> bool:
    """Whether it is a coroutine function, or an asynchronous generator."""
    return inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func)


def has_async_methods(cls: type) -> bool:
    """Whether actors of the class have an event loop."""
    return any(is_async_func(member) for _name, member in inspect.getmembers(cls, inspect.isfunction))


@functools.lru_cache(maxsize=4096)
def sync_to_async(func: Callable[..., Any]) -> Callable[..., Any]:
    """A coroutine function that does the same; the function itself if it is one. The same one each time."""
    if is_async_func(func):
        return func

    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return func(*args, **kwargs)

    return wrapper
