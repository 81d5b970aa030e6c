"""The other commands, help, completion."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
import tomllib

import pytest

from tests.cli.command import command, refused
from tests.tidy.source import ROOT

COMMANDS = ["benchmark", "completion", "demo", "doctor", "run"]


def test_help_names_every_command() -> None:
    text = command("--help").stdout
    assert [name for name in COMMANDS if re.search(rf"^  {name} ", text, re.MULTILINE)] == COMMANDS
    assert "..." not in text.partition("Commands:")[2].partition("Examples:")[0], "a summary is cut"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples(name: str) -> None:
    assert f"  moray {name}" in command(name, "--help").stdout.partition("Examples:")[2]


def test_version() -> None:
    import moray

    assert command("--version").stdout.startswith(f"moray {moray.__version__} (Python {sys.version.split()[0]}; ")


def test_unknown_command() -> None:
    assert "No such command 'rum'" in refused("rum")


def test_entry_point_of_the_project() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    module, _, function = scripts["moray"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_tables_are_not_loaded_for_a_program() -> None:
    code = "import sys; print([name for name in ('rich', 'asyncio', 'moray.compat') if name in sys.modules])"
    assert command("run", "-c", code).stdout.strip() == "[]"


@pytest.mark.slow
def test_benchmark() -> None:
    figures = json.loads(command("benchmark", "--seconds", "0.05", "--num-cpus", "1", "--json").stdout)
    assert len(figures) == 10
    assert all(figure["value"] > 0 and figure["unit"] in {"ms", "/s", "GB/s"} for figure in figures)


def test_benchmark_that_cannot_start() -> None:
    said = refused("benchmark", code=1, env={"TMPDIR": "/proc/1"})
    assert "moray doctor" in said


@pytest.mark.slow
def test_small_demo() -> None:
    lines = command("demo", "--small").stdout.splitlines()
    names = [line.split()[0] for line in lines[2:]]
    assert "The small tour" in lines[0]
    assert names == ["session", "tasks", "objects", "actor", "generator", "error"]
    assert "division by zero" in lines[-1]


def test_demo_says_which_it_is() -> None:
    # The full tour takes long and has its own test; what would be run is all that is asked here.
    from moray.cli.demo import choose
    from moray.cli.run import Program

    program = choose(False)
    assert isinstance(program, Program)
    assert program.path == str(ROOT)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str) -> None:
    script = command("completion", shell).stdout
    assert "_MORAY_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_completion_answers() -> None:
    environment = {"_MORAY_COMPLETE": "bash_complete", "COMP_WORDS": "moray do", "COMP_CWORD": "1"}
    assert command(env=environment).stdout.split() == ["plain,doctor"]
    environment = {"_MORAY_COMPLETE": "bash_complete", "COMP_WORDS": "moray doctor --s", "COMP_CWORD": "2"}
    assert command("doctor", env=environment).stdout.split() == ["plain,--sweep"]


def test_completion_of_an_unknown_shell() -> None:
    assert "'tcsh' is not one of" in refused("completion", "tcsh")
