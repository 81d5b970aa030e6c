"""``ray._private.test_utils``: helpers of Ray's own tests that others import, too.

Those that look into Ray's processes (its servers, protobufs, metrics) are names that refuse when they are called, so
that a module of tests that needs one of them can be imported for the others.
"""

from __future__ import annotations

import fnmatch
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, Final, NoReturn

from moray.actor import kill
from moray.api import available_resources, cluster_resources, get, put, remote
from moray.compat.stand_ins._common.test_utils import (
    FakeTimer,
    Semaphore,
    SignalActor,
    async_wait_for_condition,
    driver_command,
    is_named_tuple,
    run_driver,
    run_string_as_driver,
    wait_for_condition,
)
from moray.compat.stand_ins._private import state as global_state
from moray.platform import process_table
from moray.runtime import unfetched

__all__ = [
    "ErrorSubscriber", "FakeTimer", "PushedError", "Semaphore", "SignalActor", "async_wait_for_condition", "chdir",
    "check_call_ray", "check_call_subprocess", "client_test_enabled", "convert_actor_state", "dicts_equal",
    "external_redis_test_enabled", "generate_system_config_map", "get_actor_node_id", "get_current_unused_port",
    "get_error_message", "get_non_head_nodes", "get_other_nodes", "init_error_pubsub", "is_named_tuple",
    "is_placement_group_removed", "kill_actor_and_wait_for_failure", "no_resource_leaks_excluding_node_resources",
    "object_memory_usage", "placement_group_assert_no_leak", "put_object", "recursive_fnmatch",
    "run_string_as_driver", "run_string_as_driver_nonblocking", "run_string_as_driver_stdout_stderr",
    "same_elements", "wait_for_assertion", "wait_for_children_of_pid", "wait_for_children_of_pid_to_exit",
    "wait_for_condition", "wait_for_num_actors", "wait_for_pid_to_exit", "wait_until_server_available",
    "wait_until_succeeded_without_exception",
]  # fmt: skip

#: How often something is looked at again.
_PAUSE_S: Final = 0.05

#: What only Ray's own processes could answer.
_OF_RAYS_PROCESSES: Final = frozenset({
    "BatchQueue", "EC2InstanceTerminator", "EC2InstanceTerminatorWithGracePeriod", "MetricSamplePattern",
    "NodeKillerBase", "PrometheusTimeseries", "RPC_FAILURE_MAP", "RPC_FAILURE_TYPES", "RayletKiller",
    "ResourceKillerActor", "WorkerKillerActor", "check_library_usage_telemetry", "check_local_files_gced",
    "check_spilled_mb", "enable_external_redis", "fetch_prometheus", "fetch_prometheus_metric_timeseries",
    "fetch_prometheus_metrics", "fetch_prometheus_timeseries", "fetch_raw_prometheus", "format_web_url",
    "generate_runtime_env_dict", "get_and_run_node_killer", "get_and_run_resource_killer",
    "get_dashboard_agent_address", "get_gcs_memory_used", "get_load_metrics_report", "get_log_batch",
    "get_log_data", "get_log_message", "get_log_sources", "get_metric_check_condition", "get_node_stats",
    "get_redis_cli", "get_resource_usage", "get_system_metric_for_component", "get_test_config_path",
    "init_log_pubsub", "job_hook", "kill_process_by_name", "kill_processes", "kill_raylet", "load_test_config",
    "make_global_state_accessor", "monitor_memory_usage", "raw_metric_timeseries",
    "reset_autoscaler_v2_enabled_cache", "setup_tls", "simulate_s3_bucket", "start_redis_instance",
    "start_redis_sentinel_instance", "teardown_tls", "wait_for_aggregator_agent",
    "wait_for_aggregator_agent_if_enabled", "wait_for_dashboard_agent_available",
})  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _OF_RAYS_PROCESSES:
        raise AttributeError(f"module 'ray._private.test_utils' (moray's stand-in for it) has no attribute {name!r}")

    def refuse(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"ray._private.test_utils.{name} looks into Ray's own processes; moray has others")

    return refuse


# --- drivers and processes ---------------------------------------------------------------------------


def run_string_as_driver_stdout_stderr(
    driver_script: str, env: Mapping[str, str] | None = None, encode: str = "utf-8", timeout: float | None = 300.0
) -> tuple[str, str]:
    """As :func:`run_string_as_driver`, with stdout and stderr apart."""
    done = run_driver(driver_script, env, encode, timeout, subprocess.PIPE)
    return done.stdout.decode(encode), done.stderr.decode(encode)


