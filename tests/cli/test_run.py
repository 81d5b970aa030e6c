"""`moray run` runs a program as the interpreter does; `--as-ray` gives it moray for ray."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.cli.command import command, refused
from tests.support.procs import spawn_driver, wait_until

#: What a program can see of how it was started.
SURROUNDINGS = """
import json, sys
main = sys.modules["__main__"]
print(json.dumps([
    __name__, sys.argv, sys.path[0], globals().get("__file__"), __spec__ and __spec__.name, __package__,
    main.__dict__ is globals(), type(__builtins__).__name__, 1 if __debug__ else 0,
]))
class Kind: pass
print(Kind.__module__, [name for name in globals() if not name.startswith("__")])
def annotated(x: undefined_name) -> None: pass
"""

RAY_PROGRAM = """
import sys
import ray
from ray.exceptions import RayTaskError
from ray.util import list_named_actors

ray.init()

@ray.remote
class Squares:
    def square(self, x):
        import ray as again
        assert again.__version__ == "2.60.0"
        return x * x

@ray.remote
def fail():
    from ray.exceptions import GetTimeoutError
    raise ValueError("on purpose")

named = Squares.options(name="squares").remote()
print(ray.get([named.square.remote(value) for value in (1, 2, 3)]), list_named_actors(), sys.argv[1:])
try:
    ray.get(fail.remote())
except RayTaskError as error:
    print(isinstance(error, ValueError))
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "script.py"
    path.parent.mkdir()
    # The annotation at the end must not be left unevaluated because of a __future__ import of ours.
    path.write_text(
        SURROUNDINGS.replace("def annotated", "try:\n  def annotated") + "except NameError: print('evaluated')\n"
    )
    return path


def as_python(*arguments: str, cwd: Path) -> str:
    return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["folder/script.py"],
        ["folder/script.py", "--json", "-m", "x", "--", "--help"],
        ["-m", "folder.script", "-c", "--as-ray"],
        ["-m", "folder"],
        ["-c", SURROUNDINGS.replace("def annotated", "#"), "--help", "-m"],
    ],
)
def test_surroundings_are_those_of_the_interpreter(script: Path, arguments: list[str]) -> None:
    (script.parent / "__main__.py").write_text(script.read_text())
    here = script.parents[1]
    expected = as_python(*arguments, cwd=here)
    assert command("run", *arguments, cwd=here).stdout == expected


def test_a_directory_is_run_by_its_main(script: Path) -> None:
    (script.parent / "__main__.py").write_text("import sys; print(sys.path[0], __file__)")
    folder = str(script.parent)
    assert command("run", folder).stdout.split() == [folder, f"{folder}/__main__.py"]


def test_link_is_followed_for_the_path(script: Path, tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(script)
    assert command("run", "link.py", cwd=tmp_path).stdout == as_python("link.py", cwd=tmp_path)


def test_a_program_for_ray(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(RAY_PROGRAM)
    assert command("run", "--as-ray", "program.py", "--flag", cwd=tmp_path).stdout.splitlines() == [
        "[1, 4, 9] ['squares'] ['--flag']",
        "True",
    ]


POOL_PROGRAM = """
import ray
from ray.util import ActorPool

@ray.remote
class Squares:
    def square(self, x):
        from ray.util import ActorPool as again
        assert again.__module__.startswith("moray.")
        return x * x

pool = ActorPool([Squares.remote() for _ in range(2)])
print(list(pool.map(lambda actor, value: actor.square.remote(value), [1, 2, 3])))
"""


@pytest.mark.skipif(find_spec("moray.util.actor_pool") is None, reason="moray.util has no ActorPool yet")
def test_a_program_for_ray_with_a_pool(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(POOL_PROGRAM)
    assert command("run", "--as-ray", "program.py", cwd=tmp_path).stdout == "[1, 4, 9]\n"


def test_without_as_ray_there_is_no_ray() -> None:
    finished = command("run", "-c", "import ray", check=False)
    assert "No module named 'ray'" in finished.stderr


def test_functions_of_the_program_travel_to_workers(tmp_path: Path) -> None:
    program = """
        import moray
        moray.init(num_cpus=1)
        FACTOR = 3
        class Box:
            def __init__(self, value):
                self.value = value
        @moray.remote
        def triple(box):
            return Box(box.value * FACTOR)
        print(moray.get(triple.remote(Box(2))).value, type(moray.get(triple.remote(Box(2)))) is Box)
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    assert command("run", "program.py", cwd=tmp_path).stdout == "6 True\n"


@pytest.mark.parametrize(
    ("ending", "code"), [("sys.exit(7)", 7), ("raise SystemExit", 0), ("sys.exit('why')", 1), ("os._exit(4)", 4)]
)
def test_exit_codes(ending: str, code: int) -> None:
    assert command("run", "-c", f"import os, sys; {ending}", check=False).returncode == code


def test_traceback_is_the_programs_alone(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("def fail():\n    raise KeyError('x')\nfail()\n")
    ours = command("run", "program.py", cwd=tmp_path, check=False)
    pythons = subprocess.run([sys.executable, "program.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ours.returncode, ours.stderr) == (pythons.returncode, pythons.stderr)


def test_syntax_error(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text("x = (\n")
    finished = command("run", "program.py", cwd=tmp_path, check=False)
    assert finished.returncode == 1
    assert "program.py" in finished.stderr
    assert "moray/cli" not in finished.stderr


def test_interrupt_ends_it_as_it_ends_python() -> None:
    code = """
        import subprocess, sys
        program = "import os, time; print('up', flush=True); time.sleep(60)"
        command = [sys.executable, "-m", "moray", "run", "-c", program]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        print("child", child.pid, flush=True)
        print("ended", child.wait(), flush=True)
    """
    with spawn_driver(code) as driver:
        os.kill(int(driver.wait_line("child ")), signal.SIGINT)
        assert int(driver.wait_line("ended ")) == -signal.SIGINT


def test_threads_that_outlive_the_main_program_have_their_names(tmp_path: Path) -> None:
    program = """
        import atexit, sys, threading
        text = "kept"
        def late():
            threading.main_thread().join()
            print(text, sys.modules["__main__"].text)
        threading.Thread(target=late).start()
        atexit.register(lambda: print(text))
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    assert command("run", "program.py", cwd=tmp_path).stdout.split() == ["kept"] * 3


def test_ended_program_leaves_nothing(tmp_path: Path) -> None:
    # command() checks for processes; the session's directory goes, too.
    finished = command("run", "-c", "import moray; print(moray.init(num_cpus=1)['session_dir'])")
    directory = Path(finished.stdout.strip())
    wait_until(lambda: not directory.exists(), what="the end of the session's directory")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "what shall be run"),
        (["missing.py"], "cannot read missing.py: No such file"),
        (["--as-rya", "x.py"], "no such option: --as-rya"),
        (["-m", "missing.module"], "no module missing.module"),
        (["-m", "a", "-c", "b"], "no module a "),  # -m ends the options: the rest is the module's.
        (["--as-ray", "-m"], "requires an argument"),
    ],
)
def test_mistakes(arguments: list[str], words: str) -> None:
    assert words in refused("run", *arguments)
