"""What the cores of transfers say and keep: actions for the shell, and records.

A *node* is named by its tag. A *line* is one connection on which another node pulls from this one; the shell numbers
them. The shell carries actions out in the order given.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import msgspec

#: Bytes in one chunk: large enough that a chunk's frame and acknowledgement cost nothing beside it, small enough that a
#: node that is pulling has something to pass on soon.
CHUNK_BYTES: Final = 4 << 20
#: Chunks of one pull that may be under way: at 10 Gbit/s, 13 ms of them.
CREDIT_CHUNKS: Final = 4
#: Pulls of one object that one node serves at a time; who asks after them is sent on. With two, a broadcast to N nodes
#: is a binary tree, and every node sends at most twice what it receives.
FANOUT: Final = 2

#: Classes of waiting, the most urgent first: somebody's get, a task's argument, nobody yet.
PRIORITIES: Final = 3


class _Action(msgspec.Struct, frozen=True, gc=False):
    pass


# --- to clients of this node ----------------------------------------------------------------------------------


class PinHere(_Action, frozen=True):
    """The object is here or about to be sealed: pass the process's pin on to the store."""

    process: bytes
    request: int
    object: bytes


class FailPin(_Action, frozen=True):
    """Answer the pin with an error: "lost", "full" or "disk"."""

    process: bytes
    request: int
    code: str
    detail: str


class Located(_Action, frozen=True):
    """Answer a process's question: per object the node with its primary copy, or b""."""

    process: bytes
    request: int
    nodes: list[bytes]


# --- to the store ---------------------------------------------------------------------------------------------


class MakeCopy(_Action, frozen=True):
    """Make a secondary copy; then ``copy_placed`` or ``copy_refused``."""

    object: bytes
    size: int


class SealCopy(_Action, frozen=True):
    """It is complete."""

    object: bytes


class AbortCopy(_Action, frozen=True):
    """It will not be; nothing writes to it or reads it any more."""

    object: bytes


class HoldObject(_Action, frozen=True):
    """Pin it, to send it; then ``held`` or ``not_held``."""

    object: bytes


class LetGo(_Action, frozen=True):
    """Unpin it."""

    object: bytes


class Promote(_Action, frozen=True):
    """The secondary copy here is the primary one from now on: not to be dropped."""

    object: bytes


# --- to a node that this one pulls from -------------------------------------------------------------------------


class AskFor(_Action, frozen=True):
    """Ask `node` for the object; if there is no connection, make one and call ``line_up``."""

    node: bytes
    pull: int
    object: bytes
    offset: int
    credit: int
    avoid: list[bytes]


class Acknowledge(_Action, frozen=True):
    """So many bytes have arrived; `stop`: no more of it."""

    node: bytes
    pull: int
    size: int
    stop: bool


# --- to a node that pulls from this one --------------------------------------------------------------------------


class Begin(_Action, frozen=True):
    line: int
    pull: int
    size: int


class SendChunk(_Action, frozen=True):
    """Send these bytes, straight from where the object lies; they stay until they are acknowledged or the line ends."""

    line: int
    pull: int
    object: bytes
    offset: int
    size: int


class Refuse(_Action, frozen=True):
    line: int
    pull: int
    code: str
    sources: list[bytes]


# --- to other nodes, delivered once and in order -----------------------------------------------------------------


class TellCopies(_Action, frozen=True):
    node: bytes
    objects: list[bytes]
    gone: bool


class FreeAt(_Action, frozen=True):
    node: bytes
    objects: list[bytes]


class Find(_Action, frozen=True):
    node: bytes
    request: int
    objects: list[bytes]


class Found(_Action, frozen=True):
    node: bytes
    request: int
    objects: list[bytes]


class PromoteAt(_Action, frozen=True):
    node: bytes
    request: int
    objects: list[bytes]
    copies: list[list[bytes]]


Action: TypeAlias = (
    PinHere | FailPin | Located | MakeCopy | SealCopy | AbortCopy | HoldObject | LetGo | Promote | AskFor | Acknowledge
    | Begin | SendChunk | Refuse | TellCopies | FreeAt | Find | Found | PromoteAt
)  # fmt: skip
Do: TypeAlias = Callable[[Any], None]


# --- records --------------------------------------------------------------------------------------------------------


class Stage(enum.Enum):
    """How far a pull is."""

    #: For its share of the bytes that may be under way.
    WAITING = 1
    #: For room in the store.
    MAKING = 2
    #: A source was asked.
    ASKING = 3
    #: The source sends.
    RECEIVING = 4
    #: The primary copy's node is dead; the others are asked whether they have it.
    FINDING = 5
    #: Given up; something still writes to its memory or reads it.
    ENDING = 6
    #: Nothing of it is left.
    GONE = 7


class Pull:
    """One object on its way to this node."""

    __slots__ = ("avoid", "have", "incoming", "number", "object", "primary", "request", "searched", "size", "source",
                 "stage", "wanters")  # fmt: skip

    def __init__(self, object: bytes, size: int, primary: bytes) -> None:
        self.object = object
        self.size = size
        #: The node that has the primary copy, as far as is known.
        self.primary = primary
        self.stage = Stage.WAITING
        #: Number of the question now open; 0: none.
        self.number = 0
        #: Who was asked.
        self.source = b""
        #: Bytes from the beginning that are here.
        self.have = 0
        #: Bytes of the chunk that is being read into its place.
        self.incoming = 0
        #: Who waits for it: (process, request) → priority.
        self.wanters: dict[tuple[bytes, int], int] = {}
        #: Nodes that did not have it.
        self.avoid: list[bytes] = []
        #: While FINDING: the number of the search.
        self.request = 0
        #: `primary` is only a node that was found to have it.
        self.searched = False

    def priority(self) -> int:
        return min(self.wanters.values(), default=PRIORITIES - 1)
