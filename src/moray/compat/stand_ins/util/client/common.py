"""Types of Ray's client. Programs ask with `isinstance` whether they run under it; under moray they never do."""

from __future__ import annotations


class ClientObjectRef:
    """A reference held through Ray's client; there are none."""


class ClientActorRef:
    """The same for an actor."""


class ClientActorHandle:
    """A handle held through Ray's client; there are none."""


class ClientActorClass:
    """A class made remote through Ray's client; there are none."""


class ClientRemoteFunc:
    """A function made remote through Ray's client; there are none."""
