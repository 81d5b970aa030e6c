"""What a head and its nodes do while they have nothing to say but that they live."""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moray.head.members import _BEAT_S
from moray.protocol import messages as m
from tests.head.world import running_world

#: Processes are started, and seconds waited for.
pytestmark = pytest.mark.slow


def test_nodes_that_joined_one_after_the_other_renew_together(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        sent: dict[int, list[float]] = {}
        for number in range(6):
            node = world.node()
            times = sent[number] = []

            def available(times: list[float] = times, before: Any = node.available) -> Any:
                times.append(time.monotonic())
                return before()

            node.available = available  # type: ignore[method-assign]
            world.pass_time(0.07)
        world.pass_time(2 * m.RENEW_S)
        late = [time_s % _BEAT_S for times in sent.values() for time_s in times[1:]]
        assert len(late) >= 6
        assert statistics.median(late) < _BEAT_S / 5, "most come just after a beat"
        for times in sent.values():
            gaps = [after - before for before, after in pairwise(times)]
            assert statistics.median(gaps) <= m.RENEW_S + 0.1, "nobody renews later than usual"
            assert min(gaps) > m.RENEW_S / 2 - 0.1, "nor much sooner"


def test_nothing_is_sent_that_nobody_asked_for(tmp_path: Path) -> None:
    """Without changes, a node hears one answer to each of its renewals and nothing else."""
    with running_world(tmp_path) as world:
        node = world.node()
        world.pass_time(1.0)
        heard: list[Any] = []
        wire = node.link._wire
        assert wire is not None
        before = wire.on_message

        def note(wire: Any, message: Any) -> None:
            heard.append(message)
            before(wire, message)

        wire.on_message = note
        world.pass_time(3 * m.RENEW_S)
        assert 2 <= len(heard) <= 5
        assert all(isinstance(message, m.LeaseRenewed) and message.number for message in heard), heard
