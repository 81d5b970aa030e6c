"""A worker process: its main loop, and how its two threads share the reactor.

The **main thread** runs tasks. While it has none it leads the reactor itself, so that a task is read, run
and answered without a change of thread. The **I/O thread** must step in when the main thread is busy: owners
recall tasks, borrowers ask for values, the node revokes leases. It is in one of three states:

======  ===============================================================================================
parked  the main thread is idle and leads; the I/O thread sleeps without a timeout
watch   the main thread runs tasks; the I/O thread looks every :data:`WATCH_S` whether it gets on
lead    the main thread is in one task for longer than that, or waits in ``get``: the I/O thread leads
======  ===============================================================================================

The main thread asks for the lead back when it runs out of tasks (:attr:`Worker._main_wants`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from _thread import RLock, allocate_lock, get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NoReturn

from moray import config, exceptions
from moray.launch.session_directory import TLS_FOLDER
from moray.platform.machine import gpu_ids
from moray.protocol import messages as m
from moray.protocol.handshake import connect, listen, open_inbox, receive_blocking, send_blocking
from moray.protocol.reactor import HEARTBEAT_S
from moray.runtime import state, stream_producer, timeline
from moray.runtime.actor_host import start_now
from moray.runtime.actor_moves import on_move
from moray.runtime.executor import Executor
from moray.runtime.interrupts import Interrupts, TaskInterrupt
from moray.runtime.runtime import Peer, Runtime, Waiter, socket_path
from moray.runtime.work import Called, Caller, Queued, Work, current_call

if TYPE_CHECKING:
    import socket

    from moray.protocol.connection import Connection

#: How often the I/O thread looks after a busy main thread.
WATCH_S: Final = 0.005
#: Looks that find the main thread idle before the I/O thread parks.
IDLE_LOOKS: Final = 10
#: How a worker ends whose task is cancelled by force.
FORCED_EXIT: Final = 130


class Worker(Runtime):
    """The runtime of a worker process."""

    kind = "worker"

    def __init__(
        self,
        process: bytes,
        welcome: m.Welcome,
        sock: socket.socket,
        leftover: bytes,
        arena: int,
        listener: socket.socket,
        inbox: socket.socket | None,
    ) -> None:
        super().__init__(process, welcome, sock, leftover, arena, listener, inbox)
        self.executor = Executor(self)
        self.handlers |= {
            m.Tasks: self.executor.on_tasks,
            m.Recall: self.executor.on_recall,
            m.RevokeLease: self._on_revoke,
            m.Shutdown: self._on_shutdown,
            m.StartActor: lambda connection, start: start_now(self, start, _peer_connection(connection, self)),
            m.MoveActor: lambda _connection, message: on_move(self, message),
            m.CallerHello: self._on_caller,
            m.Calls: self._on_calls,
            m.CancelTask: self._on_cancel,
            m.GetEvents: lambda connection, message: timeline.on_get_events(self, connection, message),
        }
        self.main_ident = threading.main_thread().ident or 0
        self.interrupts = Interrupts(self)
        #: The main thread runs tasks (or user code waits in moray).
        self._busy = False
        #: The I/O thread holds the lead.
        self._io_leads = False
        #: The main thread would like to lead.
        self._main_wants = False
        self._parked = False
        #: What the main thread was in when the I/O thread last looked: (executor.begun, since when).
        self.busy_since = (-1, 0.0)
        #: User code has something for the loop to do now.
        self._io_wanted = False
        #: Released to end the I/O thread's sleep.
        self._io_sleep = allocate_lock()
        self._io_sleep.acquire()
        #: Threads that wait in moray now → how deep. Guarded by the lock.
        self.waits: dict[int, int] = {}
        self._wait_lock = RLock()
        #: A revocation to be answered when no task of it runs any more.
        self.revocation = 0
        self._exit_code: int | None = None
        #: It gets no more tasks.
        self._retiring = False
        #: … and the node knows whether others hold objects of it: its owner may be told.
        self._retired = False
        #: Others hold objects of this process, as the node was told.
        self._owns = False
        self.reactor.hooks.append(self._tell_ownership)
        #: The settings of the task that runs, if it has any.
        self.task_extra: m.TaskExtra | None = None
        self._user_set_threads = "OMP_NUM_THREADS" in os.environ
        os.environ.setdefault("OMP_NUM_THREADS", "1")

    # --- the main thread -----------------------------------------------------------------------------

    def serve(self) -> NoReturn:
        """Run tasks until told to end."""
        self.interrupts.install()
        threading.Thread(target=self._io_thread, name="moray-io", daemon=True).start()
        queue = self.executor.queue
        while self._exit_code is None:
            if queue:
                self._busy = True
                if self._parked:
                    self._kick()
                self.executor.run_queue()
                self._busy = False
            else:
                self._lead_until_work()
        self.exit(self._exit_code)

    def _lead_until_work(self) -> None:
        if self._io_leads:
            self._main_wants = True
            self.reactor.interrupt()
        queue = self.executor.queue
        with self.reactor.lead:
            self._main_wants = False
            while not queue and self._exit_code is None:
                if self.revocation:
                    self.answer_revocation()
                self.reactor.turn()

    # --- the I/O thread ---------------------------------------------------------------------------------

    def _io_thread(self) -> None:
        idle_looks = 0
        begun = -1
        while True:
            if self._parked:
                self._io_sleep.acquire()
                self._parked = False
            else:
                self._io_sleep.acquire(True, WATCH_S)
            if not self._busy:
                idle_looks += 1
                if idle_looks > IDLE_LOOKS:
                    self._parked = True
                    if self._busy:
                        self._parked = False  # type: ignore[unreachable]  # The main thread has work again.
                continue
            idle_looks = 0
            if self._io_wanted or self.waits or begun == self.executor.begun:
                self._lead_while_busy()
            begun = self.executor.begun

    def _lead_while_busy(self) -> None:
        with self.reactor.lead:
            self._io_leads = True
            self._io_wanted = False
            while self._busy and not self._main_wants:
                if self.busy_since[0] != self.executor.begun:
                    self.busy_since = self.executor.begun, monotonic()
                if self.executor.current is not None:
                    self.executor.flush()
                    self.output.pump()
                self.reactor.turn(config.LOG_POLL_S)
            self._io_leads = False

    def _kick(self) -> None:
        """End the I/O thread's sleep."""
        if self._io_sleep.locked():
            try:
                self._io_sleep.release()
            except RuntimeError:
                pass  # Another thread has, since the look.

    def wake(self) -> None:
        """Make some thread turn the loop. Any thread."""
        if self.reactor.sleeping:
            self.reactor.wake()
        elif not self._io_leads and self._busy:
            self._io_wanted = True
            self._kick()

    def post_result(self, work: Work, result: m.Result, borrows: Any) -> None:
        """See Runtime.post_result."""
        self.output.pump()
        if type(work) is Called and self.executor.host is not None:
            self.executor.host.post(work, result, borrows)
        else:
            work.connection.send(m.Results([result], borrows))
        self.executor.passing.pop(id(result), None)
        if self.revocation and not self._busy:
            self.answer_revocation()

    def drop_result(self, result: m.Result) -> None:
        """See Runtime.drop_result."""
        self.executor.passing.pop(id(result), None)

    # --- waiting in moray (LEASE) -----------------------------------------------------------------------------

    def blocked(self) -> None:
        """The task waits: give queued tasks back, lend the CPUs, and let the I/O thread lead."""
        thread = get_ident()
        self.explainer.arm()
        host = self.executor.host
        if host is not None:
            host.warn_blocking()
        # A signal's handler that waits inside of this: the node may not know yet, and may be told twice.
        inside = self._wait_lock._is_owned()  # type: ignore[attr-defined]
        with self._wait_lock:
            first = inside or not self.waits
            self.waits[thread] = self.waits.get(thread, 0) + 1
            # Actors lend nothing. Under the lock: the node must hear of several threads' waits in the order of counts.
            if first and host is None:
                self.executor.return_queue("blocked")
                self.executor.flush()
                self.node.send(m.Blocked())
        if host is not None:
            self.executor.flush()  # Its callers may be what it waits for.

    def sending_locks(self) -> list[Any]:
        """See Runtime.sending_locks."""
        return [self.executor.flush_lock, self.output.pump_lock, *stream_producer.flush_locks()]

    def unblocked(self) -> None:
        """The task goes on."""
        thread = get_ident()
        with self._wait_lock:
            depth = self.waits.get(thread, 0)
            if depth > 1:
                self.waits[thread] = depth - 1
            elif self.waits.pop(thread, None) is not None and not self.waits and self.executor.host is None:
                self.node.send(m.Unblocked())

    def end_waits(self) -> None:
        """The task of this thread is over. A signal handler of the user's may have raised out of a wait, which then was
        never ended."""
        with self._wait_lock:
            if self.waits.pop(get_ident(), None) is not None and not self.waits and self.executor.host is None:
                self.node.send(m.Unblocked())

    def block(self, waiter: Waiter, deadline: float | None) -> bool:
        """See Runtime.block; the I/O thread must lead meanwhile."""
        if not self._io_leads:
            self._io_wanted = True
            self._kick()
        if get_ident() != self.main_ident:
            return super().block(waiter, deadline)
        interrupts = self.interrupts
        interrupts.waiting = waiter
        try:
            if interrupts.target is not None and interrupts.due():
                raise TaskInterrupt
            done = super().block(waiter, deadline)
        finally:
            interrupts.waiting = None
        if interrupts.target is not None and interrupts.due():
            raise TaskInterrupt
        return done

    def bounces(self) -> str:
        """Why arriving tasks must go elsewhere: this process waits, or is about to end; "" if they need not."""
        if self._retiring:
            return "retired" if self._retired else "blocked"
        return "blocked" if self.waits and self.executor.current is not None else ""

    # --- being an actor (CALL-ORDER) ---------------------------------------------------------------------------

    def _on_caller(self, connection: Connection, message: m.CallerHello) -> None:
        peer: Peer = connection.peer
        if peer.caller is None:
            peer.caller = Caller(peer.origin.process, connection)
        replaced = peer.caller.connection
        if peer.caller.hello(message.number, message.conversation) and replaced is not connection:
            peer.caller.connection = peer.connection = connection
            # Its end may not have been seen yet; what was said on it is said again, on this one, and before any reply.
            self.drain_connection(replaced)
            replaced.close("replaced by a newer connection")

    def _on_calls(self, connection: Connection, message: m.Calls) -> None:
        host = self.executor.host
        if host is None:
            connection.close("calls for a process that is no actor")
        else:
            host.on_calls(connection, message)

    def turn_for_event_loop(self, timeout_s: float | None) -> None:
        """The main thread's event loop has nothing to do for so long (None: until something happens)."""
        lead = self.reactor.lead
        if timeout_s is not None and timeout_s <= 0:
            # If the I/O thread leads, it reads what comes, and goes on while this thread is busy: never wait for it.
            if lead.acquire(False):
                try:
                    self.reactor.turn(0)
                finally:
                    lead.release()
            return
        self._busy = False
        if self._io_leads:
            self._main_wants = True
            self.reactor.interrupt()
        with lead:
            self._main_wants = False
            self.reactor.turn(HEARTBEAT_S if timeout_s is None else timeout_s)
        self.executor.begun += 1
        self._busy = True
        if self._parked:
            self._kick()

    # --- cancels (CANCEL) ----------------------------------------------------------------------------------------

    def _on_cancel(self, connection: Connection, message: m.CancelTask) -> None:
        """The owner wants a task or call of its own to end."""
        owner = connection.peer.origin.process
        executor, host = self.executor, self.executor.host
        work = self._find_work(owner, message.seq)
        if work is None:
            # A thread may have it in its hands, between the queue and the place where one sees it: it looks here then.
            executor.note_unfound(owner, message.seq)
            work = self._find_work(owner, message.seq)
        if work is None:
            known = host is not None and host.cancel_construction(owner, message)
            connection.send(m.CancelAnswer(message.seq, message.attempt, "interrupting" if known else "finished"))
            return
        work.spares_children = not message.recursive
        work.cancelled = True  # Before the look at what runs: who begins it looks in the other order.
        begun = work is executor.current
        running = host.running.get((owner, message.seq)) if host is not None else None
        if not begun and running is None:
            connection.send(m.CancelAnswer(message.seq, message.attempt, "unstarted"))
            return
        connection.send(m.CancelAnswer(message.seq, message.attempt, "interrupting"))
        if message.force:
            self.exit(FORCED_EXIT)
        if message.recursive:
            self.cancels.cancel_children(work)
        if begun:
            self.interrupts.request(work)
        elif host is not None:
            host.cancel_running(owner, message.seq)

    def _find_work(self, owner: bytes, seq: int) -> Work | None:
        """What is queued or runs here for this owner under this number."""
        current = self.executor.current
        host = self.executor.host
        here: list[Any] = [current, *self.executor.queue]
        if host is not None:
            here += host.pending()
        for work in here:
            if isinstance(work, (Queued, Called)) and work.spec.seq == seq and _owner(work) == owner:
                return work
        return None

    def current_work(self) -> Any:
        """See Runtime.current_work."""
        return current_call.get() if self.concurrent else self.work

    # --- leases ---------------------------------------------------------------------------------------------------

    def _on_revoke(self, _connection: Connection, message: m.RevokeLease) -> None:
        self.executor.revoked = max(self.executor.revoked, message.lease)
        self.executor.return_queue("revoked", message.lease)
        self.revocation = message.lease
        if not self._busy:  # Otherwise the main thread may just have taken a task, which nobody sees yet: it answers.
            self.answer_revocation()

    def answer_revocation(self) -> None:
        """Tell the node once no task of a revoked lease runs."""
        lease = self.revocation
        if lease and not self.executor.has_work_of(lease):
            self.revocation = 0
            self.node.send(m.RevokedLease(lease))

    def retire(self, lease: int) -> None:
        """This worker has done its share (max_calls). Its owner gives the lease back to be discarded, and the node ends
        it: at once, or when nobody holds objects of it any more (OWNER-STAYS)."""
        if self._retiring:
            return
        self._retiring = True
        connection = self.executor.owner
        # Not "retired" yet: the owner would give the lease back before the node knows whether others hold objects here.
        self.executor.return_queue("blocked")
        self.executor.flush()

        def tell() -> None:
            self.references.flush()
            self._tell_ownership()
            # The owner gives the lease back on a connection of its own, which could overtake what the node was told.
            self.request(lambda number: m.WorkerBusy(self._owns, number), told)

        def told(_answer: Any) -> None:
            self._retired = True
            if connection is not None:
                connection.send(m.Recalled(lease, [], "retired"))

        self.call_soon(tell)

    def _tell_ownership(self) -> None:
        """Once a turn: tell the node when others begin or cease to need this process (OWNER-STAYS): they hold objects
        of it, or actors live that it has created, and that would end with it."""
        owns = self.is_needed()
        if owns != self._owns:
            self._owns = owns
            self.node.send(m.WorkerBusy(owns))

    def is_needed(self) -> bool:
        """Whether something of others would end with this process, see above. Loop only."""
        return self.references.core.has_borrowers() or self.actors.creations.any_alive()

    # --- the context of a task -------------------------------------------------------------------------------------

    def enter_task(self, extra: m.TaskExtra) -> None:
        """Before a task with special settings runs: devices and threads that it may use."""
        self.task_extra = extra
        self.captured = extra.placement if extra.placement is not None and extra.placement.captures else None
        if extra.resources and not self._user_set_threads:
            os.environ["OMP_NUM_THREADS"] = str(max(1, extra.resources.get("CPU", 0) // m.RESOURCE_UNIT))
        devices = extra.devices.get("GPU")
        if devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpu_ids(devices, self.welcome.gpus))

    def leave_task(self) -> None:
        """Before an ordinary task after a special one: what that one changed is put back."""
        if self.task_extra is not None and self.task_extra.resources and not self._user_set_threads:
            os.environ["OMP_NUM_THREADS"] = "1"
        self.task_extra = self.captured = None

    def task_error(self, name: str, error: BaseException, work: Work) -> exceptions.MorayError:
        """What the owner shall see of an error that a task raised."""
        from moray.runtime.task_errors import make

        return make(self, name, error, work.spec.seq.to_bytes(8, "big") + work.connection.peer.origin.tail)

    def constructor_error(self, name: str, error: BaseException, start: m.StartActor) -> exceptions.MorayError:
        """What callers shall see of an error that an actor's constructor raised."""
        from moray.runtime.task_errors import make

        return make(self, name, error, start.seq.to_bytes(8, "big") + start.creator + self.job)

    def task_name(self) -> str:
        """See Runtime.task_name: the task that runs, or ran last; the actor."""
        host = self.executor.host
        return host.label if host is not None else self.executor.name

    def current_name(self) -> str:
        """See Runtime.current_name."""
        work = self.current_work()
        if isinstance(work, Called) and work.spec.extra is not None and work.spec.extra.name:
            return work.spec.extra.name
        return self.function_name() if isinstance(work, Called) else self.executor.name

    def function_name(self) -> str:
        """See Runtime.function_name."""
        work = self.current_work()
        host = self.executor.host
        if isinstance(work, Called) and host is not None:
            return f"{host.creation.class_name}.{work.spec.method}"
        return self.executor.function_name

    def log_target(self) -> Connection | None:
        """See Runtime.log_target."""
        owner = self.executor.owner
        return owner if owner is not None and not owner.closed else None

    def output_sent(self, out_bytes: int, err_bytes: int) -> None:
        """See Runtime.output_sent."""
        self.executor.mark.sent(out_bytes, err_bytes)

    def current_task_id(self) -> bytes | None:
        """See Runtime.current_task_id."""
        queued = self.current_work()
        if not isinstance(queued, (Queued, Called)):
            return None
        seq: int = queued.spec.seq
        tail: bytes = queued.connection.peer.origin.tail
        return seq.to_bytes(8, "big") + tail

    def task_resources(self) -> dict[str, float]:
        """See Runtime.task_resources."""
        if self.task_extra is None or not self.task_extra.resources:
            return {"CPU": 1.0}
        return {name: amount / m.RESOURCE_UNIT for name, amount in self.task_extra.resources.items()}

    # --- the end ----------------------------------------------------------------------

    def _on_shutdown(self, _connection: Connection, message: m.Shutdown) -> None:
        host = self.executor.host
        if host is not None and message.reason:
            host.end_in_peace()
            return
        self._exit_code = 0
        if self._busy:
            self.exit(0)

    def _on_node_closed(self, _connection: Connection, _reason: str) -> None:
        self.exit(0)

    def process_died(self, message: m.ProcessDied) -> None:
        """See Runtime.process_died."""
        super().process_died(message)
        self.executor.forget_owner(message.process)
        work = self.executor.current
        if type(work) is Queued and _owner(work) == message.process:
            # Nobody wants its result, and others want what it holds. In this way a cancel by force ends what was begun
            # below it, too.
            work.cancelled = True
            self.cancels.cancel_children(work)
            self.interrupts.request(work)

    def exit(self, code: int) -> NoReturn:
        """End the process now, after what it still has to say."""
        try:
            self.executor.flush()
            self.output.pump(last=True)
            timeline.save(self)
            deadline = monotonic() + 0.2
            while any(p.connection and p.connection.out and not p.connection.broken for p in self.peers.values()):
                for peer in self.peers.values():
                    if peer.connection is not None:
                        peer.connection.flush()
                if monotonic() > deadline:
                    break
        finally:
            os._exit(code)


def _peer_connection(connection: Connection, worker: Worker) -> Connection | None:
    """The connection to the creator; None if the node itself (of a detached actor) sent the message."""
    return None if connection is worker.node else connection


def _owner(work: Work) -> bytes:
    process: bytes = work.connection.peer.origin.process
    return process


def main(node_address: str, process: bytes, job_id: int, session_dir: str, log_paths: tuple[str, str]) -> NoReturn:
    """A freshly forked worker starts here, on its main thread."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sock = connect(node_address)
    address = socket_path(session_dir, process)
    # Before Hello: the node may name this process to an owner right after it.
    listener = listen(address)
    inbox = open_inbox(session_dir, process) if os.path.isdir(f"{session_dir}/{TLS_FOLDER}") else None
    send_blocking(sock, m.Hello(m.PROTOCOL_VERSION, "worker", process, os.getpid(), address, None, job_id))
    welcome, fds, leftover = receive_blocking(sock, 1)
    if not isinstance(welcome, m.Welcome):
        raise exceptions.MoraySystemError(getattr(welcome, "reason", "the node refused this worker"))
    sys.setswitchinterval(config.SWITCH_INTERVAL_S)
    worker = Worker(process, welcome, sock, leftover, fds[0], listener, inbox)
    worker.output.capture(log_paths)
    state.runtime = worker
    worker.node.process_leftover()
    worker.serve()
