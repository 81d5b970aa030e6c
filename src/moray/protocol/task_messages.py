"""Messages between the owner of a task and the worker that runs it: tasks, results, streams, recalls, cancels.

See :mod:`moray.protocol.messages` for the conventions.
"""

from __future__ import annotations

import msgspec

from moray.core.references_types import Changes
from moray.protocol.base import Message, Resources


class FunctionDef(msgspec.Struct, array_like=True, gc=False):
    """A function, sent once per connection before the first task that names it (FUNCTIONS)."""

    #: The owner's number for it, used by its tasks.
    index: int
    name: str
    #: cloudpickle; several owners' equal blobs are loaded once.
    blob: bytes
    #: Worker exits after so many calls of it; 0 is never.
    max_calls: int = 0


class Argument(msgspec.Struct, array_like=True, gc=False):
    """A top-level reference among a task's arguments, replaced by its value before the call.

    Exactly one of `blob` (inlined), `stored` (in the node's store) or neither (ask the owner).
    """

    #: Position, or the keyword's name.
    where: int | str
    #: The 28-byte object id.
    object: bytes
    blob: bytes | None = None
    stored: bool = False
    #: If it is stored: the tag of the node that has the primary copy, and its size; b"": the owner's node.
    node: bytes = b""
    size: int = 0


class StreamSpec(msgspec.Struct, array_like=True, gc=False):
    """How a generator's items travel."""

    #: Items of earlier attempts that the owner has: the generator is run, but they are not sent again.
    skip: int = 0
    #: How many items may be ahead of the consumer; -1: any number.
    ahead: int = -1
    #: The value is a DynamicObjectRefGenerator over the items: the task ends when all are made.
    dynamic: bool = False
    #: How many items all generators of the actor may be ahead together; -1: any number.
    together: int = -1


class Placement(msgspec.Struct, array_like=True, gc=False):
    """The placement group in which a task or actor runs."""

    group: bytes
    #: -1: any bundle.
    index: int = -1
    #: What it submits runs in the group, too, unless that says otherwise.
    captures: bool = False


class TaskExtra(msgspec.Struct, array_like=True, gc=False):
    """What most tasks do not have."""

    arguments: list[Argument] = []
    #: Number of return values when it is not 1.
    num_returns: int = 1
    #: 0 for the first try.
    attempt: int = 0
    name: str = ""
    #: Device indices of the lease, e.g. {"GPU": [0]}.
    devices: dict[str, list[int]] = {}
    #: None, True (every exception), or a pickled tuple of types: which exceptions the owner retries.
    retry: bool | bytes | None = None
    #: Options that the worker acts on, such as the resources asked for (OMP_NUM_THREADS, context).
    resources: Resources = {}
    #: The task is a generator whose items travel one by one (STREAM).
    stream: StreamSpec | None = None
    #: The concurrency group of a call; "": the method's own.
    group: str = ""
    placement: Placement | None = None


class TaskSpec(msgspec.Struct, array_like=True, gc=False):
    """One task. The hot message: four fields, one of them usually absent."""

    seq: int
    function: int
    #: Blob of (args, kwargs); b"" when there are none.
    payload: bytes
    extra: TaskExtra | None = None


class Tasks(Message, tag=40):
    lease: int
    tasks: list[TaskSpec]
    functions: list[FunctionDef] = []


class ResultExtra(msgspec.Struct, array_like=True, gc=False):
    #: Blobs of the return values when there are several (None: in the store).
    blobs: list[bytes | None] = []
    #: Per return: its size in the store, or 0.
    stored: list[int] = []
    #: Per return: 28-byte ids of the references contained in its value.
    contained: list[list[bytes]] = []
    #: The worker's number of this hand-over if any `contained` is not empty, else 0 (REF-SEND); the
    #: receiver's References answers it (`consume` to owners, `accepted` to the worker).
    handover: int = 0
    #: Whether the blob is an error, and whether the owner may retry it.
    error: bool = False
    retriable: bool = False
    #: The items of a stream in all, or -1: not a stream (STREAM). With `error`, those before it.
    items: int = -1
    #: The task was cancelled; `blob` is its TaskCancelledError.
    cancelled: bool = False
    #: It has not run: this argument was not where it should be. Its id, and the tag of that node.
    lost: bytes = b""


class Result(msgspec.Struct, array_like=True, gc=False):
    """The answer to one task. The hot message."""

    seq: int
    #: Run time of the user's function, for adaptive pipelining.
    duration_us: int
    #: The single return value, inline; b"" with `extra` when it is anything else.
    blob: bytes
    extra: ResultExtra | None = None


class Results(Message, tag=41):
    results: list[Result]
    #: Registrations of this owner's references that the worker still holds; carried out before the holds on the
    #: tasks' arguments end, in the same step (REF-COVER). Answered by ReferencesDone.
    borrows: Changes | None = None


class Recall(Message, tag=42):
    """Owner → worker: give back queued tasks of this lease, newest first, but leave `keep` of them."""

    lease: int
    keep: int


class Recalled(Message, tag=43):
    """Worker → owner: these will not run here (LEASE: the worker decides what has started)."""

    lease: int
    seqs: list[int]
    #: "recalled", "blocked", "revoked", "retired", or "forgotten": it does not know their functions any more.
    cause: str = "recalled"


class CancelTask(Message, tag=44):
    """Owner → worker: end this task or call, if it has not ended (CANCEL)."""

    seq: int
    attempt: int
    #: End the process if it is the one that runs.
    force: bool
    #: Also what it has submitted itself.
    recursive: bool


class CancelAnswer(Message, tag=45):
    """Worker → owner: "unstarted" (it never will; its result follows in its turn), "interrupting", "finished"."""

    seq: int
    attempt: int
    answer: str


class CancelObject(Message, tag=46):
    """Borrower → owner: cancel the task that makes your object."""

    key: int
    force: bool
    recursive: bool


class StreamItem(msgspec.Struct, array_like=True, gc=False):
    """One item of a generator (STREAM): `blob` inline, or in the store (`size` > 0)."""

    blob: bytes
    size: int = 0
    #: 28-byte ids of the references contained in it, and the number of their hand-over (REF-SEND).
    contained: list[bytes] = []
    handover: int = 0


class StreamItems(Message, tag=47):
    """Worker → owner: consecutive items, in order; the task's Result comes after the last."""

    seq: int
    attempt: int
    #: Index of the first of them, from 0.
    first: int
    items: list[StreamItem]


class StreamCredit(Message, tag=48):
    """Owner → worker: so many items of the stream have been taken by the consumer (FLOW)."""

    seq: int
    attempt: int
    consumed: int
    #: The owner has all items below this: an actor need not keep them for another connection.
    received: int = 0
