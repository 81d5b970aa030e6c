"""Messages between the machines of a cluster: node ↔ head, node ↔ node, and a node's word to its clients.

See :mod:`moray.protocol.messages` for the conventions. A node's *tag* is the first four bytes of its id, and of the ids
of all processes that live with it. A *body* is an encoded message that somebody relays without reading it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from moray.protocol.base import Message, Resources

# --- node ↔ head: membership (HEAD-EPOCH, FENCE) -------------------------------------------------------------


class NodeInfo(msgspec.Struct, array_like=True, gc=False):
    """A node as all others see it."""

    #: 28 bytes.
    node_id: bytes
    #: "HOST:PORT" of its one TCP port.
    address: str
    #: In all, and what of it is free, as of its last report.
    resources: Resources
    available: Resources
    labels: dict[str, str] = {}
    #: Device resources and how many indices each has.
    devices: dict[str, int] = {}
    hostname: str = ""
    name: str = ""
    pid: int = 0
    object_store_bytes: int = 0
    #: The machine where the head runs.
    head: bool = False
    #: It takes no new work, and leaves by this time (seconds of the epoch); 0: it stays.
    drain_deadline: float = 0.0
    #: What waits there: (resources, how many).
    demand: list[tuple[Resources, int]] = []
    #: A driver has started it for itself: it takes no work, and is not shown.
    driver: bool = False
    #: Nodes with equal ones see the same files (:func:`moray.launch.packages.host_id`).
    host: str = ""
    #: Its lease is at least so long: nothing is started there, and it may be out of reach for a while.
    lease_s: float = 0.0
    #: It is reached through a relay at `address`, which must be told its tag.
    relayed: bool = False
    #: Why it leaves, and what it has that must end or move before it does, in words.
    drain_reason: str = ""
    holds: list[str] = []


class NodeLoad(msgspec.Struct, array_like=True, gc=False):
    """What a node has free and what waits there (see NodeInfo), as of its last report."""

    node_id: bytes
    available: Resources
    demand: list[tuple[Resources, int]] = []


class NodeHello(Message, tag=110):
    """Node → head, first on each connection: I am here (again). Answered by NodeWelcome or Refused."""

    version: int
    info: NodeInfo
    #: The highest epoch of a head that it has seen (HEAD-EPOCH); 0: none.
    epoch: int = 0
    #: Version of the view that it has; 0: none.
    view: int = 0
    #: What goes on there, for a head that has been started anew: numbers of jobs; (actor, incarnation, process, pid,
    #: address, job) of actors' workers; (group, bundle index) of reserved bundles.
    jobs: list[int] = []
    actors: list[tuple[bytes, int, bytes, int, str, int]] = []
    bundles: list[tuple[bytes, int]] = []
    #: Number of the last FromHead that it has; it is to be sent what follows.
    heard: int = 0
    #: Of the last ToHead that it knows to be carried out.
    relayed: int = 0


class NodeWelcome(Message, tag=111):
    cluster_id: str
    epoch: int
    #: The node is dead to others if it has not renewed for so long.
    lease_s: float
    view: int
    nodes: list[NodeInfo]
    #: Actors (and their incarnations) of its NodeHello that have been replaced elsewhere: end them.
    fenced: list[tuple[bytes, int]] = []
    #: Number of the last ToHead of this node that is carried out and stored; it repeats those that follow.
    relayed: int = 0


class RenewLease(Message, tag=112):
    """Node → head, every second or so, and at once when much has changed."""

    number: int
    available: Resources
    demand: list[tuple[Resources, int]] = []
    #: Number of the last FromHead that has arrived: the head need not keep it and those before.
    heard: int = 0
    #: All that it has, if that has changed (bundles of groups are resources); {}: it has not.
    resources: Resources = {}
    #: Of a node that leaves: see NodeInfo.
    holds: list[str] = []


class LeaseRenewed(Message, tag=113):
    number: int
    #: Renew again after so many seconds, if that is sooner than usual: then others do it, too, and one turn of the
    #: head serves them all. 0: whenever.
    next_s: float = 0.0


class ViewDelta(Message, tag=114):
    """Head → nodes: what has changed since version `view - 1`."""

    view: int
    changed: list[NodeInfo] = []
    #: (node id, why) of nodes that are dead, for good.
    dead: list[tuple[bytes, str]] = []
    #: Nodes of which only this has changed.
    loads: list[NodeLoad] = []


class NodeLeaves(Message, tag=115):
    """Node → head: it ends by its own will, now."""

    reason: str


class DrainNode(Message, tag=116):
    """Head → node, or client → head: no new work; actors move; leave at the deadline (seconds of the epoch)."""

    request: int
    node_id: bytes
    reason: str
    deadline: float


# --- node ↔ head: requests and relayed clients ---------------------------------------------------------------


class ToHead(Message, tag=120):
    """A client's message for the head, relayed by its node; `process` b"": the node's own.

    The node repeats it after a reconnect until it has RelayDone for `number`; the head carries each number out once.
    """

    number: int
    process: bytes
    pid: int
    job: int
    body: bytes


class RelayDone(Message, tag=121):
    """Head → node: carried out and stored (DURABLE); all ToHead up to `number`."""

    number: int


class FromHead(Message, tag=122):
    """Head → node: pass `body` on to each of your clients named here; none: it is for the node itself.

    Repeated after a reconnect, or by the next head, until the node says (in RenewLease or NodeHello) that it has it.
    """

    processes: list[bytes]
    body: bytes
    #: Counts all to this node.
    number: int = 0


class JobStarted(Message, tag=123):
    """Node → head: a driver is here and wants a job number; or a head that was started anew is told of one it has."""

    request: int
    process: bytes
    pid: int
    #: Encoded JobConfig.
    config: bytes
    job: int = 0
    #: Where the driver accepts peers from other machines.
    address: str = ""


class JobNumber(Message, tag=124):
    """Head → node."""

    request: int
    job: int


class JobEnded(Message, tag=125):
    """Node → head → all nodes: the job's driver is gone; everything of it ends, but for detached actors."""

    job: int
    process: bytes = b""
    reason: str = ""


