"""The exception tree, how errors of tasks look, and how they travel."""

# ruff: noqa: N818 (the exceptions here are named after what is odd about them)

from __future__ import annotations

import copy
import gc
import json
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Self

import cloudpickle
import pytest

from moray import error_transport, exceptions, ids
from moray.exceptions import (
    GetTimeoutError,
    MorayError,
    ObjectLostError,
    ObjectReconstructionFailedError,
    ObjectStoreFullError,
    TaskCancelledError,
    TaskError,
    UnserializableException,
    WorkerCrashedError,
    make_task_error,
)

#: Parents of each name, as Ray's users know them.
INVENTORY = {
    "RayTaskError": "RayError",
    "TaskCancelledError": "RayError",
    "LocalRayletDiedError": "RayError",
    "WorkerCrashedError": "RayError",
    "RayActorError": "RayError",
    "ActorDiedError": "RayActorError",
    "ActorUnavailableError": "RayActorError",
    "RaySystemError": "RayError",
    "AuthenticationError": "RayError",
    "UserCodeException": "RayError",
    "ObjectStoreFullError": "RayError",
    "OutOfDiskError": "RayError",
    "OutOfMemoryError": "RayError",
    "NodeDiedError": "RayError",
    "ObjectLostError": "RayError",
    "ObjectFetchTimedOutError": "ObjectLostError",
    "ObjectFreedError": "ObjectLostError",
    "OwnerDiedError": "ObjectLostError",
    "ObjectReconstructionFailedError": "ObjectLostError",
    "GetTimeoutError": "RayError",
    "AsyncioActorExit": "RayError",
    "RuntimeEnvSetupError": "RayError",
    "TaskPlacementGroupRemoved": "RayError",
    "ActorPlacementGroupRemoved": "RayError",
    "PendingCallsLimitExceeded": "RayError",
    "TaskUnschedulableError": "RayError",
    "ActorUnschedulableError": "RayError",
    "ObjectRefStreamEndOfStreamError": "RayError",
    "StreamingGeneratorReplayInconsistentError": "RaySystemError",
    "OufOfBandObjectRefSerializationException": "RayError",
    "RayChannelError": "RaySystemError",
    "RayChannelTimeoutError": "RayChannelError",
    "UnserializableException": "RayError",
    "ActorAlreadyExistsError": "RayError",
    "ActorHandleNotFoundError": "RayError",
}


def raised(function: Callable[[], Any]) -> BaseException:
    """What `function` raises, with its traceback."""
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def raiser(exc: BaseException) -> Callable[[], Any]:
    def run() -> None:
        raise exc

    return run


def task_error(function: Callable[[], Any], name: str = "work", **place: Any) -> Any:
    """The error as the worker makes it, sent to the driver, as get() raises it there."""
    sent = make_task_error(name, raised(function), **place)
    received = pickle.loads(pickle.dumps(sent, 5))
    assert isinstance(received, TaskError)
    return received.as_instanceof_cause()


def is_both(error: object, kind: type) -> bool:
    return isinstance(error, TaskError) and isinstance(error, kind)


class TwoArguments(Exception):
    def __init__(self, code: int, *, detail: str) -> None:
        super().__init__(f"code {code}")
        self.code = code
        self.detail = detail

    def advice(self) -> str:
        return f"{self.detail}!"


class Slotted(Exception):
    __slots__ = ("empty", "unset", "x")

    def __init__(self, x: int) -> None:
        self.x = x
        self.empty = None


class NeedsNew(ValueError):
    def __new__(cls, first: int, second: int) -> Self:
        return super().__new__(cls, first)

    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)
        self.second = second


class Frozen(Exception):
    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(name)


class BadStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Unpicklable(Exception):
    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


class LoadsBadly(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


class ReduceRaises(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        raise SystemExit(3)


class Final(Exception):
    def __init_subclass__(cls, **kwargs: object) -> None:
        raise TypeError("do not subclass")


class FinalMeta(type):
    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any]) -> FinalMeta:
        if any(isinstance(base, FinalMeta) for base in bases):
            raise TypeError(f"{name}: final")
        return super().__new__(mcls, name, bases, namespace)


