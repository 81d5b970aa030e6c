"""Nothing waits in silence: ``moray.explain``, and one warning about each wait that lasts.

Whoever wants to know asks step by step: the owner of the object, the worker that has its task, the owner of what that
one waits for, and the node about resources. Each process answers from what it has at hand
(:mod:`moray.runtime.explain_answers`), in its loop, at once; who does not answer in time is where the trail ends.
:mod:`moray.core.wait_graph` makes a story of the answers, and sees deadlocks.

**Warnings.** About once a second the loop looks at the waits of this process. One that has lasted for
:data:`~moray.config.WARN_AFTER_S` is explained, and told if it is more than being run; looked at again later, with
growing pauses, if not. A worker stays silent about a wait if somebody waits for the task that waits: that
one's warning tells of both. Requests for workers that get none are the node's to warn about.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from moray import config
from moray.core.wait_graph import Finding, Target, WaitGraph
from moray.object_ref import Entry
from moray.platform.process_table import read_stat
from moray.protocol import messages as m
from moray.runtime.explain_answers import Answers, amounts_text
from moray.runtime.unusable import of_ended_session
from moray.runtime.waits import Wait

if TYPE_CHECKING:
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Runtime

#: How long one process may take to answer. An idle loop needs less than a millisecond.
_ANSWER_S: Final = 1.0
#: How long a whole explanation may take.
_WHOLE_S: Final = 4.0
#: Questions of one explanation.
_MOST_QUESTIONS: Final = 200
#: Waits that are explained at once for warnings.
_MOST_AT_ONCE: Final = 4
#: The pause between two looks at one wait grows to this many times config.WARN_AFTER_S.
_LONGEST_PAUSE: Final = 8
#: Objects that were told of.
_TOLD_KEPT: Final = 10_000
#: In place of a holder that is not known by name: it is never asked, so it counts as a way out.
_UNKNOWN: Final = Target("unknown", b"")


class Exploration:
    """One explanation in the making. Loop only."""

    def __init__(self, explainer: Explainer, start: Target, done: Callable[[WaitGraph], None]) -> None:
        self._explainer = explainer
        self._runtime = explainer.runtime
        self.graph = WaitGraph(start)
        self._done: Callable[[WaitGraph], None] | None = done
        #: Everything that was asked; what is not answered yet.
        self._asked: set[Target] = set()
        self._open: dict[Target, int] = {}
        #: To be answered, or completed with what the node says.
        self._here: list[Target] = []
        self._for_node: list[Target] = []
        self._state: dict[str, Any] | None = None
        self._node_asked = False
        #: Process → (pid, what is there).
        self._pids: dict[bytes, tuple[int, str]] = {}
        self._timer = self._runtime.reactor.call_later(_WHOLE_S, self._end)

    def start(self) -> None:
        """Ask, until nothing is left to be asked."""
        # What was submitted just now takes its place first, and its request is at the node before our question.
        self._runtime.submitter.dispatch()
        self._runtime.actors.dispatch()
        self._ask(self.graph.start)
        self._go_on()

    def _go_on(self) -> None:
        while self._here:
            target = self._here.pop()
            self._add(target, self._explainer.answers.answer(target))
        if not self._open and (not self._for_node or self._state is not None):
            self._end()

    def _end(self) -> None:
        done, self._done = self._done, None
        self._timer.cancel()
        for number in self._open.values():
            self._explainer.open.pop(number, None)
        if done is not None:
            done(self.graph)

    def _ask(self, target: Target) -> None:
        if target in self._asked or target is _UNKNOWN or len(self._asked) >= _MOST_QUESTIONS:
            return
        self._asked.add(target)
        if target.process == self._runtime.process:
            self._here.append(target)
            return
        runtime = self._runtime
        peer = runtime.peers.get(target.process)
        if peer is not None and peer.dead is not None:
            self._add(target, Finding(f"Process {peer.dead.pid} has died: {peer.dead.reason}."))
            return
        number = self._open[target] = next(self._explainer.numbers)
        self._explainer.open[number] = (self, target)
        runtime.reactor.call_later(_ANSWER_S, lambda: self._give_up(target, number))
        if not runtime.send(runtime.peer(target.process), m.Why(number, target)):
            self._give_up(target, number)
            if peer is None:
                runtime.forget_peer(target.process)

    def answered(self, target: Target, finding: Finding) -> None:
        """Another process has answered."""
        self._open.pop(target, None)
        self._add(target, finding)
        self._go_on()

    def _give_up(self, target: Target, number: int) -> None:
        """No answer."""
        if self._explainer.open.pop(number, None) is None or self._open.pop(target, None) is None:
            return
        self._add(target, self._silent(target))
        self._go_on()

    def _silent(self, target: Target) -> Finding:
        peer = self._runtime.peers.get(target.process)
        pid, what = self._pids.get(target.process, (peer.pid if peer is not None else 0, ""))
        who = f"Process {pid or target.process.hex()}" + (f", which has {what}," if what else "")
        state = read_stat(pid) if pid else None
        if pid and (state is None or state.state == "Z"):
            return Finding(f"{who} has ended.")
        if state is not None and state.state in "Tt":
            return Finding(f"{who} does not answer: it is stopped (SIGSTOP, or a debugger).", notable=True)
        return Finding(
            f"{who} does not answer within {_ANSWER_S:g} s: it runs code that does not let other threads run (C code "
            "that holds the interpreter's lock), or the machine is overloaded."
        )

    def _add(self, target: Target, finding: Finding) -> None:
        self.graph.found[target] = finding
        self._pids |= finding.pids
        if finding.key or finding.actor:
            self._for_node.append(target)
            if self._state is not None:
                self._complete()
            elif not self._node_asked:
                self._node_asked = True
                self._runtime.request(m.ClusterInfo, self._on_state)
        for each in finding.targets():
            self._ask(each)

    # --- what the node says ------------------------------------------------------------------------

    def _on_state(self, answer: Any) -> None:
        self._state = answer.state if isinstance(answer, m.ClusterState) else {}
        self._complete()
        self._go_on()

    def _complete(self) -> None:
        """Complete findings by the node's word on their requests."""
        state = self._state or {}
        targets, self._for_node = self._for_node, []
        for target in targets:
            finding = self.graph.found[target]
            if finding.actor:
                self._complete_actor(finding, state)
            else:
                self._complete_request(finding, state, target.process.hex(), finding.key)
            for each in finding.targets():
                self._ask(each)

    def _complete_actor(self, finding: Finding, state: dict[str, Any]) -> None:
        name = finding.actor.hex()
        found = next((each for each in state.get("actors", ()) if each["actor"] == name), None)
        if found is None:
            finding.text = finding.text or f"The node knows no actor {name}: it is not registered yet, or long dead."
            return
        if not finding.text:
            finding.name = f"actor {found['class_name']} ({name[:8]})"
            reason = f": {found['reason']}" if found["reason"] else ""
            finding.text = f"Actor {found['class_name']} ({name[:8]}) is {found['state']}{reason}."
        if found["restarts"]:
            finding.notable = True
        if found["process"]:
            process = bytes.fromhex(found["process"])
            self._pids[process] = (found["pid"], finding.name)
            finding.every = [Target("host", process)]
            finding.text += f" Its process is pid {found['pid']}."
        elif found["state"] != "dead":
            self._complete_request(finding, state, name, None)

    def _complete_request(self, finding: Finding, state: dict[str, Any], owner: str, key: int | None) -> None:
        stories = [each for each in state.get("pending", ()) if each["owner"] == owner and key in (None, each["key"])]
        if not stories:
            finding.covered = False
            finding.some = [*finding.some, _UNKNOWN]  # It has been granted just now.
            return
        story = stories[0]
        finding.covered = finding.covered or key is None
        needs = amounts_text(story["resources"])
        text = f" It needs {needs}; {story['cause']}: {story['reason']}."
        pids = {each["process"]: each["pid"] for each in state.get("workers", ())}
        holders = []
        counted = 0
        for holder in story["taken_by"]:
            counted += holder["leases"]
            for process in holder["workers"]:
                holders.append(Target("holder", bytes.fromhex(process)))
                self._pids[bytes.fromhex(process)] = (pids.get(process, 0), f"{holder['label'] or 'a task'}")
        if holders:
            shown = [str(pids.get(target.process.hex(), "?")) for target in holders[:8]]
            more = f" and {counted - len(shown)} more" if counted > len(shown) else ""
            text = f"{text[:-1]} (pid {', '.join(shown)}{more})."
        finding.text += text
        if story["cause"] != "taken" or counted != len(holders) or not holders:
            holders.append(_UNKNOWN)
        finding.some = [*finding.some, *holders]


