"""The helpers that Ray's own tests are written with, and what these look at beside the public names."""

from __future__ import annotations

from tests.support.procs import run_driver

START = """
    import moray.compat
    moray.compat.install()
    import os, time, ray
    from ray._private.test_utils import *
    ray.init(num_cpus=2)
"""


def printed(code: str, **kwargs: object) -> list[str]:
    return run_driver(START + code, **kwargs).stdout.splitlines()  # type: ignore[arg-type]


NOT_MET = "the condition did not hold within 0.05 s."


def test_signals_semaphores_and_conditions() -> None:
    code = """
    from ray._common.test_utils import SignalActor as Other
    assert Other is SignalActor
    signal, semaphore = SignalActor.remote(), Semaphore.remote(value=1)
    waiting = signal.wait.remote()
    wait_for_condition(lambda: ray.get(signal.cur_num_waiters.remote()) == 1)
    print(ray.wait([waiting], timeout=0) == ([], [waiting]))
    ray.get([signal.send.remote(), waiting, signal.wait.remote()])
    ray.get(semaphore.acquire.remote())
    print(ray.get(semaphore.locked.remote()))
    ray.get(semaphore.release.remote())
    print(ray.get(semaphore.locked.remote()))
    for wrong in (lambda: False, lambda: 1 / 0):
        try:
            wait_for_condition(wrong, timeout=0.05, retry_interval_ms=10)
        except RuntimeError as error:
            print(error)
    try:
        wait_for_condition(lambda: 1 / 0, timeout=5, raise_exceptions=True)
    except ZeroDivisionError:
        print("passed on")
    """
    assert printed(code) == [
        "True",
        "True",
        "False",
        NOT_MET,
        f"{NOT_MET} Last exception: ZeroDivisionError: division by zero",
        "passed on",
    ]


def test_drivers_of_their_own() -> None:
    code = """
    import subprocess
    script = "import ray, sys; ray.init(num_cpus=1); print(ray.get(ray.put(5))); print('err', file=sys.stderr)"
    print(run_string_as_driver(script).splitlines())
    print(run_string_as_driver_stdout_stderr(script))
    process = run_string_as_driver_nonblocking(script)
    print(process.communicate()[0], process.returncode)
    try:
        run_string_as_driver("raise SystemExit(3)")
    except subprocess.CalledProcessError as error:
        print(error.returncode)
    """
    assert printed(code) == ["['5', 'err']", r"('5\n', 'err\n')", r"b'5\n' 0", "3"]


def test_ends_of_processes_and_actors() -> None:
    code = """
    @ray.remote(max_restarts=1)
    class Actor:
        def pid(self):
            return os.getpid()
    actor = Actor.remote()
    pid = ray.get(actor.pid.remote())
    kill_actor_and_wait_for_failure(actor)
    wait_for_pid_to_exit(pid)
    try:
        wait_for_pid_to_exit(os.getpid(), timeout=0.1)
    except TimeoutError as error:
        print(str(os.getpid()) in str(error))
    try:
        ray.get(actor.pid.remote())
    except ray.exceptions.RayActorError:
        print("dead")
    print(get_actor_node_id(Actor.remote()) == ray.get_runtime_context().get_node_id())
    """
    assert printed(code) == ["True", "dead", "True"]


def test_errors_that_are_pushed() -> None:
    code = """
    from ray._private import ray_constants
    errors = init_error_pubsub()
    @ray.remote(max_retries=0)
    def fail(how):
        if how == "exit":
            os._exit(1)
        raise ValueError(how)
    @ray.remote
    class Actor:
        def end(self):
            os._exit(1)
        def ping(self):
            return 1
    fail.remote("unasked")
    (pushed,) = get_error_message(errors, 1, ray_constants.TASK_PUSH_ERROR)
    print(pushed.type, pushed["type"], "ValueError: unasked" in pushed.error_message)
    for ref in (fail.remote("exit"), Actor.remote().end.remote()):
        try:
            ray.get(ref)
        except ray.exceptions.RayError as error:
            (pushed,) = get_error_message(errors, 1, ray_constants.WORKER_DIED_PUSH_ERROR)
            print(type(error).__name__, "died" in pushed.error_message)
    print(get_error_message(errors, 1, timeout=0))
    actor = Actor.remote()
    ray.get(actor.ping.remote())
    del actor
    print(get_error_message(errors, 1, timeout=0.5))
    errors.close()
    """
    assert printed(code) == ["task task True", "WorkerCrashedError True", "ActorDiedError True", "[]", "[]"]


