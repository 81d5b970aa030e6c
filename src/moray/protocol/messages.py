"""Every message that moray's processes exchange, in one place.

A frame on a socket is an 8-byte header (``<II``: body length, protocol number), then one msgpack
body: a tagged, array-like :class:`msgspec.Struct` of this module. Array-like structs leave field
names off the wire; a newer peer may append fields with defaults (PROTOCOL).

User values (arguments, results, functions) travel as opaque ``bytes`` *blobs*
(:mod:`moray.serialization`); daemons never look inside them.

Three conversations use them:

==================  =====================================================================
client ↔ node       registration, leases, the object store, deaths, blocked workers
owner ↔ worker      tasks, results, recalls, cancels
process ↔ process   values of objects, reference registrations (REF-*), log lines
==================  =====================================================================

Identifiers: a *process* is 12 random bytes; an *object* is 28 bytes (:mod:`moray.ids`); inside its
owner a task is the integer ``seq`` and an object the integer ``key = seq << 32 | index``.
Resources are integers in units of 1/10000 (:data:`RESOURCE_UNIT`), so that sums are exact.
"""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import msgspec

from moray.core.references_types import Changes

#: Peers with another number are refused, naming both (PROTOCOL).
PROTOCOL_VERSION: Final = 1

#: One CPU (or GPU, or custom resource) in wire units.
RESOURCE_UNIT: Final = 10_000

Resources: TypeAlias = dict[str, int]


class Message(msgspec.Struct, array_like=True, gc=False, tag=True):
    """Base of all messages; each subclass has its own integer tag."""


# --- registration -------------------------------------------------------------------------


class JobConfig(msgspec.Struct, array_like=True):
    """What a driver tells the node about its job, so that workers resemble the driver."""

    sys_path: list[str]
    cwd: str
    environ: dict[str, str]
    executable: str
    namespace: str
    entrypoint: str
    #: Modules that the job's template imports before workers are forked from it.
    preload: list[str] = []


class Hello(Message, tag=1):
    """First frame of every connection. ``kind``: "driver", "worker" (both to a node), "peer"."""

    version: int
    kind: str
    process: bytes
    pid: int
    #: Unix socket path where this process accepts peers.
    address: str = ""
    job: JobConfig | None = None
    #: Job number of a worker or peer (a driver's is assigned in Welcome).
    job_id: int = 0


class Welcome(Message, tag=2):
    """The node's answer to Hello of a driver or worker; the arena's fd rides along (SCM_RIGHTS)."""

    version: int
    session: str
    session_dir: str
    node_id: bytes
    node_pid: int
    job_id: int
    #: Size of the shared-memory arena in bytes: how much a client maps.
    arena_bytes: int
    #: The node's total resources.
    resources: Resources
    namespace: str
    #: The job's driver: (process, pid, address); workers send log lines there.
    driver: tuple[bytes, int, str] = (b"", 0, "")


class Refused(Message, tag=3):
    """The peer may not connect; `reason` is one line for the user."""

    reason: str


# --- leases: owner ↔ node -----------------------------------------------------------------


class RequestLeases(Message, tag=10):
    """The owner's standing wish for workers of one scheduling key; the latest replaces earlier ones.

    The node still owes ``count - (granted so far - seen)`` grants, where `seen` is how many grants
    of this key the owner had received when it wrote this (so a grant in flight is not counted twice).
    """

    key: int
    count: int
    seen: int
    resources: Resources
    #: Workers are specific to (job, runtime_env); "" is the job's own environment.
    runtime_env: str = ""
    #: What waits, for explanations: the function's name.
    label: str = ""


class LeaseGranted(Message, tag=11):
    key: int
    #: Rises with each lease of the node; the worker compares revocations with it.
    lease: int
    worker: bytes
    worker_pid: int
    address: str
    #: Device indices for each granted device resource, e.g. {"GPU": [0]}.
    devices: dict[str, list[int]] = {}


class LeaseRefused(Message, tag=12):
    """Nothing will be granted until the reason goes away; the owner warns once and goes on waiting."""

    key: int
    reason: str
    #: True when no node could ever satisfy it.
    infeasible: bool


class ReturnLease(Message, tag=13):
    lease: int
    #: The worker must not be reused (max_calls reached).
    discard: bool = False
    #: The worker's process id if the owner has lost its connection to it: the node ends it, whatever it owns.
    broken: bytes = b""


class LeaseRevoked(Message, tag=14):
    """The node took an idle or drained lease back (node → owner)."""

    lease: int


class RevokeLease(Message, tag=15):
    """Node → worker: stop accepting tasks of leases ≤ `lease`; answer when none of them runs (LEASE)."""

    lease: int


class RevokedLease(Message, tag=16):
    """Worker → node: no task of leases ≤ `lease` is queued or runs here."""

    lease: int


class Blocked(Message, tag=17):
    """Worker → node: its task waits in moray; its CPUs may be lent (LEASE)."""


