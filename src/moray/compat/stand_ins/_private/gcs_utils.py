"""``ray._private.gcs_utils``: names of states."""

from __future__ import annotations

from typing import Final

__all__ = ["ActorTableData"]


class ActorTableData:
    """States of actors, as ``ray.state.actors()`` has them."""

    DEPENDENCIES_UNREADY: Final = "DEPENDENCIES_UNREADY"
    PENDING_CREATION: Final = "PENDING_CREATION"
    ALIVE: Final = "ALIVE"
    RESTARTING: Final = "RESTARTING"
    DEAD: Final = "DEAD"