def test_a_handler_of_errors_that_nobody_fetched() -> None:
    code = """
    @ray.remote
    def fail(text):
        raise ValueError(text)
    seen = []
    ray._private.worker._unhandled_error_handler = seen.append
    fail.remote("first")
    wait_for_condition(lambda: len(seen) == 1)
    os.environ["RAY_IGNORE_UNHANDLED_ERRORS"] = "1"
    fail.remote("second")
    ray.get(ray.remote(os.getpid).remote())
    del os.environ["RAY_IGNORE_UNHANDLED_ERRORS"]
    fail.remote("third")
    wait_for_condition(lambda: len(seen) == 2)
    print([repr(error) for error in seen], ray._private.worker._unhandled_error_handler == seen.append)
    """
    done = run_driver(START + code)
    assert done.stdout.strip().endswith("True")
    assert "RayTaskError(ValueError)('first')" in done.stdout
    assert "nobody fetched" not in done.stderr


def test_freeing_by_hand() -> None:
    code = """
    from ray._private.internal_api import free
    @ray.remote
    def make(size):
        return bytes(size)
    @ray.remote
    def make_inside(size):
        return ray.put(bytes(size))
    @ray.remote
    def take(value):
        return len(value)
    @ray.remote
    def free_there(refs):
        free(refs)
        return tell(refs[0])
    def tell(ref):
        try:
            return ray.get(ref, timeout=20)
        except ray.exceptions.ObjectFreedError as error:
            return "freed"
    for size in (10, 3_000_000):
        ref, put = make.remote(size), ray.put(bytes(size))
        inside = ray.get(make_inside.remote(size))
        assert ray.get(take.remote(ref)) == ray.get(take.remote(inside)) == size
        free([ref, inside])
        print(tell(ref), tell(inside), ray.get(free_there.remote([put])), tell(put))
        try:
            ray.get(take.remote(ref))
        except ray.exceptions.RayTaskError as error:
            print(isinstance(error, ray.exceptions.ObjectFreedError))
        del ref, put, inside
    wait_for_condition(lambda: object_memory_usage() == 0)
    pending = make.remote(10)
    free(pending)  # Perhaps before it is there: then it is left alone.
    print(tell(pending) in (bytes(10), "freed"))
    """
    assert printed(code) == ["freed freed freed freed", "True"] * 2 + ["True"]


def test_the_core_workers_answers() -> None:
    code = """
    core = ray._private.worker.global_worker.core_worker
    print(core.get_all_reference_counts(), core.get_memory_store_size())
    small, large = ray.put(1), ray.put(bytes(300_000))
    print(core.get_all_reference_counts()[small.hex().encode()]["local"], core.get_memory_store_size())
    print(core.object_exists(small), core.object_exists(large), core.object_exists(small, memory_store_only=True))
    ray.get(ray.remote(len).remote([large]))
    name = large.binary()
    del large
    wait_for_condition(lambda: not core.object_exists(ray.ObjectRef(name)))
    """
    assert printed(code) == ["{} 0", "1 1", "False True True"]


def test_names_that_look_into_rays_processes_refuse_when_called() -> None:
    code = """
    from ray._private.test_utils import check_spilled_mb, get_and_run_resource_killer
    import ray.test_utils
    from ray.util.check_serialize import inspect_serializability
    from ray.cluster_utils import cluster_not_supported
    ray._private.utils.reset_ray_address()
    print(ray.test_utils.SignalActor is SignalActor, inspect_serializability.__module__, cluster_not_supported)
    try:
        check_spilled_mb({})
    except NotImplementedError as error:
        print(error)
    try:
        ray._private.test_utils.no_such_name
    except AttributeError:
        print("no such name")
    print(ray._private.worker._global_node.unique_id == ray.get_runtime_context().get_node_id())
    """
    assert printed(code) == [
        "True moray.check_serialize False",
        "ray._private.test_utils.check_spilled_mb looks into Ray's own processes; moray has others",
        "no such name",
        "True",
    ]


def test_names_of_types_and_hints_are_rays() -> None:
    code = """
    class Final(Exception):
        pass
    @ray.remote
    def fail():
        raise Final("x")
    try:
        ray.get(fail.remote())
    except Final as error:
        print(repr(error), error.make_dual_exception_instance() is error)
    """
    assert printed(code) == ["RayTaskError(Final)('x') True"]