class Unblocked(Message, tag=18):
    """Worker → node: its task runs again; CPUs are taken back at once, the account may go negative."""


class WorkerBusy(Message, tag=19):
    """Worker → node: the node's client of this worker owns objects that others hold (OWNER-STAYS)."""

    owns_objects: bool


# --- deaths and control: node → clients -----------------------------------------------------


class ProcessDied(Message, tag=20):
    """A worker or driver of this machine is gone (its pidfd said so, LIVENESS)."""

    process: bytes
    pid: int
    #: Exit code, or minus the signal number.
    status: int
    #: One line: what ended it.
    reason: str
    #: Last lines of its stderr.
    stderr: str = ""


class Shutdown(Message, tag=21):
    """Driver → node: end the session (or, for a further driver, this job). Node → worker: exit now."""

    reason: str = ""


class ShutdownDone(Message, tag=22):
    """Node → driver: every worker of the job is gone and its memory and files are released."""


class ClusterInfo(Message, tag=23):
    """Client → node: ask for the node's state; answered by ClusterState."""

    request: int


class ClusterState(Message, tag=24):
    request: int
    #: {"total": …, "available": …, "nodes": …, "store": …}; JSON-like.
    state: dict[str, Any]


# --- object store: client ↔ node --------------------------------------------------------------


class CreateObject(Message, tag=30):
    """Ask for `size` bytes for a new object; answered by ObjectCreated or StoreError."""

    request: int
    object: bytes
    size: int


class ObjectCreated(Message, tag=31):
    request: int
    #: Where in the arena, or in `path` when that is set.
    offset: int
    #: A file of its own, when the arena is full of pinned objects (STORE-SPACE).
    path: str = ""


class SealObject(Message, tag=32):
    """The bytes are complete. Answered by StoreDone if `request` is not 0 (STORE-SEAL)."""

    request: int
    object: bytes


class StoreDone(Message, tag=33):
    request: int


class StoreError(Message, tag=34):
    request: int
    #: "full", "disk", "lost", "exists"
    code: str
    detail: str


class PinObject(Message, tag=35):
    """Ask for an object's place; the node waits for its seal, restores it if spilled, and holds it
    there until UnpinObjects, or the death of this process (STORE-PIN)."""

    request: int
    object: bytes


class ObjectPinned(Message, tag=36):
    request: int
    offset: int
    size: int
    path: str = ""


class UnpinObjects(Message, tag=37):
    objects: list[bytes]


class FreeObjects(Message, tag=38):
    """The owner says that no reference is left (REF-FREE): copies and spilled bytes go, pins permitting."""

    objects: list[bytes]


class AbortObject(Message, tag=39):
    """The creator gives an unsealed object up."""

    object: bytes


# --- tasks: owner ↔ worker -------------------------------------------------------------------------


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
    #: "recalled", "blocked" or "revoked".
    cause: str = "recalled"


class CancelTask(Message, tag=44):
    seq: int
    attempt: int
    force: bool
    recursive: bool


class CancelAnswer(Message, tag=45):
    """Worker → owner: "unstarted" (gone from the queue), "interrupting", "finished"."""

    seq: int
    attempt: int
    answer: str


# --- references and values: process ↔ process ------------------------------------------------------------


class Fetch(Message, tag=50):
    """Borrower → owner: send the value of each key as it becomes ready."""

    keys: list[int]


class ObjectValue(Message, tag=51):
    """Owner → borrower. `blob` inline; or in the store (`size` > 0)."""

    key: int
    blob: bytes
    size: int = 0
    error: bool = False
    #: 28-byte ids of contained references.
    contained: list[bytes] = []


class References(Message, tag=52):
    """What changes between two processes about references, as one numbered step (REF-*).

    Answered by ReferencesDone; repeated after a reconnect until it is.
    """

    changes: Changes


class ReferencesDone(Message, tag=53):
    """The request (of References, or of ``Results.borrows``) is carried out here, now or before."""

    request: int
    #: Keys that it registers and the owner no longer has.
    lost: list[int] = []


class LogLines(Message, tag=60):
    """Worker → driver: output of a worker. ``stream``: "out" or "err"."""

    name: str
    pid: int
    stream: str
    lines: list[str]


AnyMessage: TypeAlias = (
    Hello | Welcome | Refused
    | RequestLeases | LeaseGranted | LeaseRefused | ReturnLease | LeaseRevoked | RevokeLease | RevokedLease
    | Blocked | Unblocked | WorkerBusy
    | ProcessDied | Shutdown | ShutdownDone | ClusterInfo | ClusterState
    | CreateObject | ObjectCreated | SealObject | StoreDone | StoreError | PinObject | ObjectPinned
    | UnpinObjects | FreeObjects | AbortObject
    | Tasks | Results | Recall | Recalled | CancelTask | CancelAnswer
    | Fetch | ObjectValue | References | ReferencesDone
    | LogLines
)  # fmt: skip
