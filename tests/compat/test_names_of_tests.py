"""What test suites of programs for Ray use beside its documented names: states, values, helpers, phrases."""

from __future__ import annotations

from typing import Any

from tests.support.procs import run_driver

START = """
    import moray.compat
    moray.compat.install()
    import os, signal, time
    import pytest
    import ray
    context = ray.init(num_cpus=2, namespace="mine")

    @ray.remote(num_cpus=0)
    class Actor:
        def pid(self):
            return os.getpid()

        def child(self):
            self.kept = Actor.remote()
            return self.kept

        def quit(self, code):
            os._exit(code)
"""


def printed(code: str, **kwargs: Any) -> list[str]:
    return run_driver(START + code, **kwargs).stdout.splitlines()


def test_values_that_all_processes_see() -> None:
    code = """
    from ray.experimental.internal_kv import (
        _internal_kv_del, _internal_kv_exists, _internal_kv_get, _internal_kv_initialized, _internal_kv_list,
        _internal_kv_put,
    )
    print(_internal_kv_initialized(), _internal_kv_get("a"), _internal_kv_put("a", "1"), _internal_kv_put(b"a", b"2"))
    print(_internal_kv_put("a", "3", overwrite=False), _internal_kv_put("ab", "4", overwrite=False))
    @ray.remote
    def look():
        _internal_kv_put("b", "from a worker", namespace="other")
        return _internal_kv_get("a"), sorted(_internal_kv_list("a"))
    print(*ray.get(look.remote()))
    print(_internal_kv_get("b"), _internal_kv_get("b", namespace="other"), _internal_kv_exists("b"))
    print(_internal_kv_del("a"), _internal_kv_del("a"), _internal_kv_del("a", del_by_prefix=True))
    print(_internal_kv_list("a"))
    """
    assert printed(code) == [
        "True None False True",
        "True False",
        "b'2' [b'a', b'ab']",
        "None b'from a worker' False",
        "1 0 1",
        "[]",
    ]


def test_state_of_actors_and_of_the_rest() -> None:
    code = """
    from ray._private.gcs_utils import ActorTableData
    from ray._private.test_utils import convert_actor_state, wait_for_condition
    from ray.experimental.state.api import list_actors as older
    from ray.util.state import (
        get_actor, get_node, list_actors, list_jobs, list_nodes, list_placement_groups, list_tasks, list_workers,
    )
    actor = Actor.options(name="it").remote()
    pid = ray.get(actor.pid.remote())
    (found,) = list_actors(filters=[("STATE", "=", "ALIVE"), ("name", "!=", "other")])
    print(found.state, found["class_name"], found.pid == pid, found.ray_namespace)
    print(older() == list_actors(), get_actor(found.actor_id) == found, get_actor("none"))
    print(found.node_id == list_nodes()[0].node_id, get_node(found.node_id).state)
    print(list_jobs()[0].status, [worker.pid == pid for worker in list_workers()], list_placement_groups())
    waiting = Actor.options(num_cpus=64).remote()
    print([each.state for each in list_actors() if not each.pid])
    ray.kill(actor)
    dead = convert_actor_state(ActorTableData.DEAD)
    wait_for_condition(lambda: ray.state.actors(found.actor_id)["State"] == dead)
    print(get_actor(found.actor_id).death_cause)
    for wrong in (lambda: list_tasks(), lambda: list_actors(filters=[("pid", ">", 1)]), lambda: found.nonsense):
        try:
            wrong()
        except (NotImplementedError, ValueError, AttributeError) as error:
            print(type(error).__name__)
    """
    assert printed(code) == [
        "ALIVE Actor True mine",
        "True True None",
        "True ALIVE",
        "RUNNING [True] []",
        "['PENDING_CREATION']",
        "{'error_message': 'killed by moray.kill()'}",
        "NotImplementedError",
        "ValueError",
        "AttributeError",
    ]


