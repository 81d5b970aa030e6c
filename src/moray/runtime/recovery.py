"""Lost copies of objects: found elsewhere, or made again (LINEAGE). Decisions are in :mod:`moray.core.lineage`.

An owner learns that a copy is lost from its node (a node is dead), from a pin that fails here, from a borrower's
Fetch, or from a worker that could not read an argument. In each case the entry is *not ready* again, while it is looked
for and made anew: whoever waits goes on waiting, and whoever comes waits. First the node is asked whether another node
has a whole copy, which becomes the primary one (FindObjects). What is nowhere is made again: its task runs once more.

A thread that has seen the entry as ready may read it meanwhile. It reads the old place, fails to pin, and comes here;
so nothing of an entry's value is cleared when it is taken back.

*Recipes.* When a task has ended with results in a store, its arguments stay referenced, but for those that other
recipes can make again: of these, the entry alone is kept, and the value may be freed (REF-FREE). In a local session
nothing is kept: a copy is lost only with everything else. Nor is anything of tasks with inline results, which lie with
their owner.

A borrower asks the owner, who looks (``Fetch.lost``). All is the loop's, but for :meth:`Recovery.read`.
"""

from __future__ import annotations

from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray import config, exceptions
from moray.core.lineage import Failed, Fate, Gone, Lineage, Plan, Why
from moray.object_ref import Entry, ObjectRef
from moray.protocol import messages as m
from moray.runtime.references import is_wanted
from moray.runtime.rerun import Again
from moray.runtime.tasks import Call, Task
from moray.serialization import context

if TYPE_CHECKING:
    from moray.runtime.references import TaskToken
    from moray.runtime.runtime import Runtime
    from moray.runtime.task_errors import ArgumentLostError

#: How often one reader, or one task, finds that an object is not where its owner says it is, before that is an error.
_ROUNDS: Final = 8


class Recipe(msgspec.Struct, eq=False):
    """How to make a finished task's results again."""

    task: Task
    #: (where, a reference, or the entry of what another recipe makes).
    arguments: list[tuple[int | str, ObjectRef[Any] | Entry]]
    #: References inside the arguments.
    contained: list[ObjectRef[Any]]


