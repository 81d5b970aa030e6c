"""What a member of the cluster may say: the contents of messages, before anything is changed by them.

The decoder sees to the types. What a type does not say is looked at here: ids have their lengths, numbers fit into
what is made of them, addresses and conditions can be read. A node that breaks this in what it says of itself is hung up
on; a word that it relays is passed over, with an event and a line in the log. Neither ends the head, which everybody
needs, and which would only hear the same again from a node that repeats what was not answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import isfinite, isnan
from typing import Any, Final

import msgspec

from moray.core.strategies import Strategy, selector_of
from moray.ids import PROCESS_BYTES
from moray.protocol import messages as m
from moray.protocol.connection import UNDECODABLE
from moray.protocol.tcp import parse_address

_NODE_BYTES: Final = 28
_ACTOR_BYTES: Final = 16
_GROUP_BYTES: Final = 18
#: Numbers of jobs have four bytes in ids; a node that says that it has one leaves as many again to come.
_MOST_JOB: Final = (1 << 31) - 1
#: Amounts with room for what is added to one, in the 64 bits of a message.
_MOST_AMOUNT: Final = 1 << 62
#: Longer ones mean nothing: a year.
_MOST_LEASE_S: Final = 366 * 86_400.0

_decode_config: Final = msgspec.msgpack.Decoder(m.JobConfig).decode


def problem_of(message: Any) -> str:
    """What is wrong with a message for the head; "" if nothing is."""
    check = _CHECKS.get(type(message))
    return check(message) if check is not None else ""


def refusal_of(message: Any, problem: str) -> m.Message | None:
    """What a client hears that waits for an answer."""
    match message:
        case m.RegisterActor(request=0):
            return m.ActorState(message.spec.actor, "dead", 0, reason=problem)
        case m.RegisterActor():
            return m.ActorRegistered(message.request, b"", reason=problem)
        case m.CreateGroup():
            return m.GroupState(message.request, message.group, "refused", reason=problem)
        case m.DrainNode():
            return m.StoreError(message.request, "refused", problem)
    return None


# --- of nodes themselves -------------------------------------------------------------------------------------


def _hello(hello: m.NodeHello) -> str:
    actors = [each[0] for each in hello.actors]
    processes = [each[2] for each in hello.actors]
    return (
        _node_info(hello.info)
        or _counts("message", [hello.heard, hello.relayed, hello.view])
        or _ids("actor", _ACTOR_BYTES, actors)
        or _ids("process", PROCESS_BYTES, processes)
        or _ids("placement group", _GROUP_BYTES, [group for group, _index in hello.bundles])
    )


def _node_info(info: m.NodeInfo) -> str:
    if not (isfinite(info.lease_s) and 0 <= info.lease_s <= _MOST_LEASE_S):
        return f"a lease lasts from 0 to {_MOST_LEASE_S:.0f} s, not {info.lease_s} s"
    if isnan(info.drain_deadline) or info.drain_deadline < 0:
        return f"a node cannot leave at {info.drain_deadline} seconds of the epoch"
    if info.address:
        try:
            parse_address(info.address)
        except ValueError as error:
            return str(error)
    return (
        _ids("node", _NODE_BYTES, [info.node_id])
        or _amounts(info.resources, info.devices)
        or _amounts(info.available, least=-_MOST_AMOUNT)
        or _demand(info.demand)
    )


def _renewal(message: m.RenewLease) -> str:
    return _amounts(message.resources) or _amounts(message.available, least=-_MOST_AMOUNT) or _demand(message.demand)


def _relayed(message: m.ToHead) -> str:
    return _ids("process", PROCESS_BYTES, [message.process] if message.process else [])


# --- of nodes about what lives there ---------------------------------------------------------------------------


def _job_started(started: m.JobStarted) -> str:
    if not 0 <= started.job <= _MOST_JOB:
        return f"a job's number is from 1 to {_MOST_JOB}, not {started.job}"
    try:
        _decode_config(started.config)
    except UNDECODABLE as error:
        return f"the settings of a job cannot be read: {error}"
    return _ids("process", PROCESS_BYTES, [started.process])


def _worker_placed(placed: m.WorkerPlaced) -> str:
    return _ids("actor", _ACTOR_BYTES, [placed.actor]) or _ids("process", PROCESS_BYTES, [placed.process])


def _process_died(died: m.ProcessDied) -> str:
    return _ids("process", PROCESS_BYTES, [died.process])


def _drain(message: m.DrainNode) -> str:
    if not (isfinite(message.deadline) and message.deadline > 0):
        return f"a node cannot leave at {message.deadline} seconds of the epoch"
    return ""


# --- of clients --------------------------------------------------------------------------------------------------


def _register_actor(message: m.RegisterActor) -> str:
    spec = message.spec
    if spec.max_restarts < -1:
        return f"max_restarts is at least -1, not {spec.max_restarts}"
    return _amounts(spec.resources, spec.placement) or _strategy(spec.strategy)


def _strategy(strategy: Strategy | None) -> str:
    return _ids("node", _NODE_BYTES, [strategy.node]) if strategy is not None and strategy.node else ""


def _create_group(message: m.CreateGroup) -> str:
    try:
        for selector in message.selectors:
            selector_of(selector)
    except ValueError as error:
        return str(error)
    target = [message.target_node] if message.target_node else []
    return _amounts(*message.bundles) or _ids("node", _NODE_BYTES, target)


# --- what they have in common ---------------------------------------------------------------------------------------


def _ids(what: str, size: int, ids: Iterable[bytes]) -> str:
    for each in ids:
        if len(each) != size:
            return f"the id of a {what} has {size} bytes, not {len(each)}: {each[:32].hex()}"
    return ""


def _counts(what: str, numbers: Iterable[int]) -> str:
    for each in numbers:
        if each < 0:
            return f"the number of a {what} is not {each}"
    return ""


def _amounts(*amounts: Mapping[str, int], least: int = 0) -> str:
    for each in amounts:
        for name, amount in each.items():
            if not least <= amount <= _MOST_AMOUNT:
                shown, most = amount / m.RESOURCE_UNIT, _MOST_AMOUNT / m.RESOURCE_UNIT
                return f"there cannot be {shown:g} of {name[:80]!r}: from 0 to {most:g} is possible"
    return ""


def _demand(demand: Iterable[tuple[m.Resources, int]]) -> str:
    for need, count in demand:
        if problem := _amounts(need, {"waiting": count}):
            return problem
    return ""


_CHECKS: Final[dict[type[Any], Callable[[Any], str]]] = {
    m.NodeHello: _hello,
    m.RenewLease: _renewal,
    m.ToHead: _relayed,
    m.JobStarted: _job_started,
    m.WorkerPlaced: _worker_placed,
    m.ProcessDied: _process_died,
    m.DrainNode: _drain,
    m.RegisterActor: _register_actor,
    m.CreateGroup: _create_group,
}
