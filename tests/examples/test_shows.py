"""The demo's shows: what they find is what must come out, and what is wrong is noticed."""

from __future__ import annotations

from types import ModuleType

import pytest
from rich.console import Console

from examples.demo import parameters, race, ranking, streams, why
from examples.demo.__main__ import run_show
from examples.demo.report import Shown, shown_table
from examples.demo.show import Show, Wrong, check


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "TASKS", 4)
    monkeypatch.setattr(parameters, "ROWS", 4_000)
    monkeypatch.setattr(streams, "PAUSE_S", 0.0)
    monkeypatch.setattr(race, "ZERO_BITS", 8)


@pytest.mark.parametrize(
    "kind",
    [ranking.RankingShow, parameters.ParametersShow, streams.StreamsShow, race.RaceShow, why.WhyShow],
    ids=lambda kind: kind.name,
)
def test_show_finds_what_it_must(kind: type[Show], small: None, shared_session: ModuleType) -> None:
    assert kind().run()


class Liar(Show):
    name = "liar"
    detail = "says what is not so"

    def run(self) -> str:
        check(False, "it is [not] so")
        raise AssertionError


def test_wrong_results_are_noticed(capsys: pytest.CaptureFixture[str], shared_session: ModuleType) -> None:
    with pytest.raises(Wrong):
        Liar().run()
    shown = run_show(Liar(), Console())
    assert not shown.right
    assert "it is [not] so" in capsys.readouterr().out
    assert shown_table([shown, Shown("other", 1.0, True)]).row_count == 2
