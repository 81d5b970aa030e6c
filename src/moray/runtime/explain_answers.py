"""One step of an explanation: what does this wait for *here*? Loop only, unless said otherwise.

The owner of an object knows where its task is: waiting for arguments, queued for a worker, sent to one. The
worker knows whether it has begun, and what its threads and coroutines wait for. Each says what it knows, and whom to
ask next (:mod:`moray.core.wait_graph`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from moray.core.bundles import show_name, shown_names
from moray.core.resources import show_amounts
from moray.core.wait_graph import Finding, Target
from moray.object_ref import Entry
from moray.protocol import messages as m
from moray.runtime.tasks import Call, KeyPool, Task
from moray.runtime.waits import Wait
from moray.runtime.work import Called, Queued, Work

if TYPE_CHECKING:
    from moray.runtime.callee import Callee
    from moray.runtime.groups import Group
    from moray.runtime.runtime import Runtime

#: Of things that are all waited for, so many are followed.
_MOST_FOLLOWED: Final = 8
#: Of things of which one is enough, all must be followed to see a deadlock; with more than these none is seen.
_MOST_CHOICES: Final = 24
#: Names in one sentence.
_MOST_NAMES: Final = 4
#: Entries that were named to askers and are kept for their next question.
_NAMED_KEPT: Final = 1000
#: Queued tasks that are counted.
_MOST_COUNTED: Final = 100_000


class Answers:
    """What this process can say about waits."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime: Any = runtime
        #: Entries of ours that answers named: those that never left the process are in no table.
        self._named: OrderedDict[int, Entry] = OrderedDict()
        self._kinds: dict[str, Callable[[Target], Finding]] = {
            "object": self._object,
            "work": self._work,
            "holder": self._holder,
            "host": self._host,
            "actor": self._actor,
            "awaited": self._awaited,
        }

    def answer(self, target: Target) -> Finding:
        """What this process knows."""
        kind = self._kinds.get(target.kind)
        if kind is None or not self._is_sound(target):
            return Finding("This process does not understand the question: it runs another version of moray.")
        return kind(target)

    def _is_sound(self, target: Target) -> bool:
        length = {"object": 28, "work": 20, "awaited": 20, "actor": 16}.get(target.kind, 0)
        return len(target.id) == length

    # --- objects: at their owner -------------------------------------------------------------------

    def target(self, entry: Entry) -> Target:
        """The question for an entry."""
        if entry.origin is self._runtime.origin:
            self._named[entry.key] = entry
            self._named.move_to_end(entry.key)
            if len(self._named) > _NAMED_KEPT:
                self._named.popitem(last=False)
        return Target("object", entry.origin.process, entry.id)

    def _targets(self, entries: Iterable[Entry], most: int) -> list[Target]:
        return [self.target(entry) for entry in islice(entries, most)]

    def _object(self, target: Target) -> Finding:
        key = int.from_bytes(target.id[:8], "big") << 32 | int.from_bytes(target.id[24:], "big")
        entry = self._runtime.origin.entries.get(key) or self._named.get(key)
        if entry is None:
            return Finding("Its owner does not have the object: no reference to it was left, and it was freed.")
        if entry.ready:
            what = "an error, which get() raises" if entry.error else f"{entry.size or len(entry.blob or b'')} bytes"
            return Finding(f"The object is ready ({what}).{self._runtime.recovery.warning(entry)}")
        task = entry.task
        lost = self._runtime.recovery.explain(entry)
        if isinstance(task, Task):
            finding = self._call(task) if isinstance(task, Call) else self._task(task)
            finding.text = f"{lost} {finding.text}".strip()
            return finding
        if lost:
            return Finding(lost)
        group = next((each for each in self._groups() if each.entry is entry), None)
        if group is not None:
            return Finding(f"It is ready when {_state_of(group)}.", group.label, notable=True)
        return Finding("The object is just being made.")

    def _groups(self) -> list[Group]:
        groups = self._runtime.groups
        return [] if groups is None else list(groups.records.values())

    def _task(self, task: Task) -> Finding:
        name = f"task {task.options.name}()"
        if task.waiting:
            return self._arguments(name, task)
        pool: KeyPool = task.options.pool
        found = self._runtime.submitter.find_running(pool, task)
        if found is not None:
            peer = found[1]
            return self._sent(name, task, peer.origin.process, peer.pid)
        return self._queued(name, task, pool)

    def _arguments(self, name: str, task: Task) -> Finding:
        missing = [ref._entry for _where, ref in task.arguments or () if not ref._entry.ready]
        return Finding(
            f"{_capital(name)} waits for {_count(len(missing), 'argument')}.",
            name,
            notable=True,
            every=self._targets(missing, _MOST_FOLLOWED),
        )

    def _sent(self, name: str, task: Task, process: bytes, pid: int) -> Finding:
        work = Target("work", process, self._runtime.process + task.seq.to_bytes(8, "big"))
        return Finding(every=[work], pids={process: (pid, name)})

    def _queued(self, name: str, task: Task, pool: KeyPool) -> Finding:
        group: Group | None = getattr(pool, "group", None)
        if group is not None and group.state != "created":
            return Finding(f"{_capital(name)} waits until {_state_of(group)}.", name, notable=True)
        text = f"{_capital(name)} is queued{_behind(pool.queue, task)} for a worker with {amounts_text(pool.resources)}"
        busy: dict[Target, str] = {}
        pids: dict[bytes, tuple[int, str]] = {}
        for slot in pool.slots.values():
            first = next(iter(slot.running.values()), None)
            peer = slot.worker[1]
            if first is not None:
                what = f"{first.options.name}()"
                work = Target("work", peer.origin.process, self._runtime.process + first.seq.to_bytes(8, "big"))
                busy[work] = f"{what} in pid {peer.pid}"
                pids[peer.origin.process] = (peer.pid, f"task {what}")
        if busy:
            text += f"; its owner has {_count(len(pool.slots), 'such worker')}, running {_list(list(busy.values()))}"
        free = len(busy) < len(pool.slots) or len(busy) > _MOST_CHOICES
        return Finding(
            text + ".",
            name,
            covered=not pool.slots,
            some=[] if free else list(busy),
            perhaps=list(busy)[:_MOST_FOLLOWED] if free else [],
            key=pool.key,
            pids=pids,
        )

    # --- calls and actors: at their callers and creators ------------------------------------------------

    def _call(self, call: Call) -> Finding:
        callee: Callee = call.callee
        name = f"call {call.options.name}()"
        if callee.connection is not None:
            self._runtime.submitter.settle(callee.connection)
        if call.waiting:
            return self._arguments(name, call)
        peer = callee.peer
        if call.seq in callee.calls.unanswered and peer is not None:
            return self._sent(name, call, peer.origin.process, peer.pid)
        if callee.state != "alive":
            text = f"{_capital(name)} waits for {actor_text(callee)}, which is {callee.state}."
            process = callee.creator or self._runtime.process
            return Finding(
                text, name, notable=callee.state == "restarting", every=[Target("actor", process, callee.actor)]
            )
        return self._held_back(name, call, callee)

    def _held_back(self, name: str, call: Call, callee: Callee) -> Finding:
        """The call was not sent, though the actor lives."""
        text = f"{_capital(name)} has not been sent{_behind(callee.queue, call)} to {actor_text(callee)}"
        head = next(iter(tuple(callee.queue)), None)
        if head is not None and head.waiting and callee.ordered:
            entries = [ref._entry for _where, ref in head.arguments or () if not ref._entry.ready]
            text += f": {head.options.name}(), called before it, waits for {_count(len(entries), 'argument')}."
            return Finding(text, name, notable=True, every=self._targets(entries, _MOST_FOLLOWED))
        first = next(iter(callee.calls.unanswered.values()), None)
        if first is not None and callee.peer is not None:
            sent = self._sent(f"call {first.options.name}()", first, callee.peer.origin.process, callee.peer.pid)
            text += f": it has {_count(len(callee.calls.unanswered), 'unanswered call')} of this process."
            return Finding(text, name, notable=True, perhaps=sent.every, pids=sent.pids)
        return Finding(text + ".", name)

    def _actor(self, target: Target) -> Finding:
        callee: Callee | None = self._runtime.actors._callees.get(target.id)
        if callee is None or not callee.watched:
            return Finding(actor=target.id)
        text = _capital(actor_text(callee))
        created = self._runtime.actors.creations._created.get(target.id)
        if created is not None and created.waiting and callee.state == "pending":
            missing = [ref._entry for _where, ref in created.arguments if not ref._entry.ready]
            text += f" is not created yet: its constructor waits for {_count(len(missing), 'argument')}."
            return Finding(text, actor_text(callee), notable=True, every=self._targets(missing, _MOST_FOLLOWED))
        if callee.state == "alive" and callee.peer is not None:
            peer = callee.peer
            restarts = f", restarted {_count(callee.incarnation, 'time')}" if callee.incarnation > 0 else ""
            pids = {peer.origin.process: (peer.pid, actor_text(callee))}
            every = [Target("host", peer.origin.process)]
            return Finding(f"{text} is alive in pid {peer.pid}{restarts}.", every=every, pids=pids)
        reason = f": {callee.reason}" if callee.reason else ""
        if callee.state == "dead":
            return Finding(f"{text} is dead{reason}.")
        which = f" (restart {callee.incarnation})" if callee.state == "restarting" else ""
        return Finding(f"{text} is {callee.state}{which}{reason}.", actor_text(callee), actor=target.id)

    # --- tasks and calls: at their worker ---------------------------------------------------------------

    def _work(self, target: Target) -> Finding:
        runtime = self._runtime
        if runtime.kind != "worker":
            return Finding("The task's process runs no tasks.")
        work = runtime._find_work(target.id[:12], _number(target.id[12:]))
        blocking = self._stopped_by(work)
        if blocking is not None:
            name = (
                f"{self._kind(work)} {self.work_name(work)}() (pid {runtime.pid})" if work is not None else "the call"
            )
            text = f"{_capital(name)} cannot go on: {self.work_name(blocking)}() stops the event loop of its actor."
            return Finding(text, name, notable=True, every=[self._work_target(blocking)])
        if work is None:
            return Finding(f"It is not at pid {runtime.pid} any more: its result is on its way.")
        if self._has_begun(work):
            return self._running(work)
        return self._in_line(work)

    def _has_begun(self, work: Work) -> bool:
        runtime = self._runtime
        host = runtime.executor.host
        if host is None or not isinstance(work, Called) or not host.concurrent:
            return work is runtime.executor.current
        call, task = host.running.get((work.caller.process, work.spec.seq), (None, None))
        if call is not work or not host.creation.asynchronous:
            return call is work
        if task is None:
            return False
        # Directly under the call's coroutine is either the wait for its turn, or the user's own code.
        waiting = getattr(task.get_coro(), "cr_await", None)
        return getattr(getattr(waiting, "cr_code", None), "co_qualname", "") != "_Limit.wait"

    def _running(self, work: Work) -> Finding:
        runtime = self._runtime
        what = f"{self._kind(work)} {self.work_name(work)}()"
        name = f"{what} (pid {runtime.pid})"
        waits = [wait for wait in runtime.values.waits() if wait.work is work]
        host = runtime.executor.host
        concurrent = host is not None and host.concurrent
        sure = [wait for wait in waits if concurrent or wait.thread in (0, runtime.main_ident)]
        if not waits:
            text = f"{_capital(what)} has been running in pid {runtime.pid}{self._for_how_long(work)}"
            if runtime.waits and not concurrent:
                text += ", and waits until its consumer has taken some of its items"
            return Finding(f"{text}.", name)
        return self._waiting(name, what, sure, [wait for wait in waits if wait not in sure])

    def _waiting(self, name: str, what: str, sure: list[Wait], others: list[Wait]) -> Finding:
        """Work that runs, and waits for objects."""
        wait = (sure or others)[0]
        who = f"{_capital(what)}, running in pid {self._runtime.pid},"
        if not sure:
            who += " goes on, but one of its threads"
        rest = f" (and {_count(len(sure) + len(others) - 1, 'more wait')})" if len(sure) + len(others) > 1 else ""
        finding = Finding(f"{who} {_wait_text(wait)}{rest}.", name)
        missing = wait.missing()
        if not sure:
            finding.perhaps = self._targets(missing, _MOST_FOLLOWED)
        elif wait.thread == 0:
            # Coroutines: one of them may be enough, as the user's own code has it.
            entries = [entry for each in sure for entry in each.missing()]
            self._choose(finding, entries)
        elif wait.timeout_s is not None:
            finding.perhaps = self._targets(missing, _MOST_FOLLOWED)
        elif wait.lacks() >= len(missing):
            finding.every = self._targets(missing, _MOST_FOLLOWED)
        elif wait.lacks() == 1:
            self._choose(finding, missing)
        else:
            finding.perhaps = self._targets(missing, _MOST_FOLLOWED)
        return finding

    def _choose(self, finding: Finding, entries: list[Entry]) -> None:
        """One of `entries` is enough."""
        if len(entries) <= _MOST_CHOICES:
            finding.some = self._targets(entries, _MOST_CHOICES)
        else:
            finding.perhaps = self._targets(entries, _MOST_FOLLOWED)

    def _stopped_by(self, work: Work | None) -> Work | None:
        """In an async actor: another call whose blocking wait holds up the event loop."""
        host = self._runtime.executor.host
        if host is None or not host.creation.asynchronous:
            return None
        for wait in self._runtime.values.waits():
            if wait.thread == self._runtime.main_ident and isinstance(wait.work, Called) and wait.work is not work:
                return wait.work
        return None

    def _in_line(self, work: Work) -> Finding:
        """Work that has not begun."""
        runtime = self._runtime
        executor = runtime.executor
        host = executor.host
        name = f"{self._kind(work)} {self.work_name(work)}()"
        text = f"{_capital(name)} is in line in pid {runtime.pid}"
        if host is not None and host.concurrent and isinstance(work, Called):
            return self._in_group(work, name, text)
        text += _behind(executor.queue, work)
        name += f" in line in pid {runtime.pid}"
        current = executor.current
        if isinstance(current, (Queued, Called)):
            return Finding(f"{text}.", name, notable=host is not None, every=[self._work_target(current)])
        if current is not None:
            return Finding(f"{text}.", name, every=[Target("host", runtime.process)])
        return Finding(f"{text}, and about to begin.", name)

    def _in_group(self, work: Called, name: str, text: str) -> Finding:
        """A call of an actor that runs several at once, and already does."""
        host = self._runtime.executor.host
        group = host._group_of(work)
        calls = [call for call, _task in list(host.running.values())]
        busy = [call for call in calls if host._group_of(call) == group and self._has_begun(call)]
        where = f" of its group {group!r}" if group else ""
        text += f": {_count(len(busy), 'call')}{where} run there ({_list([self.work_name(call) for call in busy])})."
        targets = [self._work_target(call) for call in busy[:_MOST_CHOICES]]
        if len(busy) > _MOST_CHOICES:
            return Finding(text, name, notable=True, perhaps=targets[:_MOST_FOLLOWED])
        return Finding(text, name, notable=True, some=targets)

    def _holder(self, _target: Target) -> Finding:
        """What runs here holds the resources of its lease."""
        runtime = self._runtime
        executor = getattr(runtime, "executor", None)
        if executor is None:
            return Finding(f"Process {runtime.pid} runs no tasks.")
        if executor.host is not None:
            actor = executor.host.creation.class_name
            return Finding(f"Process {runtime.pid} is the actor {actor}, and keeps them for as long as it lives.")
        current = executor.current
        if isinstance(current, Queued):
            return Finding(every=[self._work_target(current)])
        return Finding(f"Process {runtime.pid} runs nothing now, and is about to give them back.")

    def _host(self, _target: Target) -> Finding:
        """What the actor of this process does."""
        runtime = self._runtime
        executor: Any = getattr(runtime, "executor", None)
        host = executor.host if executor is not None else None
        if host is None:
            return Finding(f"Process {runtime.pid} is not an actor yet.")
        if host.instance is None:
            what = f"the constructor of {host.creation.class_name}"
            waits = [wait for wait in runtime.values.waits() if wait.thread == runtime.main_ident]
            if waits:
                return self._waiting(f"{what} (pid {runtime.pid})", what, waits, [])
            return Finding(f"{_capital(what)} has been running in pid {runtime.pid}{self._for_how_long(None)}.")
        calls = [call for call in host.pending() if self._has_begun(call)]
        current = executor.current
        if isinstance(current, Called) and not host.concurrent:
            calls = [current]
        waiting = len(host.pending()) - len(calls) if host.concurrent else len(executor.queue)
        line = f", {_count(waiting, 'call')} in line" if waiting > 0 else ""
        if not calls:
            return Finding(f"Nothing runs in it now{line}.")
        names = _list([f"{self.work_name(call)}()" for call in calls])
        return Finding(f"It runs {names}{line}.", some=[self._work_target(call) for call in calls[:_MOST_CHOICES]])

    # --- is anybody waiting? At the owner --------------------------------------------------------------

    def _awaited(self, target: Target) -> Finding:
        """Who here waits for a task's results? "yes": somebody who warns of it; others are asked for in turn."""
        runtime = self._runtime
        owner, seq = target.id[:12], _number(target.id)

        def concerns(entry: Entry) -> bool:
            return entry.key >> 32 == seq and entry.origin.process == owner

        finding = Finding()
        for wait in runtime.values.waits():
            if any(map(concerns, wait.missing())):
                above = self.awaited_target(wait.work)
                if above is None:
                    return Finding("yes")
                finding.some.append(above)
        if owner == runtime.process:
            for key, peers in runtime.values._asked.items():
                if key >> 32 == seq:
                    finding.some += [Target("awaited", peer.origin.process, target.id) for peer in peers]
            for task in [*runtime.submitter._waiting_tasks.values(), *runtime.actors.pending_calls()]:
                if task.waiting and any(concerns(ref._entry) for _where, ref in task.arguments or ()):
                    finding.some.append(Target("awaited", owner, owner + task.seq.to_bytes(8, "big")))
        return finding

    # --- names -------------------------------------------------------------------------------------------------

    def where(self, wait: Wait) -> str:
        """Who waits, in a worker."""
        if isinstance(wait.work, (Queued, Called)):
            return f"{self.work_name(wait.work)}()"
        host = self._runtime.executor.host
        return f"the constructor of {host.creation.class_name}" if wait.work is not None and host else "a thread"

    def _work_target(self, work: Work) -> Target:
        owner: bytes = work.connection.peer.origin.process
        return Target("work", self._runtime.process, owner + work.spec.seq.to_bytes(8, "big"))

    def awaited_target(self, work: Any) -> Target | None:
        """The question whether anybody waits for a task or call that runs here; None if it is neither."""
        if not isinstance(work, (Queued, Called)):
            return None
        owner: bytes = work.connection.peer.origin.process
        return Target("awaited", owner, owner + work.spec.seq.to_bytes(8, "big"))

    def _kind(self, work: Work) -> str:
        return "call" if isinstance(work, Called) else "task"

    def work_name(self, work: Work) -> str:
        """The name of a task or call that is here."""
        executor = self._runtime.executor
        extra = work.spec.extra
        if extra is not None and extra.name:
            return extra.name
        if isinstance(work, Called):
            return f"{executor.host.creation.class_name}.{work.spec.method}" if executor.host else work.spec.method
        loaded = executor._functions.get(work.connection.peer.origin.process, {}).get(work.spec.function)
        return loaded.definition.name if loaded is not None else "?"

    def _for_how_long(self, work: Work | None) -> str:
        """Of what runs in the main thread, as far as it was looked at."""
        begun, since = self._runtime.busy_since
        executor = self._runtime.executor
        if begun != executor.begun or (work is not None and work is not executor.current):
            return ""
        return f" for {monotonic() - since:.1f} s"


