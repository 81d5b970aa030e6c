"""What a strategy bars from a node: the local scheduler refuses it, and the table of actors ends or keeps it."""

from __future__ import annotations

import pytest

from moray.core.actor_actions import UNSCHEDULABLE, Place, Registration, Tell, WarnJob, Withdraw
from moray.core.actors import ActorTable
from moray.core.local_scheduler import LocalScheduler
from moray.core.scheduler_actions import Refuse
from moray.core.strategies import NODE, Strategy

UNIT = 10_000
OWNER = b"o" * 12


def test_a_barred_wish_is_refused_each_time_it_is_stated_anew() -> None:
    scheduler = LocalScheduler({"CPU": UNIT}, {})
    scheduler.job_started(1)

    def state(count: int) -> list[str]:
        actions = scheduler.request(OWNER, 1, 7, count, 0, {"CPU": UNIT}, "", "f", 0.0, barred="wrong zone")
        scheduler.validate()
        return [action.reason for action in actions if isinstance(action, Refuse)]

    assert state(2) == ["wrong zone"]
    assert state(3) == []
    (story,) = scheduler.explain(1.0)
    assert (story["cause"], story["reason"]) == ("infeasible", "wrong zone")
    assert state(0) == []
    assert scheduler.explain(1.0) == []
    assert state(1) == ["wrong zone"]


@pytest.mark.parametrize(
    "strategy",
    [None, Strategy(), Strategy(refuse_infeasible=True), Strategy(NODE, b"x"), Strategy(NODE, b"x", soft=True)],
)
def test_an_actor_that_no_node_may_host_waits_or_dies(strategy: Strategy | None) -> None:
    table = ActorTable()
    actor = b"a" * 16
    made = Registration(actor, OWNER, 1, 1, "Counter", name="n", namespace="s", strategy=strategy)
    assert any(isinstance(action, Place) for action in table.register(made, 0))
    actions = table.refused(actor, 0, "wrong zone", infeasible=True)
    table.validate()
    if strategy is not None and strategy.fails:
        assert [type(action) for action in actions[:1]] == [Withdraw]
        (told,) = (action for action in actions if isinstance(action, Tell))
        assert (told.state, told.reason) == ("dead", UNSCHEDULABLE + "wrong zone")
        assert table.find(OWNER, 1, "n", "s")[0].actor == b""  # type: ignore[union-attr]
    else:
        assert [type(action) for action in actions] == [WarnJob]
        assert table.is_waiting(actor, 0)
    assert table.refused(actor, 0, "its workers do not start", infeasible=False) == [] or not (
        strategy and strategy.fails
    )
