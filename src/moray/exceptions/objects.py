"""Errors of objects: values that are gone or late, and places that are full."""

from __future__ import annotations

from moray.exceptions.base import MorayError


class ObjectLostError(MorayError):
    """The value of an object is gone.

    The first argument is the object's id in hex, which the message is built around; a text with spaces is
    the whole message.

    Attributes:
        object_ref_hex: the object's id, if given.
        owner_address: where its owner was.
        call_site: the line that made it, if recorded.
        reason: why it cannot be had.
    """

    #: How the message begins to explain; each subclass has its own.
    _what = "every copy of its value is lost, and it cannot be made again"

    def __init__(
        self, object_ref_hex: str = "", owner_address: object = None, call_site: str = "", *, reason: str = ""
    ) -> None:
        message = object_ref_hex if " " in object_ref_hex else ""
        self.object_ref_hex = "" if message else object_ref_hex
        self.owner_address = owner_address
        self.call_site = call_site
        self.reason = reason
        super().__init__(message or self._text())

    def _text(self) -> str:
        which = f"object {self.object_ref_hex}" if self.object_ref_hex else "the object"
        made = f" (made at {self.call_site})" if self.call_site else ""
        return f"{which}{made}: {self._what}" + (f": {self.reason}" if self.reason else "")


class ObjectFetchTimedOutError(ObjectLostError):
    """No copy of the object arrived in time."""

    _what = "its value did not arrive in time; a node may be overloaded or unreachable"


class ObjectFreedError(ObjectLostError):
    """The object was freed while this reference was alive."""

    _what = "it was freed explicitly; keep it until its last use"


class OwnerDiedError(ObjectLostError):
    """The process that owned the object ended, and with it what is known of the object."""

    _what = "its owner, the process that put it or submitted its task, is gone; keep the owner alive while it is used"


class ObjectReconstructionFailedError(ObjectLostError):
    """Every copy is lost and its task could not be run again."""

    _what = "every copy of its value is lost, and its task could not be run again"

    def __init__(
        self,
        object_ref_hex: str = "",
        reason: object = None,
        reason_message: str | None = None,
        owner_address: object = None,
        call_site: str = "",
    ) -> None:
        super().__init__(object_ref_hex, owner_address, call_site, reason=reason_message or str(reason or ""))


class GetTimeoutError(MorayError, TimeoutError):
    """``get`` did not have every value in time.

    Attributes:
        timeout_s: the timeout given.
        missing: how many of the objects were not ready.
        total: how many were asked for.
    """

    def __init__(
        self, message: str = "", *, timeout_s: float | None = None, missing: int | None = None, total: int | None = None
    ) -> None:
        self.timeout_s = timeout_s
        self.missing = missing
        self.total = total
        super().__init__(message or self._text())

    def _text(self) -> str:
        within = "in time" if self.timeout_s is None else f"within {self.timeout_s:g} s"
        what = "the objects were" if self.missing is None else f"{self.missing} of {self.total} objects were"
        return f"{what} not ready {within}; moray.explain(ref) says what one waits for; wait() takes what is ready"


class ObjectStoreFullError(MorayError):
    """Shared memory is full and nothing in it can be spilled.

    Attributes:
        needed_bytes, capacity_bytes, pinned_bytes: the sizes, 0 if unknown.
        detail: who holds what.
    """

    def __init__(
        self, detail: str = "", *, needed_bytes: int = 0, capacity_bytes: int = 0, pinned_bytes: int = 0
    ) -> None:
        self.detail = detail
        self.needed_bytes = needed_bytes
        self.capacity_bytes = capacity_bytes
        self.pinned_bytes = pinned_bytes
        super().__init__(self._text())

    def _text(self) -> str:
        if not self.capacity_bytes:
            return self.detail or "the object store is full"
        text = (
            f"no room for {_size(self.needed_bytes)} in the object store of {_size(self.capacity_bytes)}, "
            f"of which {_size(self.pinned_bytes)} are in use by readers and cannot be moved to disk"
        )
        advice = "drop arrays and references that are no longer needed, or give init() a larger object_store_memory"
        return "\n".join(filter(None, [text, self.detail, advice]))


def _size(size_bytes: int) -> str:
    """``12.3 MB``: decimal units, as object_store_memory is given."""
    value = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


class OutOfDiskError(MorayError):
    """The disk that objects are spilled to is full or refuses."""


class OutOfBandObjectRefSerializationException(MorayError):  # noqa: N818 (Ray's name)
    """A reference was pickled outside moray, which the settings refuse."""


class NotAReferenceError(TypeError, ValueError):
    """Something else was given where an ObjectRef is wanted. Ray raises now the one and now the other; programs catch
    either."""


class ObjectRefStreamEndOfStreamError(MorayError):
    """The stream of a generator task has no item at this index."""
