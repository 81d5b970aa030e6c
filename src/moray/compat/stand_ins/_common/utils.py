"""``ray._common.utils``: the machine, ids as text, the event loop."""

from __future__ import annotations

import asyncio
import warnings

from moray.compat.stand_ins._private.utils import (
    binary_to_hex,
    get_ray_temp_dir,
    get_system_memory,
    get_used_memory,
    get_user_temp_dir,
    hex_to_binary,
)

__all__ = [
    "binary_to_hex", "get_or_create_event_loop", "get_ray_temp_dir", "get_system_memory", "get_used_memory",
    "get_user_temp_dir", "hex_to_binary",
]  # fmt: skip


def get_or_create_event_loop() -> asyncio.AbstractEventLoop:
    """The running event loop; without one that of this thread, made if need be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Where there is none, later Pythons refuse to make one.
        try:
            loop = asyncio.get_event_loop()
        except RuntimeError:
            loop = None
    if loop is None or loop.is_closed():
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
    return loop
