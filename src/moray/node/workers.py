"""Worker processes from the order to fork them to their end.

A worker exists for the node from the moment it is ordered. It is *running* once it has said Hello. Its end is known by
its template's report, which has the exit status; its pidfd fires at the same time (LIVENESS) and decides alone when the
template is dead too, in which case the node itself is the parent by then and may find the status.

Three ways to an end: it dies; it is asked to go (a message, then SIGKILL after a grace); it is killed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Protocol

from moray.ids import new_process
from moray.node.logs import tail, worker_paths
from moray.node.orphans import Orphans
from moray.node.settings import Settings
from moray.node.templates import Template, Templates
from moray.platform import process_control
from moray.protocol.reactor import READ, Reactor, Timer

#: What is assumed of a dead worker that nobody can tell about: it died with its template.
_UNKNOWN_STATUS = -9


class WorkerEvents(Protocol):
    """Who hears of workers' ends."""

    def worker_lost(self, worker: Worker, status: int) -> None: ...
    def start_failed(self, worker: Worker, reason: str) -> None: ...


class Worker:
    """One worker process."""

    __slots__ = (
        "cause", "dead", "ended", "job", "pid", "pidfd", "process", "running", "runtime_env", "template", "timer",
    )  # fmt: skip

    def __init__(self, process: bytes, job: int, runtime_env: str, template: Template) -> None:
        self.process = process
        self.job = job
        self.runtime_env = runtime_env
        self.template = template
        #: 0 until it is forked.
        self.pid = 0
        #: -1 until the template has sent it, and after the end.
        self.pidfd = -1
        #: It has said Hello.
        self.running = False
        #: The process has ended; how is known, or not asked any more, when `ended` is set.
        self.dead = False
        self.ended = False
        #: Why the node ends it; "" if it does not.
        self.cause = ""
        #: What happens if it does not start, or end, in time.
        self.timer: Timer | None = None


