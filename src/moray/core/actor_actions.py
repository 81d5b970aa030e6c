"""What the table of actors is told of a new actor, and what it tells its shell to do.

A call returns these in the order in which they must be carried out.
"""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from moray.core.strategies import Strategy

#: Begins the reason of actors that no node may host and that were not to wait for one.
UNSCHEDULABLE: Final = "it cannot be scheduled: "
#: Part of the reason of those whose node was taken away; and what follows a reason, if its process said something.
DRAINED: Final = " was drained: "
LAST_WORDS: Final = "\nthe end of its stderr:\n"


class Registration(msgspec.Struct, frozen=True):
    """A new actor, as its creator describes it."""

    #: 16 bytes.
    actor: bytes
    #: The process that made it, and its pid.
    creator: bytes
    creator_pid: int
    #: The creator's job.
    job: int
    class_name: str
    #: "": anonymous.
    name: str = ""
    namespace: str = ""
    #: It outlives its creator and its creator's job.
    detached: bool = False
    #: -1: without end.
    max_restarts: int = 0
    get_if_exists: bool = False
    #: Its constructor's arguments are not there: it is placed when they are.
    waiting: bool = False
    #: Held while it lives; and what the machine must have in all.
    resources: dict[str, int] = {}
    placement: dict[str, int] = {}
    runtime_env: str = ""
    #: What makes a handle of it, and (of detached ones) an instance; opaque here.
    meta: bytes = b""
    creation: bytes = b""
    #: Where it may live; None: anywhere.
    strategy: Strategy | None = None

    @property
    def label(self) -> str:
        """How it is called in texts."""
        return f"{self.class_name} {self.name!r}" if self.name else self.class_name


class Site(msgspec.Struct, frozen=True):
    """Where an incarnation lives."""

    process: bytes
    pid: int
    #: Where it accepts peers.
    address: str
    #: The job whose worker it is; not the creator's if the actor is detached.
    job: int
    devices: dict[str, list[int]] = {}


#: Of an actor that is nowhere.
NOWHERE = Site(b"", 0, "", 0)


class Place(msgspec.Struct, frozen=True):
    """Ask the scheduler for a worker for this incarnation; answer with `granted`, maybe after `refused`."""

    actor: bytes
    incarnation: int
    made: Registration
    #: Seconds to wait before: its last processes died before they were it.
    delay_s: float = 0.0


class Withdraw(msgspec.Struct, frozen=True):
    """It is not wanted any more. A grant that crosses this is answered by Stop."""

    actor: bytes
    incarnation: int
    made: Registration


class Registered(msgspec.Struct, frozen=True):
    """Answer `request` of `process`: this actor, or (b"") why there is none."""

    process: bytes
    request: int
    actor: bytes
    meta: bytes
    #: b"" if it is detached.
    creator: bytes
    reason: str


class Names(msgspec.Struct, frozen=True):
    """Answer `request` of `process`: (namespace, name) of living actors."""

    process: bytes
    request: int
    names: list[tuple[str, str]]


class Placed(msgspec.Struct, frozen=True):
    """Tell `creator` which process is to become this incarnation; it starts it."""

    creator: bytes
    actor: bytes
    incarnation: int
    site: Site


class Start(msgspec.Struct, frozen=True):
    """Start a detached actor: send its creation to the process."""

    actor: bytes
    incarnation: int
    site: Site
    creation: bytes


class Tell(msgspec.Struct, frozen=True):
    """Tell these processes what has become of the actor."""

    processes: tuple[bytes, ...]
    actor: bytes
    #: "pending", "alive", "restarting" or "dead".
    state: str
    incarnation: int
    site: Site
    reason: str
    error: bytes
    #: -1: without end.
    restarts_left: int
    #: It moves (:class:`Move`): by caller, the numbers of the calls that the last incarnation may have begun, and no
    #: others; None: nothing is known of that.
    begun: dict[bytes, list[int]] | None = None


class Move(msgspec.Struct, frozen=True):
    """Have a process end that is an actor, which lives elsewhere then; answer with `moved` and `worker_died`.

    It finishes the calls that it has begun, and begins no others. `deadline`: seconds of the epoch.
    """

    process: bytes
    actor: bytes
    incarnation: int
    reason: str
    deadline: float


class Stop(msgspec.Struct, frozen=True):
    """End a process; answer with `worker_died`. Graceful: ask it first, and kill it after a while."""

    process: bytes
    reason: str
    graceful: bool


class WarnJob(msgspec.Struct, frozen=True):
    """Show `text` to the user of `job`."""

    job: int
    text: str


class Over(msgspec.Struct, frozen=True):
    """The actor is dead for good: drop what is kept for it."""

    actor: bytes


ActorAction: TypeAlias = Place | Withdraw | Registered | Names | Placed | Start | Tell | Move | Stop | WarnJob | Over