class GetJob(Message, tag=126):
    """Node → head: what are this job's settings? Answered by JobSettings."""

    job: int


class JobSettings(Message, tag=127):
    job: int
    #: Encoded JobConfig; b"": it has ended.
    config: bytes
    #: Its driver: (process, pid, address) for others.
    driver: tuple[bytes, int, str] = (b"", 0, "")


class PlaceWorker(Message, tag=130):
    """Head → node: a worker for this incarnation of an actor, when there is room; `count` 0: not any more."""

    actor: bytes
    incarnation: int
    job: int
    count: int
    resources: Resources
    placement: Resources
    runtime_env: str = ""
    label: str = ""
    #: Of a detached actor's own job: its encoded JobConfig.
    config: bytes = b""


class WorkerPlaced(Message, tag=131):
    """Node → head."""

    actor: bytes
    incarnation: int
    process: bytes
    pid: int
    #: For other machines: "tcp://…".
    address: str
    job: int
    devices: dict[str, list[int]] = {}


class WorkerRefused(Message, tag=132):
    actor: bytes
    incarnation: int
    reason: str
    infeasible: bool


class StopProcess(Message, tag=133):
    """Head → node: end a worker; gracefully if there is time. Answered by its ProcessDied."""

    process: bytes
    reason: str
    graceful: bool
    grace_s: float = 0.0


# --- node ↔ node ---------------------------------------------------------------------------------------------


class LinkHello(Message, tag=140):
    """First on a connection between nodes, both ways. What the other side has sent and `received` does not count, it
    sends again."""

    version: int
    node_id: bytes
    #: How many messages of this link have arrived, on whatever connection.
    received: int = 0
    #: The receiver's node id, as the sender knows it: a node that was started anew at this address is another.
    wanted: bytes = b""
    #: Objects travel on it: it counts nothing.
    bulk: bool = False


class LinkAck(Message, tag=148):
    """So many messages of this link have arrived: they need not be kept. Not counted itself."""

    received: int


class FromClient(Message, tag=141):
    """A client of the sending node speaks to the receiving node."""

    process: bytes
    pid: int
    job: int
    body: bytes


