"""The node's numbers that a user may change, by ``system_config``."""

from __future__ import annotations

import msgspec


class Settings(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Durations in seconds, sizes in bytes."""

    #: How long a peer may take to say Hello. It does so at once; only a stuck or hostile one does not.
    handshake_timeout_s: float = 10.0
    #: How large its Hello may be: it holds a driver's environment and sys.path.
    handshake_bytes: int = 4 << 20
    #: How long a worker may take from the order to fork it until its Hello. It takes 5 ms, but preloaded modules are
    #: imported in that time.
    worker_start_timeout_s: float = 120.0
    #: How long a worker that was asked to end may take before it is killed.
    worker_stop_grace_s: float = 5.0
    #: How long an actor without handles may take to end: it runs atexit handlers and what else its class asks for.
    actor_stop_grace_s: float = 30.0
    #: How long a connection may stay away before a live worker counts as broken and is killed.
    worker_reconnect_s: float = 30.0
    #: How long the node waits for a template's word on how a dead worker ended.
    status_wait_s: float = 1.0
    #: How many messages wait for a process that lost its connection.
    backlog_messages: int = 65_536
    #: What the end of a session may take before it goes on regardless.
    end_timeout_s: float = 10.0