def test_the_phrases_of_deaths() -> None:
    code = """
    def end(actor, act):
        act(actor)
        with pytest.raises(ray.exceptions.RayActorError) as caught:
            ray.get(actor.pid.remote())
        assert caught.value.actor_id == actor._actor_id.hex()
        print(str(caught.value).partition(" is dead: ")[2].partition("process (pid")[0].split(" (actor")[0].strip())
    end(Actor.remote(), ray.kill)
    end(Actor.remote(), lambda actor: os.kill(ray.get(actor.pid.remote()), signal.SIGKILL))
    parent = Actor.remote()
    child = ray.get(parent.child.remote())
    ray.kill(parent)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            ray.get(child.pid.remote())
        except ray.exceptions.RayActorError as error:
            print("its owner has died" in str(error))
            break
    last = Actor.remote()
    with pytest.raises(ray.exceptions.RayActorError, match="exited with exit code 7"):
        ray.get(last.quit.remote(7))
    for wrong, phrase in (
        (lambda: ray.get_actor("nobody"), "Failed to look up actor with name"),
        (lambda: Actor(), "cannot be instantiated directly"),
        (lambda: ray.actor.exit_actor(), "does not run in an actor"),
        (lambda: ray.cancel(Actor.remote().pid.remote(), force=True), "force=True would end the whole actor"),
    ):
        with pytest.raises((ValueError, TypeError), match=phrase):
            wrong()
    kept = Actor.options(name="x").remote()
    with pytest.raises(ValueError, match="the name 'x' is already taken"):
        Actor.options(name="x").remote()
    for name in (None, "", " "):
        with pytest.raises(ValueError):
            ray.get_actor(name)
    """
    assert printed(code) == [
        "it was killed by `ray.kill`",
        "its worker process has died: its",
        "True",
    ]


def test_an_actor_group() -> None:
    code = """
    import warnings
    from ray.util.actor_group import ActorGroup
    class Member:
        def __init__(self, base=0):
            self.base = base
        def add(self, x):
            return self.base + x
        def get_actor_metadata(self):
            return "member"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        group = ActorGroup(Member, num_actors=2, init_kwargs={"base": 3})
    print(any("use ray.util.multiprocessing" in str(each.message) for each in caught), len(group), group.actor_metadata)
    print(ray.get(group.add.remote(1)), "CPU" in ray.available_resources())
    for wrong in (group.start, lambda: group.add(1), lambda: group.nothing):
        try:
            wrong()
        except Exception as error:
            print(type(error).__name__)
    group.shutdown()
    try:
        group.add.remote(1)
    except RuntimeError:
        group.start()
    group.remove_actors([0])
    print(ray.get(group.add.remote(2)), group[0].metadata)
    group.shutdown(0)
    warnings.simplefilter("ignore")
    with pytest.raises(ValueError):
        ActorGroup(Member, num_actors=0)
    """
    assert printed(code) == [
        "True 2 ['member', 'member']",
        "[4, 4] False",
        "RuntimeError",
        "TypeError",
        "AttributeError",
        "[5] member",
    ]


def test_small_names() -> None:
    code = """
    import _thread
    import joblib
    from ray._private.async_compat import has_async_methods, is_async_func, sync_to_async
    from ray._private.utils import DeferSigint
    from ray.tests.client_test_utils import create_remote_signal_actor
    from ray.util.joblib import register_ray
    from ray.util.joblib.ray_backend import RayBackend
    async def coroutine(): pass
    async def items(): yield
    class Both:
        async def a(self): pass
    print(is_async_func(coroutine), is_async_func(items), is_async_func(print), has_async_methods(Both))
    print(sync_to_async(print) is sync_to_async(print), sync_to_async(coroutine) is coroutine)
    register_ray()
    with joblib.parallel_backend("ray"):
        print(type(joblib.parallel.get_active_backend()[0]) is RayBackend)
    handle = Actor.remote()
    again = ray.worker.pickle.loads(ray._private.worker.pickle.dumps(handle))
    print(again == handle, ray.worker.pickle is ray.cloudpickle)
    signal_actor = create_remote_signal_actor(ray).remote()
    waits = signal_actor.wait.remote()
    ray.get(signal_actor.send.remote())
    print(ray.get(waits))
    deferred = False
    try:
        with DeferSigint():
            _thread.interrupt_main()
            with pytest.raises(ValueError):
                signal.signal(signal.SIGINT, signal.default_int_handler)
            deferred = True
    except KeyboardInterrupt:
        print(deferred, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
    """
    assert printed(code) == [
        "True True False True", "True True", "True", "True True", "None", "True True",
    ]  # fmt: skip


