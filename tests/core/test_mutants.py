"""Every seeded fault must be caught by the tests of its core.

``tests/mutants/<core>/*.patch`` are unified diffs against ``src/moray`` (``patch -p1``); the first line of
each is a comment ``# catches: <what the fault is>``. ``tests/mutants/<core>/TESTS`` lists the pytest targets (and
options), one per line, that must fail. Each patch is applied to a copy of the package, which stands first on the
path of a child process.

Ordinary runs try two faults of each core, the first by name; all of them are tried by ``make test-long``. That all
still apply is looked at each time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "moray"
MUTANTS = ROOT / "tests" / "mutants"
PATCHES = sorted(MUTANTS.glob("*/*.patch"))
CORES = sorted(path.parent for path in MUTANTS.glob("*/TESTS"))
#: So many of each core are tried each time.
ALWAYS = 2
#: A mutant that makes a test hang is not what we want to see, but it must not stop the suite.
DEADLINE_S = 100


@pytest.fixture(name="copy")
def _copy(tmp_path: Path) -> Path:
    """A copy of the package, in a directory to be put on the path."""
    shutil.copytree(PACKAGE, tmp_path / "moray", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(copy: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy), str(ROOT)]), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def run_tests(copy: Path, core: Path) -> subprocess.CompletedProcess[str]:
    # Without conftest: what other sessions leave on the machine is no matter of a pure core, and the profile of this
    # run (MORAY_HYPOTHESIS) is not theirs.
    options = ["-x", "-q", "--noconftest", "-p", "no:cacheprovider", "--tb=short"]
    return run(copy, "-m", "pytest", *options, *(core / "TESTS").read_text().split())


def test_the_copy_is_what_children_import(copy: Path) -> None:
    result = run(copy, "-c", "import moray.core; print(moray.core.__file__)")
    assert result.stdout.strip() == str(copy / "moray" / "core" / "__init__.py"), result.stderr


def apply(patch: Path, copy: Path, *options: str) -> None:
    # No fuzz: a patch that has lost its place must be looked at, not put somewhere near.
    command = ["patch", "-p1", "--fuzz=0", "-s", "-d", str(copy / "moray"), "-i", str(patch), *options]
    applied = subprocess.run(command, capture_output=True, text=True, check=False)
    assert applied.returncode == 0, f"{patch.name} does not apply any more: {applied.stdout}{applied.stderr}"


def mutants() -> list[Any]:
    """All patches; those beyond the first few of a core are for long runs."""
    found = []
    for core in CORES:
        for number, patch in enumerate(sorted(core.glob("*.patch"))):
            marks = [pytest.mark.long] if number >= ALWAYS else []
            found.append(pytest.param(patch, marks=marks, id=f"{core.name}-{patch.stem}"))
    return found


def test_all_patches_apply(copy: Path) -> None:
    """And what they make is Python: one that has slipped to a like place often is not."""
    for patch in PATCHES:
        assert patch.read_text().startswith("# catches: "), f"{patch.name}: the first line says what the fault is"
        mutant = copy / "mutant.py"
        apply(patch, copy, "-o", str(mutant))
        compile(mutant.read_text(), str(patch), "exec")


@pytest.mark.slow
@pytest.mark.parametrize("patch", mutants())
def test_mutant_is_caught(patch: Path, copy: Path) -> None:
    apply(patch, copy)
    result = run_tests(copy, patch.parent)
    # 1: tests failed. Anything else (no tests, an import error) proves nothing.
    assert result.returncode == 1, f"not caught (pytest ended with {result.returncode}):\n{result.stdout[-4000:]}"
    assert "error" not in result.stdout.splitlines()[-1], f"the mutant does not even load:\n{result.stdout[-4000:]}"


@pytest.mark.long
@pytest.mark.parametrize("core", CORES, ids=lambda core: core.name)
def test_without_a_fault_the_tests_pass(core: Path, copy: Path) -> None:
    result = run_tests(copy, core)
    assert result.returncode == 0, result.stdout[-4000:]
