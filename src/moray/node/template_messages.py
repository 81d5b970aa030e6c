"""What the node and its templates say to each other, one message per packet.

Three kinds of process, each the parent of the next: the *root template*, one per node; a *job template* per job and
environment; a *worker*. The node talks to each template over a socket of its own; descriptors ride along.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class TemplateConfig(msgspec.Struct):
    """All that a job template needs; travels in an anonymous file, because environments can be large."""

    job: int
    session_dir: str
    node_address: str
    #: ``module:function`` that its workers run.
    worker_entry: str
    sys_path: list[str]
    cwd: str
    #: The whole environment.
    environ: dict[str, str]
    #: Imported before workers are forked.
    preload: list[str]
    #: Imported by each worker after its fork: modules that start threads.
    late: list[str]
    #: The interpreter for a fresh process; "": a fork will do.
    executable: str = ""


class Packet(msgspec.Struct, array_like=True, tag=True):
    """Base of the messages; each subclass has its own integer tag."""


class NewTemplate(Packet, tag=1):
    """Node → root: make a job template; its socket and its configuration's file ride along."""

    number: int


class TemplateStarted(Packet, tag=2):
    """Root → node."""

    number: int
    pid: int


class TemplateEnded(Packet, tag=3):
    """Root → node: exit code or minus the signal."""

    number: int
    pid: int
    status: int


class TemplateNotStarted(Packet, tag=4):
    """Root → node: the fork failed."""

    number: int
    reason: str


class PrepareFailed(Packet, tag=5):
    """Job template → node, before it ends: it cannot serve."""

    reason: str
    #: A preloaded module that started threads: it must be imported after the fork.
    threaded_module: str = ""


class Fork(Packet, tag=6):
    """Node → job template: fork the worker with this process id."""

    process: bytes


class Forked(Packet, tag=7):
    """Job template → node: done; the worker's pidfd rides along."""

    process: bytes
    pid: int


class ForkFailed(Packet, tag=8):
    process: bytes
    reason: str


class WorkerEnded(Packet, tag=9):
    """Job template → node: exit code or minus the signal."""

    process: bytes
    pid: int
    status: int


AnyPacket: TypeAlias = (
    NewTemplate
    | TemplateStarted
    | TemplateEnded
    | TemplateNotStarted
    | PrepareFailed
    | Fork
    | Forked
    | ForkFailed
    | WorkerEnded
)

#: Longest packet; reasons are cut to fit.
PACKET_BYTES = 1 << 16
REASON_CHARACTERS = 8_192

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(AnyPacket).decode
