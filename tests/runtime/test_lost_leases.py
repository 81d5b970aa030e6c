"""What a worker's death means for tasks of a lease that it gave back while their owner had no connection (LEASE)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from moray.protocol import messages as m
from moray.runtime.submission import Submitter


@pytest.mark.parametrize(
    ("mark", "tried"),
    [
        ((2, 1), [0]),
        ((2, 0), []),
        ((1, 5), []),
        ((3, 1), [0, 1, 2]),
        ((0, -1), [0, 1, 2]),
    ],
    ids=["began one", "began none", "had not come to it", "has gone on to another lease", "its machine is gone"],
)
def test_what_may_have_begun_counts_as_tried(mark: tuple[int, int], tried: list[int]) -> None:
    """Its answers may have been lost with the connection: run again at no cost, a task could run twice."""
    survived: list[int] = []
    requeued: list[int] = []
    slot = SimpleNamespace(lease=2, answered=0, worker=(None,))
    pool = SimpleNamespace(lost=lambda _slot: [0, 1, 2])
    submitter: Any = SimpleNamespace(
        settle=lambda _connection: None,
        _forget=lambda _pool, _slot: None,
        _fill=lambda _pool: None,
        _survive=lambda task, _death: survived.append(task),
        _runtime=SimpleNamespace(cancels=SimpleNamespace(requeue=lambda _pool, tasks: requeued.extend(tasks))),
    )
    peer: Any = SimpleNamespace(slots={2: (pool, slot)})
    Submitter.worker_died(submitter, peer, m.ProcessDied(b"p" * 12, 1, -9, "was killed", mark=mark))
    assert survived == tried
    assert requeued == [0, 1, 2][len(tried) :]
