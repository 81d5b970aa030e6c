"""``init`` and ``shutdown``: what they accept, return, refuse and leave behind."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import moray
from tests.support.procs import run_driver, session_leftovers, wait_until


@pytest.fixture(autouse=True)
def no_session_stays() -> Iterator[None]:
    """A test that fails in between does not spoil the next one."""
    yield
    moray.shutdown()


@moray.remote
def double(x: int) -> int:
    return 2 * x


def test_is_initialized_follows_init_and_shutdown() -> None:
    assert not moray.is_initialized()
    moray.init(num_cpus=1)
    assert moray.is_initialized()
    moray.shutdown()
    assert not moray.is_initialized()


def test_context_says_where_the_session_is() -> None:
    context = moray.init(num_cpus=1)
    try:
        info = context.address_info
        assert Path(info["session_dir"]).is_dir()
        assert info["node_id"] == moray.get_runtime_context().get_node_id()
        assert info["address"]
        assert context["address"] == info["address"]
        assert hasattr(context, "dashboard_url")
    finally:
        moray.shutdown()


def test_context_attributes_name_the_versions() -> None:
    with moray.init(num_cpus=1) as context:
        assert context.python_version.startswith("3.")
        assert isinstance(context.ray_version, str)


def test_context_manager_shuts_down() -> None:
    with moray.init(num_cpus=1):
        assert moray.get(double.remote(2)) == 4
    assert not moray.is_initialized()


def test_context_manager_shuts_down_after_an_exception() -> None:
    with pytest.raises(ZeroDivisionError), moray.init(num_cpus=1):
        _ = 1 // 0
    assert not moray.is_initialized()


def test_second_init_is_refused(moray_session: Any) -> None:
    with pytest.raises(RuntimeError, match="ignore_reinit_error"):
        moray.init(num_cpus=1)
    assert moray.get(double.remote(1)) == 2


def test_second_init_may_be_ignored(moray_session: Any) -> None:
    before = moray.get_runtime_context().get_node_id()
    context = moray.init(num_cpus=1, ignore_reinit_error=True)
    assert context.address_info["node_id"] == before
    assert moray.cluster_resources()["CPU"] == 2


def test_shutdown_without_init_does_nothing() -> None:
    moray.shutdown()
    moray.shutdown()
    assert not moray.is_initialized()


def test_shutdown_leaves_nothing_behind() -> None:
    context = moray.init(num_cpus=2)
    session, directory = moray.get_runtime_context().get_session_name(), context.address_info["session_dir"]
    moray.get([double.remote(i) for i in range(10)])
    assert session_leftovers(session, directory), "the session can be counted while it is there"
    moray.shutdown()
    assert session_leftovers(session, directory) == []


def test_init_after_shutdown_is_a_new_session() -> None:
    sessions = set()
    for _ in range(2):
        with moray.init(num_cpus=1):
            sessions.add(moray.get_runtime_context().get_session_name())
            assert moray.get(double.remote(3)) == 6
    assert len(sessions) == 2


@pytest.mark.parametrize("size", [10, 300_000])
def test_reference_of_a_past_session_does_not_wait(size: int) -> None:
    """Its value, if it is still here, or an error; never another object's value, and never a wait without end."""
    with moray.init(num_cpus=1):
        old = moray.put(b"o" * size)
    with moray.init(num_cpus=1):
        new = moray.put(b"n" * size)
        with contextlib.suppress(moray.exceptions.RayError):
            assert moray.get(old) == b"o" * size
        assert moray.get(new) == b"n" * size


@pytest.mark.parametrize(
    "first_call",
    ["moray.get(f.remote())", "moray.get(moray.put(1))", "moray.wait([moray.put(1)])"],
)
def test_first_use_initializes(first_call: str) -> None:
    run_driver(
        f"""
        import moray

        @moray.remote
        def f():
            return 1

        {first_call}
        assert moray.is_initialized()
        """
    )


def test_session_started_by_a_finished_thread_lives_on() -> None:
    starter = threading.Thread(target=moray.init, kwargs={"num_cpus": 1})
    starter.start()
    starter.join()
    try:
        assert moray.get([double.remote(i) for i in range(3)]) == [0, 2, 4]
    finally:
        moray.shutdown()


# --- resources ------------------------------------------------------------------------------------


def test_default_cpus_follow_affinity() -> None:
    finished = run_driver(
        """
        import os
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        import moray
        moray.init()
        print(moray.cluster_resources()["CPU"])
        """
    )
    assert finished.stdout.split()[-1] == "1.0"


def test_num_cpus_may_exceed_the_machine() -> None:
    with moray.init(num_cpus=64):
        assert moray.cluster_resources()["CPU"] == 64.0
        assert moray.get(double.remote(1)) == 2


def test_num_cpus_may_be_zero() -> None:
    with moray.init(num_cpus=0):
        assert moray.cluster_resources().get("CPU", 0) == 0
        assert moray.get(double.options(num_cpus=0).remote(1)) == 2


def test_resources_are_what_was_asked_for() -> None:
    with moray.init(num_cpus=3, num_gpus=2, resources={"disk": 4, "licence": 0.5}):
        total = moray.cluster_resources()
        assert {name: total[name] for name in ("CPU", "GPU", "disk", "licence")} == {
            "CPU": 3.0,
            "GPU": 2.0,
            "disk": 4.0,
            "licence": 0.5,
        }


