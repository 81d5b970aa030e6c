"""What must hold between the records of the local scheduler; looked at by its tests."""

from __future__ import annotations

from collections.abc import Iterable

from moray.core.lease_model import Job, Lease, LeaseState, Owner
from moray.core.resources import Ledger


def check_books(ledger: Ledger, leases: list[Lease], jobs: Iterable[Job], owners: Iterable[Owner]) -> None:
    """Raise AssertionError if sums disagree with `leases`, all that have not come back."""
    for name, total in ledger.total.items():
        taken = sum(lease.need.get(name, 0) - lease.lent.get(name, 0) for lease in leases)
        assert total - taken == ledger.available[name], f"{name}: {taken} taken of {total}"
    for job in jobs:
        assert job.load == sum(owner.load for owner in job.owners.values())
        assert job.promised == sum(owner.promised for owner in job.owners.values())
    for owner in owners:
        assert owner.load == sum(request.load for request in owner.requests.values())
        for request in owner.requests.values():
            held = [lease for lease in leases if lease.request is request and lease.state is not LeaseState.ENDING]
            assert request.held == len(held)
            assert request.load == sum(lease.charged for lease in held)
            assert request.promised == sum(plan.weight for plan in request.plans)
            assert request.claims == sum(lease.state is LeaseState.CLAIMED for lease in held)
            assert request.queued == (request.owed > 0 and not request.infeasible)
