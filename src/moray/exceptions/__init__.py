"""Every exception that moray raises.

The tree (Ray's spelling in brackets, where it differs; both names are the same class)::

    MorayError [RayError]
    ├── TaskError [RayTaskError]                the task's own code raised; .cause is what it raised
    ├── TaskCancelledError                      somebody called cancel()
    ├── WorkerCrashedError                      the process that ran the task ended
    ├── ActorError [RayActorError]              the actor's
    │   ├── ActorDiedError                        process is gone for good
    │   └── ActorUnavailableError                 process cannot be reached now
    ├── ObjectLostError                         an object's value is gone because
    │   ├── ObjectFetchTimedOutError              no copy arrived in time
    │   ├── ObjectFreedError                      it was freed
    │   ├── OwnerDiedError                        the process that owned it ended
    │   └── ObjectReconstructionFailedError [also …MaxAttemptsExceededError, …LineageEvictedError]
    │                                             running its task again was not possible
    ├── GetTimeoutError (TimeoutError)          get(timeout=…) ran out
    ├── ObjectStoreFullError                    no room in shared memory and nothing can be spilled
    ├── OutOfDiskError                          no room to spill to
    ├── OutOfMemoryError                        the machine ran out of memory; the task was ended for it
    ├── NodeDiedError                           a machine of the cluster is gone
    ├── LocalNodeDiedError [LocalRayletDiedError]   this machine's node process is gone
    ├── TaskUnschedulableError                  no node can ever run the task
    ├── ActorUnschedulableError                 no node can ever host the actor
    ├── TaskPlacementGroupRemoved               its placement group was removed: task
    ├── ActorPlacementGroupRemoved              its placement group was removed: actor
    ├── PendingCallsLimitExceeded               max_pending_calls reached
    ├── RuntimeEnvSetupError                    the runtime_env could not be made
    ├── AuthenticationError                     the peer did not prove that it has the token
    ├── UnserializableException                 stands for an exception that could not be pickled or unpickled
    ├── OutOfBandObjectRefSerializationException [OufOfBand…]   a reference was pickled outside moray
    ├── ObjectRefStreamEndOfStreamError         a generator's stream has no more items
    ├── AsyncioActorExit                        exit_actor() inside an async actor
    ├── UserCodeException                       user code that moray called (hooks, callbacks) failed
    ├── ActorAlreadyExistsError (ValueError)    the name is taken
    ├── ActorHandleNotFoundError (ValueError)   no actor of this name or handle
    └── MoraySystemError [RaySystemError]       a fault of moray or of the machine
        ├── StreamingGeneratorReplayInconsistentError   a replayed generator gave other items
        └── ChannelError [RayChannelError]
            ├── ChannelTimeoutError [RayChannelTimeoutError] (TimeoutError)
            └── GraphCapacityExceededError [RayCgraphCapacityExceeded]   too many results were not fetched

A mistake of the caller's is a TypeError or a ValueError; NotAReferenceError, where something else than an ObjectRef was
given, is both.

All of them keep their fields when pickled, whatever their ``__init__`` takes: they are rebuilt from their
fields without it.

The modules of this package hold them by what has failed: ``tasks``, ``actors``, ``objects``, ``system``. All of them
are of ``moray.exceptions`` to whoever prints or pickles them.

An error of a task reaches the caller as a :class:`TaskError` that *is also* of the type that the task
raised, so that ``except ValueError`` around ``get`` works as it would around the call. That class is made
on first need, one per original type (:meth:`TaskError.as_instanceof_cause`).
"""

from __future__ import annotations

from types import FunctionType

from moray.exceptions.actors import (
    ActorAlreadyExistsError,
    ActorDiedError,
    ActorError,
    ActorHandleNotFoundError,
    ActorPlacementGroupRemoved,
    ActorUnavailableError,
    ActorUnschedulableError,
    AsyncioActorExit,
    PendingCallsLimitExceeded,
)
from moray.exceptions.base import (
    MorayError,
)
from moray.exceptions.objects import (
    GetTimeoutError,
    NotAReferenceError,
    ObjectFetchTimedOutError,
    ObjectFreedError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectRefStreamEndOfStreamError,
    ObjectStoreFullError,
    OutOfBandObjectRefSerializationException,
    OutOfDiskError,
    OwnerDiedError,
)
from moray.exceptions.system import (
    AuthenticationError,
    ChannelError,
    ChannelTimeoutError,
    GraphCapacityExceededError,
    LocalNodeDiedError,
    MoraySystemError,
    NodeDiedError,
    OutOfMemoryError,
    RuntimeEnvSetupError,
    StreamingGeneratorReplayInconsistentError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
    UserCodeException,
)
from moray.exceptions.tasks import (
    Place,
    TaskCancelledError,
    TaskError,
    UnserializableException,
    WorkerCrashedError,
    _load_task_error,  # noqa: F401 - pickles name it here.
    make_task_error,
)

# --- Ray's spellings ---------------------------------------------------------------------------------

RayError = MorayError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = MoraySystemError
RayChannelError = ChannelError
RayChannelTimeoutError = ChannelTimeoutError
RayCgraphCapacityExceeded = GraphCapacityExceededError
RayAdagCapacityExceeded = GraphCapacityExceededError
LocalRayletDiedError = LocalNodeDiedError
ObjectReconstructionFailedLineageEvictedError = ObjectReconstructionFailedError
ObjectReconstructionFailedMaxAttemptsExceededError = ObjectReconstructionFailedError
OufOfBandObjectRefSerializationException = OutOfBandObjectRefSerializationException

__all__ = [
    "ActorAlreadyExistsError",
    "ActorDiedError",
    "ActorError",
    "ActorHandleNotFoundError",
    "ActorPlacementGroupRemoved",
    "ActorUnavailableError",
    "ActorUnschedulableError",
    "AsyncioActorExit",
    "AuthenticationError",
    "ChannelError",
    "ChannelTimeoutError",
    "GetTimeoutError",
    "GraphCapacityExceededError",
    "LocalNodeDiedError",
    "LocalRayletDiedError",
    "MorayError",
    "MoraySystemError",
    "NodeDiedError",
    "NotAReferenceError",
    "ObjectFetchTimedOutError",
    "ObjectFreedError",
    "ObjectLostError",
    "ObjectReconstructionFailedError",
    "ObjectReconstructionFailedLineageEvictedError",
    "ObjectReconstructionFailedMaxAttemptsExceededError",
    "ObjectRefStreamEndOfStreamError",
    "ObjectStoreFullError",
    "OufOfBandObjectRefSerializationException",
    "OutOfBandObjectRefSerializationException",
    "OutOfDiskError",
    "OutOfMemoryError",
    "OwnerDiedError",
    "PendingCallsLimitExceeded",
    "Place",
    "RayActorError",
    "RayAdagCapacityExceeded",
    "RayCgraphCapacityExceeded",
    "RayChannelError",
    "RayChannelTimeoutError",
    "RayError",
    "RaySystemError",
    "RayTaskError",
    "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskCancelledError",
    "TaskError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "UnserializableException",
    "UserCodeException",
    "WorkerCrashedError",
    "make_task_error",
]

# Which module of the package defines one is nobody else's business, and no pickle's.
for _each in list(vars().values()):
    if isinstance(_each, (type, FunctionType)) and _each.__module__.startswith(f"{__name__}."):
        _each.__module__ = __name__
del _each