def test_available_resources_return_after_a_task() -> None:
    with moray.init(num_cpus=2, resources={"token": 1}):

        @moray.remote(resources={"token": 1})
        def available() -> dict[str, float]:
            return dict(moray.available_resources())

        assert moray.get(available.remote()).get("token", 0.0) == 0.0
        wait_until(lambda: moray.available_resources().get("token") == 1.0, what="the token's return")


def test_gpus_are_counted_without_importing_torch() -> None:
    run_driver(
        """
        import sys
        import moray
        moray.init(num_cpus=1)
        moray.cluster_resources()
        assert not {"torch", "numpy", "pyarrow"} & set(sys.modules)
        """
    )


def test_no_visible_gpu_means_none() -> None:
    finished = run_driver(
        """
        import moray
        moray.init(num_cpus=1)
        print(moray.cluster_resources().get("GPU", 0))
        """,
        env={"CUDA_VISIBLE_DEVICES": ""},
    )
    assert float(finished.stdout.split()[-1]) == 0


def test_object_store_memory_is_a_resource() -> None:
    with moray.init(num_cpus=1, object_store_memory=100_000_000):
        assert moray.cluster_resources()["object_store_memory"] == pytest.approx(100_000_000, rel=0.05)


@pytest.mark.parametrize("bad", [{"num_cpus": -1}, {"num_gpus": -1}, {"object_store_memory": -5}])
def test_negative_amounts_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        moray.init(**bad)
    assert not moray.is_initialized()


@pytest.mark.parametrize("bad", [{"CPU": 1}, {"GPU": 1}, {"x": -1}])
def test_bad_custom_resources_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError):
        moray.init(num_cpus=1, resources=bad)
    assert not moray.is_initialized()


# --- every other parameter ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters",
    [
        {"labels": {"zone": "here"}, "namespace": "mine"},
        {"include_dashboard": False, "dashboard_host": "127.0.0.1", "dashboard_port": None},
        {"configure_logging": True, "logging_level": "info", "logging_format": "%(message)s", "log_to_driver": False},
        {"local_mode": False, "job_config": None, "logging_config": None, "runtime_env": None},
        {"enable_resource_isolation": False, "cgroup_path": None, "system_reserved_cpu": None},
        {"system_reserved_memory": None, "proxy_server_url": None, "ignore_reinit_error": True},
        {"_system_config": {}, "_temp_dir": None, "_node_ip_address": "127.0.0.1"},
    ],
    ids=lambda p: "-".join(p),
)
def test_every_parameter_is_accepted(parameters: dict[str, Any]) -> None:
    with moray.init(num_cpus=1, **parameters):
        assert moray.get(double.remote(4)) == 8


def test_unknown_parameter_is_refused_with_a_suggestion() -> None:
    with pytest.raises((TypeError, ValueError, RuntimeError), match="num_cpus"):
        moray.init(num_cpu=1)
    assert not moray.is_initialized()


def test_namespace_is_in_the_runtime_context() -> None:
    with moray.init(num_cpus=1, namespace="astronomy"):
        assert moray.get_runtime_context().namespace == "astronomy"

        @moray.remote
        def namespace() -> str:
            return str(moray.get_runtime_context().namespace)

        assert moray.get(namespace.remote()) == "astronomy"


def test_address_local_starts_a_session() -> None:
    with moray.init("local", num_cpus=1):
        assert moray.get(double.remote(5)) == 10


def test_address_of_no_cluster_is_refused() -> None:
    """Looked for where sessions of this program would be, so that others on the machine do not count."""
    with tempfile.TemporaryDirectory(prefix="mt-", dir="/tmp") as directory:
        finished = run_driver(
            """
            import moray
            try:
                moray.init("auto")
            except ConnectionError as error:
                print("refused:", error)
            """,
            env={"TMPDIR": directory},
        )
    assert "refused:" in finished.stdout


def test_session_directory_is_private() -> None:
    with moray.init(num_cpus=1) as context:
        assert Path(context.address_info["session_dir"]).stat().st_mode & 0o777 == 0o700


def test_import_is_cheap() -> None:
    """No heavy library, no thread, no process until ``init``."""
    run_driver(
        """
        import sys, threading, time
        started = time.perf_counter()
        import moray
        elapsed = time.perf_counter() - started
        heavy = {"numpy", "pyarrow", "torch", "pandas", "cryptography", "rich", "click", "asyncio"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        assert threading.active_count() == 1
        assert elapsed < 0.5, elapsed
        """
    )


# --- the runtime context --------------------------------------------------------------------------


def test_runtime_context_in_the_driver(moray_session: Any) -> None:
    context = moray.get_runtime_context()
    assert context.get_job_id()
    assert context.get_node_id()
    assert context.get_worker_id()
    assert context.get_task_name() is None


def test_runtime_context_in_a_task(moray_session: Any) -> None:
    @moray.remote
    def look() -> tuple[str, str, str | None, str | None, str | None, dict[str, float], int]:
        context = moray.get_runtime_context()
        return (
            context.get_job_id(),
            context.get_node_id(),
            context.get_task_id(),
            context.get_task_name(),
            context.get_task_function_name(),
            context.get_assigned_resources(),
            os.getpid(),
        )

    job, node, task, name, function, resources, pid = moray.get(look.options(name="looking", num_cpus=0.5).remote())
    driver = moray.get_runtime_context()
    assert (job, node) == (driver.get_job_id(), driver.get_node_id())
    assert task
    assert name == "looking"
    assert function is not None
    assert function.endswith("look")
    assert resources == {"CPU": 0.5}
    assert pid != os.getpid()
