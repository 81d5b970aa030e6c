"""What waits for what, as far as somebody has asked: the story of one wait, and whether it is a deadlock.

Whoever explains a wait asks the processes on its way, one step at a time, and collects their answers
(:class:`Finding`) in a :class:`WaitGraph`. A finding names what it waits for in turn:

- ``every``: all of these must end before it goes on (the value of a ``get``, a task's arguments, the call before it);
- ``some``: one of these is enough (a resource that several workers hold);
- ``perhaps``: it may go on without (a ``get`` with a timeout, one of several threads).

**Deadlock.** A finding is *stuck* if something in ``every`` is stuck, or all of ``some`` are. The largest set for which
that holds is what can never go on: beginning with all findings that wait, those with a way out are taken away until
nothing changes. What was not asked, or did not answer, counts as a way out, so that a deadlock is named
only when it was seen whole. The answers come at different times; but such a wait ends only when what it waits for
ends, so a circle of them that was seen edge by edge is there.
"""

from __future__ import annotations

from typing import Final

import msgspec

#: Steps of a story that are told, and names in a circle.
_MOST_STEPS: Final = 24
#: Characters of one step.
_MOST_TEXT: Final = 1500


class Target(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Something to be asked about, and whom to ask."""

    #: "object": `id` is its 28 bytes, the process owns it.
    #: "work": a task or call that the process has; `id`: its owner's 12 bytes and its number in 8.
    #: "holder": whatever runs in the process, which holds resources. "host": what the actor that it is does.
    #: "actor": `id` is its 16 bytes; the process created it, or is asked what it knows.
    #: "awaited": who in the process waits for the results of a task? `id`: its owner and number.
    kind: str
    process: bytes
    id: bytes = b""


class Finding(msgspec.Struct, array_like=True, gc=False):
    """One answer."""

    #: One or two sentences; "": nothing that the step before has not said.
    text: str = ""
    #: How it is called in a circle; "": it is left out there.
    name: str = ""
    #: It is worth a warning when it lasts: it is more than being run.
    notable: bool = False
    #: Somebody else warns of this.
    covered: bool = False
    every: list[Target] = []
    some: list[Target] = []
    perhaps: list[Target] = []
    #: Key of its lease request at the node, whose story belongs here; 0: none.
    key: int = 0
    #: Actor whose place at the node belongs here.
    actor: bytes = b""
    #: Processes that are named → (pid, what is there), for the case that they do not answer.
    pids: dict[bytes, tuple[int, str]] = {}

    def targets(self) -> list[Target]:
        """What to ask about next."""
        return [*self.every, *self.some, *self.perhaps]


class WaitGraph:
    """The findings so far."""

    def __init__(self, start: Target) -> None:
        self.start = start
        self.found: dict[Target, Finding] = {}

    def stuck(self) -> set[Target]:
        """All that can never go on."""
        stuck = {target for target, finding in self.found.items() if finding.every or finding.some}
        changed = True
        while changed:
            changed = False
            for target in list(stuck):
                finding = self.found[target]
                held = any(each in stuck for each in finding.every)
                if not held and not (finding.some and all(each in stuck for each in finding.some)):
                    stuck.discard(target)
                    changed = True
        return stuck

    def path(self) -> list[Target]:
        """From the start to where the trail ends, or (the last one is there twice) to the circle's closing."""
        stuck = self.stuck()
        path: list[Target] = []
        target: Target | None = self.start
        while target is not None and target in self.found:
            path.append(target)
            if target in path[:-1]:
                break
            following = [each for each in self.found[target].targets() if each in self.found]
            if target in stuck:
                following = [each for each in following if each in stuck]
            target = following[0] if following else None
        return path

    def is_deadlock(self) -> bool:
        """Whether the start waits for something that can never come."""
        return self.start in self.stuck()

    def circle(self) -> list[Target]:
        """The steps of the deadlock."""
        path = self.path()
        return path[path.index(path[-1]) : -1] if path and self.is_deadlock() else []

    def is_notable(self) -> bool:
        """Whether a wait that lasts should be told: it is more than work that runs, and nobody else tells."""
        if self.is_deadlock():
            return True
        path = [self.found[target] for target in self.path()]
        return any(finding.notable for finding in path) and not any(finding.covered for finding in path)

    def story(self) -> list[str]:
        """One line per step."""
        path = self.path()
        if not path:
            return []
        closed = path[-1] in path[:-1]
        steps = path[:-1] if closed else path
        lines = [self.found[target].text[:_MOST_TEXT] for target in steps if self.found[target].text]
        if len(lines) > _MOST_STEPS:
            left_out = len(lines) - _MOST_STEPS
            lines = [*lines[: _MOST_STEPS // 2], f"[{left_out} steps left out]", *lines[-_MOST_STEPS // 2 :]]
        if closed:
            lines.append(self._circle(path))
        return lines

    def _circle(self, path: list[Target]) -> str:
        members = path[path.index(path[-1]) : -1]
        names = [self.found[target].name for target in members]
        names = [name for name in names if name]
        if not self.is_deadlock():
            return f"That leads back to {names[0]}." if names else "That leads back to an earlier step."
        if len(names) > _MOST_STEPS:
            names = [*names[: _MOST_STEPS // 2], "…", *names[-_MOST_STEPS // 2 :]]
        if len(names) == 1:
            return f"This is a deadlock: {names[0]} waits for itself."
        if not names:
            return "This is a deadlock: each waits for the next, and the last for the first."
        chain = ", which waits for ".join([*names[1:], names[0]])
        return f"This is a deadlock: {names[0]} waits for {chain}. None of them can go on."
