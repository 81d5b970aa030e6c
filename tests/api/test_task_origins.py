"""Where a function may come from, and what its worker inherits from the driver.

Programs run as drivers of their own: as a script, with ``-c``, with ``-m``, from an interactive
session, from modules beside the script.
"""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import pytest

import moray
from tests.support.procs import run_driver

PROGRAM = """
import moray

SCALE = 10

class Point:
    def __init__(self, x):
        self.x = x
    def __eq__(self, other):
        return type(self) is type(other) and self.x == other.x
    __hash__ = None

def helper(x):
    return x * SCALE

@moray.remote
def scaled(x):
    return helper(x)

@moray.remote
def move(point):
    return Point(point.x + 1)

if __name__ == "__main__":
    moray.init(num_cpus=1)
    assert moray.get(scaled.remote(4)) == 40
    assert moray.get(move.remote(Point(1))) == Point(2)
    assert moray.get(move.remote(moray.put(Point(2)))) == Point(3)
    print("passed", __name__)
"""


# --- kinds of programs ----------------------------------------------------------------------------


def test_script() -> None:
    assert "passed __main__" in run_driver(PROGRAM).stdout


def test_dash_c() -> None:
    assert "passed __main__" in run_driver(PROGRAM, argv=["-c", PROGRAM]).stdout


def test_dash_m(tmp_path: Path) -> None:
    package = tmp_path / "parcel"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "main.py").write_text(PROGRAM)
    assert "passed __main__" in run_driver("", argv=["-m", "parcel.main"], cwd=tmp_path).stdout


def test_dash_m_of_a_package(tmp_path: Path) -> None:
    package = tmp_path / "parcel"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helping.py").write_text("def shift(x):\n    return x + 1\n")
    (package / "__main__.py").write_text(
        "import moray\nfrom parcel.helping import shift\n"
        "moray.init(num_cpus=1)\nassert moray.get(moray.remote(shift).remote(1)) == 2\nprint('passed')\n"
    )
    assert "passed" in run_driver("", argv=["-m", "parcel"], cwd=tmp_path).stdout


def test_program_on_stdin_like_a_notebook() -> None:
    """Cells share one namespace that is no file; a later cell redefines what an earlier one used."""
    finished = run_driver(
        """
        import __main__
        cells = [
            "import moray; moray.init(num_cpus=1); factor = 2",
            "@moray.remote\\ndef scaled(x):\\n    return x * factor",
            "first = moray.get(scaled.remote(3))",
            "factor = 5",
            "@moray.remote\\ndef scaled(x):\\n    return x * factor + 1",
            "second = moray.get(scaled.remote(3))",
        ]
        for number, cell in enumerate(cells):
            exec(compile(cell, f"<cell {number}>", "exec"), __main__.__dict__)
        print(first, second)
        """
    )
    assert finished.stdout.split() == ["6", "16"]


def test_script_without_main_guard() -> None:
    """Workers never run the driver's program again."""
    finished = run_driver(
        """
        print("once")
        import moray
        moray.init(num_cpus=2)
        print(sum(moray.get([moray.remote(lambda x: x).remote(i) for i in range(10)])))
        """
    )
    assert finished.stdout.split() == ["once", "45"]


# --- kinds of functions ---------------------------------------------------------------------------


def module_level(x: int) -> int:
    return x + 100


class Calculator:
    offset = 7

    def __init__(self, base: int) -> None:
        self.base = base

    def add(self, x: int) -> int:
        return self.base + x

    @staticmethod
    def twice(x: int) -> int:
        return 2 * x

    @classmethod
    def shifted(cls, x: int) -> int:
        return cls.offset + x


