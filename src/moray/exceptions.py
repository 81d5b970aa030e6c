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
    │   └── ObjectReconstructionFailedError       running its task again was not possible
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
            └── ChannelTimeoutError [RayChannelTimeoutError] (TimeoutError)

All of them keep their fields when pickled, whatever their ``__init__`` takes: they are rebuilt from their
fields without it.

An error of a task reaches the caller as a :class:`TaskError` that *is also* of the type that the task
raised, so that ``except ValueError`` around ``get`` works as it would around the call. That class is made
on first need, one per original type (:meth:`TaskError.as_instanceof_cause`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, SupportsIndex, cast
from weakref import WeakValueDictionary

from moray.error_text import describe, format_remote, text_of, type_name
from moray.error_transport import Packed, blank, fields_of, pack, reduce_exception, restore, unpack

if TYPE_CHECKING:
    from collections.abc import Callable


class MorayError(Exception):
    """Base of every exception of moray. Its fields survive pickling, also those of subclasses."""

    def __reduce__(self) -> tuple[Any, ...]:
        return reduce_exception(self)


# --- errors of tasks -----------------------------------------------------------------------------


class UnserializableException(MorayError):  # noqa: N818 (Ray's name)
    """Stands for an exception that could not be pickled where it was raised, or unpickled here.

    Attributes:
        type_name: the qualified name of the exception's type.
        message: its ``str``.
        reason: why it could not travel.
        original_stack_trace: its formatted traceback, as far as known.
    """

    def __init__(
        self, original_stack_trace: str = "", *, type_name: str = "", message: str = "", reason: str = ""
    ) -> None:
        self.original_stack_trace = original_stack_trace
        self.type_name = type_name
        self.message = message
        self.reason = reason
        super().__init__(self._text())

    def _text(self) -> str:
        if not self.type_name:
            return f"an exception could not be unpickled; its traceback was:\n{self.original_stack_trace}"
        text = f"{self.type_name}: {self.message}" if self.message else self.type_name
        why = f" ({self.reason})" if self.reason else ""
        return (
            f"{text}\n(this stands for the original exception, which could not be carried between processes{why}; "
            "give its class attributes that can be pickled and make it importable on both sides)"
        )


class Place(NamedTuple):
    """Where a task ran; what is not known is None."""

    pid: int | None = None
    ip: str | None = None
    node_id: str | None = None
    worker_id: str | None = None
    task_id: str | None = None
    actor_id: str | None = None
    #: ``repr`` of the actor, for its methods.
    actor_repr: str | None = None
    proctitle: str | None = None

    def __str__(self) -> str:
        parts = [f"pid={self.pid}"] if self.pid is not None else []
        parts += [f"{label}={value}" for label, value in self._named() if value]
        return ", ".join(parts)

    def _named(self) -> tuple[tuple[str, str | None], ...]:
        node = self.node_id[:8] if self.node_id else None
        worker = self.worker_id[:8] if self.worker_id else None
        return ("ip", self.ip), ("node", node), ("worker", worker), ("actor", self.actor_repr or self.actor_id)


class _Remote(NamedTuple):
    """All that a TaskError knows, in one attribute: the original type's own attributes lie beside it."""

    function_name: str
    traceback_str: str
    place: Place
    #: Type name and text of the cause, for a reader that cannot load it.
    cause_type: str
    cause_text: str


class TaskError(MorayError):
    """A task or actor method raised an exception.

    What ``get`` raises is also an instance of the type that was raised in the task (see
    :meth:`as_instanceof_cause`). ``str`` says where the task ran and shows its traceback there.

    Where an attribute of the original exception has the name of one of the attributes below, it is
    found on ``.cause``.

    Attributes:
        cause: the original exception, with its ``__cause__`` and ``__context__``; an
            :class:`UnserializableException` if it could not be carried here.
        traceback_str: the traceback in the worker, without moray's own frames.
        function_name: the task's function.
        pid, ip, node_id, worker_id, task_id, actor_id: where it ran, None if unknown.
    """

    _remote: _Remote
    _cause: BaseException
    #: The cause as it travelled, handed on unchanged: a later reader may have modules that this process lacks.
    _packed: Packed | None

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        proctitle: str | None = None,
        pid: int | None = None,
        ip: str | None = None,
        actor_repr: str | None = None,
        actor_id: str | None = None,
        *,
        node_id: str | None = None,
        worker_id: str | None = None,
        task_id: str | None = None,
    ) -> None:
        place = Place(pid, ip, node_id, worker_id, task_id, actor_id, actor_repr, proctitle)
        remote = _Remote(function_name, traceback_str, place, type_name(cause), text_of(cause))
        _fill(self, remote, cause, None)

    @property
    def cause(self) -> BaseException:
        return self._cause

    @property
    def function_name(self) -> str:
        return self._remote.function_name

    @property
    def traceback_str(self) -> str:
        return self._remote.traceback_str

    @property
    def proctitle(self) -> str | None:
        return self._remote.place.proctitle

    @property
    def pid(self) -> int | None:
        return self._remote.place.pid

    @property
    def ip(self) -> str | None:
        return self._remote.place.ip

    @property
    def node_id(self) -> str | None:
        return self._remote.place.node_id

    @property
    def worker_id(self) -> str | None:
        return self._remote.place.worker_id

    @property
    def task_id(self) -> str | None:
        return self._remote.place.task_id

    @property
    def actor_id(self) -> str | None:
        return self._remote.place.actor_id

    @property
    def actor_repr(self) -> str | None:
        return self._remote.place.actor_repr

    def as_instanceof_cause(self) -> TaskError:
        """This error as an exception that is both a TaskError and of the type of its cause.

        Its `args` and attributes are those of the cause. A cause that is no ``Exception`` (such as
        ``SystemExit``), that is one of TaskError's own bases, or whose type cannot be subclassed leaves a
        plain TaskError: self.
        """
        if isinstance(self, _Dual):
            return self
        original = _innermost(self._cause)
        kind = _dual_type(type(original))
        if kind is None:
            return self
        error = cast(TaskError, _copy_as(kind, original))
        _fill(error, self._remote, self._cause, self._packed, like=original)
        return error

    def __str__(self) -> str:
        where = str(self._remote.place)
        return f"task {self.function_name} failed{f' ({where})' if where else ''}\n{self.traceback_str}"

    def __init_subclass__(cls, **_kwargs: object) -> None:
        """Not passed on: the hook of an original type may demand arguments or keep a register."""

    def __reduce_ex__(self, _protocol: SupportsIndex) -> tuple[Any, ...]:
        return self.__reduce__()

    def __reduce__(self) -> tuple[Any, ...]:
        packed = self._packed or pack(self._cause, _stand_in)[0]
        notes = list(getattr(self, "__notes__", ()))
        return _load_task_error, (isinstance(self, _Dual), tuple(self._remote), *packed, notes)


