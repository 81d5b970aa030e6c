"""Connections between processes: one FIFO in each direction, random delays, cuts at any byte (frame) boundary.

A frame is encoded when it is sent and decoded when it arrives, so that no two processes share an object and
whatever is sent fits the wire contract. What a dead process had sent stays readable: it is in the receiver's kernel.
The other side of a closed connection reads what is left, then the end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import msgspec

from moray.protocol import messages as m
from tests.simulation.world import Lively, World

_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(m.AnyMessage)

#: Delays in seconds and how often: mostly a busy machine's, sometimes a descheduled process's.
_DELAYS: Final = ((0.85, 0.0002), (0.97, 0.003), (1.0, 0.04))


def delay(world: World) -> float:
    """How long something takes between two processes."""
    dice = world.random.random()
    longest = next(longest for share, longest in _DELAYS if dice <= share)
    return world.random.random() * longest


class End:
    """One process's end of a connection."""

    def __init__(
        self,
        world: World,
        process: Lively,
        name: str,
        on_message: Callable[[End, Any], None],
        on_closed: Callable[[End], None],
    ) -> None:
        self._world = world
        self._process = process
        self.name = name
        self._on_message = on_message
        self._on_closed = on_closed
        self.other: End = self
        #: Frames on their way here; None is the end of the stream.
        self.inbox: deque[bytes | None] = deque()
        self.closed = False
        #: Nothing that is sent arrives any more, though this end has not noticed.
        self.cut = False
        #: Whatever the shell wants to know of the other side.
        self.peer: Any = None
        #: Says where this frame is going, for the history.
        self.label = ""

    def send(self, message: m.Message) -> None:
        if self.closed or self.cut:
            return
        self.other.inbox.append(_ENCODER.encode(message))
        self.other.expect()

    def expect(self) -> None:
        """Something is on its way here."""
        self._world.at(delay(self._world), "", self.deliver, self._process)

    def deliver(self) -> None:
        """Hand the next frame to the process."""
        if self.closed or not self.inbox:
            return
        frame = self.inbox.popleft()
        if frame is None:
            self.closed = True
            self._world.log(f"{self.name} connection closed")
            self._on_closed(self)
            return
        message = _DECODER.decode(frame)
        self._world.log(f"{self.name} {message}")
        self._on_message(self, message)

    def ended(self) -> bool:
        """Whether it is closed, here or there, and all that came was read."""
        return self.closed or (bool(self.inbox) and self.inbox[0] is None)

    def drain(self) -> None:
        """Handle all that has been sent here."""
        while self.inbox and self.inbox[0] is not None and not self.closed:
            self.deliver()

    def hang_up(self, lost: int = 0) -> None:
        """Nothing more comes from here; of what is on its way to the other side, the last `lost` frames are lost."""
        if self.cut:
            return
        self.cut = True
        inbox = self.other.inbox
        for _ in range(min(lost, len(inbox))):
            inbox.pop()
        inbox.append(None)
        self.other.expect()

    def close(self) -> None:
        """This process closes it, and reads no more."""
        self.closed = True
        self.hang_up()


def connect(a: End, b: End) -> None:
    """Make the two ends one connection."""
    a.other, b.other = b, a


def break_connection(world: World, end: End) -> None:
    """Both sides lose it, and with it some of what was on its way."""
    for each in (end, end.other):
        each.hang_up(world.random.randint(0, len(each.other.inbox)))
