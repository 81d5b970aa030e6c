"""What Ray's documentation shows in its examples happens here, too."""

# A class decorator's result is not known to mypy.
# mypy: disable-error-code="attr-defined,no-any-return"
# ruff: noqa: ASYNC240 - a file tells the test how far the call is.

from __future__ import annotations

import asyncio
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.exceptions import GetTimeoutError, RuntimeEnvSetupError, TaskCancelledError, TaskError
from moray.exceptions.tasks import make_cancelled_error
from moray.runtime.driver import EXIT_GRACE_S
from moray.util.placement_group import placement_group, remove_placement_group
from moray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from tests.cli.command import command
from tests.support.procs import run_driver, wait_until

# --- cancel ---------------------------------------------------------------------------------------


@moray.remote
class Waiter:
    async def wait(self, path: str, how: str) -> Any:
        Path(path).touch()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if how == "returns":
                return 5
            if how == "raises":
                raise ValueError("while tidying up") from None
            raise


@moray.remote
def sleep(path: str) -> None:
    Path(path).touch()
    time.sleep(60)


def cancelled(ref: Any, path: Path) -> Exception:
    wait_until(path.exists, 20, "the begin of the task")
    moray.cancel(ref)
    with pytest.raises(TaskError) as caught:
        moray.get(ref, timeout=20)
    return caught.value


@pytest.mark.usefixtures("shared_session")
@pytest.mark.parametrize(
    "begin",
    [
        lambda path: sleep.remote(path),
        lambda path: Waiter.remote().wait.remote(path, ""),
        lambda path: Waiter.remote().wait.remote(path, "returns"),
    ],
    ids=["task", "coroutine", "coroutine that returns a value"],
)
def test_what_is_cancelled_while_it_runs_is_caught_as_a_task_error(begin: Callable[[str], Any], tmp_path: Path) -> None:
    error = cancelled(begin(str(tmp_path / "begun")), tmp_path / "begun")
    assert isinstance(error, TaskCancelledError)
    assert "was cancelled" in str(error)


@pytest.mark.usefixtures("shared_session")
def test_what_goes_wrong_while_a_cancelled_coroutine_tidies_up_is_told(tmp_path: Path) -> None:
    ref = Waiter.remote().wait.remote(str(tmp_path / "begun"), "raises")
    assert isinstance(cancelled(ref, tmp_path / "begun"), ValueError)


@pytest.mark.usefixtures("shared_session")
def test_the_error_of_a_task_that_had_not_begun_is_no_task_error() -> None:
    ref = moray.remote(num_cpus=1000)(time.sleep).remote(0)
    moray.cancel(ref)
    with pytest.raises(TaskCancelledError) as caught:
        moray.get(ref, timeout=20)
    assert not isinstance(caught.value, TaskError)


@pytest.mark.usefixtures("shared_session")
def test_a_cancelled_tasks_error_reaches_those_who_take_its_result(tmp_path: Path) -> None:
    first = sleep.remote(str(tmp_path / "begun"))
    second = moray.remote(lambda value: value).remote(first)
    cancelled(first, tmp_path / "begun")
    with pytest.raises(TaskCancelledError):
        moray.get(second, timeout=20)


def test_a_cancelled_coroutine_that_returns_in_local_mode() -> None:
    code = """
        import asyncio, moray
        moray.init(local_mode=True)

        @moray.remote
        class Waiter:
            async def wait(self):
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    return 5
            async def short(self):
                await asyncio.sleep(0)

        actor = Waiter.remote()
        ref = actor.wait.remote()
        moray.get(actor.short.remote())
        moray.cancel(ref)
        try:
            print(moray.get(ref))
        except moray.exceptions.TaskError as error:
            print(isinstance(error, moray.exceptions.TaskCancelledError))
    """
    assert run_driver(code).stdout == "True\n"


def test_the_error_travels_with_all_that_it_says() -> None:
    error = make_cancelled_error("ab" * 24, "it was interrupted", "work", 17)
    error.add_note("in the third round")
    copy = pickle.loads(pickle.dumps(error))
    assert isinstance(copy, TaskError)
    assert (str(copy), copy.task_id, copy.function_name, copy.pid) == (str(error), "ab" * 24, "work", 17)
    assert copy.__notes__ == ["in the third round"]
    assert type(copy.cause) is TaskCancelledError
    assert copy.as_instanceof_cause() is copy
    assert type(copy).__name__ == "TaskCancelledError"


# --- small things ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_session")
def test_a_node_is_named_by_its_id_as_well_as_by_the_digits() -> None:
    here = moray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(moray.NodeID.from_hex(here), soft=False)
    assert strategy.node_id == here
    assert moray.get(moray.remote(lambda: 3).options(scheduling_strategy=strategy).remote(), timeout=20) == 3


@pytest.mark.usefixtures("shared_session")
def test_what_a_placement_group_waits_for_is_said_when_the_time_is_over() -> None:
    group = placement_group([{"GPU": 100}])
    with pytest.raises(GetTimeoutError, match=r"It is ready when placement group .* is created; it is infeasible"):
        wait_and_get(group.ready())
    remove_placement_group(group)


