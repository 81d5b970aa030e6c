"""The fuzz targets, in three ways: the kept corpus, hypothesis everywhere, and a few seconds of atheris where it is."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.fuzz.targets import TARGETS, close_surroundings, name_of, seeds
from tests.tidy.source import ROOT

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(scope="module", autouse=True)
def _surroundings(module_leaks: set[str]) -> Iterator[None]:
    """Made once for the module, because the limits of many tests are descriptors."""
    from tests.fuzz.targets import surroundings

    surroundings()
    yield
    close_surroundings()


def kept(target: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]


@pytest.mark.parametrize("target", TARGETS)
def test_kept_corpus(target: str) -> None:
    corpus = kept(target)
    assert corpus
    for data in corpus:
        TARGETS[target](data)


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_harmless(target: str) -> None:
    for data in seeds()[target]:
        TARGETS[target](data)


def changed(target: str) -> st.SearchStrategy[bytes]:
    """Bytes of the corpus in which some are others, missing, or doubled."""

    def change(data: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for where, length, new in edits:
            position = where % (len(data) + 1)
            data = data[:position] + new + data[position + length :]
        return data

    edits = st.lists(st.tuples(st.integers(0, 4096), st.integers(0, 8), st.binary(max_size=8)), max_size=4)
    return st.builds(change, st.sampled_from(kept(target) or [b""]), edits)


@pytest.mark.parametrize("target", TARGETS)
def test_hypothesis(target: str) -> None:
    @settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(data=st.one_of(st.binary(max_size=200), changed(target)))
    def run(data: bytes) -> None:
        TARGETS[target](data)

    run()


@pytest.mark.slow
@pytest.mark.parametrize(
    "target", [pytest.param(target, marks=[] if target == "messages" else [pytest.mark.long]) for target in TARGETS]
)
def test_atheris(target: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris has no wheel for this Python or machine")
    # By way of a shell that forks: the most memory that a process had counts on for what it becomes (ru_maxrss), and
    # atheris would take the memory of all tests before for its own.
    command = ["sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-m", "tests.fuzz", target, "2", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=90, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "stat::number_of_executed_units" in run.stderr


def test_names_of_the_corpus_are_those_of_its_bytes() -> None:
    for path in CORPUS.glob("*/*"):
        assert path.name == name_of(path.read_bytes()), f"{path} is named as other bytes are"