def why_pending(runtime: Runtime, entry: Entry) -> str:
    """One sentence for a message: what an object that is not ready waits for. Any thread, so only what can be seen
    without the loop."""
    task: Any = entry.task
    if entry.origin is not runtime.origin:
        return "It belongs to another process, which has not sent it yet."
    if task is None:
        group = runtime.groups.of_entry(entry) if runtime.groups is not None else None
        return f"It is ready when {_state_of(group)}." if group is not None else "It has just become ready."
    name = task.options.name
    if isinstance(task, Call):
        return runtime.actors.why(task.callee, task)
    if task.waiting:
        return f"Task {name}() waits for {task.waiting} of its arguments."
    pool: KeyPool = task.options.pool
    slots = list(pool.slots.values())
    if any(task.seq in slot.running for slot in slots):
        return f"Task {name}() is at a worker, running or next in line."
    if pool.refused:
        return f"Task {name}() waits: {pool.refused}"
    need = amounts_text(pool.resources)
    return f"Task {name}() is queued with {len(pool.queue)} others for {len(slots)} workers of {need}."


def actor_text(callee: Callee) -> str:
    """An actor, shortly."""
    return f"actor {callee.class_name or '?'} ({callee.actor.hex()[:8]})"


def _wait_text(wait: Wait) -> str:
    missing = wait.missing()
    several = f"{_count(wait.lacks(), 'object')}" if len(missing) > 1 else "an object"
    if wait.lacks() < len(missing):
        several = f"{wait.lacks()} of {_count(len(missing), 'object')}"
    limit = f", up to its timeout of {wait.timeout_s:g} s" if wait.timeout_s is not None else ""
    return f"has been waiting for {monotonic() - wait.since:.1f} s in {wait.how} for {several}{limit}"


