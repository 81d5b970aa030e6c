"""The one warning about each request that waits for long ("nothing waits in silence")."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from moray.core.lease_explain import waiting_warning
from moray.core.lease_model import Request
from moray.core.scheduler_actions import Warn


class Alarms:
    """When to look whether a waiting request needs a warning."""

    __slots__ = ("_after_s", "_alarms", "_explain", "_turn")

    def __init__(self, after_s: float, explain: Callable[[Request], dict[str, Any]]) -> None:
        self._after_s = after_s
        #: Tells a request's story.
        self._explain = explain
        #: (due, order, request).
        self._alarms: list[tuple[float, int, Request]] = []
        self._turn = 0

    def set(self, request: Request, now: float) -> None:
        """Look at it later, if it waits."""
        if request.queued and not request.warned and not request.alarmed:
            request.alarmed = True
            self._turn += 1
            heappush(self._alarms, (now + self._after_s, self._turn, request))

    def next_tick(self) -> float | None:
        """When :meth:`sound` has something to do."""
        return self._alarms[0][0] if self._alarms else None

    def sound(self, now: float) -> list[Warn]:
        """The warnings that are due."""
        warnings: list[Warn] = []
        while self._alarms and self._alarms[0][0] <= now:
            request = heappop(self._alarms)[2]
            request.alarmed = False
            if not request.queued or request.refused or request.warned:
                continue
            if request.held > request.claims or request.since + self._after_s > now:
                # Something of it runs, or it began to wait anew: look again later.
                self.set(request, now)
                continue
            request.warned = True
            story = self._explain(request)
            if request.reservation is None and request.permanent:
                story["count"] += _warn_together(request)
            warnings.append(Warn(story["job"], waiting_warning(story)))
        return warnings


def _warn_together(request: Request) -> int:
    """Many actors may wait for the same: one warning is enough. How many wait beside this one."""
    others = 0
    for owner in request.owner.job.owners.values():
        for other in owner.requests.values():
            same = other.line is request.line and other.label == request.label
            if other is not request and same and other.permanent and other.queued:
                other.warned = True
                others += other.owed
    return others
