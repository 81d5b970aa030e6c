"""Placement groups as this process knows them, and what it submits to them.

The head tells whoever watches a group how it stands (:class:`~moray.protocol.cluster_messages.GroupState`); a process
watches each group that it has created or that something of its is to run in. Until a group is created its tasks wait
here: their pool (:class:`GroupPool`) asks for no leases. When the group is removed, what waits fails, idle leases go
back, and the pools are forgotten: a user's thread that still has one in its hands finds that its task fails.

**User threads** create a group in one step, a call for the loop (INTERRUPT); everything else here is the loop's, but
for `records`, which is read and written by one dict step.
"""

from __future__ import annotations

import itertools
import os
from _thread import allocate_lock
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakSet

from moray import exceptions
from moray.core.bundles import bundle_need, fits_in
from moray.core.resources import show_amount, show_amounts
from moray.ids import tag_of
from moray.object_ref import Entry, ObjectRef
from moray.protocol import messages as m
from moray.runtime.tasks import KeyPool
from moray.runtime.values import dump_error
from moray.serialization import loads

if TYPE_CHECKING:
    from moray.core.strategies import Strategy
    from moray.options import ActorOptions, TaskOptions
    from moray.protocol.connection import Connection
    from moray.runtime.runtime import Runtime

#: Keys of groups' pools begin here, far from those of others.
_FIRST_KEY: Final = 1 << 32
#: Removed groups that are remembered.
_REMEMBERED: Final = 1000
#: The states in which its tasks wait.
_WAITING: Final = ("pending", "infeasible", "rescheduling")


class NameTakenError(exceptions.MoraySystemError, ValueError):
    """Another placement group has the name. Ray raises the first."""


class Group:
    """One placement group, as far as this process knows it."""

    __slots__ = (
        "blob", "bundles", "entry", "group", "name", "nodes", "pools", "reason", "ref", "state", "strategy", "unused"
    )  # fmt: skip

    def __init__(self, group: bytes, bundles: list[m.Resources], name: str = "", strategy: str = "") -> None:
        self.group = group
        self.bundles = bundles
        self.name = name
        self.strategy = strategy
        #: It was made here, ends with this job, and nothing was to run in it; nobody else was told of it.
        self.unused = False
        #: The head's last word, and why.
        self.state = "pending"
        self.reason = ""
        self.nodes: list[bytes] = []
        #: What `ready()` gives: an object of this process, whose value is `blob` when the group is created.
        self.ref: ObjectRef[Any] | None = None
        self.entry: Entry | None = None
        self.blob = b""
        self.pools: list[GroupPool] = []

    @property
    def label(self) -> str:
        """For people."""
        return f"placement group {self.name!r}" if self.name else f"placement group {self.group.hex()[:8]}"

    def removed_error(self, what: str) -> exceptions.TaskPlacementGroupRemoved:
        """The error of what was to run in it."""
        reason = self.reason or f"{self.label} was removed"
        return exceptions.TaskPlacementGroupRemoved(f"{what} cannot run: {reason}")


class GroupPool(KeyPool):
    """The pool of a scheduling key in a group."""

    def __init__(self, groups: Groups, group: Group, index: int, key: int, resources: m.Resources, *more: Any) -> None:
        super().__init__(key, resources, *more)
        self.group = group
        self._index = index
        self._groups = groups

    def home(self) -> dict[bytes, int]:
        """See KeyPool: the node of its bundle, which may not have told others yet that it has it."""
        nodes = self.group.nodes
        found = nodes[self._index] if 0 <= self._index < len(nodes) else (nodes[0] if len(set(nodes)) == 1 else b"")
        return {tag_of(found): 1} if found else {}

    def should_request(self) -> int | None:
        """See Pool: nothing is asked for before the group is created, or after it was removed."""
        if self.group.state == "created":
            return super().should_request()
        if self.group.state not in _WAITING:
            self._groups.fail_soon(self)
        return None

    def refusal(self, message: m.LeaseRefused) -> exceptions.MorayError | None:
        """See KeyPool."""
        error = super().refusal(message)
        return error if self.group.state in ("created", *_WAITING) else self.group.removed_error(f"{self.label}()")


