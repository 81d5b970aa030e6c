"""Messages about actors: between anybody and the head, and between callers and actors (CALL-ORDER).

See :mod:`moray.protocol.messages` for the conventions.
"""

from __future__ import annotations

from typing import Any

import msgspec

from moray.core.references_types import Changes
from moray.core.strategies import Strategy
from moray.protocol.base import Message, Resources
from moray.protocol.task_messages import Argument, Placement, Result, TaskExtra

# --- actors: client ↔ head -----------------------------------------------------------------------------------


class ActorSpec(msgspec.Struct, array_like=True, gc=False):
    """What the head keeps of an actor."""

    #: 16 bytes.
    actor: bytes
    class_name: str
    #: Held while it runs.
    resources: Resources
    #: What some machine must have in all for it to be placed there.
    placement: Resources
    #: "" is anonymous.
    name: str = ""
    namespace: str = ""
    detached: bool = False
    #: -1: without end.
    max_restarts: int = 0
    get_if_exists: bool = False
    runtime_env: str = ""
    #: The constructor's arguments are not ready: it is placed after PlaceActor.
    waiting: bool = False
    #: What makes a handle of it (:mod:`moray.actor`), opaque here.
    meta: bytes = b""
    #: Only of detached actors, whose creators may be gone (FUNCTIONS): an encoded :class:`Creation`.
    creation: bytes = b""
    #: Where it may live; None: anywhere.
    strategy: Strategy | None = None


class RegisterActor(Message, tag=70):
    """Creator → head: a new actor. Answered by ActorRegistered if `request` is not 0 (a name may be taken)."""

    request: int
    spec: ActorSpec


class ActorRegistered(Message, tag=71):
    request: int
    #: The actor; with get_if_exists maybe an older one. b"": refused.
    actor: bytes
    meta: bytes = b""
    #: Its creator; b"" if it is detached.
    creator: bytes = b""
    #: One line for the user.
    reason: str = ""


class FindActor(Message, tag=72):
    """Which living actor has this name? Answered by ActorRegistered."""

    request: int
    name: str
    namespace: str


class ListActors(Message, tag=73):
    """The names of living actors: of `namespace`, or ("") of all. Answered by ActorNames."""

    request: int
    namespace: str
    #: Instead of names, what is known of all actors, living ones and the last that died.
    describe: bool = False


class ActorNames(Message, tag=74):
    request: int
    #: (namespace, name) each.
    names: list[tuple[str, str]]
    #: JSON-like, ids in hex; see `ActorTable.describe`.
    described: list[dict[str, Any]] = []


class WatchActor(Message, tag=75):
    """Tell me the actor's state now and at each change. Its registration may still be on its way from `creator`."""

    actor: bytes
    creator: bytes


class ActorState(Message, tag=76):
    """Head → watchers and the creator."""

    actor: bytes
    #: "pending" (never ran), "alive", "restarting", "dead".
    state: str
    incarnation: int
    #: Where it lives, if it does.
    process: bytes = b""
    pid: int = 0
    address: str = ""
    job_id: int = 0
    #: Why it is not alive, for the user; of a death with the last lines of its stderr.
    reason: str = ""
    #: The pickled error of its __init__, if that is why.
    error: bytes = b""
    #: Further restarts that it may have; -1: without end.
    restarts_left: int = 0
    #: Its node leaves. Of each caller, the numbers of the calls that the last incarnation may have begun: no others
    #: have (CALL-ORDER). None: nothing is known of that.
    begun: dict[bytes, list[int]] | None = None


class ActorPlaced(Message, tag=77):
    """Head → creator: a process for this incarnation; send it StartActor."""

    actor: bytes
    incarnation: int
    process: bytes
    pid: int
    address: str
    devices: dict[str, list[int]] = {}


class PlaceActor(Message, tag=86):
    """Creator → head: the constructor's arguments are ready now."""

    actor: bytes


class KillActor(Message, tag=78):
    """Anyone → head: end its process now."""

    actor: bytes
    no_restart: bool


class ReleaseActor(Message, tag=79):
    """Creator → head: no handle is left, and no call: let it end in peace."""

    actor: bytes


class ActorStarted(Message, tag=80):
    """Worker → head: the constructor has returned, or raised `error` (pickled)."""

    actor: bytes
    incarnation: int
    error: bytes = b""


class ActorExiting(Message, tag=81):
    """Worker → head: the actor ends by its own will; it is not restarted."""

    actor: bytes
    incarnation: int
    reason: str


# --- actors: creator ↔ worker, caller ↔ worker (CALL-ORDER) ----------------------------------------------------


class Creation(msgspec.Struct, array_like=True, gc=False):
    """What makes an instance. Kept by the creator (a detached actor's: by the head) as long as it may be restarted."""

    class_name: str
    #: cloudpickle of the class.
    blob: bytes
    #: Blob of (args, kwargs); b"" when there are none.
    payload: bytes
    arguments: list[Argument] = []
    name: str = ""
    namespace: str = ""
    #: Coroutines run in one event loop.
    asynchronous: bool = False
    max_concurrency: int = 1
    #: Further groups: name → how many calls at once.
    groups: dict[str, int] = {}
    #: Calls may begin in any order.
    unordered: bool = False
    resources: Resources = {}
    #: What makes a handle of it, for `current_actor`.
    meta: bytes = b""
    #: The placement group in which it lives.
    placement: Placement | None = None


class StartActor(Message, tag=82):
    """Creator (or, of a detached actor, node) → worker: become this actor."""

    actor: bytes
    incarnation: int
    #: The creator's task; its Result ends the holds on the arguments. 0 from the node.
    seq: int
    creation: Creation
    creator: bytes = b""
    devices: dict[str, list[int]] = {}
    #: How often this process was told before; rises with each lost connection, whose answer goes to the new one.
    told: int = 0


class CallerHello(Message, tag=83):
    """Caller → actor, first on each connection: the number of the next call on it. Calls are counted from there."""

    number: int
    #: Rises with each connection: what still arrives on an older one is not counted.
    conversation: int = 0


class CallSpec(msgspec.Struct, array_like=True, gc=False):
    """One call of an actor's method. The hot message of actors."""

    seq: int
    method: str
    payload: bytes
    extra: TaskExtra | None = None


class Calls(Message, tag=84):
    #: All calls with numbers below this are answered: their replies need not be kept.
    answered: int
    calls: list[CallSpec]


class CallResults(Message, tag=85):
    """Actor → caller; `borrows` as in Results."""

    results: list[Result]
    borrows: Changes | None = None
