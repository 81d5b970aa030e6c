"""Why objects are alive, and whether the tables agree: :mod:`moray.core.references` seen from outside.

The hot counters do not say whom a hold belongs to. Here the reasons are counted where they
live, and compared. What the core cannot see, holds of pending tasks and exported functions, is the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from moray.core.references import References
from moray.core.references_peer import Peer
from moray.core.references_types import Entry, Foreign, Owned, Registration


def describe(references: References, entry: Entry) -> dict[str, Any]:
    """Why this process keeps the object; see :func:`describe_all`."""
    return describe_all(references, (entry,))[0]


def describe_all(references: References, entries: Iterable[Entry]) -> list[dict[str, Any]]:
    """One dict per entry: local references, and holds by reason, for people (``moray memory``).

    ``tasks`` is what remains: pending tasks that take it, and functions that contain it.
    """
    known: dict[int, Counter[str]] = {}
    borrowers: dict[int, list[bytes]] = {}
    for reason, held in _reasons(references):
        known.setdefault(id(held), Counter())[reason] += 1
    for peer in references.peers.values():
        for key in peer.registered:
            borrowers.setdefault(key, []).append(peer.process)
    reports = []
    for entry in entries:
        reasons = known.get(id(entry), Counter())
        report: dict[str, Any] = {"key": entry.key, "local": entry.local, "holds": entry.holds, **reasons}
        report["tasks"] = entry.holds - sum(reasons.values())
        if isinstance(entry, Owned):
            report |= {"freed": entry.freed, "borrowed_by": borrowers.get(entry.key, []) if entry.escaped else []}
        else:
            report |= {"owner": entry.owner, "registration": entry.registration.name.lower(), "epoch": entry.epoch}
        reports.append(report)
    return reports


def _reasons(references: References) -> Iterator[tuple[str, Entry]]:
    """Every hold that the tables know, as (reason, entry)."""
    for container in references.containers.values():
        for entry in container.contained or ():
            yield "containers", entry
    for entry in references.pinned:
        yield "pinned", entry
    for foreign in references.foreign.values():
        for entry in foreign.covers:
            yield "covers", entry
    for peer in references.peers.values():
        yield from _reasons_of_peer(references.owned, peer)


def _reasons_of_peer(owned: dict[int, Owned], peer: Peer) -> Iterator[tuple[str, Entry]]:
    for key in peer.registered:
        yield "borrowers", owned[key]
    for key in chain.from_iterable(peer.provisional.values()):
        yield "in_transit", owned[key]
    for entry in chain.from_iterable(peer.transit.values()):
        yield "in_transit", entry
    for request in (*peer.unacked.values(), peer.outbox):
        for lent in request.lent if request is not None else ():
            yield "in_transit", lent


def validate(references: References) -> None:
    """Raise AssertionError if the tables contradict each other; for tests and debug runs."""
    counted: Counter[int] = Counter()
    for _, entry in _reasons(references):
        counted[id(entry)] += 1
        _check_alive(references, entry)
    entries: list[Entry] = [*references.owned.values(), *references.foreign.values(), *references.containers.values()]
    for entry in entries:
        assert counted[id(entry)] <= entry.holds, ("a reason is not counted", entry.key, entry.holds)
        _check_alive(references, entry)
    for foreign in references.foreign.values():
        _check_registration(references, foreign)
    assert not references.dead & references.peers.keys(), "a dead process has a table"
    assert not references.dead & references.questions.keys(), "a question about a dead process is unanswered"


def _check_alive(references: References, entry: Entry) -> None:
    assert entry.local >= 0, ("dropped twice", entry.key)
    assert entry.local or entry.holds, ("kept without a reason", entry.key)
    if isinstance(entry, Owned):
        assert not entry.freed, ("freed but kept", entry.key)
        assert not entry.escaped or references.owned.get(entry.key) is entry
    else:
        assert references.foreign.get(entry.id) is entry, ("a hold on an ended entry", entry.key)


def _check_registration(references: References, foreign: Foreign) -> None:
    state = foreign.registration
    assert state is Registration.LOST or foreign.owner not in references.dead
    assert not foreign.covers or state < Registration.REGISTERED, "covered although registered"
    peer = references.peers.get(foreign.owner)
    if state is Registration.QUEUED:
        assert peer is not None
        assert peer.outbox is not None
        assert foreign in peer.outbox.registering
    elif state is Registration.SENT:
        assert peer is not None
        assert foreign in peer.unacked[foreign.request].registering