class Workers:
    """All workers of the node, alive or on their way; hears what templates report (TemplateEvents)."""

    def __init__(
        self,
        session_dir: str,
        tag: bytes,
        reactor: Reactor,
        templates: Templates,
        orphans: Orphans,
        events: WorkerEvents,
        settings: Settings,
    ) -> None:
        self._session_dir = session_dir
        #: The node's: every process id begins with it.
        self._tag = tag
        self._reactor = reactor
        self._templates = templates
        self._orphans = orphans
        self._events = events
        self._settings = settings
        self._by_process: dict[bytes, Worker] = {}
        self._by_pid: dict[int, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._by_process.values()))

    def get(self, process: bytes) -> Worker | None:
        return self._by_process.get(process)

    def of_job(self, job: int) -> list[Worker]:
        return [worker for worker in self._by_process.values() if worker.job == job]

    # --- starting ---------------------------------------------------------------------------------

    def start(self, job: int, runtime_env: str, template: Template) -> Worker:
        """Order a worker."""
        worker = Worker(new_process(self._tag), job, runtime_env, template)
        self._by_process[worker.process] = worker
        timeout = self._settings.worker_start_timeout_s
        worker.timer = self._reactor.call_later(
            timeout, lambda: self._start_timed_out(worker, f"it did not connect within {timeout:g} s")
        )
        self._templates.fork(template, worker.process)
        return worker

    def _start_timed_out(self, worker: Worker, cause: str) -> None:
        if worker.pid:
            self.kill(worker, cause)
        else:
            worker.timer = None
            self._templates.give_up(worker.template, f"its template did not fork it: {cause}")

    def forked(self, process: bytes, pid: int, pidfd: int) -> None:
        """It exists."""
        worker = self._by_process.get(process)
        if worker is None:
            os.close(pidfd)
            return
        self._set_pid(worker, pid)
        worker.pidfd = pidfd
        self._reactor.register(pidfd, READ, lambda _events: self._pidfd_fired(worker))
        if worker.cause:
            process_control.kill_pidfd(pidfd)

    def connected(self, worker: Worker, pid: int) -> bool:
        """It said Hello; False if this cannot be it. Hello may come before the template's report."""
        if worker.ended or (worker.pid and worker.pid != pid):
            return False
        self._set_pid(worker, pid)
        worker.running = True
        self._cancel_timer(worker)
        return True

    def fork_failed(self, process: bytes, reason: str) -> None:
        """It will never exist."""
        worker = self._by_process.get(process)
        if worker is not None and not worker.pid:
            self._forget(worker)
            self._events.start_failed(worker, worker.cause or reason)

    # --- ending -------------------------------------------------------------------------------------

    def grant_grace(self, worker: Worker, cause: str, grace_s: float) -> None:
        """It has been asked to end: kill it if it has not done so in time."""
        if not worker.dead and not worker.ended and not worker.cause:
            worker.cause = cause
            self._cancel_timer(worker)
            worker.timer = self._reactor.call_later(grace_s, lambda: self.kill(worker, cause))

    def kill(self, worker: Worker, cause: str) -> None:
        """End it now. Its end is told when it has come."""
        if worker.dead or worker.ended:
            return
        worker.cause = worker.cause or cause
        self._cancel_timer(worker)
        if worker.pidfd >= 0:
            process_control.kill_pidfd(worker.pidfd)

    def worker_ended(self, process: bytes, status: int) -> None:
        """Its template has reaped it."""
        worker = self._by_process.get(process)
        if worker is not None:
            self._end(worker, status)

    def reaped(self, pid: int, status: int) -> None:
        """The node itself has reaped a child; maybe a worker whose template is dead."""
        worker = self._by_pid.get(pid)
        if worker is not None:
            self._end(worker, status)

    def template_gone(self, number: int) -> None:
        """Its workers die with it; those that the node knows have pidfds or were told to have failed."""
        for worker in self:
            if worker.template.number == number and worker.pid and worker.pidfd < 0:
                # It said Hello, but its pidfd was lost with the template.
                self._end(worker, _UNKNOWN_STATUS)

    def _pidfd_fired(self, worker: Worker) -> None:
        self._reactor.unregister(worker.pidfd)
        worker.dead = True
        self._cancel_timer(worker)
        worker.timer = self._reactor.call_later(
            self._settings.status_wait_s, lambda: self._end(worker, _UNKNOWN_STATUS)
        )

    def _end(self, worker: Worker, status: int) -> None:
        if worker.ended:
            return
        self._forget(worker)
        self._orphans.worker_ended(worker.pid, worker.process)
        if worker.running:
            self._events.worker_lost(worker, status)
        else:
            self._events.start_failed(worker, self._start_failure(worker, status))

    def _start_failure(self, worker: Worker, status: int) -> str:
        words = tail(self.log_paths(worker)[1])
        ending = worker.cause or f"it ended with status {status} before it connected"
        return f"{ending}; the end of its stderr:\n{words}" if words else ending

    def log_paths(self, worker: Worker) -> tuple[str, str]:
        """Where its output goes."""
        return worker_paths(self._session_dir, worker.process, worker.pid)

    # --- books ------------------------------------------------------------------------------------------

    def _set_pid(self, worker: Worker, pid: int) -> None:
        worker.pid = pid
        self._by_pid[pid] = worker

    def _forget(self, worker: Worker) -> None:
        worker.ended = True
        self._cancel_timer(worker)
        del self._by_process[worker.process]
        if self._by_pid.get(worker.pid) is worker:
            del self._by_pid[worker.pid]
        if worker.pidfd >= 0:
            self._reactor.unregister(worker.pidfd)
            os.close(worker.pidfd)
            worker.pidfd = -1

    def _cancel_timer(self, worker: Worker) -> None:
        if worker.timer is not None:
            worker.timer.cancel()
            worker.timer = None
