"""Why a request waits, for people ("nothing waits in silence") and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any, Final

from moray.core.lease_model import Lease, Owner, Request
from moray.core.lease_queue import LeaseQueue
from moray.core.resources import Amounts, Ledger, show_amount, show_amounts

#: How many holders of a resource are named.
_HOLDERS: Final = 5
#: How many workers of each.
_WORKERS: Final = 16


def explain_request(
    request: Request, leases: Iterable[Lease], ledger: Ledger, queue: LeaseQueue, now: float
) -> dict[str, Any]:
    """One waiting request: what it wants, how long it waits, and why."""
    need = request.line.shape.need
    missing = {name: short for name, amount in need.items() if (short := ledger.shortage(name, amount)) > 0}
    cause, reason = _cause(request, missing, ledger, queue)
    taken_by = _holders(missing, leases) if cause == "taken" else []
    if taken_by:
        reason += "; held by " + ", ".join(_show_holder(holder) for holder in taken_by)
    return {
        "job": _job_of(request),
        "owner": request.owner.process.hex(),
        "key": request.key,
        "label": request.label,
        "actor": request.permanent and request.reservation is None,
        "bundles": request.reservation is not None,
        "runtime_env": request.line.pool.runtime_env,
        "resources": dict(need),
        "count": request.owed + request.claims,
        "held": request.held - request.claims,
        "waiting_s": max(0.0, now - request.since),
        "cause": cause,
        "reason": reason,
        "missing": missing,
        "taken_by": taken_by,
    }


def _cause(request: Request, missing: Amounts, ledger: Ledger, queue: LeaseQueue) -> tuple[str, str]:
    if request.infeasible:
        return "group" if request.absent else "infeasible", request.infeasible
    if request.line.pool.broken and not request.line.pool.idle:
        return "broken", f"its workers do not start: {request.line.pool.broken}"
    if request.owed <= 0:
        return "starting", f"{request.claims} waiting for a worker to start"
    if missing:
        available = {name: ledger.available.get(name, 0) for name in missing}
        total = {name: ledger.total.get(name, 0) for name in missing}
        return "taken", f"free now: {show_amounts(available)} (of {show_amounts(total)})"
    rival = queue.held_back_by(request)
    if rival is not None:
        wanted = show_amounts(rival.line.shape.need)
        return "reserved", f"resources are being collected for {rival.label or 'another task'} ({wanted})"
    return "starting", "waiting for a worker to start"


def _holders(missing: Amounts, leases: Iterable[Lease]) -> list[dict[str, Any]]:
    """Who holds most of what is missing."""
    amounts: dict[tuple[Owner, str], Counter[str]] = {}
    counts: Counter[tuple[Owner, str]] = Counter()
    workers: dict[tuple[Owner, str], list[str]] = {}
    jobs: dict[tuple[Owner, str], int] = {}
    for lease in leases:
        kept = {n: lease.need[n] - lease.lent.get(n, 0) for n in missing if lease.need.get(n)}
        if any(kept.values()):
            who = lease.request.owner, lease.request.label
            amounts.setdefault(who, Counter()).update(kept)
            counts[who] += 1
            jobs[who] = _job_of(lease.request)
            if lease.worker is not None:
                workers.setdefault(who, []).append(lease.worker.process.hex())
    largest = sorted(amounts, key=lambda who: -sum(amounts[who].values()))[:_HOLDERS]
    return [
        {
            "job": jobs[who],
            "owner": who[0].process.hex(),
            "label": who[1],
            "leases": counts[who],
            "workers": workers.get(who, [])[:_WORKERS],
            "resources": dict(amounts[who]),
        }
        for who in largest
    ]


def _job_of(request: Request) -> int:
    """Whose it is; a group's reservation is its creator's."""
    return request.owner.job.number if request.reservation is None else int(request.reservation.job)


def _show_holder(holder: dict[str, Any]) -> str:
    return f"{holder['label'] or 'unnamed tasks'} of job {holder['job']} ({show_amounts(holder['resources'])})"


def waiting_warning(story: dict[str, Any]) -> str:
    """The one warning about a request that has waited for long."""
    what = story["label"] or f"key {story['key']}"
    wanted = "the resources of its bundles," if story["bundles"] else f"{story['count']} worker(s) with"
    return (
        f"{what} has been waiting {story['waiting_s']:.0f} s for {wanted} "
        f"{show_amounts(story['resources'])}: {story['reason']}"
    )


def blocked_warning(blocked: int, cpus: int, by_label: Counter[str]) -> str:
    """Very many workers wait inside tasks."""
    top = ", ".join(f"{label or 'unnamed tasks'}: {count}" for label, count in by_label.most_common(_HOLDERS))
    return (
        f"{blocked} workers are blocked in get() or wait() on a machine with {show_amount(cpus)} CPUs ({top}); "
        "each is a process. Waiting for fewer nested tasks at a time needs less memory."
    )