class TrulyFinal(Exception, metaclass=FinalMeta):
    pass


class Reference:
    pickled: ClassVar[list[Any]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        self.pickled.append(self)
        return Reference, ()


class CodedGroup(ExceptionGroup[Exception]):
    def __new__(cls, errors: list[Exception], code: int) -> Self:
        self = super().__new__(cls, f"group {code}", errors)
        self.code = code
        return self

    def derive(self, excs: Any) -> Any:
        return type(self)(excs, self.code)

    code: int


# --- the tree ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "parent"), INVENTORY.items())
def test_every_name_of_the_inventory_has_its_parent(name: str, parent: str) -> None:
    kind = getattr(exceptions, name)
    assert issubclass(kind, getattr(exceptions, parent))
    assert kind.__module__ == "moray.exceptions"


def test_ray_spellings_are_the_same_classes() -> None:
    assert exceptions.RayError is MorayError
    assert exceptions.RayTaskError is TaskError
    assert exceptions.RayActorError is exceptions.ActorError
    assert issubclass(GetTimeoutError, TimeoutError)
    assert issubclass(exceptions.RayChannelTimeoutError, TimeoutError)
    assert issubclass(exceptions.ActorAlreadyExistsError, ValueError)


def test_the_docstring_shows_every_exception() -> None:
    tree = exceptions.__doc__ or ""
    classes = [v for v in vars(exceptions).values() if isinstance(v, type) and issubclass(v, MorayError)]
    assert len(classes) >= len(INVENTORY)
    assert [kind.__name__ for kind in classes if kind.__name__ not in tree] == []


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_fields_survive_pickling(dumps: Callable[..., bytes]) -> None:
    samples = [
        WorkerCrashedError(signal_number=11, stderr_tail="oh\nno\n", pid=4, function_name="f", attempts=4),
        ObjectLostError("ab" * 28, b"owner", "x.py:3", reason="why"),
        ObjectReconstructionFailedError("ab" * 28, None, "a put is in its lineage"),
        GetTimeoutError(timeout_s=1.5, missing=2, total=3),
        ObjectStoreFullError(needed_bytes=5, capacity_bytes=7, pinned_bytes=6, detail="who"),
        TaskCancelledError("id", "because"),
        exceptions.ActorDiedError("gone", actor_id="ff"),
        exceptions.ActorUnavailableError("net", b"\xff"),
        exceptions.ActorAlreadyExistsError("taken"),
        exceptions.RayChannelTimeoutError("slow"),
        UnserializableException("trace", type_name="T", message="m", reason="r"),
        exceptions.OutOfDiskError("full", 3),
    ]
    for sample in samples:
        sample.add_note("note")
        loaded = pickle.loads(dumps(sample, protocol=5))
        assert type(loaded) is type(sample)
        assert loaded.__dict__ == sample.__dict__
        assert (loaded.args, str(loaded)) == (sample.args, str(sample))


def test_a_worker_crash_says_signal_stderr_and_what_to_try() -> None:
    text = str(WorkerCrashedError(signal_number=11, stderr_tail="a\nb\n", pid=4, function_name="f", attempts=4))
    assert "pid 4" in text
    assert "SIGSEGV" in text
    assert "f" in text
    assert "4 times" in text
    assert "  a\n  b" in text
    assert "code 3" in str(WorkerCrashedError(exit_code=3))
    assert "signal 63" in str(WorkerCrashedError(signal_number=63))


def test_a_worker_crash_completes_a_given_message() -> None:
    assert str(WorkerCrashedError("it was SIGSEGV", signal_number=11)).count("SIGSEGV") == 1
    text = str(WorkerCrashedError("the worker (pid 3) vanished", exit_code=3))
    assert "the worker (pid 3) vanished" in text
    assert "exited with code 3" in text


def test_messages_have_the_numbers() -> None:
    assert "2 of 3 objects" in str(GetTimeoutError(timeout_s=1.5, missing=2, total=3))
    assert "1.5 s" in str(GetTimeoutError(timeout_s=1.5))
    full = str(ObjectStoreFullError(needed_bytes=5_000_000, capacity_bytes=64_000_000, pinned_bytes=63_000_000))
    assert "5.0 MB" in full
    assert "64.0 MB" in full
    assert "63.0 MB" in full
    assert str(exceptions.OwnerDiedError("object x is lost: ...")) == "object x is lost: ..."
    assert "abcd" in str(exceptions.OwnerDiedError("abcd"))


# --- the dual type --------------------------------------------------------------------------------


def test_a_task_error_is_also_the_original_type() -> None:
    error = task_error(raiser(ValueError("boom", 3)))
    assert isinstance(error, TaskError)
    assert isinstance(error, ValueError)
    assert error.args == ("boom", 3)
    assert type(error.cause) is ValueError
    assert type(error).__name__ == "TaskError(ValueError)"
    assert error.as_instanceof_cause() is error


def test_the_dual_class_is_made_once_per_type() -> None:
    assert type(task_error(raiser(KeyError(1)))) is type(task_error(raiser(KeyError(2))))


def test_dual_classes_go_with_their_original() -> None:
    def one() -> weakref.ref[type]:
        class Local(Exception):
            pass

        return weakref.ref(type(make_task_error("f", Local()).as_instanceof_cause()))

    kind = one()
    gc.collect()
    assert kind() is None


def test_required_arguments_and_attributes_are_kept() -> None:
    error: Any = task_error(raiser(TwoArguments(7, detail="look")))
    assert is_both(error, TwoArguments)
    assert (error.code, error.detail, error.advice()) == (7, "look", "look!")
    assert (error.cause.code, error.cause.detail, error.cause.args) == (7, "look", ("code 7",))


def test_slots_are_kept() -> None:
    error: Any = task_error(raiser(Slotted(5)))
    assert is_both(error, Slotted)
    assert (error.x, error.cause.x, error.empty) == (5, 5, None)
    assert not hasattr(error, "unset")


def test_a_new_that_wants_arguments() -> None:
    error: Any = task_error(raiser(NeedsNew(1, 2)))
    assert is_both(error, NeedsNew)
    assert (error.second, error.args) == (2, (1,))


def test_a_setattr_that_refuses() -> None:
    assert isinstance(task_error(raiser(Frozen("x"))), Frozen)


def test_fields_in_c_are_kept() -> None:
    missing: Any = task_error(lambda: Path("/does/not/exist").read_bytes())
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.filename) == (2, "/does/not/exist")
    decode: Any = task_error(lambda: b"\xff".decode())
    assert isinstance(decode, UnicodeDecodeError)
    assert (decode.object, decode.start, decode.encoding) == (b"\xff", 0, "utf-8")
    syntax: Any = task_error(lambda: compile("a b", "x.py", "exec"))
    assert isinstance(syntax, SyntaxError)
    assert (syntax.lineno, syntax.filename) == (1, "x.py")
    stop: Any = task_error(raiser(StopIteration(4)))
    assert stop.value == 4
    name: Any = task_error(raiser(ImportError("no", name="m", path="p")))
    assert (name.name, name.path, name.msg) == ("m", "p", "no")


