"""The demo's jobs, small: both ways of running have equal results and tell all of their steps."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from examples.demo import photos, pi, words
from examples.demo.__main__ import run_both_ways
from examples.demo.job import Job
from examples.demo.report import Outcome, chart, contact_sheet, table


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "NAMES", photos.NAMES[:2])
    monkeypatch.setattr(photos, "MEGAPIXELS", 0.3)
    monkeypatch.setattr(pi, "POINTS_PER_CHUNK", 1_000)
    monkeypatch.setattr(words, "corpus", lambda files=words.corpus: files()[:60])


class Bars:
    """Stands for rich's progress: counts what each bar was told."""

    def __init__(self) -> None:
        self.left: list[float] = []

    def add_task(self, label: str, total: float) -> int:
        self.left.append(total)
        return len(self.left) - 1

    def advance(self, bar: int) -> None:
        self.left[bar] -= 1


@pytest.mark.parametrize("kind", [photos.Photos, pi.Pi, words.Words], ids=lambda kind: kind.name)
def test_both_ways_are_equal_and_tell_every_step(kind: type[Job[Any]], small: None, shared_session: ModuleType) -> None:
    bars: Any = Bars()
    outcome, _ = run_both_ways(kind(), bars)
    assert outcome.equal
    assert bars.left == [0, 0]


def test_unequal_results_are_noticed() -> None:
    one = [np.zeros((2, 2, 3), np.uint8)]
    other = [np.ones((2, 2, 3), np.uint8)]
    job = photos.Photos()
    assert job.equal(one, [one[0].copy()])
    assert not job.equal(one, other)
    assert not job.equal(one, one * 2)


def test_pictures_are_drawn(tmp_path: Any) -> None:
    outcomes = [Outcome("a", "", 2.0, 1.0, True, "fine"), Outcome("b", "", 3.0, 2.0, False, "")]
    assert table(outcomes, 2).row_count == 2
    chart(outcomes, 2, tmp_path / "chart.png")
    contact_sheet([np.zeros((8, 8, 3), np.uint8)] * 5, 3, tmp_path / "sheet.png")
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("chart.png", "sheet.png"))
