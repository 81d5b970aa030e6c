"""Progress bars that many workers may have at once: the driver draws all of them, below ordinary output.

>>> from moray.experimental import tqdm_ray
>>> for _ in tqdm_ray.tqdm(range(3), desc="rounds"):
...     pass

A bar works in tasks, actors, the driver, and without a session. In a worker it sends its state toward the driver, at
most once every `flush_interval_s`, the way that results take; in the driver it is drawn by whoever updates it. The bars
of a worker that dies go with it.
"""

from __future__ import annotations

import builtins
import itertools
import os
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from moray.protocol import messages as m
from moray.runtime import state
from moray.runtime.screen import DRAW_EVERY_S, Bar, screen

if TYPE_CHECKING:
    from moray.runtime.runtime import Runtime

__all__ = ["instance", "safe_print", "tqdm"]

_T = TypeVar("_T")

#: Longest description and unit that travel.
_LONGEST: Final = 500
_numbers: Final = itertools.count(1)


class tqdm(Generic[_T]):  # noqa: N801 - the name that users of tqdm know.
    """A progress bar.

    Args:
        iterable: what ``for`` goes over; None if :meth:`update` is called instead.
        desc: what stands before the bar.
        total: how much is to be done; default: ``len(iterable)`` if it has one. None: unknown.
        unit: what is counted. Default: "it".
        position: the order of the bars, small ones first. Default: 0.
        flush_interval_s: the driver is told at most so often, in seconds. Default: 0.1.

    Example:
        >>> with tqdm(total=3, desc="steps") as bar:
        ...     bar.update(3)
    """

    def __init__(
        self,
        iterable: Iterable[_T] | None = None,
        desc: str | None = None,
        total: float | None = None,
        unit: str | None = None,
        position: int | None = None,
        flush_interval_s: float | None = None,
    ) -> None:
        #: It is not, or no longer, shown. Set first: a bar whose arguments are refused is none.
        self._closed = True
        if flush_interval_s is not None and not flush_interval_s >= 0:
            raise ValueError(f"tqdm: flush_interval_s={flush_interval_s!r} should be seconds ≥ 0")
        if total is None and hasattr(iterable, "__len__"):
            total = len(iterable)  # type: ignore[arg-type]
        self._iterable = iterable
        self._desc = str(desc or "")[:_LONGEST]
        self._total = None if total is None else float(total)
        self._unit = str(unit or "it")[:_LONGEST]
        self._position = position or 0
        self._flush_interval_s = DRAW_EVERY_S if flush_interval_s is None else flush_interval_s
        self._number = next(_numbers)
        self._done = 0.0
        self._began = monotonic()
        self._sent_at = self._began
        self._closed = False
        self.refresh()

    def update(self, n: float = 1) -> None:
        """So much more is done."""
        self._done += n
        if monotonic() - self._sent_at >= self._flush_interval_s:
            self.refresh()

    def set_description(self, desc: str) -> None:
        """Change what stands before the bar."""
        self._desc = str(desc)[:_LONGEST]
        self.refresh()

    def refresh(self) -> None:
        """Show the present state now."""
        if not self._closed:
            self._sent_at = monotonic()
            self._tell(closed=False)

    def close(self) -> None:
        """The bar has ended: its last state stays as a line."""
        if not self._closed:
            self._closed = True
            self._tell(closed=True)

    def __iter__(self) -> Iterator[_T]:
        if self._iterable is None:
            raise TypeError("this tqdm has no iterable: give it one, or call update()")
        try:
            for item in self._iterable:
                yield item
                self.update()
        except GeneratorExit:
            self._abandon()
            raise
        except BaseException:
            self.close()
            raise
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._abandon()

    def _abandon(self) -> None:
        """Nobody will close it any more. Finalizers run anywhere, locks held or not: others print and send (DEL)."""
        if self._closed:
            return
        self._closed = True
        runtime = state.runtime
        if runtime is None or runtime.forked or runtime.closing:
            screen.remove(self._bar())
        elif runtime.kind == "worker":
            runtime.output.drop_state(self._state(runtime, closed=True))
        else:
            runtime.output.drop_bar(self._bar())

    @property
    def n(self) -> float:
        """How much is done."""
        return self._done

    def _tell(self, closed: bool) -> None:
        runtime = _worker()
        if runtime is not None:
            runtime.output.send_bar(self._state(runtime, closed))
        elif closed:
            bar = self._bar()
            screen.remove(bar)
            screen.put_last(bar)
            screen.refresh()
        else:
            screen.update(self._bar())
            screen.refresh(0.0 if self._done == 0 else min(DRAW_EVERY_S, self._flush_interval_s))

    def _state(self, runtime: Runtime, closed: bool) -> m.BarState:
        return m.BarState(
            runtime.process, self._number, runtime.output.label(), os.getpid(), self._desc, self._total, self._done,
            self._unit, self._position, monotonic() - self._began, closed,
        )  # fmt: skip

    def _bar(self) -> Bar:
        elapsed_s = monotonic() - self._began
        return Bar(b"", self._number, "", 0, self._desc, self._total, self._done, self._unit, self._position, elapsed_s)


class BarManager:
    """All bars that this process draws; see :func:`instance`."""

    def hide_bars(self) -> None:
        """Draw no bars until :meth:`unhide_bars`, for example around a prompt; calls nest."""
        screen.hide()

    def unhide_bars(self) -> None:
        """Undo one :meth:`hide_bars`."""
        screen.unhide()


_manager: Final = BarManager()


def instance() -> BarManager:
    """What draws the bars of this process: a driver's draws those of its workers too."""
    return _manager


def safe_print(*args: Any, **kwargs: Any) -> None:
    """Print, as the builtin does, above the bars."""
    if _worker() is not None:
        builtins.print(*args, **kwargs)  # noqa: T201 - it is what this function is for.
        return
    kwargs["flush"] = True
    screen.above(lambda: builtins.print(*args, **kwargs))  # noqa: T201 - see above


def _worker() -> Runtime | None:
    """The runtime, if this process is a worker: then somebody else draws."""
    runtime = state.runtime
    return runtime if runtime is not None and runtime.kind == "worker" and not runtime.forked else None
