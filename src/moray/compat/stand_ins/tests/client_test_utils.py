"""``ray.tests.client_test_utils``: an actor that tests wait for."""

from __future__ import annotations

from typing import Any

from moray.compat.stand_ins._common.test_utils import SignalActor

__all__ = ["create_remote_signal_actor"]


def create_remote_signal_actor(ray: Any) -> Any:  # noqa: ARG001 - Ray's; there is one client only
    """The class of the actor."""
    return SignalActor