class Recovery:
    """One process's lost objects. `Runtime.recovery`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self.core = Lineage(config.env_bytes("LINEAGE_BYTES", config.LINEAGE_BYTES))
        self._recipes: dict[int, Recipe] = {}
        #: Our results in stores: key → entry.
        self._entries: dict[int, Entry] = {}
        #: Tasks that run as stand-ins, or did: the task that they stand in for → their entries.
        self._stand_ins: dict[int, list[Entry]] = {}
        #: Dead nodes.
        self._dead: set[bytes] = set()
        #: Entries of ours that are looked for.
        self._looked_for: dict[int, str] = {}
        #: Of foreign entries: where we did not find them, to be told to their owners.
        self.missed: dict[bytes, bytes] = {}
        #: Task → how often its arguments were not where they should be.
        self._rounds: dict[int, int] = {}
        runtime.handlers[m.ObjectsFound] = runtime.on_answer
        runtime.handlers[m.ObjectsMoved] = self._on_moved

    # --- what is remembered ---------------------------------------------------------------------------

    def stored(self, task: Task, entry: Entry) -> None:
        """A result of a task lies in a store. Its task is not known any more when it is released."""
        if self._runtime.remote is None:
            return
        if not self.core.knows(task.seq):
            # A call can be repeated as long as its actor lives; an actor's items are not kept so long.
            once = isinstance(task, Call) and task.stream is not None
            self.core.opened(task.seq, 0 if once else task.options.max_retries)
        self._entries[entry.key] = entry
        self._looked_for.pop(entry.key, None)
        self.core.stored(entry.key)

    def ended(self, task: Task) -> None:
        """A task has ended, with all its results; they may be released already."""
        self._rounds.pop(task.seq, None)
        if not self.core.knows(task.seq):
            task.held = task.arguments = None
            return
        known = self._recipes.get(task.seq)
        recipe = known if known is not None else Recipe(task, [], [])
        attempts = self.core.attempts(task.seq)
        if attempts:
            attempts = task.retries_left
        inputs: list[int] = []
        held: dict[bytes, int] = {}
        if known is None and attempts:
            self._keep_arguments(recipe, task, inputs, held)
        elif known is None:
            task.payload = b""  # It will not run again; what remains says why.
            if isinstance(task, Call):
                task.handle = None  # Nobody needs its actor for that.
        self._recipes[task.seq] = recipe
        recipe.task.attempt = task.attempt
        # What it was sent with is made anew for each run, and whoever submitted it may have ended.
        task.held = task.arguments = task.extra = task.parent = None
        lost, gone = self.core.closed(task.seq, attempts, inputs, held, len(task.payload))
        self._forget(gone)
        if lost:
            self._carry_out(self.core.lost(lost))

    def _keep_arguments(self, recipe: Recipe, task: Task, inputs: list[int], held: dict[bytes, int]) -> None:
        origin = self._runtime.origin
        among = set()
        for where, ref in task.arguments or ():
            entry = ref._entry
            among.add(ref)
            if entry.origin is origin and self.core.remembers(entry.key) and self._is_plain(entry.key >> 32):
                inputs.append(entry.key)
                recipe.arguments.append((where, entry))
                continue
            recipe.arguments.append((where, ref))
            held[entry.id] = entry.size or len(entry.blob or b"")
        for ref in task.held or ():
            if ref not in among:
                recipe.contained.append(ref)
                held[ref._entry.id] = ref._entry.size or len(ref._entry.blob or b"")

    def _is_plain(self, seq: int) -> bool:
        """Whether a task may be run under another number."""
        recipe = self._recipes.get(seq)
        return recipe is not None and not isinstance(recipe.task, Call) and recipe.task.stream is None

    def failed(self, task: Task) -> None:
        """A task has ended with an error, as have its results."""
        if task.stream is not None:
            self.ended(task)  # Items that came before may be lost, and made again.
            return
        self._rounds.pop(task.seq, None)
        if self.core.knows(task.seq):
            recipe = self._recipes.get(task.seq)
            if recipe is not None:
                recipe.task.attempt = task.attempt
            self._forget(self.core.failed(task.seq))
        task.held = task.arguments = None

    def about_to_fail(self, task: Task) -> None:
        """A task has failed: its lost results are about to become errors."""
        if self.core.knows(task.seq) and task.stream is None:
            for entry in self.lost_entries(task.seq):
                self.small(entry)

    def freed(self, entry: Entry) -> None:
        """Nobody refers to an object of ours any more (REF-FREE)."""
        if self._entries.pop(entry.key, None) is not None:
            self._looked_for.pop(entry.key, None)
            self._forget(self.core.freed(entry.key))

    def _forget(self, gone: Gone) -> None:
        for seq in gone.dropped:
            self._recipes.pop(seq, None)
            self._stand_ins.pop(seq, None)
        for seq in gone.evicted:
            recipe = self._recipes[seq]
            recipe.arguments, recipe.contained = [], []
            recipe.task.payload = b""

    def discard(self, key: int, node: bytes) -> None:
        """A task that ran again has made a result at `node` that nobody asked for: unless it took the place of the one
        that is there, it goes."""
        entry = self._entries.get(key)
        places = self._runtime.values.places
        if entry is None or (places.of(entry) or places.tag) != node:
            places.free_at(Entry(self._runtime.origin, key).id, node)

    # --- losses ---------------------------------------------------------------------------------------------

    def node_died(self, tag: bytes) -> None:
        """A node is dead: find out where else our objects of there are."""
        self._dead.add(tag)
        places = self._runtime.values.places
        places.node_died(tag)
        entries = [entry for entry in self._entries.values() if places.of(entry) == tag and entry.ready]
        self._look_for(entries, f"the node that had it ({tag.hex()}) is dead")

    def _on_moved(self, _connection: Any, message: m.ObjectsMoved) -> None:
        """A node leaves, and has handed objects of ours over to another one."""
        for object_id in message.objects:
            self._runtime.values.places.moved(object_id, message.source, message.node)
        self._runtime.values.places.flush()  # What was freed there before is told there before.
        self._runtime.node.send(m.MoveNoted(message.objects, message.source))

    def suspect(self, entry: Entry, tag: bytes) -> None:
        """Somebody did not find a stored object at this node."""
        values = self._runtime.values
        if self._runtime.remote is None:
            return  # There is one node, and what it does not have is nowhere.
        if not entry.ready or entry.error or not entry.size or (values.places.of(entry) or values.places.tag) != tag:
            return  # It is looked for, or elsewhere by now.
        if entry.origin is self._runtime.origin:
            self._look_for([entry], f"node {tag.hex()} has it no longer")
            return
        entry.ready = False
        self.missed[entry.id] = tag
        values.want(entry)

    def _look_for(self, entries: list[Entry], why: str) -> None:
        if not entries:
            return
        for entry in entries:
            entry.ready = False
            self._looked_for[entry.key] = why
        names = [entry.id for entry in entries]
        self._runtime.request(lambda number: m.FindObjects(number, names), lambda answer: self._found(entries, answer))

    def _found(self, entries: list[Entry], answer: Any) -> None:
        runtime = self._runtime
        runtime.references.drain()
        if not isinstance(answer, m.ObjectsFound):  # The session has ended.
            for entry in entries:
                if not entry.ready:
                    runtime.values.fail(entry, answer)
            return
        lost: list[Entry] = []
        again: list[Entry] = []
        for entry, node in zip(entries, answer.nodes, strict=True):
            why = self._looked_for.pop(entry.key, None)
            if entry.ready or not is_wanted(entry):
                if node and not is_wanted(entry):
                    runtime.values.places.free_at(entry.id, node)
            elif node in self._dead:
                again.append(entry)
            elif node:
                runtime.values.places.move(entry, node)
                runtime.values.ready(entry)
            else:
                lost.append(entry)
                self._looked_for[entry.key] = why or "all copies are lost"
        self._look_for(again, "the node that was to have it is dead, too")
        self._lost(lost)

    def _lost(self, entries: list[Entry]) -> None:
        """There is no copy anywhere."""
        known = [entry.key for entry in entries if entry.key in self._entries]
        for entry in entries:
            if entry.key not in self._entries:
                reason = "it was made by put(), and no task can make it again"
                self.small(entry)
                self._runtime.values.fail(entry, exceptions.ObjectLostError(entry.id.hex(), reason=reason))
        if known:
            self._carry_out(self.core.lost(known))

    # --- making again -----------------------------------------------------------------------------------------

    def _carry_out(self, plan: Plan) -> None:
        again = Again(self._runtime, self)
        for failed in plan.failed:
            self._fail(failed)
        for run in plan.runs:
            again.run(run, self._recipes[run.task], self.core.attempts(run.task))
        again.commit()

    def reference(self, entry: Entry, kept: list[ObjectRef[Any]]) -> ObjectRef[Any]:
        """A reference to what an argument's entry stands for; what stands in for a freed one is in `kept`."""
        found = self._living(entry)
        if found is not None:
            return found
        seq, index = entry.key >> 32, entry.key & 0xFFFFFFFF
        stand_in = self.stand_in(seq, index)
        if stand_in is None:
            # Its last reference went while this was planned.
            plan = self.core.stand_in(seq)
            again = Again(self._runtime, self)
            for run in plan.runs:
                again.run(run, self._recipes[run.task], self.core.attempts(run.task))
            kept += again.commit()
            stand_in = self.stand_in(seq, index)
        if stand_in is None:
            stand_in = self._runtime.make_ref(Entry(self._runtime.origin, next(self._runtime.sequence) << 32))
            error = self._error(Failed(entry.key, entry.key, self.core.why_not(entry.key) or Why.NO_TASK))
            self._runtime.values.fail(stand_in._entry, error)
        return stand_in

    def _living(self, entry: Entry) -> ObjectRef[Any] | None:
        """The entry's reference, or a new one, if anybody refers to the object."""
        found = entry.alive() if entry.alive is not None else None
        if found is None:
            self._runtime.references.drain()
            if entry.book is not None and not entry.book.freed:
                outer, context.cover = context.cover, None  # It is ours.
                found = self._runtime.references.import_ref(entry.id)  # Others have it.
                context.cover = outer
        return found

    def stand_in(self, seq: int, index: int) -> ObjectRef[Any] | None:
        """What stands in for a task's result, if it does."""
        entries = self._stand_ins.get(seq)
        return self._living(entries[index]) if entries is not None else None

    def stands_in(self, seq: int, entries: list[Entry]) -> None:
        """These are made for the freed results of a task."""
        self._stand_ins[seq] = entries

    def lost_entry(self, key: int) -> Entry | None:
        """The entry of a lost result, if somebody waits for it."""
        return self._entries.get(key) if self.core.fate(key) is Fate.LOST else None

    def lost_entries(self, seq: int) -> list[Entry]:
        """Those of a task's lost results."""
        return [self._entries[key] for key in self.core.lost_of(seq)]

    def _fail(self, failed: Failed) -> None:
        entry = self._entries.get(failed.key)
        if entry is not None and not entry.ready:
            error = self._error(failed)
            self.small(entry)
            self._runtime.values.fail(entry, error)

    def small(self, entry: Entry) -> None:
        """A stored object of ours becomes an error, or a small value."""
        self._runtime.values.places.drop(entry)
        entry.size = 0
        self._entries.pop(entry.key, None)
        self._looked_for.pop(entry.key, None)
        self._forget(self.core.freed(entry.key))

    def _error(self, failed: Failed) -> exceptions.ObjectLostError:
        """Names the object that cannot be made, and why."""
        recipe = self._recipes.get(failed.culprit >> 32)
        return exceptions.ObjectReconstructionFailedError(
            Entry(self._runtime.origin, failed.key).id.hex(), reason_message=self._why(failed, recipe)
        )

    def _why(self, failed: Failed, recipe: Recipe | None) -> str:
        text = ""
        if failed.culprit != failed.key:
            text = f"it is made from object {Entry(self._runtime.origin, failed.culprit).id.hex()}, which is gone: "
        if recipe is None or failed.why is Why.NO_TASK:
            return f"{text}no task is known that makes it"
        kind = "call" if isinstance(recipe.task, Call) else "task"
        name = f"{kind} {recipe.task.options.name}()"
        if failed.why is Why.BUDGET:
            return (
                f"{text}how to run {name} again was forgotten, as such recipes and the values that they keep may take "
                f"{self.core.budget} bytes (MORAY_LINEAGE_BYTES)"
            )
        most, attempt = recipe.task.options.max_retries, recipe.task.attempt
        option = "max_task_retries" if kind == "call" else "max_retries"
        if isinstance(recipe.task, Call) and recipe.task.stream is not None:
            return f"{text}it is an item of {name}, and items of actors are not made again"
        tried = f", and it was run {attempt + 1} times" if attempt else ""
        return f"{text}{name} has {option}={most}{tried}"

    # --- arguments ----------------------------------------------------------------------------------------------

    def argument_lost(self, task: Task, what: bytes) -> bool:
        """A worker did not find an argument of a task: look for it, then run the task; False if that is no use."""
        if self._runtime.remote is None:
            return False
        rounds = self._rounds[task.seq] = self._rounds.get(task.seq, 0) + 1
        object_id, tag = what[:28], what[28:]
        found = [ref._entry for _where, ref in task.arguments or () if ref._entry.id == object_id]
        if not found or rounds > _ROUNDS or task.cancelled:
            return False
        self.suspect(found[0], tag)
        self._runtime.submitter.intake.append(task)
        self._runtime.wake()
        return True

    def wait_for_argument(self, lost: ArgumentLostError, token: TaskToken) -> Any:
        """An actor's argument is not where it should be: its value, once the owner has it again. The call's thread."""
        outer, context.cover = context.cover, token
        try:
            ref = self._runtime.references.import_ref(lost.what[:28])
        finally:
            context.cover = outer
        entry = ref._entry
        if not entry.ready:
            self._runtime.call_soon(lambda: self._miss(entry, lost.what[28:]))
        return self._runtime.values.get_one(ref, None)

    def _miss(self, entry: Entry, tag: bytes) -> None:
        if not entry.ready and entry.origin is not self._runtime.origin:
            self.missed[entry.id] = tag
            self._runtime.values.want(entry)

    # --- readers: any thread ------------------------------------------------------------------------------------

    def read(self, entry: Entry, deadline: float | None) -> tuple[bytes | memoryview, bool]:
        """The bytes of an entry that was in the store, and whether they are an error, if it was lost and made again."""
        values = self._runtime.values
        for rounds in count():
            values.space.tell_of(entry)
            node = values.places.of(entry)
            try:
                return values.map_stored(entry.id, node, entry.size), False
            except exceptions.ObjectLostError:
                if not self._wait(entry, node or values.places.tag, rounds, deadline):
                    raise
            if entry.blob is not None:
                return entry.blob, entry.error
        raise AssertionError  # count() does not end.

    def _wait(self, entry: Entry, tag: bytes, rounds: int, deadline: float | None) -> bool:
        """A stored object was not at this node: return when it is ready again; False if that is no use."""
        runtime = self._runtime
        if runtime.remote is None or rounds >= _ROUNDS:
            return False
        waiter = runtime.new_waiter()
        told: list[None] = []

        def tell() -> None:
            self.suspect(entry, tag)
            told.append(None)
            waiter.notify()

        runtime.call_soon(tell)
        while not told:
            runtime.block(waiter, None)
            runtime.check_usable()
        if deadline is not None:
            runtime.values.wait_for([entry], max(0.0, deadline - monotonic()))
        elif not entry.ready:
            runtime.values.wait_for_one(entry)
        return True

    # --- explanations -------------------------------------------------------------------------------------------

    def explain(self, entry: Entry) -> str:
        """What is done about a lost object of ours; "" if it is not lost."""
        why = self._looked_for.get(entry.key)
        if why is None:
            return ""
        if isinstance(entry.task, Task):
            return f"Its copies were lost ({why}), and it is being rebuilt."
        return f"Its copy was lost ({why}); other nodes are asked for one."

    def warning(self, entry: Entry) -> str:
        """What a ready object of ours lacks; "": nothing. Any thread."""
        if entry.key in self._entries and self.core.why_not(entry.key) is Why.BUDGET:
            return " If its copies are lost, it cannot be rebuilt: the recipe was forgotten (MORAY_LINEAGE_BYTES)."
        return ""
