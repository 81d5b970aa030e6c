"""``ray._raylet``: references and ids, which programs import from there for `isinstance`."""

from __future__ import annotations

from moray.ids import (
    ActorClassID,
    ActorID,
    FunctionID,
    JobID,
    NodeID,
    PlacementGroupID,
    TaskID,
    UniqueID,
    WorkerID,
)
from moray.object_ref import ObjectRef
from moray.object_ref_generator import DynamicObjectRefGenerator, ObjectRefGenerator

__all__ = [
    "ActorClassID", "ActorID", "DynamicObjectRefGenerator", "FunctionID", "JobID", "NodeID", "ObjectID", "ObjectRef",
    "ObjectRefGenerator", "PlacementGroupID", "StreamingObjectRefGenerator", "TaskID", "UniqueID", "WorkerID",
]  # fmt: skip

#: Older names of them.
ObjectID = ObjectRef
StreamingObjectRefGenerator = ObjectRefGenerator
