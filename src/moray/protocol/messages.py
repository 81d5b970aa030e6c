"""Every message that moray's processes exchange, in one place.

A frame on a socket is an 8-byte header (``<II``: body length, protocol number), then one msgpack
body: a tagged, array-like :class:`msgspec.Struct` of this module. Array-like structs leave field
names off the wire; a newer peer may append fields with defaults (PROTOCOL).

User values (arguments, results, functions) travel as opaque ``bytes`` *blobs*
(:mod:`moray.serialization`); daemons never look inside them.

Six conversations use them:

==================  =====================================================================
client ↔ node       registration, leases, the object store, deaths, blocked workers
client ↔ head       actors, placement groups, small values (the node hosts the head of a local session)
owner ↔ worker      tasks, calls, results, streams, recalls, cancels
process ↔ process   values of objects, reference registrations (REF-*), log lines, explanations
node ↔ head         membership, jobs, what clients and the head say to each other
node ↔ node         leases at other machines, objects on their way
==================  =====================================================================

Identifiers: a *process* is 12 random bytes; an *object* is 28 bytes (:mod:`moray.ids`); inside its
owner a task is the integer ``seq`` and an object the integer ``key = seq << 32 | index``.
Resources are integers in units of 1/10000 (:data:`RESOURCE_UNIT`), so that sums are exact.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from moray.core.references_types import Changes
from moray.core.strategies import Strategy
from moray.core.wait_graph import Finding as Finding, Target as Target
from moray.protocol.actor_messages import (
    ActorExiting as ActorExiting,
    ActorNames as ActorNames,
    ActorPlaced as ActorPlaced,
    ActorRegistered as ActorRegistered,
    ActorSpec as ActorSpec,
    ActorStarted as ActorStarted,
    ActorState as ActorState,
    CallerHello as CallerHello,
    CallResults as CallResults,
    Calls as Calls,
    CallSpec as CallSpec,
    Creation as Creation,
    FindActor as FindActor,
    KillActor as KillActor,
    ListActors as ListActors,
    PlaceActor as PlaceActor,
    RegisterActor as RegisterActor,
    ReleaseActor as ReleaseActor,
    StartActor as StartActor,
    WatchActor as WatchActor,
)
from moray.protocol.base import (
    PROTOCOL_VERSION as PROTOCOL_VERSION,
    RENEW_S as RENEW_S,
    RESOURCE_UNIT as RESOURCE_UNIT,
    Message as Message,
    Resources as Resources,
)
from moray.protocol.cluster_messages import (
    BundlesReserved as BundlesReserved,
    ClientLeft as ClientLeft,
    CopiesFound as CopiesFound,
    CopyMade as CopyMade,
    CreateGroup as CreateGroup,
    DrainNode as DrainNode,
    FindCopies as FindCopies,
    FindObjects as FindObjects,
    ForClient as ForClient,
    FreeCopies as FreeCopies,
    FromClient as FromClient,
    FromHead as FromHead,
    GetJob as GetJob,
    GetPackage as GetPackage,
    GroupList as GroupList,
    GroupState as GroupState,
    JobEnded as JobEnded,
    JobNumber as JobNumber,
    JobSettings as JobSettings,
    JobStarted as JobStarted,
    KvAnswer as KvAnswer,
    KvRequest as KvRequest,
    LeaseRenewed as LeaseRenewed,
    LinkAck as LinkAck,
    LinkHello as LinkHello,
    ListGroups as ListGroups,
    Locate as Locate,
    Located as Located,
    MadePackages as MadePackages,
    NodeDied as NodeDied,
    NodeHello as NodeHello,
    NodeInfo as NodeInfo,
    NodeLeaves as NodeLeaves,
    NodeLoad as NodeLoad,
    NodeWelcome as NodeWelcome,
    ObjectsFound as ObjectsFound,
    Package as Package,
    PackageChunk as PackageChunk,
    PackageResolved as PackageResolved,
    PlaceWorker as PlaceWorker,
    PromoteCopies as PromoteCopies,
    PullBegins as PullBegins,
    PullChunk as PullChunk,
    PullCredit as PullCredit,
    PullObject as PullObject,
    PullRefused as PullRefused,
    RelayDone as RelayDone,
    RemoveGroup as RemoveGroup,
    RenewLease as RenewLease,
    ReserveBundles as ReserveBundles,
    ResolvePackage as ResolvePackage,
    StopProcess as StopProcess,
    TakeConnection as TakeConnection,
    ToHead as ToHead,
    ViewDelta as ViewDelta,
    WatchGroup as WatchGroup,
    WorkerPlaced as WorkerPlaced,
    WorkerRefused as WorkerRefused,
)
from moray.protocol.leaving_messages import (
    ActorMoved as ActorMoved,
    CertificateRenewed as CertificateRenewed,
    MoveActor as MoveActor,
    MoveNoted as MoveNoted,
    ObjectsMoved as ObjectsMoved,
    ObjectsTaken as ObjectsTaken,
    RenewCertificate as RenewCertificate,
    TakeObjects as TakeObjects,
)
from moray.protocol.task_messages import (
    Argument as Argument,
    CancelAnswer as CancelAnswer,
    CancelObject as CancelObject,
    CancelTask as CancelTask,
    FunctionDef as FunctionDef,
    Placement as Placement,
    Recall as Recall,
    Recalled as Recalled,
    Result as Result,
    ResultExtra as ResultExtra,
    Results as Results,
    StreamCredit as StreamCredit,
    StreamItem as StreamItem,
    StreamItems as StreamItems,
    StreamSpec as StreamSpec,
    TaskExtra as TaskExtra,
    Tasks as Tasks,
    TaskSpec as TaskSpec,
)
from moray.protocol.tunnel_messages import (
    TunnelAck as TunnelAck,
    TunnelFrame as TunnelFrame,
    TunnelHello as TunnelHello,
    TunnelLeaves as TunnelLeaves,
    TunnelWelcome as TunnelWelcome,
)

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
    #: The job's runtime environment, as JSON, for whoever asks; "": none.
    runtime_env: str = ""
    #: What its workers want of the driver's host.
    packages: list[Package] = []
    #: Tag of the driver's node.
    source: bytes = b""
    #: Names what is packed for it; the jobs of its detached actors have the same.
    snapshot: str = ""
    #: Entries of sys_path that are its interpreter's: other hosts have their own.
    own_paths: list[str] = []
    #: (name, file) of packages that the driver has made (see MadePackages).
    made: list[tuple[str, str]] = []
    #: Directories that are not shipped, each with the reason.
    unshipped: list[tuple[str, str]] = []


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
    #: The runtime environment that the process runs in, as JSON; "": none.
    runtime_env: str = ""
    #: Of a node in a cluster: the directory of its certificate. "": there is no other machine.
    credentials: str = ""
    #: The runtime environment of a worker if it is not its job's: what its tasks and actors inherit.
    task_env: str = ""
    #: Of a worker on another host than its driver's: what came from there, for errors.
    shipped: str = ""
    #: What CUDA calls the node's GPUs, by index; []: each by its index. The process's environment may be the driver's.
    gpus: list[str] = []


class Refused(Message, tag=3):
    """The peer may not connect; `reason` is one line for the user."""

    reason: str
    #: Of a head to a node (core/membership_actions.py): "fenced", "tag": join anew, under another id; "outdated".
    code: str = ""


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
    #: Where it may run; None: anywhere.
    strategy: Strategy | None = None
    #: Tag of a node → bytes of the waiting tasks' large arguments that lie there.
    locality: dict[bytes, int] = {}


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
    #: The worker's process id if the owner has lost its connection to it, or gives it up: the node ends it now,
    #: whatever it owns.
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
    #: Answered by StoreDone if it is not 0.
    request: int = 0


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
    #: Of a process of another machine, whose mark cannot be read here: (lease, tasks of it that have begun); (0, -1):
    #: nobody knows. None: it lived on this machine.
    mark: tuple[int, int] | None = None
    #: Its node has ended it because the node leaves.
    drained: bool = False


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
    """The bytes are complete. Answered by StoreDone or StoreError if `request` is not 0 (STORE-SEAL).

    With `place`, this is the first that the node hears of the object: it was written into space granted ahead. If an
    object of this id is there already ("exists"), the place stays the sender's. With `ahead`, the sender asks for
    more places, and SpaceGranted answers that.
    """

    request: int
    object: bytes
    #: Number of the place that it was written to, and its size; 0: it has an ObjectCreated.
    place: int = 0
    size: int = 0
    #: Places wished for, and how large each should be.
    ahead: int = 0
    ahead_size: int = 0


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
    #: The tag of the node with its primary copy, and its size; b"": it is here. A node that has not got it pulls it.
    node: bytes = b""
    size: int = 0
    #: Who waits: 0 a get, 1 an argument, 2 nobody yet.
    priority: int = 0


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
    #: The tag of the node with their primary copies; b"": it is this one.
    node: bytes = b""


class AbortObject(Message, tag=39):
    """The creator gives up an unsealed object, or (with ``b""``) places that it holds and does not write to.

    With `recall` it answers RecallSpace: all seals that the process had to tell of by then came before this.
    """

    object: bytes
    #: Numbers of the places; what the node does not know as held by the sender is ignored.
    places: list[int] = []
    recall: int = 0


class SpaceGranted(Message, tag=100):
    """Space for objects that are still to come, so that each costs no round trip (node → client).

    The process may write one object of up to `size` bytes into each place and seal it there.
    """

    size: int
    #: (number, offset in the arena), the warmest first; none if space is scarce. Numbers are never used again.
    places: list[tuple[int, int]]


class RecallSpace(Message, tag=101):
    """Node → client: answer by AbortObject with all places that are not being written to.

    With `keep`, answer only: somebody asks for an object of yours, and if no seal of it comes before the answer, it
    is gone (STORE-SEAL).
    """

    recall: int
    keep: bool = False


# --- references and values: process ↔ process ------------------------------------------------------------


class Fetch(Message, tag=50):
    """Borrower → owner: send the value of each key as it becomes ready."""

    keys: list[int]
    #: Of stored objects that were not there: key → the tag of the node where they should have been.
    lost: dict[int, bytes] = {}
    #: What the borrower's user frees by hand.
    free: list[int] = []


class ObjectValue(Message, tag=51):
    """Owner → borrower. `blob` inline; or in the store (`size` > 0)."""

    key: int
    blob: bytes
    size: int = 0
    error: bool = False
    #: 28-byte ids of contained references.
    contained: list[bytes] = []
    #: The tag of the node that has the primary copy; b"": the owner's node.
    node: bytes = b""


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
    #: Who printed it, and how far its output has been sent with this; 0: it does not count.
    process: bytes = b""
    position: int = 0


class BarState(Message, tag=61):
    """Worker → driver: a progress bar of a worker is new, has changed, or is closed."""

    #: The process that has it, and the bar's number there.
    process: bytes
    bar: int
    #: What runs there, for the prefix.
    name: str
    pid: int
    desc: str
    #: None: unknown.
    total: float | None
    done: float
    unit: str
    position: int
    elapsed_s: float
    closed: bool = False


# --- explanations: process ↔ process ---------------------------------------------------------------------------


class Why(Message, tag=90):
    """What does this wait for? Answered by Because at once; the asker follows the trail itself, so that it knows where
    it ends."""

    request: int
    target: Target


class Because(Message, tag=91):
    request: int
    finding: Finding


class GetEvents(Message, tag=92):
    """Send your record of finished tasks; answered by TaskEvents."""

    request: int


class TaskEvents(Message, tag=93):
    request: int
    #: (name, task id, start in ns of the monotonic clock, duration in ns, thread) each.
    events: list[tuple[str, bytes, int, int, int]]
    #: The class of the actor that the process is; "" if it is none.
    actor: str = ""


AnyMessage: TypeAlias = (
    Hello | Welcome | Refused
    | RequestLeases | LeaseGranted | LeaseRefused | ReturnLease | LeaseRevoked | RevokeLease | RevokedLease
    | Blocked | Unblocked | WorkerBusy
    | ProcessDied | Shutdown | ShutdownDone | ClusterInfo | ClusterState
    | CreateObject | ObjectCreated | SealObject | StoreDone | StoreError | PinObject | ObjectPinned
    | UnpinObjects | FreeObjects | AbortObject | SpaceGranted | RecallSpace
    | Tasks | Results | Recall | Recalled | CancelTask | CancelAnswer | CancelObject
    | StreamItems | StreamCredit
    | RegisterActor | ActorRegistered | FindActor | ListActors | ActorNames | WatchActor | ActorState | ActorPlaced
    | PlaceActor | KillActor | ReleaseActor | ActorStarted | ActorExiting
    | StartActor | CallerHello | Calls | CallResults
    | Why | Because | GetEvents | TaskEvents
    | Fetch | ObjectValue | References | ReferencesDone
    | LogLines | BarState
    | NodeHello | NodeWelcome | RenewLease | LeaseRenewed | ViewDelta | NodeLeaves | DrainNode | ToHead | RelayDone
    | FromHead | JobStarted | JobNumber | JobEnded | GetJob | JobSettings | PlaceWorker | WorkerPlaced
    | WorkerRefused | StopProcess | LinkHello | LinkAck | FromClient | ForClient | ClientLeft | NodeDied
    | TakeConnection | Locate | Located | PullObject | PullBegins | PullChunk | PullCredit | PullRefused | CopyMade
    | FreeCopies | FindCopies | CopiesFound | PromoteCopies | FindObjects | ObjectsFound | KvRequest
    | KvAnswer | CreateGroup | RemoveGroup | WatchGroup
    | GroupState | ListGroups | GroupList | ReserveBundles | BundlesReserved
    | MadePackages | ResolvePackage | PackageResolved | GetPackage | PackageChunk
    | MoveActor | ActorMoved | TakeObjects | ObjectsTaken | ObjectsMoved | MoveNoted
    | RenewCertificate | CertificateRenewed
    | TunnelHello | TunnelWelcome | TunnelFrame | TunnelAck | TunnelLeaves
)  # fmt: skip