class ForClient(Message, tag=142):
    """Pass `body` on to each of your clients named here."""

    processes: list[bytes]
    body: bytes


class ClientLeft(Message, tag=143):
    """A client of the sending node that has spoken to the receiver is dead, or its job has ended."""

    process: bytes


class NodeDied(Message, tag=144):
    """Node → its clients: a node is dead, and every process whose id begins with its tag."""

    tag_: bytes
    node_id: bytes
    reason: str


class TakeConnection(Message, tag=145):
    """Node → its client: a connection from another machine; its descriptor rides along, TLS has not begun."""

    peer: str


class Locate(Message, tag=146):
    """Client → node: where does this process accept peers? Answered by Located."""

    request: int
    process: bytes


class Located(Message, tag=147):
    request: int
    #: "": unknown, with the reason.
    address: str
    reason: str = ""


# --- objects between nodes -----------------------------------------------------------------------------------
# The first five travel on connections of their own, which the node that pulls opens; the others on the nodes' link.


class PullObject(Message, tag=150):
    """Node → node: send me this object, from `offset` on; answered by PullBegins and chunks, or by PullRefused.

    Each question has a `pull` of its own, the same object's next one, too.
    """

    pull: int
    object: bytes
    offset: int = 0
    #: So many bytes may be under way (FLOW).
    credit: int = 0
    #: Nodes that were asked for it, by advice of the primary copy's, and did not have it.
    avoid: list[bytes] = []


class PullBegins(Message, tag=151):
    pull: int
    size: int


class PullChunk(Message, tag=152):
    """`size` raw bytes follow the frame (they are no part of the body)."""

    pull: int
    offset: int
    size: int


class PullCredit(Message, tag=153):
    """Receiver → sender: so many bytes have arrived, and as many more may come (FLOW).

    Every chunk is acknowledged, a stopped pull's too: until then the sender must keep the bytes in place.
    """

    pull: int
    bytes_: int
    #: I do not want more of it.
    stop: bool = False


class PullRefused(Message, tag=154):
    """Sender → receiver: "elsewhere" (ask the nodes in `sources`, the first one first), or "lost"."""

    pull: int
    code: str
    sources: list[bytes] = []


class CopyMade(Message, tag=155):
    """Node → the primary copy's node: I have whole copies of these (or, `gone`, not any more)."""

    objects: list[bytes]
    gone: bool = False


class FreeCopies(Message, tag=156):
    """Node → node: no reference is left; your copies go, and those that you gave on (REF-FREE)."""

    objects: list[bytes]


class FindCopies(Message, tag=157):
    """Node → all nodes, after the death of the one with the primary copies: which have you? See CopiesFound."""

    request: int
    objects: list[bytes]


class CopiesFound(Message, tag=158):
    request: int
    objects: list[bytes]


class PromoteCopies(Message, tag=159):
    """Node → node: your copies of these become the primary ones. Answered by CopiesFound: those that are now."""

    request: int
    objects: list[bytes]
    #: Per object: the tags of other nodes that have copies.
    copies: list[list[bytes]]


class FindObjects(Message, tag=108):
    """Owner → node: the node with the primary copies of these is dead. Where else are they? See ObjectsFound."""

    request: int
    objects: list[bytes]


class ObjectsFound(Message, tag=109):
    request: int
    #: Per object: the tag of the node with the new primary copy; b"": there is none, it is lost.
    nodes: list[bytes]


# --- the head's other services: client ↔ head ----------------------------------------------------------------


class KvRequest(Message, tag=160):
    """The head's table of small values. ``op``: "get", "put", "put_new", "delete", "exists", "list"."""

    request: int
    op: str
    namespace: bytes
    key: bytes
    value: bytes = b""


class KvAnswer(Message, tag=161):
    request: int
    #: Of "get"; None: there is none.
    value: bytes | None = None
    #: Of "put" and "put_new": 1 if the key was new; of "delete" and "exists": how many there were.
    count: int = 0
    keys: list[bytes] = []