@pytest.mark.parametrize(
    "exc", [KeyboardInterrupt(), SystemExit(3), GeneratorExit(), BaseExceptionGroup("g", [SystemExit()])]
)
def test_what_is_no_exception_is_a_plain_task_error(exc: BaseException) -> None:
    error = task_error(raiser(exc))
    assert type(error) is TaskError
    assert type(error.cause) is type(exc)


def test_a_plain_exception_is_a_plain_task_error() -> None:
    error = task_error(raiser(Exception("x")))
    assert type(error) is TaskError
    assert error.args == ("x",)


def test_a_type_that_cannot_be_subclassed_stays_in_the_cause() -> None:
    error = task_error(raiser(TrulyFinal("x")))
    assert type(error) is TaskError
    assert type(error.cause) is TrulyFinal


def test_a_hook_for_subclasses_is_not_run() -> None:
    assert isinstance(task_error(raiser(Final("x"))), Final)


def test_errors_of_moray_are_dual_too() -> None:
    error: Any = task_error(raiser(WorkerCrashedError(exit_code=3)))
    assert isinstance(error, WorkerCrashedError)
    assert isinstance(error, TaskError)
    assert error.exit_code == 3


def test_calling_the_dual_type_makes_an_original() -> None:
    error = task_error(raiser(TwoArguments(1, detail="d")))
    kind: Any = type(error)
    remade = kind(2, detail="e")
    assert type(remade) is TwoArguments
    assert remade.code == 2


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_a_dual_error_pickles_and_copies(dumps: Callable[..., bytes]) -> None:
    error: Any = task_error(raiser(TwoArguments(7, detail="look")), pid=3, ip="1.2.3.4", worker_id="ab" * 28)
    error.add_note("seen")
    for again in (pickle.loads(dumps(error, protocol=5)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is type(error)
        assert (again.code, again.pid, again.ip, again.worker_id) == (7, 3, "1.2.3.4", "ab" * 28)
        assert str(again) == str(error)
        assert again.__notes__ == ["seen"]


def test_classes_of_main_travel_by_value() -> None:
    program = (
        "class Mine(Exception):\n"
        "    def __init__(self, a, b): super().__init__(a); self.b = b\n"
        "import sys\n"
        "from moray.exceptions import make_task_error\n"
        "import pickle\n"
        "sys.stdout.buffer.write(pickle.dumps(make_task_error('f', Mine(1, 2))))\n"
    )
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60).stdout
    error = pickle.loads(out).as_instanceof_cause()
    assert type(error).__name__ == "TaskError(Mine)"
    assert (error.args, error.b) == ((1,), 2)


# --- groups ---------------------------------------------------------------------------------------


def test_a_group_stays_a_group() -> None:
    group = ExceptionGroup("many", [ValueError(1), ExceptionGroup("in", [KeyError(2)])])
    error: Any = task_error(raiser(group))
    assert is_both(error, ExceptionGroup)
    assert error.message == "many"
    assert [type(member) for member in error.exceptions] == [ValueError, ExceptionGroup]
    matched, rest = error.split(ValueError)
    assert matched is not None
    assert rest is not None
    assert [type(member) for member in matched.exceptions] == [ValueError]
    assert error.subgroup(KeyError) is not None


def test_except_star_takes_a_group_apart() -> None:
    taken: list[BaseException] = []
    try:
        raise task_error(raiser(ExceptionGroup("many", [ValueError(1), KeyError(2)])))
    except* ValueError as part:
        taken += part.exceptions
    except* KeyError as part:
        taken += part.exceptions
    assert [type(member) for member in taken] == [ValueError, KeyError]


def test_a_group_of_ones_own_type() -> None:
    error: Any = task_error(raiser(CodedGroup([ValueError(1), KeyError(2)], 5)))
    assert is_both(error, CodedGroup)
    assert (error.code, error.message) == (5, "group 5")
    part = error.subgroup(KeyError)
    assert type(part) is CodedGroup
    assert part.code == 5


def test_members_of_a_group_keep_their_causes() -> None:
    def work() -> None:
        member = ValueError("v")
        member.__cause__ = KeyError("k")
        raise ExceptionGroup("many", [ValueError("first"), member])

    error: Any = task_error(work)
    assert isinstance(error.exceptions[1].__cause__, KeyError)


def test_an_unpicklable_member_is_replaced_alone() -> None:
    error: Any = task_error(raiser(ExceptionGroup("many", [Unpicklable("u"), KeyError("k")])))
    assert is_both(error, ExceptionGroup)
    assert [type(member) for member in error.exceptions] == [UnserializableException, KeyError]


# --- causes, text --------------------------------------------------------------------------------


def chained() -> None:
    try:
        try:
            {}["a"]  # type: ignore[index]
        except KeyError:
            raise OSError("middle")  # noqa: B904 (an implicit context is wanted)
    except OSError as error:
        raise ValueError("outer") from error


def test_the_cause_chain_is_kept() -> None:
    error = task_error(chained)
    cause = error.cause
    assert isinstance(cause.__cause__, OSError)
    assert isinstance(cause.__cause__.__context__, KeyError)
    assert cause.__suppress_context__
    assert isinstance(error.__cause__, OSError)
    for text in ("KeyError: 'a'", "OSError: middle", "ValueError: outer", "in chained", "direct cause"):
        assert text in str(error)


def test_a_cycle_of_contexts_is_no_trouble() -> None:
    first, second = ValueError("1"), KeyError("2")
    first.__context__, second.__context__ = second, first
    cause = make_task_error("f", first).cause
    assert isinstance(cause.__context__, KeyError)
    assert cause.__context__.__context__ is cause


def test_a_very_long_chain_is_cut() -> None:
    exc = ValueError(0)
    for number in range(1, 5000):
        following = ValueError(number)
        following.__context__ = exc
        exc = following
    cause: BaseException | None = make_task_error("f", exc).cause
    length = 0
    while cause is not None:
        length, cause = length + 1, cause.__context__
    assert length == error_transport.MAX_EXCEPTIONS


def test_the_text_says_where_it_ran() -> None:
    error = task_error(chained, "lib.work", pid=77, ip="10.0.0.9", node_id="cd" * 28, worker_id="ab" * 28)
    headline = str(error).splitlines()[0]
    for part in ("lib.work", "77", "10.0.0.9", "cdcdcdcd", "abababab"):
        assert part in headline
    assert (error.function_name, error.pid, error.ip, error.node_id) == ("lib.work", 77, "10.0.0.9", "cd" * 28)
    assert error.traceback_str.endswith("ValueError: outer")
    assert error.traceback_str in str(error)


def test_frames_of_moray_are_left_out() -> None:
    def work() -> None:
        error_transport.dumps(Unpicklable("inside"))

    error = task_error(work)
    assert "error_transport.py" not in str(error)
    assert "in work" in str(error)
    assert "cannot pickle" in str(error)


def test_an_error_inside_moray_alone_keeps_its_frames() -> None:
    exc = raised(lambda: ids.JobID(b""))
    while exc.__traceback__ and exc.__traceback__.tb_frame.f_code.co_filename != ids.__file__:
        exc.__traceback__ = exc.__traceback__.tb_next
    assert "ids.py" in make_task_error("f", exc).traceback_str


def test_nested_tasks_show_each_step_once() -> None:
    def inner() -> None:
        chained()

    def middle() -> None:
        raise task_error(inner, "inner", pid=1)

    def outer() -> None:
        try:
            raise task_error(middle, "middle", pid=2)
        except ValueError as error:
            raise RuntimeError("gave up") from error

    error = task_error(outer, "outer", pid=3)
    text = str(error)
    assert is_both(error, RuntimeError)
    for once in (
        "task outer failed",
        "task middle failed",
        "task inner failed",
        "OSError: middle",
        "RuntimeError: gave",
    ):
        assert text.count(once) == 1, once
    assert text.index("task middle") < text.index("task inner")


def test_a_reraised_error_of_a_subtask_is_still_of_its_type() -> None:
    def outer() -> None:
        raise task_error(raiser(TwoArguments(1, detail="d")), "inner", pid=1)

    error: Any = task_error(outer, "outer", pid=2)
    assert is_both(error, TwoArguments)
    assert (error.function_name, error.pid, error.code) == ("outer", 2, 1)
    assert is_both(error.cause, TwoArguments)
    assert error.cause.function_name == "inner"
    assert type(error.cause.cause) is TwoArguments


def test_an_exception_whose_str_raises() -> None:
    error = task_error(raiser(BadStr()))
    assert is_both(error, BadStr)
    assert "BadStr" in str(error)
    assert "task work failed" in str(error)


def test_notes_are_in_the_text() -> None:
    exc = ValueError("x")
    exc.add_note("look here")
    error = task_error(raiser(exc))
    assert str(error).count("look here") == 1
    assert error.cause.__notes__ == ["look here"]


def test_no_frames_are_kept() -> None:
    class Big:
        pass

    def work(value: Big) -> None:
        raise ValueError("x")

    def run() -> weakref.ref[Big]:
        big = Big()
        errors.append(make_task_error("f", raised(lambda: work(big))))
        return weakref.ref(big)

    errors: list[TaskError] = []
    alive = run()
    gc.collect()
    assert alive() is None
    assert errors[0].cause.__traceback__ is None


# --- what cannot be pickled -------------------------------------------------------------------------


@pytest.mark.parametrize("exc", [Unpicklable("why me"), LoadsBadly("why me"), ReduceRaises("why me")])
def test_an_unpicklable_exception_has_a_stand_in(exc: Exception) -> None:
    error: Any = task_error(raiser(exc))
    assert is_both(error, UnserializableException)
    assert type(exc).__name__ in error.cause.type_name
    assert error.cause.message == "why me"
    assert error.cause.reason
    assert "in run" in error.cause.original_stack_trace
    assert "why me" in str(error)


def test_only_the_unpicklable_link_of_a_chain_is_replaced() -> None:
    def work() -> None:
        raise ValueError("fine") from Unpicklable("not")

    error = task_error(work)
    assert is_both(error, ValueError)
    assert isinstance(error.cause.__cause__, UnserializableException)
    assert error.cause.__cause__.message == "not"


def test_a_class_that_the_reader_lacks_is_a_stand_in_and_is_handed_on(tmp_path: Path) -> None:
    (tmp_path / "only_there.py").write_text("class Odd(Exception):\n    pass\n")
    program = (
        "import sys, pickle; sys.path.insert(0, sys.argv[1])\n"
        "from only_there import Odd\n"
        "from moray.exceptions import make_task_error\n"
        "sys.stdout.buffer.write(pickle.dumps(make_task_error('f', Odd('hi'))))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    out = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    error = pickle.loads(out).as_instanceof_cause()
    assert is_both(error, UnserializableException)
    assert isinstance(error.cause, UnserializableException)
    assert (error.cause.type_name, error.cause.message) == ("only_there.Odd", "hi")
    assert "only_there" in error.cause.reason
    check = (
        "import sys, pickle; sys.path.insert(0, sys.argv[1]); from only_there import Odd\n"
        "assert isinstance(pickle.loads(sys.stdin.buffer.read()).cause, Odd)\n"
    )
    subprocess.run([sys.executable, "-c", check, str(tmp_path)], input=pickle.dumps(error), check=True, timeout=60)


def test_references_are_carried_beside_the_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(error_transport, "_carried_types", ())
    pickled: list[Any] = []
    monkeypatch.setattr(Reference, "pickled", pickled)
    error_transport.carry_outside(Reference)
    reference = Reference()
    exc = ValueError(reference)
    exc.__cause__ = make_task_error("inner", KeyError(reference))
    error = make_task_error("f", exc)
    assert pickled == [], "proving that it pickles must not touch references"
    assert error.cause.args[0] is reference
    loaded = cloudpickle.loads(cloudpickle.dumps(error))
    assert pickled == [reference]
    assert loaded.cause.args[0] is loaded.cause.__cause__.cause.args[0]


def test_deep_recursion_in_the_exceptions_value() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    error = task_error(raiser(ValueError("deep", deep)))
    assert is_both(error, UnserializableException)


def test_a_large_value_is_carried_once() -> None:
    error = task_error(raiser(ValueError("x" * 2_000_000)))
    assert len(error.args[0]) == 2_000_000
    assert len(pickle.dumps(error)) < 2_200_000
    assert "characters left out" in str(error)


def test_old_pickle_protocols_will_do() -> None:
    error = task_error(chained, pid=3)
    for protocol in range(2, 6):
        again = pickle.loads(pickle.dumps([error, error], protocol))
        assert again[0] is again[1]
        assert (type(again[0]), str(again[0])) == (type(error), str(error))


def test_importing_it_is_cheap() -> None:
    """Without the facade, which has reasons of its own to import more."""
    program = (
        "import sys, json, types\n"
        "before = set(sys.modules)\n"
        "package = sys.modules['moray'] = types.ModuleType('moray'); package.__path__ = [sys.argv[1]]\n"
        "import moray.exceptions\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))\n"
    )
    command = [sys.executable, "-c", program, str(Path(exceptions.__file__).parent.parent)]
    out = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    loaded = set(json.loads(out))
    assert "moray.exceptions" in loaded
    assert not loaded & {"cloudpickle", "pickle", "traceback", "inspect", "asyncio", "msgspec", "logging"}
