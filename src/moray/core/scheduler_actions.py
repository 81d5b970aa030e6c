"""What the local scheduler tells its node to do.

A call returns these in the order in which they must be carried out.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class StartWorker(msgspec.Struct, frozen=True):
    """Fork a worker; answer with `worker_started` or `worker_start_failed`."""

    job: int
    runtime_env: str


class Grant(msgspec.Struct, frozen=True):
    """Tell `owner` that `worker` is its own under the number `lease`."""

    owner: bytes
    key: int
    lease: int
    worker: bytes
    #: Device indices, e.g. {"GPU": [0]}.
    devices: dict[str, list[int]]


class Revoke(msgspec.Struct, frozen=True):
    """Tell `worker` to stop at `lease`; answer with `revoked` when it acknowledges."""

    worker: bytes
    lease: int
    #: Whose lease it is.
    owner: bytes


class Revoked(msgspec.Struct, frozen=True):
    """Tell `owner` that its lease is over."""

    owner: bytes
    lease: int


class StopWorker(msgspec.Struct, frozen=True):
    """End the process; answer with `worker_died`, which is when its resources are free."""

    worker: bytes
    reason: str


class Refuse(msgspec.Struct, frozen=True):
    """Tell `owner` that `key` gets nothing until `reason` goes away. Said once."""

    owner: bytes
    key: int
    reason: str
    infeasible: bool
    #: The placement group that it named and that was removed: nothing will ever come.
    group: str = ""


class BundlesReady(msgspec.Struct, frozen=True):
    """Tell the head: a group's bundles are reserved here, or (`committed`) in use; with a reason: they cannot be."""

    group: str
    number: int
    reason: str
    committed: bool = False


class Warn(msgspec.Struct, frozen=True):
    """Show `text` to the user of `job`."""

    job: int
    text: str


Action: TypeAlias = StartWorker | Grant | Revoke | Revoked | StopWorker | Refuse | BundlesReady | Warn
