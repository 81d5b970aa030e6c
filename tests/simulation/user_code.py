"""What user code is to the simulator: a generator that yields *waits*.

A wait is a function that is given a callback and sees to it that it is called once, with the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

Wait: TypeAlias = Callable[[Callable[[Any], None]], None]
Code: TypeAlias = Generator[Wait, Any, T]