class Groups:
    """Of one process. `Runtime.groups`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        #: Known groups. Any thread adds, by one step.
        self.records: dict[bytes, Group] = {}
        #: Removed ones among them, oldest first.
        self._removed: OrderedDict[bytes, None] = OrderedDict()
        self._pools: dict[tuple[Any, ...], GroupPool] = {}
        self._keys = itertools.count(_FIRST_KEY)
        #: Pools of removed groups that still have leases; and those that somebody may still have in his hands.
        self._leaving: list[GroupPool] = []
        self._closed: WeakSet[GroupPool] = WeakSet()
        runtime.handlers[m.GroupState] = self._on_state
        runtime.handlers[m.GroupList] = runtime.on_answer
        runtime.reactor.hooks.append(self._sweep)

    # --- any thread ------------------------------------------------------------------------------

    def create(self, message: m.CreateGroup) -> Group:
        """Make a group. One with a name is known to have it when this returns.

        Raises:
            ValueError: the name is taken.
        """
        runtime = self._runtime
        runtime.check_usable()
        group = Group(message.group, message.bundles, message.name, message.strategy)
        group.unused = not message.detached
        group.reason = "its bundles are being reserved"  # Until the head says otherwise.

        def begin() -> None:
            self.records[message.group] = group
            if not message.name:
                runtime.node.send(message)

        if not message.name:
            runtime.call_soon(begin)
            self.records[message.group] = group  # The loop may take its time, and whoever has it asks for it now.
            return group

        def undo(answer: Any) -> None:
            if isinstance(answer, m.GroupState) and answer.state != "refused":
                runtime.call_soon(lambda: self._end(group))

        def make(request: int) -> m.CreateGroup:
            message.request = request
            return message

        answer = runtime.ask(make, undo, begin)
        if answer.state == "refused":
            self.records.pop(message.group, None)
            raise NameTakenError(f"placement_group(): {answer.reason}")
        return group

    def find(self, group: bytes) -> Group:
        """The group with this id; it is watched from now on.

        Raises:
            ValueError: there is none.
        """
        found = self.records.get(group)
        if found is not None:
            return found
        return self._asked(lambda request: m.WatchGroup(request, group))

    def of_entry(self, entry: Entry) -> Group | None:
        """The group whose `ready()` gave the object. Any thread."""
        return next((group for group in tuple(self.records.values()) if group.entry is entry), None)

    def find_named(self, name: str, namespace: str) -> Group:
        """The group with this name; ValueError if there is none."""
        return self._asked(lambda request: m.WatchGroup(request, b"", name, namespace))

    def _asked(self, make: Any) -> Group:
        answer = self._runtime.ask(make, before=_nothing)
        if answer.state == "unknown":
            raise ValueError(answer.reason)
        found = self.records.get(answer.group)
        if found is None:  # It was removed a moment ago, as many others.
            found = Group(answer.group, answer.bundles, answer.name, answer.strategy)
            found.state, found.reason = answer.state, answer.reason
        return found

    def remove(self, group: bytes) -> None:
        """Remove a group; it is removed when this returns, and what runs in it about to end.

        A group in which nothing could run is removed without waiting for the head's answer: the head hears whatever
        this process asks it from now on after that.
        """
        runtime, found = self._runtime, self.records.get(group)
        if found is None or not found.unused:
            runtime.ask(lambda request: m.RemoveGroup(request, group), before=_nothing)
            return
        runtime.check_usable()
        runtime.call_soon(lambda: self._end(found))

    def table(self) -> list[dict[str, Any]]:
        """All groups of the session, and the last removed ones."""
        answer = self._runtime.ask(m.ListGroups, before=_nothing)
        found: list[dict[str, Any]] = answer.groups
        return found

    def ready_ref(self, group: Group, blob: bytes) -> ObjectRef[Any]:
        """The object that becomes ready, with the value `blob`, when the group is created."""
        runtime = self._runtime
        with _making:
            if group.ref is None:
                entry = Entry(runtime.origin, next(runtime.sequence) << 32, seen=True)  # Nobody need fetch it.
                ref = runtime.make_ref(entry)
                # In this order: an interrupted thread leaves what the next one replaces.
                group.blob, group.entry, group.ref = blob, entry, ref
        runtime.call_soon(lambda: self._settle(group))
        return group.ref

    def pool(
        self, group: Group, resources: m.Resources, runtime_env: str, label: str, strategy: Strategy | None, index: int
    ) -> GroupPool:
        """The pool of a scheduling key; `resources` are those of the group's bundles."""
        key = (group.group, tuple(sorted(resources.items())), runtime_env, strategy)
        submitter = self._runtime.submitter
        with submitter._pools_lock:
            pool = self._pools.get(key)
            if pool is None or pool.group is not group:
                useful = _useful(group.bundles, resources, group.group.hex(), index)
                pool = GroupPool(self, group, index, next(self._keys), resources, runtime_env, label, useful, strategy)
                self._pools[key] = pool
                group.pools.append(pool)
                submitter._by_key[pool.key] = pool
        if group.state == "removed":
            self._runtime.call_soon(lambda: self._leave(group))
        return pool

    # --- the loop ----------------------------------------------------------------------------------

    def _on_state(self, connection: Connection, message: m.GroupState) -> None:
        if message.state not in ("unknown", "refused"):
            group = self.records.get(message.group)
            if group is None and message.request:
                group = Group(message.group, message.bundles, message.name, message.strategy)
                self.records[message.group] = group
            # Or its removal has crossed an earlier word; it may even be forgotten.
            if group is not None and group.state != "removed":
                group.bundles = message.bundles or group.bundles
                group.state, group.reason, group.nodes = message.state, message.reason, message.nodes
                group.name, group.strategy = message.name or group.name, message.strategy or group.strategy
                self._changed(group)
        elif not message.request and message.group in self.records:
            # The creation of an unnamed group was refused: its job is ending.
            group = self.records[message.group]
            group.state, group.reason = "removed", message.reason
            self._changed(group)
        if message.request:
            self._runtime.on_answer(connection, message)

    def _changed(self, group: Group) -> None:
        self._settle(group)
        if group.state == "created":
            for pool in group.pools:
                self._runtime.submitter._fill(pool)
        elif group.state == "removed":
            self._removed[group.group] = None
            if len(self._removed) > _REMEMBERED:
                oldest, _ = self._removed.popitem(last=False)
                self.records.pop(oldest, None)
            self._leave(group)

    def _end(self, group: Group) -> None:
        """Remove it: the head, which is asked nothing, does not say so to this process."""
        if group.state != "removed":
            group.state, group.reason = "removed", f"{group.label} was removed"
            self._changed(group)
        self._runtime.node.send(m.RemoveGroup(0, group.group))

    def _settle(self, group: Group) -> None:
        """`ready()` is ready, or an error."""
        entry = group.entry
        if entry is None or entry.ready or group.state in ("pending", "infeasible"):
            return
        if group.state == "removed":
            entry.error = True
            entry.blob = dump_error(group.removed_error("what waits for it"))
        else:
            entry.blob = group.blob
        self._runtime.values.ready(entry)

    def _leave(self, group: Group) -> None:
        """The group is removed: what waits fails, and idle leases go back."""
        pools, group.pools = group.pools, []
        for pool in pools:
            self.fail(pool)
            for slot in list(pool.slots.values()):
                if not slot.running:
                    self._runtime.submitter._return(pool, slot)
        self._leaving += pools

    def fail_soon(self, pool: GroupPool) -> None:
        """In the next turn: the caller holds the pool's lock."""
        self._runtime.call_soon(lambda: self.fail(pool))

    def fail(self, pool: GroupPool) -> None:
        """Nothing of it will ever run."""
        submitter = self._runtime.submitter
        while pool.queue:
            task = pool.queue.popleft()
            submitter.finish_with(task, dump_error(pool.group.removed_error(f"task {task.options.name}()")), False)
        pool.requested = 0

    def _sweep(self) -> None:
        """Once a turn: forget pools of removed groups that have nothing left; tasks that came late fail."""
        if self._leaving:
            left = [pool for pool in self._leaving if pool.slots or pool.queue]
            gone = [pool for pool in self._leaving if not pool.slots and not pool.queue]
            self._leaving = left
            with self._runtime.submitter._pools_lock:
                for pool in gone:
                    self._closed.add(pool)
                    self._runtime.submitter._by_key.pop(pool.key, None)
                for key in [key for key, pool in self._pools.items() if pool in self._closed]:
                    del self._pools[key]
        for pool in list(self._closed):
            pool.hungry = True
            if pool.queue:
                self.fail(pool)


