"""``ray._private.resource_spec``: names of resources."""

from __future__ import annotations

from moray.compat.stand_ins._common.constants import HEAD_NODE_RESOURCE_NAME, NODE_ID_PREFIX

__all__ = ["HEAD_NODE_RESOURCE_NAME", "NODE_ID_PREFIX"]
