"""Wishes for workers that fail when there is no room, instead of waiting (``_fail_on_unavailable``).

Whether there is room cannot be read off the books: workers that are granted may be idle, and their owners give them
back, or have them taken back, within :data:`~moray.config.LEASE_LINGER_S`. So a wish is stated like all others, and
refused when nothing was granted to it for :data:`PATIENCE_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any, Final, TypeAlias

from moray import config
from moray.core.resources import show_amounts
from moray.protocol.reactor import Reactor

#: Twice as long as an idle worker stays with its owner.
PATIENCE_S: Final = 2 * config.LEASE_LINGER_S

#: Causes of waiting (:mod:`moray.core.lease_explain`) that mean that resources are missing.
_NO_ROOM: Final = frozenset({"taken", "reserved"})

#: (owner, key).
Who: TypeAlias = tuple[bytes, int]


class Impatient:
    """Of one node. `explain`: every waiting request, as :meth:`LocalScheduler.explain` tells it."""

    def __init__(self, reactor: Reactor, explain: Callable[[float], list[dict[str, Any]]]) -> None:
        self._reactor = reactor
        self._explain = explain
        #: Those that wait → what refuses them for a reason.
        self._waiting: dict[Who, Callable[[str], None]] = {}

    def update(self, who: Who, refuse: Callable[[str], None] | None) -> None:
        """The owner has stated its wish; None: it wants nothing any more, or was refused already."""
        if refuse is None:
            self._waiting.pop(who, None)
            return
        if who not in self._waiting:
            self._reactor.call_later(PATIENCE_S, partial(self._look, who))
        self._waiting[who] = refuse

    def _look(self, who: Who) -> None:
        if who not in self._waiting:
            return
        owner = who[0].hex()
        found = (story for story in self._explain(monotonic()) if (story["owner"], story["key"]) == (owner, who[1]))
        story = next(found, None)
        if story is None or story["cause"] == "infeasible":
            del self._waiting[who]
        elif story["waiting_s"] < PATIENCE_S or story["cause"] not in _NO_ROOM:
            # It was granted something, or is younger than this look; or a worker is being started for it.
            again_s = PATIENCE_S - story["waiting_s"]
            self._reactor.call_later(again_s if again_s > 0 else PATIENCE_S, partial(self._look, who))
        else:
            wanted = show_amounts(story["resources"])
            self._waiting.pop(who)(
                f"no room for {wanted} in {PATIENCE_S:g} s ({story['reason']}), and its strategy says not to wait"
            )
