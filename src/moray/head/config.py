"""What a head is told when it starts, and what it says when it is ready."""

from __future__ import annotations

from typing import Final

import msgspec

#: How long a node lives in others' eyes without a word of it (FENCE).
LEASE_S: Final = 5.0

#: A head starts with three descriptors, as a node does (:mod:`moray.launch.config`): its HeadConfig, where it says that
#: it is ready, and its log.
FIRST_OWN_FD: Final = 3


class HeadConfig(msgspec.Struct, kw_only=True):
    """The settings of a head."""

    #: ``memory:``, ``sqlite:PATH``, ``redis://…``, ``rediss://…``.
    storage: str = "memory:"
    #: Transactions wait for the disk.
    full_durability: bool = False
    #: Where it accepts nodes; port 0: any, which stays the same when the head is started again.
    host: str = "127.0.0.1"
    port: int = 0
    #: Directory with the cluster's certificates; "": connections are neither encrypted nor checked (tests only).
    security_dir: str = ""
    #: Where connections of drivers that want the relay are handed over; "": there is none.
    relay_inbox: str = ""
    #: The node that started it, with which it ends; 0: none.
    node_pid: int = 0
    lease_s: float = LEASE_S
    #: How long an actor that was asked to end may take.
    actor_stop_grace_s: float = 30.0


#: What a head says there as its last word if another one has taken over its storage: it is not to be started again.
REPLACED: Final = b"replaced"


class HeadReady(msgspec.Struct):
    """What a head says on its descriptor 1 once it accepts nodes."""

    #: "HOST:PORT".
    address: str
    epoch: int
    cluster_id: str
    pid: int
