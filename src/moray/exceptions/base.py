"""What all exceptions of moray have in common."""

from __future__ import annotations

from typing import Any

from moray.error_transport import reduce_exception


class MorayError(Exception):
    """Base of every exception of moray. Its fields survive pickling, also those of subclasses."""

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_exception(self)
