"""What stands in place of a runtime that cannot be used any more: every use of it is one clear error."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from moray import exceptions

if TYPE_CHECKING:
    from moray.object_ref import Entry, ObjectRef


class EndedSessionError(exceptions.ObjectLostError, exceptions.LocalNodeDiedError, ValueError):
    """A reference of a session that has ended is used. A ValueError for programs that were written for Ray."""

    def __init__(self, text: str) -> None:
        rays = "; its owner is unknown" if "moray.compat.facade" in sys.modules else ""
        super().__init__(text + rays)


def of_ended_session(entry: Entry) -> EndedSessionError:
    """The error of whoever wants the value of this object."""
    return EndedSessionError(
        f"object {entry.id.hex()} belongs to a session that has ended; references do not outlive moray.shutdown()"
    )


class Unusable:
    """What references have in place of a runtime that is gone for them: every use of it is one clear error."""

    forked = False
    ended = None

    def __init__(self, why: str, kind: type[exceptions.MorayError] = EndedSessionError) -> None:
        self._why = why
        self._kind = kind

    def check_usable(self) -> NoReturn:
        """Raise: nothing here can be used."""
        raise self._kind(self._why)

    # What references ask of their runtime (object_ref.RuntimeHooks): the descriptors under the real one are closed, and
    # their numbers may be files of the child's by now.

    def escape(self, _entry: Entry, _ref: ObjectRef[Any]) -> None:
        """A reference is being pickled: who unpickled it would not be counted."""
        self.check_usable()

    def future(self, _ref: ObjectRef[Any]) -> Any:
        """See :meth:`ObjectRef.future`."""
        self.check_usable()

    def await_ref(self, _ref: ObjectRef[Any]) -> Any:
        """See ``ObjectRef.__await__``."""
        self.check_usable()

    def task_id_of(self, entry: Entry) -> bytes:
        """The 24 bytes of the task that makes an object."""
        return entry.id[:24]


class Forked(Unusable):
    """In place of the runtime in a child made by fork (FORK)."""

    forked = True

    def __init__(self, parent: int) -> None:
        super().__init__(
            f"process {os.getpid()} is a fork of process {parent}, whose connection to moray it cannot use (FORK): "
            "call moray from the parent, or moray.init() in a process started by exec or by multiprocessing's 'spawn'",
            exceptions.MoraySystemError,
        )