class Explainer:
    """Of one process. `Runtime.explainer`."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.answers = Answers(runtime)
        self.numbers = count(1)
        #: Questions to other processes: number → whose and what.
        self.open: dict[int, tuple[Exploration, Target]] = {}
        #: When waits are told of.
        self._warn_after_s = config.env_float("WARN_AFTER_S", config.WARN_AFTER_S)
        #: Wait, by its beginning and its entries' identity → when it is looked at next.
        self._looks: dict[tuple[float, int], float] = {}
        #: Objects that were told of → whether as a deadlock.
        self._told: OrderedDict[bytes, bool] = OrderedDict()
        self._exploring = 0
        #: Actors of ours that are restarting → since when.
        self._restarting: dict[bytes, float] = {}
        runtime.handlers |= {m.Why: self._on_why, m.Because: self._on_because}
        self._pause_s = min(1.0, self._warn_after_s / 4)
        #: The next look is set. Loop only, but for a glance.
        self._armed = self._warn_after_s <= 0
        if runtime.kind == "driver":
            self.arm()

    def _on_why(self, connection: Connection, message: m.Why) -> None:
        connection.send(m.Because(message.request, self.answers.answer(message.target)))

    def _on_because(self, _connection: Connection, message: m.Because) -> None:
        asked = self.open.pop(message.request, None)
        if asked is not None:
            exploration, target = asked
            exploration.answered(target, message.finding)

    def explore(self, start: Target, done: Callable[[WaitGraph], None]) -> None:
        """Have `done` called with all that can be found out. Loop only."""

        def first(graph: WaitGraph) -> None:
            if not graph.is_deadlock():
                done(graph)
                return
            # The answers came one after another: a deadlock is still there when one looks again.
            Exploration(self, start, done).start()

        Exploration(self, start, first).start()

    # --- moray.explain(): any thread but the loop's ----------------------------------------------------

    def explain_entry(self, entry: Entry) -> str:
        """The story of an object."""
        if entry.origin.runtime is not self.runtime:
            raise of_ended_session(entry)
        if entry.ready:
            what = "an error, which get() raises" if entry.error else f"{entry.size or len(entry.blob or b'')} bytes"
            return f"The object is ready ({what}).{self.runtime.recovery.warning(entry)}"
        return self._explain(lambda: self.answers.target(entry))

    def explain_actor(self, actor: bytes, creator: bytes) -> str:
        """The story of an actor."""
        return self._explain(lambda: Target("actor", creator or self.runtime.process, actor))

    def _explain(self, make: Callable[[], Target]) -> str:
        runtime = self.runtime
        runtime.check_usable()
        graphs: list[WaitGraph] = []
        waiter = runtime.new_waiter()

        def done(graph: WaitGraph) -> None:
            graphs.append(graph)
            waiter.notify()

        runtime.call_soon(lambda: self.explore(make(), done))
        deadline = monotonic() + 2 * _WHOLE_S + 1
        while not graphs:
            if not runtime.block(waiter, deadline):
                runtime.check_usable()
                return "This process's own loop does not answer: another thread holds the interpreter's lock."
        return "\n".join(graphs[0].story()) or "Nothing is known of it."

    # --- warnings ------------------------------------------------------------------------------------------

    def arm(self) -> None:
        """Somebody begins to wait: look again and again, until nobody does. Any thread."""
        if not self._armed:
            self.runtime.call_soon(self._begin_looking)

    def _begin_looking(self) -> None:
        if not self._armed:
            self._armed = True
            self.runtime.reactor.call_later(self._pause_s, self._look)

    def _look(self) -> None:
        """Explain waits that have lasted. Loop only, like all that follows."""
        runtime = self.runtime
        if runtime.closing or runtime.ended is not None:
            return
        # A driver's loop has timers anyway; a worker's turns faster without, while it only runs tasks.
        self._armed = runtime.kind == "driver"
        waits = runtime.values.waits()
        if waits or self._restarting:
            self._armed = True
        if self._armed:
            runtime.reactor.call_later(self._pause_s, self._look)
        now = monotonic()
        for actor, since in self._restarting.items():
            if now >= since + self._warn_after_s and actor not in self._told and self._exploring < _MOST_AT_ONCE:
                self._consider_actor(actor)
        looks = {}
        for wait in waits:
            key = wait.since, id(wait.entries)
            due = self._looks.get(key, wait.since + self._warn_after_s)
            if now >= due and self._exploring < _MOST_AT_ONCE:
                due = now + min(now - wait.since, _LONGEST_PAUSE * self._warn_after_s)
                self._consider(wait)
            looks[key] = due
        self._looks = looks

    def actor_changed(self, actor: bytes, state: str) -> None:
        """An actor of ours is restarting, or is not any more. Loop only."""
        if state == "restarting":
            self._restarting.setdefault(actor, monotonic())
            self.arm()
        else:
            self._restarting.pop(actor, None)

    def _consider_actor(self, actor: bytes) -> None:
        """An actor has not come back for long, whether anybody waits for it or not."""

        def heard(graph: WaitGraph) -> None:
            self._exploring -= 1
            if actor in self._restarting and self._is_news(actor, graph):
                story = ["An actor has been restarting again and again, or for long.", *graph.story()]
                self.runtime.output.warn("\n".join(story))

        self._exploring += 1
        self.explore(Target("actor", self.runtime.process, actor), heard)

    def _consider(self, wait: Wait) -> None:
        """Find out whether a wait is worth a warning, and whose."""
        awaited = self.answers.awaited_target(wait.work)
        if awaited is None:
            self._explore_for_warning(wait)
            return

        def heard(graph: WaitGraph) -> None:
            self._exploring -= 1
            if not any(finding.text == "yes" for finding in graph.found.values()):
                self._explore_for_warning(wait)

        self._exploring += 1
        Exploration(self, awaited, heard).start()

    def _explore_for_warning(self, wait: Wait) -> None:
        missing = wait.missing()
        if not missing:
            return
        entry = missing[0]

        def heard(graph: WaitGraph) -> None:
            self._exploring -= 1
            if wait.lacks() > 0:
                self._tell(wait, entry, graph)

        self._exploring += 1
        self.explore(self.answers.target(entry), heard)

    def _tell(self, wait: Wait, entry: Entry, graph: WaitGraph) -> None:
        if entry.ready or not self._is_news(entry.id, graph):
            return
        runtime = self.runtime
        where = ""
        if runtime.kind == "worker":
            workers = [target.process for target in graph.circle() if target.kind == "work"]
            if runtime.process in workers and runtime.process != min(workers):
                return  # Another one of the circle tells.
            where = f" in {self.answers.where(wait)} (pid {runtime.pid})"
        story = [f"{wait.how}{where} has been waiting for {monotonic() - wait.since:.0f} s.", *graph.story()]
        runtime.output.warn("\n".join(story))

    def _is_news(self, what: bytes, graph: WaitGraph) -> bool:
        """Whether this has not been told, neither of the object nor of an actor on the way; from now on it has."""
        deadlock = graph.is_deadlock()
        if not graph.is_notable():
            return False
        about = {what, *(target.id for target in graph.path() if target.kind == "actor")}
        known = [self._told[each] for each in about if each in self._told]
        if any(known) or (known and not deadlock):
            return False
        for each in about:
            self._told[each] = deadlock
            if len(self._told) > _TOLD_KEPT:
                self._told.popitem(last=False)
        return True
