"""Which runtime this process has. Read on every call, so it is a module attribute and nothing more."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moray.runtime.runtime import Runtime

#: The connected runtime, or None before init() and after shutdown().
runtime: Runtime | None = None