class LocalGroups:
    """In local mode: every group is created at once, and nothing is reserved."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._groups: dict[bytes, Group] = {}

    def create(self, message: m.CreateGroup) -> Group:
        """See Groups."""
        if message.name and any(g.name == message.name and g.state == "created" for g in self._groups.values()):
            raise NameTakenError(f"placement_group(): the name {message.name!r} belongs to another placement group")
        group = self._groups[message.group] = Group(message.group, message.bundles, message.name, message.strategy)
        group.state, group.nodes = "created", [self._runtime.welcome.node_id] * len(message.bundles)
        return group

    def find(self, group: bytes) -> Group:
        """See Groups."""
        if group not in self._groups:
            raise ValueError(f"there is no placement group {group.hex()}")
        return self._groups[group]

    def find_named(self, name: str, namespace: str) -> Group:
        """See Groups."""
        found = next((g for g in self._groups.values() if g.name == name and g.state == "created"), None)
        if found is None:
            raise ValueError(f"no placement group is named {name!r} in the namespace {namespace!r}")
        return found

    def remove(self, group: bytes) -> None:
        """See Groups."""
        if group in self._groups:
            self._groups[group].state = "removed"

    def table(self) -> list[dict[str, Any]]:
        """See Groups."""
        return [
            {
                "group": g.group.hex(),
                "name": g.name,
                "namespace": self._runtime.welcome.namespace,
                "strategy": g.strategy,
                "job": int.from_bytes(self._runtime.job, "big"),
                "detached": False,
                "bundles": g.bundles,
                "state": g.state,
                "reason": "",
                "nodes": [node.hex() for node in g.nodes],
            }
            for g in self._groups.values()
        ]

    def ready_ref(self, _group: Group, blob: bytes) -> ObjectRef[Any]:
        """See Groups."""
        ref: ObjectRef[Any] = self._runtime.values.put(loads(blob))
        return ref


def groups_of(runtime: Any) -> Any:
    """The process's, made when they are first asked for."""
    groups = runtime.groups
    if groups is None:
        with _making:
            groups = runtime.groups
            if groups is None:
                groups = runtime.groups = LocalGroups(runtime) if runtime.kind == "local" else Groups(runtime)
    return groups