def _behind(queue: Iterable[Any], work: Any) -> str:
    """How many are before it."""
    for ahead, each in enumerate(islice(tuple(islice(queue, _MOST_COUNTED)), _MOST_COUNTED)):
        if each is work:
            return f" behind {_count(ahead, 'other')}" if ahead else ""
    return ""


def _state_of(group: Group) -> str:
    """How a placement group stands that is waited for."""
    reason = f": {group.reason}" if group.reason else ""
    return f"{group.label} ({show_amounts(_total(group.bundles))}) is created; it is {group.state}{reason}"


def _total(bundles: list[m.Resources]) -> m.Resources:
    names = {name for bundle in bundles for name in bundle}
    return {name: sum(bundle.get(name, 0) for bundle in bundles) for name in names}


def amounts_text(resources: m.Resources) -> str:
    """A need, for people."""
    parts = [f"{resources[name] / m.RESOURCE_UNIT:g} {show_name(name)}" for name in shown_names(resources)]
    return ", ".join(parts) or "no resources"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _list(names: list[str]) -> str:
    """Some names, equal ones once."""
    distinct = list(dict.fromkeys(names))
    more = f" and {len(distinct) - _MOST_NAMES} more" if len(distinct) > _MOST_NAMES else ""
    return ", ".join(distinct[:_MOST_NAMES]) + more


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(data: bytes) -> int:
    return int.from_bytes(data[-8:], "big")