def run_string_as_driver_nonblocking(
    driver_script: str, env: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start a program and return it while it runs; its stdout and stderr are pipes."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(driver_command(), stdin=pipe, stdout=pipe, stderr=pipe, env=env)
    assert process.stdin is not None
    process.stdin.write(driver_script.encode())
    process.stdin.close()
    process.stdin = None  # communicate() may be called.
    return process


def check_call_subprocess(argv: list[str], capture_stdout: bool = False, capture_stderr: bool = False) -> Any:
    """Run a command that must succeed; its output is returned as far as it is asked for."""
    pipe = subprocess.PIPE
    done = subprocess.run(
        argv, stdout=pipe if capture_stdout else None, stderr=pipe if capture_stderr else None, check=True
    )
    found = [out.decode() for out, wanted in ((done.stdout, capture_stdout), (done.stderr, capture_stderr)) if wanted]
    return found[0] if len(found) == 1 else tuple(found) or None


def check_call_ray(args: list[str], capture_stdout: bool = False, capture_stderr: bool = False) -> Any:
    """The same for moray's command."""
    return check_call_subprocess([sys.executable, "-m", "moray", *args], capture_stdout, capture_stderr)


def wait_for_pid_to_exit(pid: int, timeout: float = 20) -> None:
    """Return when a process has ended.

    Raises:
        TimeoutError: it has not, after `timeout` seconds.
    """

    def ended() -> bool:
        stat = process_table.read_stat(pid)
        return stat is None or stat.state == "Z"

    _wait(ended, timeout, lambda: f"process {pid} still runs after {timeout:g} s")


def wait_for_children_of_pid(pid: int, num_children: int = 1, timeout: float = 20) -> None:
    """Return when a process has so many children. TimeoutError after `timeout` seconds."""
    _wait(
        lambda: len(process_table.children(pid)) >= num_children,
        timeout,
        lambda: f"process {pid} has the children {process_table.children(pid)}; {num_children} were to come",
    )


def wait_for_children_of_pid_to_exit(pid: int, timeout: float = 20) -> None:
    """Return when the children that a process has now have ended. TimeoutError after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    for child in process_table.children(pid):
        wait_for_pid_to_exit(child, max(0.0, deadline - time.monotonic()))


def _wait(condition: Callable[[], bool], timeout: float, complaint: Callable[[], str]) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(complaint())
        time.sleep(_PAUSE_S)


def wait_until_server_available(address: str, timeout_ms: float = 5000, retry_interval_ms: float = 100) -> bool:
    """Whether something listens at "HOST:PORT" before the time is over."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_ms / 1000
    while time.monotonic() <= deadline:
        try:
            with socket.create_connection((host, int(port)), timeout=1):
                return True
        except OSError:
            time.sleep(retry_interval_ms / 1000)
    return False


def get_current_unused_port() -> int:
    """A port that nobody listens at, at this moment."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port


@contextmanager
def chdir(d: str) -> Iterator[None]:
    """A block in another current directory."""
    before = os.getcwd()
    os.chdir(d)
    try:
        yield
    finally:
        os.chdir(before)


# --- waiting -----------------------------------------------------------------------------------------


def wait_for_assertion(
    assertion_predictor: Callable[..., Any],
    timeout: float = 10,
    retry_interval_ms: float = 100,
    raise_exceptions: bool = False,
    **kwargs: Any,
) -> None:
    """Return when a function does not fail an assertion any more; its AssertionError if it always does."""

    def holds() -> bool:
        try:
            assertion_predictor(**kwargs)
        except AssertionError:
            return False
        return True

    try:
        wait_for_condition(holds, timeout, retry_interval_ms, raise_exceptions)
    except RuntimeError:
        assertion_predictor(**kwargs)


def wait_until_succeeded_without_exception(
    func: Callable[..., Any],
    exceptions: type[BaseException] | tuple[type[BaseException], ...],
    *args: Any,
    timeout_ms: float = 1000,
    retry_interval_ms: float = 100,
    raise_last_ex: bool = False,
) -> bool:
    """Whether a function passes without these exceptions before the time is over; the last of them if asked for."""
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            func(*args)
        except exceptions as error:
            if time.monotonic() > deadline:
                if raise_last_ex:
                    raise RuntimeError(f"{func} failed for {timeout_ms:g} ms; last: {error!r}") from error
                return False
        else:
            return True
        time.sleep(retry_interval_ms / 1000)


# --- errors that nobody asked for --------------------------------------------------------------------


class PushedError(dict[str, Any]):
    """What went wrong: its "type", one of those in ``ray_constants``, and its "error_message"; as attributes, too."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class ErrorSubscriber:
    """Errors of tasks that nobody fetches, and deaths of workers, from now on, as this driver learns of them."""

    def __init__(self) -> None:
        self._errors: SimpleQueue[PushedError] = SimpleQueue()
        unfetched.watchers.append(self._take)

    def _take(self, kind: str, text: str) -> None:
        self._errors.put(PushedError(type=kind, error_message=text))

    def poll(self, timeout: float | None = None) -> tuple[bytes | None, PushedError | None]:
        """(…, the next error), or (None, None) if there is none in time."""
        try:
            return b"", self._errors.get(timeout=None if timeout is None else max(0.0, timeout))
        except Empty:
            return None, None

    def close(self) -> None:
        """No more."""
        if self._take in unfetched.watchers:
            unfetched.watchers.remove(self._take)


def init_error_pubsub() -> ErrorSubscriber:
    """What :func:`get_error_message` reads."""
    return ErrorSubscriber()


def get_error_message(
    subscriber: ErrorSubscriber, num: float = 1e6, error_type: str | None = None, timeout: float = 20
) -> list[PushedError]:
    """At most `num` errors, of this type if one is given, as they come within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    found: list[PushedError] = []
    while len(found) < num:
        _, error = subscriber.poll(deadline - time.monotonic())
        if error is None:
            break
        if error_type in (None, error["type"]):
            found.append(error)
    return found


# --- actors, nodes, resources ------------------------------------------------------------------------


def convert_actor_state(state: Any) -> Any:
    """An actor's state by its name, which it is already."""
    return state or None


def wait_for_num_actors(num_actors: int, state: str | None = None, timeout: float = 10) -> None:
    """Return when the session has so many actors (of this state). TimeoutError after `timeout` seconds."""

    def found() -> int:
        return sum(state is None or actor["State"] == state for actor in global_state.actors().values())

    _wait(lambda: found() >= num_actors, timeout, lambda: f"there are {found()} actors, {num_actors} were to come")


def kill_actor_and_wait_for_failure(actor: Any, timeout: float = 10, retry_interval_ms: float = 100) -> None:
    """Kill an actor and return when it is dead or has begun to start again."""
    actor_id = actor._moray_actor.hex()
    restarts = global_state.actors(actor_id)["NumRestarts"]
    kill(actor)

    def failed() -> bool:
        found = global_state.actors(actor_id)
        return not found or found["State"] == "DEAD" or found["NumRestarts"] > restarts

    wait_for_condition(failed, timeout, retry_interval_ms)


def get_actor_node_id(actor_handle: Any) -> str:
    """The node that an actor lives on, hexadecimal."""
    from moray.runtime_context import get_runtime_context

    found: str = get(actor_handle.__ray_call__.remote(lambda _self: get_runtime_context().get_node_id()))
    return found


def get_non_head_nodes(cluster: Any) -> list[Any]:
    """The nodes of a :class:`moray.cluster_utils.Cluster` but the first."""
    return [node for node in cluster.list_all_nodes() if not node.is_head]


def get_other_nodes(cluster: Any, exclude_head: bool = False) -> list[Any]:
    """The nodes of a cluster but the one that this driver is connected to."""
    from moray.runtime_context import get_runtime_context

    here = get_runtime_context().get_node_id()
    nodes = get_non_head_nodes(cluster) if exclude_head else cluster.list_all_nodes()
    return [node for node in nodes if node.node_id != here]


def object_memory_usage() -> float:
    """Bytes of the object store that are in use."""
    return cluster_resources()["object_store_memory"] - available_resources().get("object_store_memory", 0)


def no_resource_leaks_excluding_node_resources() -> bool:
    """Whether nothing is leased or stored."""
    total, free = cluster_resources(), available_resources()
    return all(free.get(name) == amount for name, amount in total.items() if "node" not in name)


def is_placement_group_removed(pg: Any) -> bool:
    """Whether a placement group was removed."""
    from moray.util.placement_group import placement_group_table

    return bool(placement_group_table(pg).get("state") == "REMOVED")


def placement_group_assert_no_leak(pgs_created: Iterable[Any]) -> None:
    """Remove the groups, and return when all that they held is free."""
    from moray.util.placement_group import placement_group_table, remove_placement_group

    for group in pgs_created:
        remove_placement_group(group)
    wait_for_condition(lambda: all(entry["state"] == "REMOVED" for entry in placement_group_table().values()))
    total = {name: amount for name, amount in cluster_resources().items() if "memory" not in name}
    wait_for_condition(lambda: {**total, **available_resources()}.items() >= total.items())


# --- small things ------------------------------------------------------------------------------------


@remote
def _same(value: Any) -> Any:
    return value


def put_object(obj: Any, use_ray_put: bool) -> Any:
    """A reference to a value: by put, or as the result of a task."""
    return put(obj) if use_ray_put else _same.remote(obj)


def client_test_enabled() -> bool:
    """Whether tests run through Ray's client: never."""
    return False


def external_redis_test_enabled() -> bool:
    """Whether tests run with a Redis of their own: never."""
    return False


def generate_system_config_map(**kwargs: Any) -> dict[str, Any]:
    """What a fixture passes to `init`."""
    return {"_system_config": kwargs}


def recursive_fnmatch(dirpath: str, pattern: str) -> list[str]:
    """The files below a directory whose names match."""
    found = ((root, name) for root, _, names in os.walk(dirpath) for name in fnmatch.filter(names, pattern))
    return [os.path.join(root, name) for root, name in found]


def same_elements(elems_a: Iterable[Any], elems_b: Iterable[Any]) -> bool:
    """Whether two iterables have the same elements, however often; they need not be hashable."""
    a, b = list(elems_a), list(elems_b)
    return all(x in b for x in a) and all(x in a for x in b)


def dicts_equal(dict1: Mapping[Any, Any], dict2: Mapping[Any, Any], abs_tol: float = 1e-4) -> bool:
    """Whether two mappings have the same keys and almost the same numbers."""
    return dict1.keys() == dict2.keys() and all(abs(dict1[key] - dict2[key]) <= abs_tol for key in dict1)
