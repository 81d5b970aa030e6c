"""Errors of the user's code in tasks, and of what became of the tasks.

An error of a task reaches the caller as a :class:`TaskError` that *is also* of the type that the task raised: that
class, a *dual*, is made on first need, one per original type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple, SupportsIndex, cast
from weakref import WeakValueDictionary

from moray.error_text import describe, format_remote, text_of, type_name
from moray.error_transport import Packed, blank, fields_of, pack, restore, unpack
from moray.exceptions.base import MorayError

if TYPE_CHECKING:
    from collections.abc import Callable


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
            f"{text}\n(this stands for the original exception, which isn't serializable{why}; "
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

    make_dual_exception_instance = as_instanceof_cause

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
        except Exception as reason:  # noqa: BLE001 (a metaclass or the layout may refuse in any way)
            _warn_of_plain(original, reason)
            return None
        _dual_types[id(original)] = kind
    return kind


def _warn_of_plain(original: type[Exception], reason: Exception) -> None:
    """An ``except`` of the original type will not see the error: say so where the program's warnings go."""
    import logging

    logging.getLogger("ray.exceptions" if dual_prefix == "RayTaskError" else "moray.exceptions").warning(
        "%s cannot be subclassed (%s), so `except` of that type will not see it: what is raised is a %s, and its "
        "`cause` is the user's exception.",
        original.__qualname__,
        describe(reason),
        dual_prefix,
    )


#: What the names of dual classes begin with; "RayTaskError" where ``import ray`` gives moray.
dual_prefix = "TaskError"


def _make_dual_type(original: type[Exception]) -> type[BaseException]:
    name = f"{dual_prefix}({original.__name__})"  # repr() shows what comes after a name's last dot.

    def new(_cls: type, *args: Any, **kwargs: Any) -> Exception:
        # `raise type(error)("more about it") from error` is common: it makes an original.
        return original(*args, **kwargs)

    namespace = {
        "__new__": new,
        "__module__": "moray.exceptions",
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
        # Past TaskError, which comes between for a task that had begun.
        MorayError.__init__(self, f"{named} was cancelled" + (f": {error_message}" if error_message else ""))


class _BegunTaskCancelledError(TaskCancelledError, TaskError):
    """Of a task that had begun: a TaskError, too, for programs that catch whatever a task raises.

    It looks and prints like a plain one, which is its `cause`.
    """

    #: An attribute, and not TaskError's property.
    task_id: Any = None

    def __init__(self, task_id: object, error_message: str | None, function_name: str, pid: int) -> None:
        super().__init__(task_id, error_message)
        cause = TaskCancelledError(task_id, error_message)
        place = Place(pid=pid, task_id=str(task_id))
        _fill(self, _Remote(function_name, str(cause), place, type_name(cause), str(cause)), cause, None, like=self)

    def as_instanceof_cause(self) -> TaskError:
        """It is one already."""
        return self

    make_dual_exception_instance = as_instanceof_cause

    __str__ = BaseException.__str__

    def __reduce__(self) -> tuple[Any, ...]:
        fields = self.task_id, self.error_message, self.function_name, self.pid
        notes = getattr(self, "__notes__", None)
        return make_cancelled_error, fields, {"__notes__": list(notes)} if notes else None


# What a traceback shows is the name that programs know.
_BegunTaskCancelledError.__name__ = _BegunTaskCancelledError.__qualname__ = "TaskCancelledError"
_BegunTaskCancelledError.__module__ = "moray.exceptions"


def make_cancelled_error(task_id: str, how: str, function_name: str, pid: int) -> TaskCancelledError:
    """The error of a task that was cancelled after it had begun: also a TaskError, and pickled by this function."""
    return _BegunTaskCancelledError(task_id, how, function_name, pid)


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
