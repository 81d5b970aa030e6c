"""Errors of actors: the process behind a handle, its name, its queue of calls."""

from __future__ import annotations

from moray.exceptions.base import MorayError
from moray.exceptions.tasks import TaskError


class ActorError(MorayError):
    """The actor could not carry out the call.

    Attributes:
        actor_id: hex id, if known.
        error_msg: what happened.
        actor_init_failed: whether its ``__init__`` raised.
        preempted: whether its machine was taken away.
    """

    def __init__(
        self,
        actor_id: str | None = None,
        error_msg: str = "the actor ended before it answered this call",
        actor_init_failed: bool = False,
        preempted: bool = False,
    ) -> None:
        self.actor_id = actor_id
        self.error_msg = error_msg
        self.actor_init_failed = actor_init_failed
        self.preempted = preempted
        super().__init__(error_msg + (f" (actor {actor_id})" if actor_id else ""))


class ActorDiedError(ActorError):
    """The actor is gone and will not be restarted.

    Attributes:
        cause: the error of its ``__init__``, if that is why.
    """

    def __init__(
        self,
        cause: TaskError | str | None = None,
        *,
        actor_id: str | None = None,
        preempted: bool = False,
    ) -> None:
        self.cause = cause if isinstance(cause, BaseException) else None
        if isinstance(cause, TaskError):
            message = f"the actor died because its __init__ raised:\n{cause}"
            actor_id = actor_id or cause.actor_id
        else:
            message = cause or "the actor died and will not be restarted; max_restarts sets how often it may be"
        super().__init__(actor_id, message, isinstance(cause, TaskError), preempted)


class ActorUnavailableError(ActorError):
    """The actor cannot be reached now; it may come back. The call may or may not have run."""

    def __init__(self, error_message: str = "", actor_id: str | bytes | None = None) -> None:
        self.error_message = error_message
        identity = actor_id.hex() if isinstance(actor_id, bytes) else actor_id
        message = "the actor cannot be reached now; the call may have run; set max_task_retries to repeat such calls"
        super().__init__(identity, f"{message}: {error_message}" if error_message else message)


class ActorPlacementGroupRemoved(MorayError):  # noqa: N818 (Ray's name)
    """The actor's placement group was removed, so the actor cannot run."""


class ActorUnschedulableError(MorayError):
    """No node can ever host the actor."""

    def __init__(self, error_message: str = "") -> None:
        self.error_message = error_message
        super().__init__(f"the actor cannot be placed: {error_message}")


class ActorAlreadyExistsError(ValueError, MorayError):
    """An actor of this name lives in the namespace."""

    def __init__(self, error_message: str = "") -> None:
        self.error_message = error_message
        super().__init__(error_message)


class ActorHandleNotFoundError(ValueError, MorayError):
    """There is no such actor, or its handle is not of this session."""

    def __init__(self, error_message: str = "") -> None:
        self.error_message = error_message
        super().__init__(error_message)


class PendingCallsLimitExceeded(MorayError):  # noqa: N818 (Ray's name)
    """The actor has ``max_pending_calls`` unanswered calls of this handle."""


class AsyncioActorExit(MorayError):  # noqa: N818 (Ray's name)
    """Ends an async actor from inside."""