class _Dual:
    """Marks the classes that :func:`_dual_type` makes."""

    __slots__ = ()


#: Dual classes by id of the original type. Weak, so that exception classes that tasks define inside
#: functions do not pile up in the driver; an id cannot be stale, since a dual class keeps its original.
_dual_types: WeakValueDictionary[int, type[BaseException]] = WeakValueDictionary()

#: Attributes that a dual does not take over: notes are part of the remote text already.
_NOT_TAKEN_OVER: Final = frozenset({"__notes__", "_remote", "_cause", "_packed"})


def make_task_error(
    function_name: str,
    exc: BaseException,
    pid: int | None = None,
    ip: str | None = None,
    *,
    node_id: str | None = None,
    worker_id: str | None = None,
    task_id: str | None = None,
    actor_id: str | None = None,
    actor_repr: str | None = None,
) -> TaskError:
    """Describe `exc`, just caught from user code in this process, for the task's owner.

    The result is certain to pickle, holds a copy of `exc` and no frames. Raises nothing of its own.
    """
    traceback_str = format_remote(exc, ends_here=TaskError)
    packed, cause = pack(exc, _stand_in)
    if isinstance(cause, UnserializableException) and not isinstance(exc, UnserializableException):
        traceback_str += f"\n(.cause only stands for this exception, which could not be pickled: {cause.reason})"
    place = Place(pid, ip, node_id, worker_id, task_id, actor_id, actor_repr)
    error = TaskError.__new__(TaskError)
    _fill(error, _Remote(function_name, traceback_str, place, type_name(exc), text_of(exc)), cause, packed)
    return error


