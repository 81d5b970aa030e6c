"""Nodes whose leases are longer than others': those of drivers that may be out of reach for a while (FENCE)."""

from __future__ import annotations

from moray.core.membership import LEASE_S, MARGIN, REJOIN_LEASES, Membership
from moray.core.membership_actions import Died, Released
from tests.core.test_membership import Info, node_id

LONG_S = 12 * LEASE_S


def table() -> Membership[Info]:
    """One node of each kind, known since 100 s."""
    members: Membership[Info] = Membership(1)
    members.register(Info(node_id(1)), 0, 100.0)
    members.register(Info(node_id(2), lease_s=LONG_S), 0, 100.0)
    return members


def ticked(members: Membership[Info], now: float) -> list[Died | Released]:
    """What a head that is never late finds up to this time."""
    found: list[Died | Released] = []
    while (due := members.next_tick()) is not None and due <= now:
        found += [action for action in members.tick(due) if isinstance(action, Died | Released)]
        members.validate()
    return found


def deaths(members: Membership[Info], now: float) -> list[bytes]:
    return [action.node_id for action in ticked(members, now) if isinstance(action, Died)]


def test_a_longer_lease_ends_later() -> None:
    members = table()
    assert deaths(members, 100 + LEASE_S) == [node_id(1)]
    assert deaths(members, 100 + LONG_S - 0.1) == []
    assert deaths(members, 100 + LONG_S) == [node_id(2)]
    assert members.death_of(node_id(2)) == f"nothing was heard of it for {LONG_S:.1f} s"
    released = ticked(members, 100 + LONG_S + MARGIN * LEASE_S)
    assert released == [Released(node_id(2))]


def test_a_renewal_makes_it_longer_by_its_own_length() -> None:
    members = table()
    members.renew(node_id(2), 1, {}, [], 150.0)
    assert deaths(members, 150 + LONG_S - 0.1) == [node_id(1)]
    assert deaths(members, 150 + LONG_S) == [node_id(2)]


def test_a_shorter_wish_than_the_usual_is_none() -> None:
    members: Membership[Info] = Membership(1)
    members.register(Info(node_id(1), lease_s=0.5), 0, 100.0)
    assert deaths(members, 100 + LEASE_S - 0.1) == []
    assert deaths(members, 100 + LEASE_S) == [node_id(1)]


def test_a_new_head_waits_for_it_as_long() -> None:
    members: Membership[Info] = Membership(2)
    members.restore([Info(node_id(1)), Info(node_id(2), lease_s=LONG_S)], 100.0)
    assert deaths(members, 100 + REJOIN_LEASES * LEASE_S) == [node_id(1)]
    assert deaths(members, 100 + LONG_S - 0.1) == []
    assert deaths(members, 100 + LONG_S) == [node_id(2)]
