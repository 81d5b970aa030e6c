"""put, get and wait: values in this process's memory and in the node's store.

An entry becomes *ready* in one of three ways: it was put here, its task's result arrived
(:mod:`moray.runtime.submission`), or its owner answered our Fetch (:mod:`moray.runtime.fetching`). ``get`` waits for
that and then reads the value in the calling thread; the loop never unpickles (CALLBACKS).

**Large values** (over :data:`~moray.config.INLINE_MAX_BYTES`) are written straight into the node's arena
and read in place. One pin at the node covers all views in this process; it ends when the last array
over the memory is gone (STORE-PIN).
"""

from __future__ import annotations

from _thread import get_ident
from collections import deque
from collections.abc import Callable, Generator, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from moray import config, exceptions
from moray.object_ref import Entry, ObjectRef
from moray.protocol import messages as m
from moray.runtime.callbacks import Callbacks
from moray.runtime.explain_answers import why_pending
from moray.runtime.fetching import Fetching
from moray.runtime.places import Places
from moray.runtime.references import MANY, Contains, TaskToken
from moray.runtime.space import NOTHING_TO_FREE, Space
from moray.runtime.task_errors import ArgumentLostError
from moray.runtime.tasks import Life
from moray.runtime.unusable import of_ended_session
from moray.runtime.waits import Wait, answered
from moray.runtime.writing import Writer, store_error
from moray.serialization import Serialized, loads, loads_covered, serialize
from moray.store.client import StoreClient

if TYPE_CHECKING:
    from concurrent.futures import Future

    from moray.runtime.runtime import Runtime, Waiter


