"""Options of tasks: how many values, which resources, how often again, how long a worker lasts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moray
from moray.exceptions import WorkerCrashedError
from tests.support.procs import run_driver, wait_until

pytestmark = pytest.mark.usefixtures("shared_session")


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[None]:
    """The usual two CPUs, and something of every other kind."""
    with moray.init(num_cpus=2, num_gpus=2, resources={"disk": 2}):
        yield


def count_call(directory: Path) -> int:
    """Leaves one file per call and says how many calls there were before."""
    before = len(list(directory.iterdir()))
    (directory / f"{before}-{os.getpid()}-{time.monotonic_ns()}").touch()
    return before


# --- num_returns ----------------------------------------------------------------------------------


def test_no_returns() -> None:
    @moray.remote(num_returns=0)
    def nothing() -> None:
        return None

    assert nothing.remote() is None


@pytest.mark.parametrize("n", [2, 3, 100])
def test_several_returns(n: int) -> None:
    @moray.remote
    def count() -> tuple[int, ...]:
        return tuple(range(n))

    refs: Any = count.options(num_returns=n).remote()
    assert len(refs) == n
    assert moray.get(list(refs)) == list(range(n))


def test_returns_may_be_any_sequence_of_the_right_length() -> None:
    @moray.remote(num_returns=2)
    def pair() -> list[str]:
        return ["a", "b"]

    first, second = pair.remote()
    assert [moray.get(first), moray.get(second)] == ["a", "b"]


@pytest.mark.parametrize("value", [(1,), (1, 2, 3), 7], ids=["few", "many", "no sequence"])
def test_wrong_number_of_returns_is_an_error(value: Any) -> None:
    @moray.remote(num_returns=2)
    def wrong() -> Any:
        return value

    for ref in wrong.remote():
        with pytest.raises((ValueError, TypeError)):
            moray.get(ref)


def test_error_is_the_value_of_every_return() -> None:
    @moray.remote(num_returns=3)
    def fail() -> tuple[int, int, int]:
        raise KeyError("gone")

    for ref in fail.remote():
        with pytest.raises(KeyError):
            moray.get(ref)


def test_large_and_small_returns_together() -> None:
    @moray.remote(num_returns=3)
    def make() -> tuple[bytes, int, bytes]:
        return b"a" * 2_000_000, 1, b"b" * 200_000

    large, one, middle = moray.get(list(make.remote()))
    assert (len(large), one, len(middle)) == (2_000_000, 1, 200_000)


# --- options --------------------------------------------------------------------------------------


def test_options_do_not_change_the_function() -> None:
    @moray.remote
    def pair() -> tuple[int, int]:
        return 1, 2

    assert moray.get(list(pair.options(num_returns=2).remote())) == [1, 2]
    assert moray.get(pair.remote()) == (1, 2)


def test_options_override_the_decorator() -> None:
    @moray.remote(num_cpus=1, num_returns=2)
    def assigned() -> Any:
        resources = moray.get_runtime_context().get_assigned_resources()
        return resources, None

    assert moray.get(assigned.remote()[0]) == {"CPU": 1.0}
    assert moray.get(assigned.options(num_cpus=2).remote()[0]) == {"CPU": 2.0}


def test_remote_is_also_a_plain_call() -> None:
    def triple(x: int) -> int:
        return 3 * x

    assert moray.get(moray.remote(triple).remote(2)) == 6
    assert moray.get(moray.remote(num_cpus=0.5)(triple).remote(2)) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": 0.25, "num_gpus": 0.5, "memory": 1_000_000, "resources": {"disk": 0.1}},
        {"max_calls": 0, "max_retries": 0, "retry_exceptions": False, "num_returns": 1},
        {"max_retries": -1, "retry_exceptions": [ValueError], "name": "named"},
        {"scheduling_strategy": "DEFAULT"},
        {"scheduling_strategy": "SPREAD"},
        {"scheduling_strategy": None, "runtime_env": None, "label_selector": None, "fallback_strategy": None},
        {"placement_group": None, "placement_group_bundle_index": -1},
        {"placement_group_capture_child_tasks": None, "accelerator_type": None, "object_store_memory": None},
        {"enable_task_events": False, "_labels": {"a": "b"}},
    ],
    ids=lambda o: "-".join(o),
)
def test_every_option_is_accepted(options: dict[str, Any]) -> None:
    def one() -> int:
        return 1

    assert moray.get(moray.remote(**options)(one).remote(), timeout=30) == 1


# --- resources ------------------------------------------------------------------------------------


@moray.remote
def assigned_resources() -> dict[str, float]:
    return dict(moray.get_runtime_context().get_assigned_resources())


def test_fractions_and_custom_resources_are_assigned_exactly() -> None:
    ref = assigned_resources.options(num_cpus=0.1, resources={"disk": 0.3}).remote()
    assert moray.get(ref) == {"CPU": 0.1, "disk": 0.3}


def test_memory_is_assigned() -> None:
    assert moray.get(assigned_resources.options(memory=50_000_000).remote())["memory"] == 50_000_000


def test_fractions_share_one_cpu(tmp_path: Path) -> None:
    """Four halves run at the same time on two CPUs."""

    @moray.remote(num_cpus=0.5)
    def meet(me: int) -> int:
        (tmp_path / str(me)).touch()
        wait_until(lambda: len(list(tmp_path.iterdir())) == 4)
        return me

    assert moray.get([meet.remote(me) for me in range(4)], timeout=30) == [0, 1, 2, 3]


def test_no_more_tasks_at_once_than_resources(tmp_path: Path) -> None:
    @moray.remote(num_cpus=0, resources={"disk": 1})
    def enter(me: int) -> int:
        mark = tmp_path / str(me)
        mark.touch()
        inside = len(list(tmp_path.iterdir()))
        time.sleep(0.05)
        mark.unlink()
        return inside

    assert max(moray.get([enter.remote(me) for me in range(10)], timeout=30)) <= 2


def test_two_cpus_for_one_task_exclude_others(tmp_path: Path) -> None:
    @moray.remote(num_cpus=2)
    def alone(me: int) -> int:
        mark = tmp_path / str(me)
        mark.touch()
        inside = len(list(tmp_path.iterdir()))
        time.sleep(0.05)
        mark.unlink()
        return inside

    assert moray.get([alone.remote(me) for me in range(4)], timeout=30) == [1, 1, 1, 1]


def test_gpus_are_handed_out_by_index() -> None:
    @moray.remote(num_gpus=1)
    def visible() -> tuple[str, list[int]]:
        return os.environ["CUDA_VISIBLE_DEVICES"], [int(i) for i in moray.get_gpu_ids()]

    for text, indices in moray.get([visible.remote() for _ in range(4)]):
        assert indices in ([0], [1])
        assert text == str(indices[0])


def test_without_gpus_none_is_visible() -> None:
    @moray.remote
    def ids() -> list[int]:
        return list(moray.get_gpu_ids())

    assert moray.get(ids.remote()) == []


@pytest.mark.parametrize(("num_cpus", "threads"), [(None, "1"), (2, "2"), (0.5, "1")])
def test_omp_num_threads_follows_num_cpus(num_cpus: float | None, threads: str) -> None:
    @moray.remote
    def variable() -> str:
        return os.environ["OMP_NUM_THREADS"]

    assert moray.get(variable.options(num_cpus=num_cpus).remote()) == threads


def test_omp_num_threads_of_the_user_wins() -> None:
    run_driver(
        """
        import os
        import moray
        moray.init(num_cpus=1)

        @moray.remote
        def variable():
            return os.environ["OMP_NUM_THREADS"]

        assert moray.get(variable.remote()) == "7"
        """,
        env={"OMP_NUM_THREADS": "7"},
    )


def test_infeasible_task_waits_and_says_so_once() -> None:
    """Nothing waits in silence: one warning names what is missing; the task goes on waiting."""
    finished = run_driver(
        """
        import moray
        moray.init(num_cpus=1)

        @moray.remote(resources={"unobtainium": 1})
        def f():
            return 1

        refs = [f.remote() for _ in range(3)]
        ready, waiting = moray.wait(refs, num_returns=3, timeout=1.5)
        assert (ready, waiting) == ([], refs)
        try:
            moray.get(refs[0], timeout=0.1)
        except moray.exceptions.GetTimeoutError:
            print("still waiting")
        """
    )
    assert "still waiting" in finished.stdout
    lines = (finished.stdout + finished.stderr).splitlines()
    assert len([line for line in lines if "unobtainium" in line]) == 1


# --- retries --------------------------------------------------------------------------------------


def test_exception_is_not_retried_unless_asked(tmp_path: Path) -> None:
    @moray.remote
    def fail() -> None:
        count_call(tmp_path)
        raise ValueError

    with pytest.raises(ValueError):
        moray.get(fail.remote())
    assert len(list(tmp_path.iterdir())) == 1


def test_retry_exceptions_true(tmp_path: Path) -> None:
    @moray.remote(retry_exceptions=True)
    def third_time_lucky() -> int:
        before = count_call(tmp_path)
        if before < 2:
            raise ValueError(before)
        return before

    assert moray.get(third_time_lucky.remote(), timeout=30) == 2


@pytest.mark.parametrize(("raised", "calls"), [(KeyError, 3), (IndexError, 3), (ValueError, 1)])
def test_retry_exceptions_list(tmp_path: Path, raised: type[Exception], calls: int) -> None:
    """Subclasses of what is listed are retried too, others are not."""

    @moray.remote(retry_exceptions=[LookupError], max_retries=2)
    def fail() -> None:
        count_call(tmp_path)
        raise raised

    with pytest.raises(raised):
        moray.get(fail.remote(), timeout=30)
    assert len(list(tmp_path.iterdir())) == calls


def test_retries_end(tmp_path: Path) -> None:
    @moray.remote(retry_exceptions=True, max_retries=4)
    def fail() -> None:
        count_call(tmp_path)
        raise ValueError

    with pytest.raises(ValueError):
        moray.get(fail.remote(), timeout=30)
    assert len(list(tmp_path.iterdir())) == 5


def test_crashed_worker_is_retried_three_times_by_default(tmp_path: Path) -> None:
    @moray.remote
    def crash() -> None:
        count_call(tmp_path)
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        moray.get(crash.remote(), timeout=30)
    assert len(list(tmp_path.iterdir())) == 4


def test_crash_then_success(tmp_path: Path) -> None:
    @moray.remote(max_retries=2)
    def crash_twice() -> int:
        before = count_call(tmp_path)
        if before < 2:
            os._exit(1)
        return before

    assert moray.get(crash_twice.remote(), timeout=30) == 2


def test_no_retry_when_max_retries_is_zero(tmp_path: Path) -> None:
    @moray.remote(max_retries=0)
    def crash() -> None:
        count_call(tmp_path)
        os._exit(1)

    with pytest.raises(WorkerCrashedError):
        moray.get(crash.remote(), timeout=30)
    assert len(list(tmp_path.iterdir())) == 1


def test_unlimited_retries(tmp_path: Path) -> None:
    @moray.remote(max_retries=-1)
    def crash_often() -> int:
        before = count_call(tmp_path)
        if before < 6:
            os._exit(1)
        return before

    assert moray.get(crash_often.remote(), timeout=60) == 6


def test_dependant_of_a_retried_task_gets_the_final_value(tmp_path: Path) -> None:
    @moray.remote
    def crash_once() -> int:
        if count_call(tmp_path) == 0:
            os._exit(1)
        return 5

    @moray.remote
    def add_one(x: int) -> int:
        return x + 1

    assert moray.get(add_one.remote(crash_once.remote()), timeout=30) == 6


# --- max_calls ------------------------------------------------------------------------------------


def test_max_calls_of_one_takes_a_new_worker_each_time() -> None:
    @moray.remote(max_calls=1)
    def pid() -> int:
        return os.getpid()

    pids = moray.get([pid.remote() for _ in range(6)], timeout=30)
    assert len(set(pids)) == 6


def test_max_calls_limits_calls_per_worker() -> None:
    @moray.remote(max_calls=3)
    def pid() -> int:
        return os.getpid()

    pids = moray.get([pid.remote() for _ in range(12)], timeout=30)
    assert max(pids.count(p) for p in pids) <= 3


def test_value_put_by_a_worker_outlives_its_max_calls() -> None:
    """OWNER-STAYS: a worker that owns objects held elsewhere is not ended under them."""

    @moray.remote(max_calls=1)
    def scatter() -> list[Any]:
        return [moray.put("kept"), moray.put(b"x" * 1_000_000)]

    for _ in range(15):  # Once, one in sixty lost its objects: its lease came back before the news of them.
        refs = moray.get(scatter.remote())
        moray.get([scatter.remote() for _ in range(3)])
        small, large = moray.get(refs, timeout=20)
        assert (small, len(large)) == ("kept", 1_000_000)


# --- names and environment ------------------------------------------------------------------------


def test_name_option_is_the_tasks_name() -> None:
    @moray.remote
    def name() -> str | None:
        return moray.get_runtime_context().get_task_name()

    assert moray.get(name.options(name="christened").remote()) == "christened"


def test_same_function_with_many_names_and_resources() -> None:
    refs = [assigned_resources.options(num_cpus=0.1 * (1 + i % 5), name=f"task-{i}").remote() for i in range(50)]
    assert [round(r["CPU"], 1) for r in moray.get(refs)] == [round(0.1 * (1 + i % 5), 1) for i in range(50)]
