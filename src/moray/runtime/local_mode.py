"""``init(local_mode=True)``: everything in this process, one step after another, for debugging.

No process, socket or shared memory is made. A task runs in the thread that submits it, before ``.remote()`` returns, so
that breakpoints, prints and tracebacks are those of ordinary calls. What programs can see of a session stays so:
values are pickled and unpickled on their way (SNAPSHOT), errors are raised by ``get``, actors keep their state.

:class:`LocalRuntime` stands where a :class:`~moray.runtime.runtime.Runtime` stands otherwise. This is what the layers
above use of either:

================================  ====================================================================================
``ended forked closing kind``     its state; ``check_usable()``
``process job welcome``           who and where this is; ``session_dir node_address origin executor task_extra``
``values``                        put, put_serialized, get_one, get_many, wait, future, await_ref, subscribe
``submitter``                     pool, submit
``actors``                        create, find, names, kill, callee, submit
``cancels``                       cancel
``ask(ClusterInfo)``              resources and nodes
``current_task_id() …``           of the running task: task_name, function_name, task_resources
``escape future await_ref …``     :class:`~moray.object_ref.RuntimeHooks`
================================  ====================================================================================

**What waits.** Nearly everything is ready when ``.remote()`` returns. Not so are coroutines that wait for another call,
generators (which are one item ahead of their reader), and what takes one of these as an argument. Their
`Entry.task` has ``drive()``, which ``get`` calls.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakValueDictionary

from moray import exceptions, object_ref
from moray.launch.resources import complete_devices, complete_resources, describe_node
from moray.object_ref import Alive, Entry, ObjectRef, Origin, new_ref
from moray.platform.machine import gpu_names
from moray.protocol import messages as m
from moray.runtime.local_actors import LocalActor, LocalActors
from moray.runtime.local_calls import LocalCall, LocalStream, current_local
from moray.runtime.local_loop import PrivateLoop
from moray.runtime.runtime import Waiter
from moray.runtime.tasks import Life
from moray.runtime.timeline import KEPT
from moray.runtime.unusable import Unusable, of_ended_session
from moray.runtime.values import load_error, serialize_for_put
from moray.serialization import Serialized, context, loads

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import ModuleType

    from moray.launch.config import NodeConfig
    from moray.runtime.arguments import Prepared
    from moray.runtime.tasks import Function, TaskSettings


class LocalRuntime:
    """A session that is nothing but this process."""

    kind = "local"
    forked = False
    concurrent = False
    work: Any = None
    node_address = "local"
    nameless = False
    infeasible = ""

    def __init__(self, config: NodeConfig, namespace: str) -> None:
        self._own_process = self.new_process()
        self._task_process = self.new_process()
        self.job = (1).to_bytes(4, "big")
        self.origin = Origin(self._own_process, self.job, self)
        self.ended: str | None = None
        self.closing = False
        total = complete_resources(config.resources, 0)
        self._labels = config.labels
        self._devices = complete_devices(config.devices, total)
        #: There is no directory of the session; this one is for whoever asks for a place for files.
        self.session_dir = tempfile.gettempdir()
        session = f"local-{os.getpid()}"
        self.welcome = m.Welcome(
            m.PROTOCOL_VERSION, session, self.session_dir, os.urandom(28), os.getpid(), 1, 0, total, namespace,
            gpus=gpu_names(self._devices.get("GPU", 0)),
        )  # fmt: skip
        self._numbers = itertools.count(1)
        #: Code by the bytes that stand for its pickle.
        self._code: dict[bytes, Any] = {}
        #: References that were pickled, by id; those that the user pickled, for ever.
        self._escaped: WeakValueDictionary[bytes, ObjectRef[Any]] = WeakValueDictionary()
        self._pinned: list[ObjectRef[Any]] = []
        #: Ends of references that keep actors alive, and generators whose readers are gone.
        self._ends: deque[Any] = deque()
        self.dropped: deque[Any] = deque()
        #: Calls that wait for arguments.
        self.deferred: list[LocalCall] = []
        #: Notified when something gets ready, or a loop gets free.
        self.changed = threading.Condition()
        #: How often. Under `changed`.
        self.changes = 0
        #: What ran, for the timeline: (name, task id, begin and duration in ns, thread).
        self.events: deque[tuple[str, bytes, int, int, int]] = deque(maxlen=KEPT)
        self._loops: list[PrivateLoop] = []
        self.output = LocalOutput()
        self.values = LocalValues(self)
        self.submitter = LocalSubmitter(self)
        self.actors = LocalActors(self)
        self.cancels = LocalCancels(self)
        self.executor = LocalExecutor()
        object_ref.importer = self.import_ref

    # --- identity ------------------------------------------------------------------------------------------

    def new_process(self) -> bytes:
        """An id for what would be a process of its own."""
        return os.urandom(12)

    @property
    def process(self) -> bytes:
        """The id of the process in which the calling code would run in a session."""
        call = current_local.get()
        if call is None:
            return self._own_process
        return call.host.process if call.host is not None else self._task_process

    def next_number(self) -> int:
        """A number for a task or object."""
        return next(self._numbers)

    #: See Runtime.
    groups: Any = None
    captured = None

    def current_task_id(self) -> bytes | None:
        """The 24-byte id of the running task."""
        call = current_local.get()
        return call.task_id if call is not None else None

    def current_work(self) -> LocalCall | None:
        """What the calling code runs."""
        return current_local.get()

    def task_name(self) -> str:
        """The running task's name."""
        call = current_local.get()
        return (call.extra.name or call.function_name) if call is not None else ""

    def current_name(self) -> str:
        """The name of what runs in the calling code; of a call, with its class's."""
        call = current_local.get()
        return (call.extra.name or call.name) if call is not None else ""

    def function_name(self) -> str:
        """The running task's function."""
        call = current_local.get()
        return call.function_name if call is not None else ""

    @property
    def task_extra(self) -> m.TaskExtra | None:
        """The settings of the running task."""
        call = current_local.get()
        if call is None:
            return None
        resources, devices = call.extra.resources, {}
        if call.host is not None:
            resources, devices = call.host.creation.resources, call.host.devices
        elif resources:
            devices = self.devices_for(resources)
        return m.TaskExtra(resources=resources, devices=devices)

    def task_resources(self) -> dict[str, float]:
        """What the running task asked for."""
        extra = self.task_extra
        if extra is None:
            return {}
        amounts = extra.resources or {"CPU": m.RESOURCE_UNIT}
        return {name: amount / m.RESOURCE_UNIT for name, amount in amounts.items()}

    def devices_for(self, resources: m.Resources) -> dict[str, list[int]]:
        """Indices of devices for a task; all get the same, as one runs at a time."""
        found = {}
        for name, count in self._devices.items():
            if wanted := resources.get(name, 0):
                found[name] = list(range(min(count, -(-wanted // m.RESOURCE_UNIT))))
        return found

    def ask(self, make: Callable[[int], m.Message], *_hooks: Any) -> Any:
        """The answer to ClusterInfo; there is no node to ask anything else."""
        message = make(0)
        if not isinstance(message, m.ClusterInfo):
            raise NotImplementedError(f"{type(message).__name__} has no meaning with local_mode=True")
        return m.ClusterState(0, self._state())

    def _state(self) -> dict[str, Any]:
        welcome = self.welcome
        total = welcome.resources
        node = describe_node(welcome.node_id, total, 0, self._labels, "", os.getpid())
        return {
            "total": total,
            "available": total,
            "nodes": [node],
            "store": {"capacity_bytes": 0, "used_bytes": 0},
            "pending": [], "actors": [], "jobs": [], "workers": [],
        }  # fmt: skip

    # --- what a session's process does --------------------------------------------------------------------------

    def check_usable(self) -> None:
        """Raise if the session is over."""
        if self.ended is not None:
            raise exceptions.LocalNodeDiedError(self.ended)

    def notify(self) -> None:
        """Something may go on: let threads that wait look. Any thread."""
        with self.changed:
            self.changes += 1
            self.changed.notify_all()

    def call_soon(self, call: Callable[[], None]) -> None:
        """There is no loop to wait for."""
        call()

    def blocked(self) -> None:
        """Nobody else is waiting for this thread."""

    unblocked = blocked

    def block(self, waiter: Waiter, deadline: float | None) -> bool:
        """See :meth:`moray.runtime.runtime.Runtime.block`."""
        return waiter.wait() if deadline is None else waiter.wait(max(0.0, deadline - monotonic()))

    def new_waiter(self) -> Waiter:
        """A fresh waiter for this thread."""
        return Waiter()

    def after_fork_in_child(self) -> None:
        """All is here: a child goes on with a copy."""

    def can_import(self, _module: ModuleType) -> bool:
        """Everything that is imported here is imported."""
        return True

    def keep_code(self, source: Any) -> bytes:
        """Bytes that stand for a function or class, which is used as it is: so breakpoints in it hold."""
        token = b"local code %d" % self.next_number()
        self._code[token] = source
        return token

    def kept_code(self, token: bytes) -> Any:
        """The function or class."""
        return self._code[token]

    # --- references ----------------------------------------------------------------------------------------------

    def make_ref(self, entry: Entry) -> ObjectRef[Any]:
        """The ObjectRef of an entry that has none."""
        ref = new_ref(ObjectRef)
        ref._entry = entry
        return ref

    def make_watched_ref(self, entry: Entry) -> ObjectRef[Any]:
        """One whose end is noticed."""
        ref = self.make_ref(entry)
        alive = Alive(ref, self._ends.append)
        alive.entry = entry
        alive.counted = False
        entry.alive = alive
        return ref

    def escape(self, entry: Entry, ref: ObjectRef[Any]) -> None:
        """`ref` is being pickled: whatever contains it keeps it."""
        self._escaped[entry.id] = ref
        if context.contained is not None:
            context.contained.append(ref)
        else:
            self._pinned.append(ref)

    def import_ref(self, binary: bytes) -> ObjectRef[Any]:
        """The reference of an id that was unpickled."""
        ref = self._escaped.get(binary)
        if ref is None:
            raise exceptions.ObjectLostError(f"object {binary.hex()} is not known here, or not any more")
        return ref

    def future(self, ref: ObjectRef[Any]) -> Any:
        """See :meth:`ObjectRef.future`."""
        return self.values.future(ref)

    def await_ref(self, ref: ObjectRef[Any]) -> Any:
        """See ``ObjectRef.__await__``."""
        return self.values.await_ref(ref)

    def task_id_of(self, entry: Entry) -> bytes:
        """The 24 bytes of the task that makes an object."""
        return entry.id[:24]

    # --- what is left to do ------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """End actors without handles and generators without readers."""
        while self._ends:
            task = self._ends.popleft().entry.task
            if isinstance(task, Life):
                self.actors.released(task.actor)
        while self.dropped:
            self.dropped.popleft().cancel()

    def run_deferred(self) -> None:
        """Run what has got its arguments by now."""
        for call in list(self.deferred):
            if not call.missing():
                try:
                    self.deferred.remove(call)
                except ValueError:
                    continue  # Another thread has it.
                if call.host is not None:
                    call.host.run(call)
                else:
                    call.run()

    def borrow_loop(self) -> PrivateLoop:
        """An event loop that nobody uses."""
        try:
            return self._loops.pop()
        except IndexError:
            return PrivateLoop()

    def return_loop(self, loop: PrivateLoop) -> None:
        """It is not used any more."""
        self._loops.append(loop)

    def stop(self) -> None:
        """End the session."""
        self.settle()
        self.closing = True
        for call in list(self.deferred):
            call.cancel()
        self.actors.end_all()
        self.ended = "moray.shutdown() was called"
        while self._loops:
            self._loops.pop().end()
        self._code.clear()
        self._pinned.clear()
        if object_ref.importer == self.import_ref:
            object_ref.importer = None
        self.origin.runtime = Unusable(f"session {self.welcome.session} has ended, and its references with it")


class LocalExecutor:
    """Where code asks which actor it runs in."""

    @property
    def host(self) -> LocalActor | None:
        """The actor."""
        call = current_local.get()
        return call.host if call is not None else None


class LocalOutput:
    """Prints go where they go."""

    pending: Final = False

    def send_bar(self, _bar: Any) -> None:
        """Progress bars draw themselves: nobody else does."""

    end_bar = send_bar


class LocalSubmitter:
    """Runs tasks. `LocalRuntime.submitter`."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime

    def pool(self, _resources: m.Resources, _environment: str, _name: str, _strategy: object = None) -> None:
        """Nothing waits for resources."""

    def submit(self, function: Function, settings: TaskSettings, prepared: Prepared | None) -> Any:
        """Run a task: an ObjectRef, a list of them, None (num_returns=0), or an ObjectRefGenerator."""
        runtime = self._runtime
        runtime.settle()
        call = LocalCall(runtime, settings, prepared, runtime.kept_code(function.blob))
        returned, stream = call.open()
        if stream is not None:
            for entry in call.missing():
                runtime.values.wait_for([entry], None)
            stream.run()
        elif call.missing():
            runtime.deferred.append(call)
        else:
            call.run()
        runtime.run_deferred()
        return returned


class LocalCancels:
    """Ends what has not ended. `LocalRuntime.cancels`."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime

    def cancel(self, ref: ObjectRef[Any], force: bool, _recursive: bool) -> None:
        """End the task that makes this object."""
        task = ref._entry.task
        if force and isinstance(task, LocalCall) and task.host is not None:
            raise ValueError(
                "cancel(force=True) would end the whole actor for one call: use force=False, or moray.kill(actor)"
            )
        if task is not None and not ref._entry.ready:
            task.cancel()
            self._runtime.run_deferred()


class LocalValues:
    """All objects. `LocalRuntime.values`."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()

    # --- making ---------------------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store a value."""
        if type(value) is ObjectRef:
            raise TypeError(
                "put() of an ObjectRef would make a reference to a reference; pass the ObjectRef itself, "
                "or put a list that contains it"
            )
        return self.put_serialized(serialize_for_put(value))

    def put_serialized(self, serialized: Serialized) -> ObjectRef[Any]:
        """Store an already serialised value."""
        runtime = self._runtime
        entry = Entry(runtime.origin, runtime.next_number() << 32)
        self.publish(entry, serialized)
        return runtime.make_ref(entry)

    def publish(self, entry: Entry, serialized: Serialized, error: bool = False) -> None:
        """Give an entry its value, and wake whoever waits for it."""
        entry.blob = serialized.to_bytes()
        entry.contained = serialized.contained or None
        entry.error = error
        entry.task = None
        entry.ready = True
        with self._lock:
            waiters, entry.waiters = entry.waiters, None
        for notify in waiters or ():
            notify()
        self._runtime.notify()

    def error_of(self, entry: Entry) -> Serialized:
        """The error that an entry is, for another one."""
        return Serialized(entry.blob or b"", [], list(entry.contained or ()))

    # --- reading ----------------------------------------------------------------------------------------------

    def get_one(self, ref: ObjectRef[Any], timeout_s: float | None) -> Any:
        """The value of one reference."""
        return self.get_many([ref], timeout_s)[0]

    def get_many(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """The values in the order of the references; the first error that is known is raised."""
        entries = [ref._entry for ref in refs]
        if not all(entry.ready for entry in entries) and not any(entry.error for entry in entries):
            self.wait_for(entries, timeout_s)
        for entry in entries:
            if entry.ready and entry.error:
                self.load(entry)
        return [self.load(entry) for entry in entries]

    def load(self, entry: Entry) -> Any:
        """The value of a ready entry, made anew; or raise the error that it is."""
        if entry.origin.runtime is not self._runtime:
            raise of_ended_session(entry)
        assert entry.blob is not None
        if entry.error:
            raise load_error(entry.blob, None)
        return loads(entry.blob)

    def wait_for(self, entries: list[Entry], timeout_s: float | None) -> None:
        """Return when all are ready, or one is an error. Raises GetTimeoutError."""
        self._runtime.settle()
        deadline = None if timeout_s is None else monotonic() + timeout_s

        def done() -> bool:
            return all(entry.ready for entry in entries) or any(entry.ready and entry.error for entry in entries)

        if not self._drive_until(entries, done, deadline):
            missing = [entry for entry in entries if not entry.ready]
            task = missing[0].task
            name = task.name if isinstance(task, LocalCall) else "a generator"
            raise exceptions.GetTimeoutError(
                f"get() timed out after {timeout_s} s: {len(missing)} of {len(entries)} objects are not ready. "
                f"With local_mode=True everything runs when it is submitted; {name} waits for another call."
            )

    def _drive_until(self, entries: list[Entry], done: Callable[[], bool], deadline: float | None) -> bool:
        """Work on what is not ready until `done()`: False: the deadline came first."""
        runtime = self._runtime
        while True:
            runtime.check_usable()
            seen = runtime.changes
            for entry in entries:
                if not entry.ready and not done():
                    self.drive(entry, deadline)
            left = None if deadline is None else max(0.0, deadline - monotonic())
            with runtime.changed:
                # What has come to a stop here goes on when another thread brings what it waits for.
                runtime.changed.wait_for(lambda seen=seen: done() or runtime.changes != seen, left)  # type: ignore[misc]
                if done() or left == 0.0:
                    return done()

    def drive(self, entry: Entry, deadline: float | None) -> None:
        """Try to get an entry ready until the deadline."""
        task = entry.task
        if task is not None and not entry.ready:
            task.drive(deadline)
            self._runtime.run_deferred()

    def wait(self, refs: list[Any], num_returns: int, timeout_s: float | None) -> tuple[list[Any], list[Any]]:
        """Split `refs` into at most `num_returns` ready ones and the rest, both in the given order."""
        runtime = self._runtime
        runtime.settle()
        entries: list[Any] = [ref._entry for ref in refs]

        def done() -> bool:
            return sum(1 for entry in entries if entry.ready) >= num_returns

        if not done() and timeout_s != 0:
            waiting = [entry for entry in entries if isinstance(entry, Entry)]
            self._drive_until(waiting, done, None if timeout_s is None else monotonic() + timeout_s)
        ready = [ref for ref in refs if ref._entry.ready][:num_returns]
        chosen = set(ready)
        return ready, [ref for ref in refs if ref not in chosen]

    # --- waiting elsewhere ---------------------------------------------------------------------------------------

    def subscribe(self, entry: Any, notify: Callable[[], None]) -> bool:
        """Have `notify` called once `entry` is ready; or True, and no call, if it is already."""
        with self._lock:
            if entry.ready:
                return True
            if entry.waiters is None:
                entry.waiters = []
            entry.waiters.append(notify)
        return False

    def note_wait(self, key: Any, how: str, entries: Sequence[Any]) -> None:
        """Nobody else runs here who could ask about a wait."""

    def forget_wait(self, key: Any) -> None:
        """See `note_wait`."""

    def _unsubscribe(self, entries: Sequence[Any], notify: Callable[[], None]) -> bool:
        found = False
        with self._lock:
            for entry in entries:
                if entry.waiters is not None and notify in entry.waiters:
                    entry.waiters.remove(notify)
                    found = True
        return found

    def future(self, ref: ObjectRef[Any]) -> Future[Any]:
        """A future that gets the value."""
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def complete() -> None:
            try:
                value = self.load(ref._entry)
            except BaseException as error:  # noqa: BLE001 - it is the future's to raise.
                future.set_exception(error)
            else:
                future.set_result(value)

        if self.subscribe(ref._entry, complete):
            complete()
        return future

    def await_ref(self, ref: ObjectRef[Any]) -> Generator[Any, None, Any]:
        """Wait in the running asyncio loop."""
        import asyncio

        entry = ref._entry
        if isinstance(entry.task, LocalStream):
            entry.task.finish()
        if not entry.ready:
            loop = asyncio.get_running_loop()
            event = asyncio.Event()

            def notify() -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

            if not self.subscribe(entry, notify):
                try:
                    yield from event.wait().__await__()
                finally:
                    self._unsubscribe((entry,), notify)
        return self.load(entry)