class Values:
    """The objects that this process owns or has fetched."""

    def __init__(self, runtime: Runtime, arena: int) -> None:
        self._runtime = runtime
        self.store = StoreClient(arena, runtime.welcome.arena_bytes)
        #: Where the next objects can be written without asking.
        self.space = Space(runtime)
        #: Where stored objects lie that are not here.
        self.places = Places(runtime)
        writer = Writer(runtime, self)
        self.write = writer.write
        self.write_own = writer.write_own
        self.write_soon = writer.write_soon
        #: Ids whose last view has gone; filled by finalizers in any thread (DEL).
        self._unpinned: deque[bytes] = deque()
        #: Keys of our objects in the store. Threads add, the loop removes.
        self._stored: set[int] = set()
        #: Store objects that nobody refers to any more; told to the node once a turn. Loop only.
        self._free: list[bytes] = []
        #: What goes between owners and borrowers; threads add what they want.
        fetching = Fetching(runtime, self)
        self._ask = fetching.ask
        self._wanted = fetching.wanted
        self._asked = fetching.asked
        self.want = fetching.want
        self.ask_again = fetching.ask_again
        self.when_ready = fetching.when_ready
        self.owner_died = fetching.owner_died
        #: Threads in `get`, woken by errors → what they wait for (:class:`~moray.runtime.waits.Wait`, as a tuple).
        self._getters: dict[Waiter, tuple[Any, ...]] = {}
        #: The same of other waits, by anything of their own.
        self._waits: dict[Any, tuple[Any, ...]] = {}
        #: How many errors have arrived.
        self._errors = 0
        self.callbacks = Callbacks()

    # --- put ------------------------------------------------------------------------------------------

    def put(self, value: Any) -> ObjectRef[Any]:
        """Store `value` as an object that this process owns."""
        if type(value) is ObjectRef:
            raise TypeError(
                "put() of an ObjectRef would make a reference to a reference; pass the ObjectRef itself, "
                "or put a list that contains it"
            )
        return self.put_serialized(serialize_for_put(value))

    def put_serialized(self, serialized: Serialized) -> ObjectRef[Any]:
        """Store an already serialised value."""
        runtime = self._runtime
        entry = Entry(runtime.origin, next(runtime.sequence) << 32)
        ref = runtime.make_ref(entry)
        if serialized.contained:
            entry.contained = serialized.contained
            runtime.events.append(Contains(entry, serialized.contained))
        if serialized.size <= config.INLINE_MAX_BYTES:
            entry.blob = serialized.blob if serialized.blob is not None else serialized.to_bytes()
        else:
            self._stored.add(entry.key)
            entry.size = serialized.size  # From now on its end frees what an interrupted write may leave (INTERRUPT).
            self.write_own(entry, serialized)
        entry.ready = True
        return ref

    def book_drops(self) -> None:
        """Tell the node of all objects that were put or dropped before this call. Loop only."""
        self._runtime.references.flush()
        self.space.tell()
        self.flush()

    # --- get ---------------------------------------------------------------------------------------------

    def get_one(self, ref: ObjectRef[Any], timeout_s: float | None) -> Any:
        """The value of one reference."""
        entry = ref._entry
        deadline = None if timeout_s is None else monotonic() + timeout_s
        if not entry.ready:
            if timeout_s is None:
                self.wait_for_one(entry)
            else:
                self.wait_for([entry], timeout_s)
        if self._runtime.output.pending:
            self._runtime.output.drain()
        return self.load(entry, deadline)

    def get_many(self, refs: Sequence[ObjectRef[Any]], timeout_s: float | None) -> list[Any]:
        """The values in the order of the references; the first error that is known is raised."""
        deadline = None if timeout_s is None else monotonic() + timeout_s
        entries = [ref._entry for ref in refs]
        if not all(entry.ready for entry in entries):
            self.wait_for(entries, timeout_s)
            if not all(entry.ready for entry in entries):
                # None, if one was lost just now: its load waits.
                entries = [entry for entry in entries if entry.ready and entry.error] or entries
        if self._runtime.output.pending:
            self._runtime.output.drain()
        load = self.load
        try:
            return [load(entry, deadline) for entry in entries]
        except BaseException:
            for ref in refs:
                ref._entry.seen = True  # One error is raised for all.
            raise

    def wait_for_one(self, entry: Entry) -> None:
        """`wait_for`, for the most frequent case: one entry, without a limit."""
        runtime = self._runtime
        runtime.check_usable()
        waiter = runtime.new_waiter()
        notify = waiter.notify
        try:
            work = runtime.current_work() if runtime.concurrent else runtime.work
            self._getters[waiter] = "get()", (entry,), 0, monotonic(), work, get_ident(), None
            if self.subscribe(entry, notify) or answered(runtime, entry, waiter, None):
                return
            runtime.blocked()
            try:
                if self._stored and runtime.events:
                    runtime.wake()  # This thread has time now: let the loop book what was dropped.
                while not entry.ready:
                    runtime.block(waiter, None)
            finally:
                runtime.unblocked()
        finally:
            self._getters.pop(waiter, None)
            if not entry.ready:
                self._unsubscribe((entry,), notify)

    def wait_for(self, entries: list[Entry], timeout_s: float | None) -> None:
        """Return when all are ready, or raise the first error among them as soon as it is there."""
        runtime = self._runtime
        runtime.check_usable()
        deadline = None if timeout_s is None else monotonic() + timeout_s
        waiter = runtime.new_waiter()
        seen_errors = self._errors
        blocked = False
        entry = entries[-1]
        try:
            work = runtime.current_work() if runtime.concurrent else runtime.work
            self._getters[waiter] = "get()", entries, 0, monotonic(), work, get_ident(), timeout_s
            if any(entry.error and entry.ready for entry in entries):
                return
            # From the end: most often the last one is ready last, and one wake-up does for all.
            for entry in reversed(entries):
                known = entry.ready or self.subscribe(entry, waiter.notify)
                if known or (not blocked and answered(runtime, entry, waiter, deadline)):
                    continue
                while not entry.ready:
                    if not blocked:
                        blocked = True
                        runtime.blocked()
                        if self._stored and runtime.events:
                            runtime.wake()  # This thread has time now: let the loop book what was dropped.
                    if not runtime.block(waiter, deadline):
                        if entry.ready:
                            break  # type: ignore[unreachable]  # The loop has set it meanwhile.
                        raise self._timed_out(entries, timeout_s)
                    if self._errors != seen_errors:
                        seen_errors = self._errors
                        if any(entry.ready and entry.error for entry in entries):
                            return
        finally:
            self._getters.pop(waiter, None)
            self._unsubscribe((entry,), waiter.notify)
            if blocked:
                runtime.unblocked()

    def _timed_out(self, entries: list[Entry], timeout_s: float | None) -> exceptions.GetTimeoutError:
        missing = sum(not entry.ready for entry in entries)
        return exceptions.GetTimeoutError(
            f"get() timed out after {timeout_s} s: {missing} of {len(entries)} objects are not ready. "
            + why_pending(self._runtime, next(entry for entry in entries if not entry.ready))
            if missing
            else f"get() timed out after {timeout_s} s"
        )

    def note_wait(
        self, key: Any, how: str, entries: Sequence[Any], needed: int = 0, timeout_s: float | None = None
    ) -> None:
        """The calling thread, or its coroutine, begins to wait; `key` is anything of its own, for `forget_wait`."""
        runtime = self._runtime
        work = runtime.current_work() if runtime.concurrent else runtime.work
        thread = get_ident() if how in ("get()", "wait()", "next()") else 0
        self._waits[key] = how, entries, needed, monotonic(), work, thread, timeout_s
        runtime.explainer.arm()

    def forget_wait(self, key: Any) -> None:
        """The wait is over, if it was ever noted."""
        self._waits.pop(key, None)

    def waits(self) -> list[Wait]:
        """What this process's threads and coroutines wait for now. Loop only."""
        noted = [*list(self._getters.values()), *list(self._waits.values())]
        return [wait for wait in map(Wait._make, noted) if wait.lacks() > 0]

    def subscribe(self, entry: Entry, notify: Callable[[], None]) -> bool:
        """Have the loop call `notify` once `entry` is ready; or True, and no call, if it is already. Any thread."""
        with self._runtime.waiter_lock:
            if entry.waiters is None:
                entry.waiters = [notify]
            else:
                entry.waiters.append(notify)
        if entry.ready:
            return self._unsubscribe((entry,), notify)  # False: the loop was quicker, and calls.
        if entry.origin is not self._runtime.origin:
            self._wanted.append(entry)
            self._runtime.wake()
        return False

    def load(self, entry: Entry, deadline: float | None = None) -> Any:
        """The value of a ready entry, made anew; or raise the error that it is. Not in the loop. `deadline`: for
        waiting again, if it turns out to be lost."""
        if entry.origin.runtime is not self._runtime:
            raise of_ended_session(entry)
        blob: bytes | memoryview | None = entry.blob
        error = entry.error
        if blob is None:
            blob, error = self._runtime.recovery.read(entry, deadline)
        if error:
            entry.seen = True
            raise load_error(blob, entry if entry.contained is not None else None)
        contained = entry.contained
        if contained is not None:
            if len(contained) >= MANY and type(contained[0]) is bytes:
                return loads_covered(blob, entry, self._runtime.references.import_all(contained, entry))
            return loads_covered(blob, entry)
        return loads(blob)

    def load_argument(self, argument: m.Argument, token: TaskToken, waits: bool) -> Any:
        """The value of a task's top-level reference; `token` covers what is inside it. If it is lost: `waits`, or
        raises ArgumentLostError."""
        blob: bytes | memoryview | None = argument.blob
        if blob is None:
            node = self.places.understood(argument.object, argument.node)
            try:
                blob = self.map_stored(argument.object, node, argument.size, priority=1)
            except exceptions.ObjectLostError as error:
                lost = ArgumentLostError(str(error))
                lost.what = argument.object + (node or self.places.tag)
                if waits and self._runtime.remote is not None:
                    return self._runtime.recovery.wait_for_argument(lost, token)
                raise lost from error
        return loads_covered(blob, token)

    def map_stored(self, object_id: bytes, node: bytes, size: int, priority: int = 0) -> memoryview:
        """The bytes of a stored object, read-only and in place. One pin serves all views of this process.

        `node`: which has it, if not this one; then, who waits: 0 a get, 1 a task."""
        runtime = self._runtime

        def unpin(answer: Any) -> None:
            if isinstance(answer, m.ObjectPinned):
                self._on_unpinned(object_id)

        answer = runtime.ask(lambda number: m.PinObject(number, object_id, node, size, priority), unpin)
        if isinstance(answer, m.StoreError):
            raise store_error(answer, object_id)
        return self.store.reader(object_id, answer.offset, answer.size, answer.path, self._on_unpinned)

    def _on_unpinned(self, object_id: bytes) -> None:
        """The last view of an object has gone. Any thread, in a finalizer: append only."""
        self._unpinned.append(object_id)

    # --- wait ---------------------------------------------------------------------------------------------------

    def wait(
        self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        """Split `refs` into at most `num_returns` ready ones and the rest, both in the given order."""
        if num_returns == 1 and refs[0]._entry.ready:
            return refs[:1], refs[1:]
        if (enough := self._ready_prefix(refs, num_returns)) is not None:
            return enough
        if timeout_s == 0:
            self._start_fetching(refs)
        else:
            self._wait_until(refs, num_returns, timeout_s)
        if self._runtime.output.pending:
            self._runtime.output.drain()
        return self._split(refs, num_returns)

    def _ready_prefix(
        self, refs: list[ObjectRef[Any]], num_returns: int
    ) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]] | None:
        """The split, if enough are ready now; looks no further than needed."""
        found = 0
        for position, ref in enumerate(refs):
            if ref._entry.ready:
                found += 1
                if found == num_returns:
                    ready = [ref for ref in refs[: position + 1] if ref._entry.ready]
                    if len(ready) > num_returns:
                        ready = ready[:num_returns]
                    chosen = set(ready)
                    return ready, [ref for ref in refs[: position + 1] if ref not in chosen] + refs[position + 1 :]
        return None

    def _start_fetching(self, refs: list[ObjectRef[Any]]) -> None:
        for ref in refs:
            entry = ref._entry
            if not entry.ready and entry.origin is not self._runtime.origin:
                self._wanted.append(entry)
        self._runtime.wake()

    def _wait_until(self, refs: list[ObjectRef[Any]], num_returns: int, timeout_s: float | None) -> None:
        runtime = self._runtime
        runtime.check_usable()
        deadline = None if timeout_s is None else monotonic() + timeout_s
        waiter = runtime.new_waiter()
        counted: deque[None] = deque()

        def notify() -> None:
            counted.append(None)
            if len(counted) >= num_returns:
                waiter.notify()

        subscribed = []
        for ref in refs:
            if not ref._entry.ready and not self.subscribe(ref._entry, notify):
                subscribed.append(ref._entry)
                continue
            counted.append(None)
        runtime.blocked()
        try:
            self.note_wait(waiter, "wait()", [ref._entry for ref in refs], num_returns, timeout_s)
            while len(counted) < num_returns:
                if not runtime.block(waiter, deadline):
                    break
        finally:
            self.forget_wait(waiter)
            runtime.unblocked()
            self._unsubscribe(subscribed, notify)

    def _unsubscribe(self, entries: Sequence[Entry], notify: Callable[[], None]) -> bool:
        """Take `notify` back; whether any of the entries still had it."""
        found = False
        with self._runtime.waiter_lock:
            for entry in entries:
                if entry.waiters is not None and notify in entry.waiters:
                    entry.waiters.remove(notify)
                    found = True
        return found

    def _split(self, refs: list[ObjectRef[Any]], num_returns: int) -> tuple[list[ObjectRef[Any]], list[ObjectRef[Any]]]:
        ready = [ref for ref in refs if ref._entry.ready][:num_returns]
        chosen = set(ready)
        return ready, [ref for ref in refs if ref not in chosen]

    # --- futures (CALLBACKS) ---------------------------------------------------------------------------------------

    def future(self, ref: ObjectRef[Any]) -> Future[Any]:
        """A future completed by the callback thread."""
        from concurrent.futures import Future

        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()

        def complete() -> None:
            if future.done():
                return  # Both the loop and this method saw the value come.
            try:
                value = self.load(ref._entry)
            except BaseException as error:  # noqa: BLE001 - it is the future's to raise.
                future.set_exception(error)
            else:
                future.set_result(value)

        def ready() -> None:
            self.callbacks.post(complete)

        if not ref._entry.ready:
            self._runtime.check_usable()
        if ref._entry.ready or self.subscribe(ref._entry, ready):
            ready()
        return future

    def await_ref(self, ref: ObjectRef[Any]) -> Generator[Any, None, Any]:
        """Wait in the running asyncio loop; the value is read in that loop's thread."""
        import asyncio

        entry = ref._entry
        if not entry.ready:
            loop = asyncio.get_running_loop()
            event = asyncio.Event()

            def notify() -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(event.set)

            def ready() -> None:
                # Not in our loop's thread: a closed asyncio loop raises, and is nobody's problem.
                self.callbacks.post(notify)

            self._runtime.check_usable()
            try:
                if not self.subscribe(entry, ready):
                    self.note_wait(event, "await", (entry,))
                    yield from event.wait().__await__()
            finally:
                self.forget_wait(event)
                if not entry.ready:
                    self._unsubscribe((entry,), ready)
        if self._runtime.output.pending:
            self._runtime.output.drain()
        return self.load(entry)

    # --- the loop's side ----------------------------------------------------------------------

    def ready(self, entry: Entry) -> None:
        """`entry`'s value fields are set: publish it. Loop only."""
        entry.ready = True
        if entry.error:
            self._errors += 1
            for waiter in list(self._getters):
                waiter.notify()
        if entry.waiters is not None:
            self.notify(entry)

    def notify(self, entry: Entry) -> None:
        """Call whoever waits for a ready entry. Loop only."""
        with self._runtime.waiter_lock:
            waiters, entry.waiters = entry.waiters, None
        for notify in waiters or ():
            notify()

    def note_stored(self, entry: Entry, node: bytes) -> None:
        """A result of ours lies in the store of the node with this tag. Loop only."""
        self._stored.add(entry.key)
        self.places.note(entry, node)

    def note_stray(self, task: Any, node: bytes) -> None:
        """An attempt of a task died at this node. Loop only."""
        for entry in task.entries if task.entries is not None else [task.entry]:
            if entry is not None:
                self.places.note_stray(entry, node)

    def forget_stored(self, entry: Entry, node: bytes = b"") -> None:
        """The task failed for good; an attempt may have left its result in the store before it died, here or (`node`)
        elsewhere. Loop only."""
        self._free.append(entry.id)
        if node and node != self.places.tag:
            self.places.note_stray(entry, node)
        self.places.end_strays(entry.id)

    def release(self, entry: Entry) -> None:
        """Nothing refers to the object any more: give up its value (REF-FREE). Loop only."""
        if entry.error:
            self._runtime.unfetched.released(entry)
        entry.contained = None
        if type(entry.task) is Life:
            self._runtime.actors.released(entry.task)
        entry.task = None
        self.give_up(entry)
        entry.blob = None

    def give_up(self, entry: Entry) -> None:
        """What is stored of the object is needed no more. Loop only."""
        if entry.size and entry.origin is self._runtime.origin:
            self._stored.discard(entry.key)
            self._runtime.recovery.freed(entry)
            if self.places.forget(entry, ours=True) or entry.size == NOTHING_TO_FREE or self.space.reuse(entry):
                pass  # It is not in this node's store.
            else:
                self._free.append(entry.id)
        elif entry.size:
            self.places.forget(entry, ours=False)

    def fail(self, entry: Entry, error: BaseException) -> None:
        """Make `entry` ready as an error. Loop only (the error is ours: pickling it runs no user code)."""
        entry.error = True  # Before the blob: a thread may be reading what was lost (LINEAGE).
        entry.blob = dump_error(error)
        self.ready(entry)

    def session_ended(self, reason: str) -> None:
        """Wake every thread that waits for a value."""
        for waiter in list(self._getters):
            waiter.notify()
        for origin in list(self._runtime.origins.values()):
            for entry in list(origin.entries.values()):
                if not entry.ready:
                    self.fail(entry, exceptions.LocalNodeDiedError(reason))

    def flush(self) -> None:
        """Once a turn: tell the node what was unpinned and freed, and ask owners for what is wanted."""
        if self._unpinned:
            unpinned = [self._unpinned.popleft() for _ in range(len(self._unpinned))]
            self._runtime.node.send(m.UnpinObjects(unpinned))
        if self._free:
            free, self._free = self._free, []
            self._runtime.node.send(m.FreeObjects(free))
        self.places.flush()
        self.space.flush()
        if self._wanted:
            self._ask()

    def close(self) -> None:
        """The runtime ends; memory under the user's views stays (LIVENESS)."""
        self.callbacks.close()
        self.store.close()