class CreateGroup(Message, tag=162):
    """Client → head: a placement group; its states follow as GroupState to all who watch it, the creator first."""

    request: int
    group: bytes
    bundles: list[Resources]
    #: "PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD".
    strategy: str
    name: str = ""
    namespace: str = ""
    detached: bool = False
    #: Per bundle: label → condition (:mod:`moray.core.strategies`).
    selectors: list[dict[str, str]] = []
    #: All bundles on this node; b"": anywhere.
    target_node: bytes = b""


class RemoveGroup(Message, tag=163):
    """Client → head. Everything that runs in it is ended.

    Answered by GroupState "removed", unless `request` is 0: then the client is told no more of this group.
    """

    request: int
    group: bytes


class WatchGroup(Message, tag=164):
    """Client → head: by id, or by name. Answered by GroupState now and at each change."""

    request: int
    group: bytes = b""
    name: str = ""
    namespace: str = ""


class GroupState(Message, tag=165):
    """Head → client.

    ``state``: "pending", "created", "rescheduling", "infeasible", "removed", "unknown", or, of a creation, "refused".
    """

    request: int
    group: bytes
    state: str
    bundles: list[Resources] = []
    #: Node of each bundle; b"" where it has none.
    nodes: list[bytes] = []
    reason: str = ""
    name: str = ""
    strategy: str = ""
    namespace: str = ""


class ListGroups(Message, tag=166):
    """Client → head. Answered by GroupList."""

    request: int


class GroupList(Message, tag=167):
    request: int
    groups: list[dict[str, Any]]


class ReserveBundles(Message, tag=168):
    """Head → node, in two steps: ``step`` "prepare", then "commit" (both answered by BundlesReserved) or "return".

    "remove": the whole group is gone, and what runs in it ends. `request` is the number of the attempt.
    """

    request: int
    step: str
    group: bytes
    #: (index, resources) each; of "prepare".
    bundles: list[tuple[int, Resources]]
    #: The creator's job, and the group for people: who is told if it waits for long.
    job: int = 0
    label: str = ""
    #: Of "remove".
    reason: str = ""
    #: Of "prepare": no other node has to agree, so "commit" is part of it.
    alone: bool = False


class BundlesReserved(Message, tag=169):
    """Node → head. `reason` "": all of them are prepared; otherwise none."""

    request: int
    group: bytes
    reason: str = ""
    #: It answers "commit": the bundles are in use.
    committed: bool = False


# --- code shipping (moray/node/packages.py) ------------------------------------------------------------------


class Package(msgspec.Struct, array_like=True):
    """A directory (or a zip file) of one host that workers of others want, too."""

    #: Where it lies at the host of `node`, the tag of a node there.
    path: str
    node: bytes
    #: What it is to the workers: "working_dir" (where they start, and first on their sys.path), "py_module" (importable
    #: by its name), or "path": wherever the driver's sys.path, or its working directory, names it or a part of it.
    kind: str
    #: SHA-256 in hex of what has been packed; "": it is packed when a node of another host first asks, and if that
    #: fails, workers there do without.
    name: str = ""
    #: Patterns of the user's.
    excludes: list[str] = []
    #: The largest that it may be, in bytes; 0: the default.
    limit: int = 0


class MadePackages(Message, tag=170):
    """Client → node: these packages lie in the session's directory, and what I say next names them."""

    #: (name, file): see :class:`moray.launch.packages.Made`.
    made: list[tuple[str, str]]


class ResolvePackage(Message, tag=171):
    """Node → node: what is the name of this package of your host? Answered by PackageResolved.

    All who ask with one `snapshot`, a job's, get the same answer.
    """

    request: int
    job: int
    snapshot: str
    package: Package


class PackageResolved(Message, tag=172):
    request: int
    #: "": it is not shipped, with the reason.
    name: str
    reason: str = ""


class GetPackage(Message, tag=173):
    """Node → node: send the part of this package that begins at `offset`. Answered by PackageChunk, in order.

    A receiver has few questions under way (FLOW).
    """

    request: int
    job: int
    name: str
    offset: int


class PackageChunk(Message, tag=174):
    request: int
    offset: int
    #: Of the whole package.
    size: int
    data: bytes
    #: There is none, because of this.
    reason: str = ""
