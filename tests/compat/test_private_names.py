"""What programs in the wild touch of Ray beside its documented names."""

from __future__ import annotations

from tests.support.procs import run_driver

START = """
    import moray.compat
    moray.compat.install()
    import ray
    context = ray.init(num_cpus=2, _redis_password="secret", namespace="mine")
"""


def printed(code: str, **kwargs: object) -> list[str]:
    return run_driver(START + code, **kwargs).stdout.splitlines()  # type: ignore[arg-type]


def test_global_worker() -> None:
    code = """
    from ray._private.worker import global_worker
    import ray.worker
    assert ray.worker.global_worker is global_worker
    print(global_worker.mode == ray.SCRIPT_MODE, global_worker.connected, global_worker.node_ip_address)
    node = global_worker.node
    print(node.get_session_dir_path() == context["session_dir"], node.unique_id == context["node_id"])
    print(node.address == context["address"], node.session_name == context["session_name"], global_worker.namespace)
    print(global_worker.current_job_id == ray.get_runtime_context().job_id, len(global_worker.worker_id))
    ray.shutdown()
    print(global_worker.mode, global_worker.node, global_worker.connected)
    try:
        global_worker.check_connected()
    except RuntimeError as error:
        print(error)
    """
    assert printed(code) == [
        "True True 127.0.0.1",
        "True True",
        "True True mine",
        "True 12",
        "None None False",
        "there is no session in this process: call init() first",
    ]


def test_services_and_state() -> None:
    code = """
    import ray.state
    from ray._private.services import get_node_ip_address
    @ray.remote
    class Actor:
        def ready(self):
            return True
    actor = Actor.options(name="it").remote()
    ray.get(actor.ready.remote())
    print(get_node_ip_address() == ray.nodes()[0]["NodeManagerAddress"])
    print(ray.state.actors(actor._actor_id.hex())["State"], ray.state.actors(actor._actor_id.hex())["Name"])
    print(actor._ray_actor_id == actor._actor_id, ray.state.jobs()[0]["IsDead"], ray.state.node_ids()[0])
    (free,) = ray.state.available_resources_per_node().values()
    (total,) = ray.state.total_resources_per_node().values()
    print(total["CPU"], ray.state.state.cluster_resources() == ray.cluster_resources())
    """
    assert printed(code) == ["True", "ALIVE it", "True False node:127.0.0.1", "2.0 True"]


def test_types_of_the_client_are_there_for_isinstance() -> None:
    code = """
    from ray.util.client.common import ClientActorHandle, ClientObjectRef
    from ray._raylet import ObjectRef, ObjectRefGenerator
    ref = ray.put(1)
    print(isinstance(ref, (ray.ObjectRef, ClientObjectRef)), isinstance(ref, ClientObjectRef))
    print(isinstance(ref, ObjectRef))
    """
    assert printed(code) == ["True False", "True"]


def test_job_config_and_runtime_env() -> None:
    code = """
    ray.shutdown()
    from ray.job_config import JobConfig
    from ray.runtime_env import RuntimeEnv
    import os
    config = JobConfig(runtime_env=RuntimeEnv(env_vars={"COLOUR": "blue"}), ray_namespace="other")
    ray.init(num_cpus=1, job_config=config)
    print(ray.get(ray.remote(os.getenv).remote("COLOUR")), ray.get_runtime_context().namespace)
    """
    assert printed(code) == ["blue other"]


def test_cloudpickle_is_cloudpickle() -> None:
    code = """
    import cloudpickle, ray.cloudpickle as pickle
    print(pickle is cloudpickle, pickle.loads(pickle.dumps(lambda: ray.__version__))())
    """
    assert printed(code) == ["True 2.60.0"]