def placement_of(
    runtime: Any, options: TaskOptions | ActorOptions, resources: m.Resources, what: str
) -> tuple[Group | None, m.Placement | None, m.Resources]:
    """Where something with these options runs: (group, what its worker is told, what it needs there).

    Raises:
        ValueError: the group has no such bundle, or none that is large enough.
    """
    if runtime.kind == "local":
        return None, None, resources
    found = _wanted(runtime, options)
    if found is None:
        return None, None, resources
    group_id, placement = found
    group: Group = groups_of(runtime).find(group_id)
    group.unused = False
    if group.state != "removed":
        check_fits(group, resources, placement.index, what)
    return group, placement, bundle_need(resources, group_id.hex(), placement.index)


def _wanted(runtime: Any, options: TaskOptions | ActorOptions) -> tuple[bytes, m.Placement] | None:
    """The group that the options name, or that the running task passes on."""
    strategy, group = options.scheduling_strategy, options.placement_group
    index, captures = options.placement_group_bundle_index, options.placement_group_capture_child_tasks
    if hasattr(strategy, "placement_group"):
        group, index = strategy.placement_group, strategy.placement_group_bundle_index
        captures, strategy = strategy.placement_group_capture_child_tasks, None
    if group == "default":
        captured = runtime.captured if strategy is None else None
        if captured is None:
            if index != -1:
                raise ValueError(
                    f"option placement_group_bundle_index={index} needs a placement_group=…; without it the "
                    "bundle index must be -1"
                )
            return None
        return captured.group, m.Placement(captured.group, -1, captures is None or captures)
    if group is None or group.id.is_nil():
        return None
    if captures is None:
        captures = runtime.captured is not None
    return group.id.binary(), m.Placement(group.id.binary(), index, captures)


def check_fits(group: Group, resources: m.Resources, index: int, what: str) -> None:
    """Raise ValueError unless the group has this bundle, and room for it there."""
    bundles = group.bundles
    if index >= len(bundles) or index < -1:
        last = f"0 to {len(bundles) - 1}" if len(bundles) > 1 else "0"
        raise ValueError(
            f"there is no bundle {index}: {group.label} has {len(bundles)} bundle{'s' if len(bundles) != 1 else ''}; "
            f"give {last} as the bundle's index, or -1 for any"
        )
    where = bundles if index < 0 else [bundles[index]]
    if any(fits_in(resources, bundle) for bundle in where):
        return
    wanted = f"{what} needs {show_amounts(resources)}"
    if index >= 0:
        raise ValueError(f"{wanted}, and bundle {index} of {group.label} has {show_amounts(bundles[index])}")
    lacks = [sum(max(0, amount - bundle.get(name, 0)) for name, amount in resources.items()) for bundle in bundles]
    nearest = lacks.index(min(lacks))
    short = [
        f"{show_amount(amount - bundles[nearest].get(name, 0))} {name}"
        for name, amount in resources.items()
        if amount > bundles[nearest].get(name, 0)
    ]
    raise ValueError(
        f"{wanted}, and no bundle of {group.label} has as much; the nearest, bundle {nearest} "
        f"({show_amounts(bundles[nearest])}), lacks {' and '.join(short)}"
    )


def new_group_id(runtime: Any) -> bytes:
    """A fresh one of this job."""
    job: bytes = runtime.job
    return os.urandom(14) + job


def _useful(bundles: list[m.Resources], need: m.Resources, group: str, index: int) -> int:
    """How many leases of this need the group could give at once."""
    where = bundles if index < 0 else [bundles[index]] if index < len(bundles) else []
    amounts = [
        sum(bundle.get(name, 0) for bundle in where) // need[f"{name}_group_{group}"]
        for name in {name for bundle in where for name in bundle}
        if need.get(f"{name}_group_{group}")
    ]
    return max(1, min(amounts, default=1000))


def _nothing() -> None:
    """Asked in the loop's order: after what this process has said before."""


_making: Final = allocate_lock()

__all__ = ["Group", "GroupPool", "Groups", "check_fits", "groups_of", "new_group_id", "placement_of"]