def test_classes_and_handles_say_what_they_have() -> None:
    code = """
    @ray.remote
    class Made:
        def __init__(self, x):
            self.x = x
        @classmethod
        def twice(cls, x):
            return cls(2 * x)
        @staticmethod
        def half(x):
            return x // 2
        def get_x(self):
            return self.x
    print(Made.twice(3).get_x(), Made.half(8))
    handle = Made.remote(1)
    print(ray.get([handle.get_x.remote(), handle.half.remote(4)]))
    print(sorted(name for name in dir(Made) if not name.startswith("_")))
    print(sorted(dir(handle)))
    print([name for name in dir(handle.get_x) if not name.startswith("_")])
    """
    assert printed(code) == [
        "6 4",
        "[1, 2]",
        "['bind', 'get_x', 'half', 'options', 'remote', 'twice']",
        "['__init__', '__ray_call__', '__ray_ready__', '__ray_terminate__', 'get_x', 'half', 'twice']",
        "['bind', 'options', 'remote']",
    ]


WEB_SERVER = (
    "'http://127.0.0.1:8265' is no address of a cluster's head (Ray calls it the GCS address): "
    "write HOST:PORT, here or in RAY_ADDRESS"
)


def test_the_older_way_to_a_client() -> None:
    code = """
    import warnings
    import ray.client_builder as builder
    from ray._common.network_utils import parse_address
    from ray._private.ray_constants import DEFAULT_RESOURCES, RAY_OVERRIDE_DASHBOARD_URL
    from ray._private.services import get_ray_address_from_environment
    from ray.util.client.ray_client_helpers import ray_start_client_server
    hook = ray._private.client_mode_hook
    with hook.enable_client_mode(), hook.disable_client_hook():
        print(hook.is_client_mode_enabled, hook.client_mode_should_convert(auto_init=True))
    with ray_start_client_server() as api:
        print(api is ray, api.get(api.put(1)))
    print(ray.is_initialized(), isinstance(ray.client("1.2.3.4:1"), ray.ClientBuilder), builder.client("ray://x").address)
    for wrong in ("nowhere://x", "json://x", "http://127.0.0.1:8265"):
        try:
            ray.client(wrong)
        except (RuntimeError, ValueError) as error:
            print(error)
    os.environ["RAY_ADDRESS"] = "there"
    print(get_ray_address_from_environment("here", None), ray.client().address)
    del os.environ["RAY_ADDRESS"]
    print(get_ray_address_from_environment("here", None), sorted(DEFAULT_RESOURCES))
    ray.shutdown()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with ray.client("local").namespace("theirs").env({"env_vars": {"A": "b"}}).connect() as context:
            print(ray.get_runtime_context().namespace, ray.get(ray.remote(os.getenv).remote("A")))
    print(ray.is_initialized(), caught[0].category.__name__, "ray.init('local', namespace=" in str(caught[0].message))
    context.disconnect()
    """
    assert printed(code) == [
        "False False",
        "True 1",
        "True True x",
        "the module 'nowhere', which the address names, does not exist",
        "the module 'json', which the address names, does not have ClientBuilder",
        WEB_SERVER,
        "there there",
        "here ['CPU', 'GPU', 'memory', 'object_store_memory']",
        "theirs b",
        "False DeprecationWarning True",
    ]


def test_an_error_of_a_detached_actor_in_a_namespace_of_its_own() -> None:
    code = """
    from ray._private import ray_constants
    from ray._private.test_utils import get_error_message, init_error_pubsub
    ray.shutdown()
    ray.init(num_cpus=1)
    errors = init_error_pubsub()
    kept = Actor.options(name="x", lifetime="detached").remote()
    (pushed,) = get_error_message(errors, 1, ray_constants.DETACHED_ACTOR_ANONYMOUS_NAMESPACE_ERROR)
    print("'x'" in pushed.error_message)
    """
    assert printed(code) == ["True"]
