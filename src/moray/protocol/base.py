"""What all message modules need: the base class and the constants of the wire."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

#: Peers with another number are refused, naming both (PROTOCOL).
PROTOCOL_VERSION: Final = 1

#: One CPU (or GPU, or custom resource) in wire units.
RESOURCE_UNIT: Final = 10_000

#: Seconds between a node's renewals of its lease, at most.
RENEW_S: Final = 1.0

Resources: TypeAlias = dict[str, int]


class Message(msgspec.Struct, array_like=True, gc=False, tag=True):
    """Base of all messages; each subclass has its own integer tag."""