@pytest.mark.usefixtures("shared_session")
class TestFunctions:
    def test_pytest_module(self) -> None:
        assert moray.get(moray.remote(module_level).remote(1)) == 101

    def test_lambda(self) -> None:
        assert moray.get(moray.remote(lambda x, y=2: x * y).remote(4)) == 8

    def test_closure_over_values(self) -> None:
        table = {"a": [1, 2]}

        @moray.remote
        def look(key: str) -> list[int]:
            return table[key]

        assert moray.get(look.remote("a")) == [1, 2]

    def test_closure_over_a_reference(self) -> None:
        ref = moray.put([1, 2, 3])

        @moray.remote
        def total() -> int:
            return sum(moray.get(ref))

        assert moray.get(total.remote()) == 6

    def test_reference_in_a_closure_outlives_the_callers(self) -> None:
        """FUNCTIONS: a function's pickle holds the references that it contains."""

        def build() -> Any:
            ref = moray.put(b"z" * 500_000)

            @moray.remote
            def size() -> int:
                return len(moray.get(ref))

            return size

        size = build()
        assert moray.get([size.remote() for _ in range(3)]) == [500_000] * 3

    def test_closure_in_a_loop(self) -> None:
        refs = []
        for i in range(20):

            @moray.remote
            def constant(i: int = i) -> int:
                return i

            refs.append(constant.remote())
        assert moray.get(refs) == list(range(20))

    def test_library_function(self) -> None:
        import posixpath

        assert moray.get(moray.remote(posixpath.join).remote("a", "b")) == "a/b"

    def test_static_and_class_methods(self) -> None:
        assert moray.get(moray.remote(Calculator.twice).remote(4)) == 8

    def test_methods_run_inside_a_function(self) -> None:
        calculator = Calculator(5)

        @moray.remote
        def run(x: int) -> tuple[int, int]:
            return calculator.add(x), calculator.shifted(x)

        assert moray.get(run.remote(1)) == (6, 8)

    def test_wrapped_function(self) -> None:
        def logged(function: Any) -> Any:
            @functools.wraps(function)
            def wrapper(*args: Any) -> Any:
                return "logged", function(*args)

            return wrapper

        assert moray.get(moray.remote(logged(module_level)).remote(2)) == ("logged", 102)

    def test_function_with_a_global_that_changes(self) -> None:
        """The function is pickled once, at its first call, as Ray does."""
        box = [1]

        @moray.remote
        def read() -> int:
            return box[0]

        assert moray.get(read.remote()) == 1
        box[0] = 2
        assert moray.get(read.remote()) == 1

    def test_generated_function(self) -> None:
        namespace: dict[str, Any] = {}
        exec("def made(x):\n    return x - 1\n", namespace)
        assert moray.get(moray.remote(namespace["made"]).remote(3)) == 2

    def test_many_functions(self) -> None:
        functions = [moray.remote(lambda i=i: i * i) for i in range(100)]
        assert moray.get([f.remote() for f in functions]) == [i * i for i in range(100)]

    def test_large_function(self) -> None:
        """A closure over megabytes works, whatever is said about it."""
        data = bytes(3_000_000)

        @moray.remote
        def size() -> int:
            return len(data)

        assert moray.get([size.remote() for _ in range(4)]) == [3_000_000] * 4


# --- what workers inherit -------------------------------------------------------------------------


def test_working_directory(tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("found")
    finished = run_driver(
        """
        import os
        import moray
        moray.init(num_cpus=1)

        @moray.remote
        def read():
            return os.getcwd() == os.environ["EXPECTED"], open("data.txt").read()

        print(*moray.get(read.remote()))
        """,
        cwd=tmp_path,
        env={"EXPECTED": str(tmp_path)},
    )
    assert finished.stdout.split() == ["True", "found"]


def test_module_on_the_drivers_path(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("VALUE = 3\ndef tripled(x):\n    return VALUE * x\n")
    run_driver(
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        import beside
        import moray
        moray.init(num_cpus=1)
        assert moray.get(moray.remote(beside.tripled).remote(2)) == 6

        @moray.remote
        def late():
            import beside
            return beside.VALUE

        assert moray.get(late.remote()) == 3
        """
    )


def test_module_beside_the_script(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def tripled(x):\n    return 3 * x\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import moray, beside\nmoray.init(num_cpus=1)\nprint(moray.get(moray.remote(beside.tripled).remote(5)))\n"
    )
    assert run_driver("", argv=[str(script)], cwd=Path("/")).stdout.split() == ["15"]


def test_environment_variables() -> None:
    run_driver(
        """
        import os
        os.environ["SET_BEFORE_INIT"] = "b"
        import moray
        moray.init(num_cpus=1)

        @moray.remote
        def read():
            return os.environ["FROM_SHELL"], os.environ["SET_BEFORE_INIT"]

        assert moray.get(read.remote()) == ("a", "b")
        """,
        env={"FROM_SHELL": "a"},
    )


@pytest.mark.usefixtures("shared_session")
def test_same_interpreter() -> None:
    @moray.remote
    def interpreter() -> tuple[str, str]:
        return sys.prefix, sys.version

    assert moray.get(interpreter.remote()) == (sys.prefix, sys.version)


@pytest.mark.usefixtures("shared_session")
def test_worker_has_no_standard_input() -> None:
    @moray.remote
    def read() -> str:
        return os.readlink("/proc/self/fd/0")

    assert moray.get(read.remote()) == "/dev/null"


@pytest.mark.usefixtures("shared_session")
def test_every_process_carries_the_sessions_name() -> None:
    @moray.remote
    def name() -> str:
        return os.environ["MORAY_SESSION"]

    assert moray.get(name.remote()) == moray.get_runtime_context().get_session_name()