def _fill(
    error: TaskError, remote: _Remote, cause: BaseException, packed: Packed | None, like: BaseException | None = None
) -> None:
    """Set a TaskError's own fields, past any ``__setattr__`` of the original type."""
    original = like or cause
    BaseException.__setattr__(error, "_remote", remote)
    BaseException.__setattr__(error, "_cause", cause)
    BaseException.__setattr__(error, "_packed", packed)
    BaseException.__setattr__(error, "args", original.args)
    # What a handler of the original type would look at; an implicit context is Python's to set.
    BaseException.__setattr__(error, "__cause__", original.__cause__)
    BaseException.__setattr__(error, "__suppress_context__", original.__suppress_context__)


def _stand_in(exc: BaseException, reason: str) -> UnserializableException:
    trace = format_remote(exc, ends_here=TaskError)
    return UnserializableException(trace, type_name=type_name(exc), message=text_of(exc), reason=reason)


def _load_task_error(
    is_dual: bool, remote: tuple[Any, ...], blob: bytes, carried: list[Any], notes: list[str]
) -> TaskError:
    """Unpickle a TaskError; a cause that cannot be loaded here becomes a stand-in, never an error."""
    function_name, traceback_str, place, cause_type, cause_text = remote
    fields = _Remote(function_name, traceback_str, Place(*place), cause_type, cause_text)
    packed = Packed(blob, carried)
    error = TaskError.__new__(TaskError)
    _fill(error, fields, _unpack_or_stand_in(packed, fields), packed)
    if is_dual:
        error = error.as_instanceof_cause()
    for note in notes:
        error.add_note(note)
    return error


def _unpack_or_stand_in(packed: Packed, remote: _Remote) -> BaseException:
    try:
        return unpack(packed)
    except Exception as error:  # noqa: BLE001 (code of the user's classes runs in unpickling)
        reason = describe(error)
    return UnserializableException(
        remote.traceback_str, type_name=remote.cause_type, message=remote.cause_text, reason=reason
    )


def _innermost(cause: BaseException) -> BaseException:
    """What the deepest task of a chain of tasks raised."""
    while isinstance(cause, TaskError):
        cause = cause.cause
    return cause


def _dual_type(original: type[BaseException]) -> type[BaseException] | None:
    """The class that is both TaskError and `original`; None where there can be none."""
    if not issubclass(original, Exception) or issubclass(TaskError, original):
        return None
    kind = _dual_types.get(id(original))
    if kind is None:
        try:
            kind = _make_dual_type(original)
        except Exception:  # noqa: BLE001 (a metaclass or the layout may refuse in any way)
            return None
        _dual_types[id(original)] = kind
    return kind


def _make_dual_type(original: type[Exception]) -> type[BaseException]:
    name = f"TaskError({original.__qualname__})"

    def new(_cls: type, *args: Any, **kwargs: Any) -> Exception:
        # `raise type(error)("more about it") from error` is common: it makes an original.
        return original(*args, **kwargs)

    namespace = {
        "__new__": new,
        "__module__": __name__,
        "__doc__": f"A task raised {original.__qualname__}.",
    }
    # The metaclass is the original's. TaskError comes first: it says how the error looks and pickles.
    make_class: Callable[..., Any] = type(original)
    return cast("type[BaseException]", make_class(name, (TaskError, _Dual, original), namespace))


