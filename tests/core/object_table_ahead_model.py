"""The fake machine of object_table_model, with processes that hold space ahead.

What a process says arrives in its order and when it is delivered, and others may have heard of its objects before
that: a seal on its way counts (STORE-SEAL). A place shows the tag of its number until it is written to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from moray.core.arena import rounded
from moray.core.object_table_types import Done, Granted, Recall
from tests.core.object_table_model import CAPACITY, LINE, Attempt, Machine


def own_name(process: bytes, number: int) -> bytes:
    """An object id that names its owner, as real ones do."""
    return b"%08d" % number + process + b"%08d" % number


class AheadMachine(Machine):
    """Adds places, recalls, and what is on its way to the node."""

    def __init__(self, capacity: int = CAPACITY, spill_file_bytes: int = 24 * LINE) -> None:
        super().__init__(capacity, spill_file_bytes)
        # A few per cent of so small an arena would be nothing.
        self.table._ahead._limit_of_one = capacity // 4
        self.table._ahead._limit_of_all = capacity // 2
        #: Process → number → (offset, size) of places that it does not write to.
        self.held: dict[bytes, dict[int, tuple[int, int]]] = {}
        #: Process → what it has said and the node has not heard.
        self.outbox: dict[bytes, deque[Callable[[], None]]] = {}
        #: What was written to places: its seal is on its way or known.
        self.in_places: set[Attempt] = set()

    def unsealed(self) -> list[Attempt]:
        return [attempt for attempt in super().unsealed() if attempt not in self.in_places]

    # --- what processes do ---

    def grant(self, process: bytes, count: int, size: int) -> int:
        """Ask for places; returns how many came."""
        before = len(self.held.get(process, {}))
        self.run(self.table.grant_ahead(process, count, size))
        return len(self.held.get(process, {})) - before

    def write_ahead(self, process: bytes, name: bytes, size: int = LINE) -> Attempt | None:
        """Write an object into a place, and send the seal; None if no place is large enough."""
        held = self.held.get(process, {})
        number = next((number for number, (_, room) in held.items() if room >= size), None)
        if number is None or self.current(name) is not None:
            return None
        offset, _ = held.pop(number)
        attempt = self.known[len(self.known) + 1] = Attempt(len(self.known) + 1, name, process, size)
        attempt.place, attempt.told = (0, offset), True
        self.attempts.append(attempt)
        self.in_places.add(attempt)
        self.write(0, offset, size, attempt.tag)
        self.say(process, lambda: self.sealed_in_place(attempt, number))
        return attempt

    def sealed_in_place(self, attempt: Attempt, number: int) -> None:
        request = self.request(attempt.creator, attempt, "seal")
        attempt.sealed = True
        self.run(self.table.seal_place(attempt.creator, request, attempt.name, number, attempt.size))
        assert isinstance(self.answers[request], Done)

    def free_own(self, attempt: Attempt) -> None:
        """The owner says so; after that nobody has a reference."""
        attempt.told = False
        self.say(attempt.creator, lambda: self.free(attempt.name))

    def give_back(self, process: bytes) -> None:
        numbers = list(self.held.pop(process, {}))
        self.say(process, lambda: self.run(self.table.give_back(process, numbers)))

    def answer_recall(self, recall: Recall) -> None:
        self.recalls.remove(recall)
        numbers = [] if recall.keep else list(self.held.pop(recall.process, {}))
        self.say(recall.process, lambda: self.run(self.table.give_back(recall.process, numbers, recall.number)))

    def say(self, process: bytes, message: Callable[[], None]) -> None:
        self.outbox.setdefault(process, deque()).append(message)

    def deliver(self, process: bytes) -> None:
        """The node hears the oldest thing."""
        messages = self.outbox[process]
        messages.popleft()()
        if not messages:
            self.outbox.pop(process, None)

    def deliver_all(self) -> None:
        while self.outbox:
            self.deliver(next(iter(self.outbox)))

    def die(self, process: bytes) -> None:
        """What it has not sent, nobody hears."""
        self.outbox.pop(process, None)
        self.held.pop(process, None)
        self.recalls = [recall for recall in self.recalls if recall.process != process]
        for attempt in self.attempts:
            if attempt.name[8:20] == process:
                attempt.told = False
        super().die(process)
        for attempt in [a for a in self.attempts if a.name[8:20] == process]:
            self.free(attempt.name)

    # --- the shell ---

    def run(self, actions: list[Any]) -> None:
        for action in actions:
            if isinstance(action, Granted):
                for number, offset in action.places:
                    assert offset + rounded(action.size) <= self.backed
                    self.held.setdefault(action.process, {})[number] = offset, action.size
                    self.write(0, offset, action.size, -number)
            else:
                super().run([action])

    def check(self) -> None:
        for held in self.held.values():
            for number, (offset, size) in held.items():
                assert self.read(0, offset, size) == -number, "a place was given away"
        super().check()

    def check_rest(self) -> None:
        if not self.outbox and not self.recalls:
            super().check_rest()