def wait_and_get(ref: Any) -> Any:
    """With time for the head to say what it thinks."""
    moray.wait([ref], timeout=1)
    return moray.get(ref, timeout=0.01)


def test_a_coroutine_function_is_no_task() -> None:
    async def later() -> None: ...

    with pytest.raises(ValueError, match=r"later is an 'async def' function"):
        moray.remote(later)


@pytest.mark.usefixtures("shared_session")
def test_packages_for_one_task_are_refused_with_what_to_do() -> None:
    ref = moray.remote(lambda: 1).options(runtime_env={"pip": ["pendulum"]}).remote()
    with pytest.raises(RuntimeEnvSetupError, match=r"`pip`; moray sets up .* install packages in the environment"):
        moray.get(ref, timeout=20)


# --- the end of a program -------------------------------------------------------------------------

UNFETCHED = """
    import moray, time

    @moray.remote
    def say(word):
        time.sleep(0.1)
        print(word)

    @moray.remote
    class Speaker:
        def say(self, word):
            print(word)

    moray.init(num_cpus=2)
    speaker = Speaker.remote()
    moray.get(speaker.say.remote("first"))
    say.remote("of a task")
    speaker.say.remote("of an actor")
"""


def test_what_nobody_waited_for_may_still_print_when_the_program_ends() -> None:
    lines = run_driver(UNFETCHED).stdout
    assert "of a task" in lines
    assert "of an actor" in lines


#: How long its end waits for what was submitted is printed before the session ends.
TIMED = """
    import time
    import moray.runtime.driver as driver

    wait = driver._let_finish
    def timed(runtime):
        begin = time.monotonic()
        wait(runtime)
        print(f"waited {time.monotonic() - begin:.2f} s")
    driver._let_finish = timed
"""


def test_what_does_not_end_holds_up_the_program_only_for_a_moment() -> None:
    lines = run_driver(TIMED + UNFETCHED.replace("sleep(0.1)", "sleep(60)")).stdout.splitlines()
    waited = float(lines[-1].split()[1])
    assert EXIT_GRACE_S <= waited < EXIT_GRACE_S + 2


def test_a_program_that_waited_for_all_ends_at_once() -> None:
    code = """
    import moray
    moray.init(num_cpus=1)
    moray.get(moray.remote(lambda: 1).remote())
"""
    waited = float(run_driver(TIMED + code).stdout.split()[1])
    assert waited < EXIT_GRACE_S


def test_ctrl_c_while_it_waits_ends_it_at_once_and_without_our_frames() -> None:
    code = """
    import os, signal, threading, time
    import moray.runtime.driver as driver

    wait = driver._let_finish
    def interrupted(runtime):
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        try:
            wait(runtime)
        finally:
            print(f"waited {time.monotonic() - begin:.2f} s")
    driver._let_finish = interrupted
    driver.EXIT_GRACE_S = 30.0
"""
    ended = run_driver(code + UNFETCHED.replace("sleep(0.1)", "sleep(60)"))
    # What the tasks print may come before it and after it.
    [waited] = re.findall(r"^waited ([0-9.]+) s$", ended.stdout, re.MULTILINE)
    assert float(waited) < 10
    assert "Traceback" not in ended.stderr


def test_a_program_that_fails_does_not_wait() -> None:
    ended = run_driver(TIMED + UNFETCHED + "    1 / 0\n", check=False)
    assert ended.returncode == 1
    assert "ZeroDivisionError" in ended.stderr
    assert "waited" not in ended.stdout


# --- other Python processes -----------------------------------------------------------------------

CHILDREN = """
import multiprocessing, os, subprocess, sys
import ray
from ray.util import ActorPool

def version(_):
    return ray.__version__, ActorPool.__module__

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.map(version, [0]))
    code = "import ray.util.queue as q; import ray; print(ray.__version__, q.__name__)"
    print(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout, end="")

    @ray.remote
    def child():
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout

    ray.init(num_cpus=1)
    print(ray.get(child.remote()), end="")
"""


def test_processes_that_the_program_starts_know_ray(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(CHILDREN)
    assert command("run", "--as-ray", "program.py", cwd=tmp_path).stdout.splitlines() == [
        "[('2.60.0', 'moray.util.actor_pool')]",
        "2.60.0 moray.util.queue",
        "2.60.0 moray.util.queue",
    ]


def test_an_interpreter_without_moray_finds_the_ray_that_it_has(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("mine = True")
    code = (
        "import os, subprocess, sys; print(subprocess.run([sys.executable, '-S', '-c', os.environ['CODE']]).returncode)"
    )
    environment = {"CODE": "import ray; print(ray.mine)", "PYTHONPATH": str(tmp_path)}
    assert command("run", "--as-ray", "-c", code, cwd=tmp_path, env=environment).stdout.split() == ["True", "0"]
