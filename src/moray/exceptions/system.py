"""Errors of machines and of moray itself, and of code of the user that moray calls beside tasks."""

from __future__ import annotations

from moray.exceptions.base import MorayError


class OutOfMemoryError(MorayError):
    """The machine ran out of memory and the task's worker was ended before the kernel would have chosen."""

    def __init__(self, message: str = "") -> None:
        self.message = message
        super().__init__(message)


class NodeDiedError(MorayError):
    """A machine of the cluster is gone."""

    def __init__(self, message: str = "") -> None:
        self.message = message
        super().__init__(message)


class LocalNodeDiedError(MorayError):
    """The node process of this machine is gone; nothing can run here until init() is called again."""


class TaskUnschedulableError(MorayError):
    """No node can ever run the task."""

    def __init__(self, error_message: str = "") -> None:
        self.error_message = error_message
        super().__init__(f"the task cannot be scheduled: {error_message}")


class TaskPlacementGroupRemoved(MorayError):  # noqa: N818 (Ray's name)
    """The task's placement group was removed, so the task cannot run."""


class RuntimeEnvSetupError(MorayError):
    """The task's or actor's runtime_env could not be made."""

    def __init__(self, error_message: str | None = None) -> None:
        self.error_message = error_message
        super().__init__("the runtime_env could not be set up" + (f":\n{error_message}" if error_message else ""))


class AuthenticationError(MorayError):
    """A peer did not prove that it has the cluster's token."""

    def __init__(self, message: str = "") -> None:
        self.message = message
        super().__init__(message)


class UserCodeException(MorayError):  # noqa: N818 (Ray's name)
    """Code of the user that moray called (a hook, a callback) failed."""


class MoraySystemError(MorayError):
    """A fault of moray or of the machine, not of the user's code.

    Attributes:
        client_exc: what was raised.
        traceback_str: its traceback, if known.
    """

    def __init__(self, client_exc: object = "", traceback_str: str | None = None) -> None:
        self.client_exc = client_exc
        self.traceback_str = traceback_str
        super().__init__(f"{client_exc}" + (f"\n{traceback_str}" if traceback_str else ""))


class StreamingGeneratorReplayInconsistentError(MoraySystemError):
    """A generator task that was run again gave fewer or other items than before (STREAM)."""


class ChannelError(MoraySystemError):
    """A channel between processes failed."""


class ChannelTimeoutError(ChannelError, TimeoutError):
    """A channel had nothing to read, or no room to write, in time."""


class GraphCapacityExceededError(ChannelError):
    """So many results of a compiled graph were not asked for, or not fetched, that it goes no further."""