def _copy_as(kind: type[BaseException], original: BaseException) -> BaseException:
    """An instance of `kind` with all that `original` holds."""
    parts = (original.message, original.exceptions) if isinstance(original, BaseExceptionGroup) else ()
    attributes = {name: value for name, value in original.__dict__.items() if name not in _NOT_TAKEN_OVER}
    copy = blank(kind, parts)
    restore(copy, (original.args, fields_of(original), attributes))
    return copy


class TaskCancelledError(MorayError):
    """The task was cancelled, before or while it ran."""

    def __init__(self, task_id: object = None, error_message: str | None = None) -> None:
        self.task_id = task_id
        self.error_message = error_message
        named = f"task {task_id}" if task_id is not None else "the task"
        super().__init__(f"{named} was cancelled" + (f": {error_message}" if error_message else ""))


class WorkerCrashedError(MorayError):
    """The worker process ended while it ran the task.

    Attributes:
        message: one line: what happened; made from the other fields if not given.
        exit_code, signal_number: how the process ended; at most one of them is not None.
        stderr_tail: the last lines that it wrote there.
        pid: the worker's process id.
        function_name: the task that it ran.
        attempts: how often the task was started.
    """

    def __init__(
        self,
        message: str = "",
        *,
        exit_code: int | None = None,
        signal_number: int | None = None,
        stderr_tail: str = "",
        pid: int | None = None,
        function_name: str = "",
        attempts: int | None = None,
    ) -> None:
        self.exit_code = exit_code
        self.signal_number = signal_number
        self.stderr_tail = stderr_tail
        self.pid = pid
        self.function_name = function_name
        self.attempts = attempts
        self.message = message or self._headline()
        super().__init__(self._text())

    def _text(self) -> str:
        lines = [self.message]
        # A given message may not say how the process ended.
        if self._mark() not in self.message:
            lines.append(f"It {self._ending()}.")
        if self.stderr_tail.strip():
            lines += ["last lines of its stderr:", *(f"  {line}" for line in self.stderr_tail.strip("\n").splitlines())]
        return "\n".join([*lines, self._advice()])

    def _headline(self) -> str:
        worker = "the worker" if self.pid is None else f"the worker (pid {self.pid})"
        task = f" that ran {self.function_name}" if self.function_name else ""
        attempts = "" if self.attempts is None else f"; the task was started {_times(self.attempts)}"
        return f"{worker}{task} {self._ending()}{attempts}"

    def _mark(self) -> str:
        """What a message must contain to say how the process ended."""
        if self.signal_number is not None:
            return _signal_name(self.signal_number)
        return "" if self.exit_code is None else f"code {self.exit_code}"

    def _ending(self) -> str:
        if self.signal_number is not None:
            return f"was killed by {self._mark()}"
        return "ended" if self.exit_code is None else f"exited with {self._mark()}"

    def _advice(self) -> str:
        if self.signal_number == 9:
            return "SIGKILL comes from outside: the kernel, when memory runs out (dmesg says so), or an operator."
        if self.exit_code is not None:
            return "Something called exit in the worker; a task should return or raise."
        return "Native code is the usual reason: call the function in the driver to see it."


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _signal_name(number: int) -> str:
    from signal import Signals

    try:
        return Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- errors of actors ----------------------------------------------------------------------------


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


# --- errors of objects -----------------------------------------------------------------------------


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


class ObjectRefStreamEndOfStreamError(MorayError):
    """The stream of a generator task has no item at this index."""


# --- errors of machines and of moray -----------------------------------------------------------------


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


# --- Ray's spellings ---------------------------------------------------------------------------------

RayError = MorayError
RayTaskError = TaskError
RayActorError = ActorError
RaySystemError = MoraySystemError
RayChannelError = ChannelError
RayChannelTimeoutError = ChannelTimeoutError
LocalRayletDiedError = LocalNodeDiedError
OufOfBandObjectRefSerializationException = OutOfBandObjectRefSerializationException
