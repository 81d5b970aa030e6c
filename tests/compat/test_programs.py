"""Programs of others run on moray with the results that they have without Ray; those whose packages are here."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

from examples.programs.catalogue import PROGRAMS, Program
from examples.programs.ways import FOLDER, differences, run

#: What the extra "dev" brings, so that a skip of these is a mistake in it.
ALWAYS = frozenset({"sklearn_forest", "pymoo_features"})


def _missing(program: Program) -> list[str]:
    return [module for module in program.modules if find_spec(module.partition(".")[0]) is None]


# Ordinary runs have scikit-learn on moray in tests/util/test_joblib.py, and a program for Ray in tests/examples.
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "program",
    [pytest.param(each, id=each.script) for each in PROGRAMS if not each.fails],
)
def test_program_on_moray_gives_the_results_without_ray(program: Program) -> None:
    missing = _missing(program)
    if missing:
        assert program.script not in ALWAYS, f"{missing} must be in the extra dev"
        pytest.skip(f"not installed: {', '.join(missing)}; `python -m examples.programs` installs and runs all")
    plain, found = (run(program.script, way, sys.executable) for way in ("none", "moray"))
    assert plain.result is not None, plain.error
    assert found.result is not None, found.error
    assert differences(plain.result, found.result) == []


def test_every_script_is_in_the_catalogue() -> None:
    helpers = {"__init__", "__main__", "catalogue", "environments", "outcome", "report", "ways"}
    assert {file.stem for file in FOLDER.glob("*.py")} - helpers == {program.script for program in PROGRAMS}


def test_differences_are_found() -> None:
    one = {"scores": [0.5, 1.0], "name": "a"}
    assert differences(one, {"scores": [0.5 + 1e-13, 1], "name": "a"}) == []
    assert differences(one, {"scores": [0.5, 1.001], "name": "a"}) == ["result.scores[1]: 1.0 against 1.001"]
    assert differences(one, {"scores": [0.5], "name": "a"})
    assert differences(one, {"scores": [0.5, 1.0]})
    assert differences(one, {"scores": [0.5, 1.0], "name": "b"})


def test_a_script_that_fails_says_why() -> None:
    found = run("no_such_script", "none", sys.executable)
    assert found.result is None
    assert "no_such_script.py" in found.error
