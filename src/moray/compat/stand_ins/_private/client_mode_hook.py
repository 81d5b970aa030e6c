"""``ray._private.client_mode_hook``: tests ask whether they run through Ray's client; under moray there is one way."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final, TypeVar

__all__ = [
    "client_mode_hook", "client_mode_should_convert", "disable_client_hook", "enable_client_mode",
    "is_client_mode_enabled", "is_client_mode_enabled_by_default",
]  # fmt: skip

T = TypeVar("T", bound=Callable[..., Any])

is_client_mode_enabled: Final = False
is_client_mode_enabled_by_default: Final = False


def client_mode_should_convert(**_options: Any) -> bool:
    """Never."""
    return False


def client_mode_hook(func: T) -> T:
    """The function itself."""
    return func


def disable_client_hook() -> AbstractContextManager[None]:
    """A block like any other."""
    return nullcontext()


enable_client_mode = disable_client_hook


def _nothing() -> None:
    """There is no mode to change."""


_explicitly_enable_client_mode = _explicitly_disable_client_mode = _nothing
