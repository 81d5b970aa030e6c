"""Actors of local mode: instances in this process, whose methods run in the thread that calls them."""

from __future__ import annotations

import threading
import weakref
from _thread import get_ident
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from moray import exceptions
from moray.object_ref import Entry, ObjectRef
from moray.runtime.actor_host import ActorExit
from moray.runtime.actor_meta import decode
from moray.runtime.actors import ConstructorError
from moray.runtime.local_calls import LocalCall
from moray.runtime.local_loop import PrivateLoop
from moray.runtime.tasks import CallSettings, Life
from moray.serialization import NONE_BLOB, Serialized, serialize

if TYPE_CHECKING:
    from moray.protocol import messages as m
    from moray.runtime.arguments import Prepared
    from moray.runtime.local_calls import LocalStream
    from moray.runtime.local_mode import LocalRuntime

_CONSTRUCTOR: Final = "__init__"
#: Dead actors whose end is remembered.
_DEAD_KEPT: Final = 1000


class LocalActor:
    """One actor: what handles call, what `Callee` is in a session, and, for code that runs in it, its `ActorHost`."""

    def __init__(self, runtime: LocalRuntime, actor: bytes, creator: bytes) -> None:
        self._runtime = runtime
        self.actor = actor
        self.creator = creator
        self.class_name = ""
        self.max_pending = -1
        self.ordered = True
        self.creation: Any = None
        self.devices: dict[str, list[int]] = {}
        #: In place of its worker's.
        self.process = runtime.new_process()
        self.incarnation = 0
        self.restarts_left = 0
        self.name: tuple[str, str] | None = None
        self.instance: Any = None
        #: Why it is dead; "" while it lives. The pickled error of its constructor, if that is why.
        self.reason = "it has ended"
        self.error: Serialized | None = None
        #: exit_actor() was called.
        self._leaves = False
        #: The constructor's arguments, for restarts.
        self._prepared: Prepared | None = None
        #: Of an ordinary actor: one call at a time.
        self.lock: Any = None
        #: Of an async actor.
        self.loop: PrivateLoop | None = None
        #: The thread that turns the loop. Under `runtime.changed`.
        self._driver: int | None = None
        #: Another thread would have liked to. Under `runtime.changed`.
        self._passed_over = False
        #: Coroutines that have not ended.
        self._pending: dict[LocalCall, None] = {}
        #: Generators of an ordinary actor that may not have ended: the next call comes after all their items.
        self._streams: list[weakref.ref[LocalStream]] = []
        #: An error of a coroutine that is meant for whoever turns the loop.
        self._thrown: BaseException | None = None
        self._special: dict[str, Callable[..., Any]] = {
            "__ray_ready__": lambda: True,
            "__ray_call__": lambda function, *args, **kwargs: function(self.instance, *args, **kwargs),
            "__ray_terminate__": self._terminate,
        }

    # --- life ----------------------------------------------------------------------------------------------

    def create(self, spec: m.ActorSpec, creation: m.Creation, prepared: Prepared | None) -> None:
        """Run the constructor."""
        self.reason = ""
        self.class_name = spec.class_name
        self.creation = creation
        self.restarts_left = spec.max_restarts
        self.name = (spec.namespace, spec.name) if spec.name else None
        self._prepared = prepared
        if not decode(spec.meta).asynchronous and creation.max_concurrency == 1 and not creation.groups:
            self.lock = threading.RLock()
        self.devices = self._runtime.devices_for(creation.resources)
        self._construct()

    def _construct(self) -> None:
        runtime = self._runtime
        kind = runtime.kept_code(self.creation.blob)
        name = f"{self.class_name}.{_CONSTRUCTOR}"
        settings = CallSettings(None, name, 0, 1, None, method=_CONSTRUCTOR)
        call = LocalCall(runtime, settings, self._prepared, None, self)
        call.payload = call.payload or self.creation.payload
        for entry in call.missing():
            runtime.values.wait_for([entry], None)

        def construct(*args: Any, **kwargs: Any) -> None:
            self.instance = kind(*args, **kwargs)

        async def construct_async(*args: Any, **kwargs: Any) -> None:
            self.instance = kind(*args, **kwargs)

        entry = call.entries[0]
        if self.creation.asynchronous:
            self.loop = PrivateLoop(self._runtime.notify)
            call.function = construct_async
            self._spawn(call)
            self.drive(call.entries_ready, True, None)
        else:
            call.function = construct
            with self.lock or nullcontext():
                call.run()
        if entry.error and not self.reason:
            packed = runtime.values.error_of(entry)
            blob = serialize(ConstructorError(packed.to_bytes(), self.actor.hex())).to_bytes()
            self.end("its constructor raised", Serialized(blob, [], packed.contained))

    def find(self, method: str) -> Callable[..., Any]:
        """The bound method; three names mean something in every actor."""
        found: Callable[..., Any] = self._special.get(method) or getattr(self.instance, method)
        return found

    def _terminate(self) -> None:
        raise ActorExit(0)

    def end(self, reason: str, error: Serialized | None = None) -> None:
        """It is dead for good."""
        if self.reason:
            return
        self.reason = reason
        self.error = error
        self._runtime.actors.ended(self)
        self._drop_instance()

    def restart_or_end(self, reason: str) -> None:
        """Its process would have died: make it again if it has restarts left."""
        if self.reason:
            return
        if not self.restarts_left:
            self.end(reason)
            return
        self.restarts_left -= self.restarts_left > 0
        self.incarnation += 1
        self.process = self._runtime.new_process()
        self._drop_instance()
        self._construct()

    def _drop_instance(self) -> None:
        self.instance = None
        pending, self._pending = self._pending, {}
        for call in pending:
            verdict = self.judge(call, None)
            if verdict is not None:
                call.fail_with(serialize(verdict) if self.error is None else self.error)
        loop, self.loop = self.loop, None
        if loop is not None:
            if self._driver is None:
                loop.end()
            else:
                self._runtime.return_loop(loop)  # Code of the actor is on the stack: the loop ends with the session.

    def release(self) -> None:
        """The last handle is gone."""
        if not self.reason:
            self._farewell()
            self.end("no handle of it is left")

    def _farewell(self) -> None:
        shutdown = getattr(self.instance, "__ray_shutdown__", None)
        if shutdown is not None:
            try:
                shutdown()
            except Exception:  # noqa: BLE001 - the actor ends anyway; the user sees why it was not in peace.
                import traceback

                traceback.print_exc()

    def leave_after_this(self) -> None:
        """exit_actor() was called."""
        self._leaves = True

    def judge(self, call: LocalCall, error: BaseException | None) -> exceptions.ActorError | None:
        """Why a call that returned, or raised `error`, has no result of its own: the actor ended with it, or before."""
        if self._leaves and not isinstance(error, SystemExit):
            error = ActorExit()  # What exit_actor() raised was swallowed.
        if isinstance(error, SystemExit):
            method = f"{self.class_name}.{call.settings.method}"
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
            if isinstance(error, ActorExit) or code == 0:
                self._farewell()
                how = "exit_actor()" if isinstance(error, ActorExit) else "sys.exit() with exit code 0"
                self.end(f"{how} was called in {method}")
            elif call.settings.method == _CONSTRUCTOR:
                self.end(f"{method}() called sys.exit({error.code!r})")
            elif call.incarnation == self.incarnation:
                self.restart_or_end(f"{method}() called sys.exit({error.code!r})")
        text = f"actor {self.class_name} ({self.actor.hex()})"
        if self.reason:
            return exceptions.ActorDiedError(f"{text} is dead: {self.reason}", actor_id=self.actor.hex())
        if call.incarnation != self.incarnation:
            return exceptions.ActorUnavailableError(
                f"{text} was restarted while it had the call {call.name}()", self.actor.hex()
            )
        return None

    # --- calls -----------------------------------------------------------------------------------------------

    def pending(self) -> int:
        """How many calls have not ended."""
        return len(self._pending)

    def submit(self, call: LocalCall) -> Any:
        """Run a call whose actor this is: what its caller gets."""
        returned, stream = call.open()
        if self.reason:
            self._refuse(call, stream)
            return returned
        if stream is not None:
            with self.lock or nullcontext():
                self._finish_streams()
                self._streams.append(weakref.ref(stream))
                stream.run()
            return returned
        if call.missing():
            self._runtime.deferred.append(call)
        else:
            self.run(call)
        return returned

    def _refuse(self, call: LocalCall, stream: Any) -> None:
        packed = self.error
        if packed is None:
            verdict = self.judge(call, None)
            assert verdict is not None
            packed = serialize(verdict)
        if stream is not None:
            stream.fail(packed)
        else:
            call.fail_with(packed)

    def run(self, call: LocalCall) -> None:
        """Run a call whose arguments are ready."""
        if self.reason:
            self._refuse(call, None)
        elif self.loop is None:
            with self.lock or nullcontext():
                self._finish_streams()
                call.run()
        else:
            self._spawn(call)
            if not self.is_driven_here():
                self.drive(call.entries_ready, False, None)

    def _finish_streams(self) -> None:
        """An ordinary actor runs one call after another."""
        streams, self._streams = self._streams, []
        for each in streams:
            stream = each()
            if stream is not None and self.lock is not None:
                stream.finish()

    def _spawn(self, call: LocalCall) -> None:
        """Have the loop run a call."""
        loop = self.loop
        assert loop is not None
        self._pending[call] = None

        def begin() -> None:
            call.task = loop.create_task(call.run_async())
            call.task.add_done_callback(ended)

        def ended(task: Any) -> None:
            self._pending.pop(call, None)
            loop.stop()
            if not task.cancelled():
                self._thrown = task.exception()

        loop.call_soon_threadsafe(begin)

    def is_driven_here(self) -> bool:
        """Whether the calling code runs in its loop."""
        return self._driver == get_ident()

    def run_through(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine in its loop to the end: its value, or raise its error."""
        loop = self.loop
        assert loop is not None
        begun: list[Any] = []

        def begin() -> None:
            begun.append(loop.create_task(coroutine))
            begun[0].add_done_callback(lambda _task: loop.stop())

        loop.call_soon_threadsafe(begin)
        self.drive(lambda: bool(begun) and begun[0].done(), True, None)
        return begun[0].result()

    def drive(self, done: Callable[[], bool], patient: bool, deadline: float | None) -> None:
        """Turn the loop until `done()`, or, unless `patient`, until it is idle. One thread at a time does."""
        runtime = self._runtime
        loop = self.loop
        if loop is None:
            return
        if self.is_driven_here():
            raise RuntimeError(
                f"a blocking moray.get() or wait() in the async actor {self.class_name} waits for a call of the same "
                "actor, whose event loop it stops: write `await ref` instead"
            )
        with runtime.changed:
            if self._driver is not None and not patient:
                self._passed_over = True
                return  # The other thread runs it.
            timeout = None if deadline is None else max(0.0, deadline - monotonic())
            if not runtime.changed.wait_for(lambda: self._driver is None or done(), timeout) or done():
                return
            self._driver = get_ident()
        try:
            loop.run(done, patient, deadline)
        finally:
            with runtime.changed:
                self._driver = None
                # It is no news to whoever was not waiting for this: they would go round and round.
                runtime.changes += self._passed_over
                self._passed_over = False
                runtime.changed.notify_all()
        thrown, self._thrown = self._thrown, None
        if thrown is not None:
            raise thrown


class LocalActors:
    """All actors of a local runtime. `LocalRuntime.actors`."""

    def __init__(self, runtime: LocalRuntime) -> None:
        self._runtime = runtime
        #: Living actors.
        self._living: dict[bytes, LocalActor] = {}
        #: The last dead ones, oldest first: handles may still be made of them.
        self._dead: dict[bytes, LocalActor] = {}
        self._named: dict[tuple[str, str], LocalActor] = {}

    def create(
        self, spec: m.ActorSpec, creation: m.Creation, prepared: Prepared | None, held: list[ObjectRef[Any]]
    ) -> tuple[bytes, bytes, bytes, ObjectRef[Any] | None]:
        """See :meth:`moray.runtime.creations.Creations.create`."""
        runtime = self._runtime
        runtime.settle()
        key = (spec.namespace, spec.name)
        older = self._named.get(key) if spec.name else None
        if older is not None:
            if not spec.get_if_exists:
                raise exceptions.ActorAlreadyExistsError(
                    f"the name {spec.name!r} belongs to an actor {older.class_name} ({older.actor.hex()}) in the "
                    f"namespace {spec.namespace!r}"
                )
            return older.actor, older.creation.meta, older.creator, None
        creator = b"" if spec.detached else runtime.process
        actor = self._living[spec.actor] = LocalActor(runtime, spec.actor, creator)
        if spec.name:
            self._named[key] = actor
        reference = None
        if not spec.detached:
            life = Entry(runtime.origin, runtime.next_number() << 32, blob=NONE_BLOB, task=Life(spec.actor))
            life.contained = list(held)
            life.ready = True
            reference = runtime.make_watched_ref(life)
        actor.create(spec, creation, prepared)
        runtime.run_deferred()
        return spec.actor, spec.meta, creator, reference

    def ended(self, actor: LocalActor) -> None:
        """An actor is dead."""
        self._living.pop(actor.actor, None)
        self._dead[actor.actor] = actor
        if len(self._dead) > _DEAD_KEPT:
            del self._dead[next(iter(self._dead))]
        if actor.name is not None and self._named.get(actor.name) is actor:
            del self._named[actor.name]

    def released(self, actor: bytes) -> None:
        """No handle of an actor is left."""
        found = self._living.get(actor)
        if found is not None:
            found.release()

    def find(self, name: str, namespace: str) -> tuple[bytes, bytes, bytes]:
        """(actor, meta, creator) of the living actor with this name."""
        self._runtime.settle()
        actor = self._named.get((namespace, name))
        if actor is None:
            elsewhere = [space for space, other in self._named if other == name]
            hint = f"; there is one in {', '.join(map(repr, elsewhere))}" if elsewhere else ""
            raise exceptions.ActorHandleNotFoundError(
                f"no living actor is named {name!r} in the namespace {namespace!r}{hint}"
            )
        return actor.actor, actor.creation.meta, actor.creator

    def names(self, namespace: str) -> list[tuple[str, str]]:
        """(namespace, name) of living actors in `namespace`, or of all if it is ""."""
        self._runtime.settle()
        return [key for key in self._named if not namespace or key[0] == namespace]

    def kill(self, actor: bytes, _creator: bytes, no_restart: bool) -> None:
        """End an actor."""
        found = self._living.get(actor)
        if found is None:
            return
        if no_restart:
            found.end("killed by moray.kill()")
        else:
            found.restart_or_end("killed by moray.kill(), and no restarts are left")

    def callee(self, actor: bytes, creator: bytes) -> LocalActor:
        """The actor; one that is dead for good if it is not known any more."""
        return self._living.get(actor) or self._dead.get(actor) or LocalActor(self._runtime, actor, creator)

    def submit(
        self, callee: LocalActor, settings: CallSettings, prepared: Prepared | None, handle: ObjectRef[Any] | None
    ) -> Any:
        """Call a method."""
        runtime = self._runtime
        runtime.settle()
        if 0 <= callee.max_pending <= callee.pending():
            raise exceptions.PendingCallsLimitExceeded(
                f"actor {callee.class_name} has {callee.pending()} unanswered calls, and max_pending_calls="
                f"{callee.max_pending}: get some results first"
            )
        returned = callee.submit(LocalCall(runtime, settings, prepared, None, callee, handle))
        runtime.run_deferred()
        return returned

    def end_all(self) -> None:
        """The session is over."""
        for actor in list(self._living.values()):
            actor.end("moray.shutdown() was called")