def serialize_for_put(value: Any) -> Serialized:
    """Serialise a value of put(), explaining what cannot be."""
    try:
        return serialize(value)
    except Exception as error:
        raise unpicklable(value, "the value", error) from error


def unpicklable(value: Any, name: str, error: BaseException) -> BaseException:
    """The error to raise for a value that does not pickle: a TypeError that names the part and the reason."""
    if isinstance(error, RecursionError):
        return RecursionError(
            f"{name} is nested too deeply to be serialised (Python's recursion limit): flatten it, "
            "or raise sys.setrecursionlimit() here and in the worker"
        )
    if isinstance(error, exceptions.MorayError):
        return error  # A reference in it cannot be used any more, and says why.
    from moray.check_serialize import explain_unpicklable

    return TypeError(explain_unpicklable(value, name))


def dump_error(error: BaseException) -> bytes:
    """The blob of an error."""
    return serialize(error).to_bytes()


def load_error(blob: bytes | memoryview, cover: Entry | None) -> BaseException:
    """The exception to raise for an error blob: a TaskError as its dual type. `cover`: if it contains references."""
    error: Any = loads_covered(blob, cover) if cover is not None else loads(blob)
    if isinstance(error, exceptions.TaskError):
        return error.as_instanceof_cause()
    return error if isinstance(error, BaseException) else exceptions.ObjectFreedError("it was freed while it was read")
