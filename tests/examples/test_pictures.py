"""The pictures of the documents can be drawn anew, and there is none that nobody draws."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.pictures import diagrams
from examples.pictures.__main__ import FOLDER, PICTURES
from examples.pictures.reduce import reduce


def test_diagrams_are_the_same_each_time(tmp_path: Path) -> None:
    for name in ("processes", "task"):
        drawn = []
        for attempt in ("one", "other"):
            path = tmp_path / f"{name}-{attempt}.svg"
            getattr(diagrams, name)(path)
            drawn.append(path.read_bytes())
        assert drawn[0] == drawn[1]
        assert drawn[0].startswith(b"<?xml")


def test_measured_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reduce.__globals__, "WORKERS", 4)
    reduce(tmp_path / "reduce.svg", (2, 8))
    assert ">chain<" in (tmp_path / "reduce.svg").read_text(encoding="utf-8")


def test_every_picture_has_its_script() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.svg" for name in PICTURES}
