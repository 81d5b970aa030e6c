"""``ray._common.constants``."""

from __future__ import annotations

from typing import Final

from moray.launch.resources import HEAD_RESOURCE

__all__ = ["HEAD_NODE_RESOURCE_NAME", "NODE_ID_PREFIX"]

#: The resource that only the head's node has.
HEAD_NODE_RESOURCE_NAME: Final = HEAD_RESOURCE
#: What the resource that stands for one node begins with.
NODE_ID_PREFIX: Final = "node:"
