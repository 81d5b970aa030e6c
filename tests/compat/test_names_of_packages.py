"""Names that packages import before they need them: modin, hydra-ray-launcher, prefect-ray, xgboost-ray."""

from __future__ import annotations

from tests.support.procs import run_driver

START = """
    import moray.compat
    moray.compat.install()
    import ray
"""


def test_the_name_of_ray_data_that_modin_imports_refuses_to_be_called() -> None:
    code = """
    from ray.data import from_pandas_refs
    try:
        from_pandas_refs([])
    except NotImplementedError as error:
        print(error)
    try:
        from ray.data import Dataset
    except ImportError as error:
        print(error.name)
    """
    refused, missing = run_driver(START + code).stdout.splitlines()
    assert "moray has no datasets yet" in refused
    assert missing == "moray.compat.stand_ins.data"


def test_the_autoscaler_takes_requests_without_effect() -> None:
    code = """
    from ray.autoscaler.sdk import request_resources
    print(request_resources(num_cpus=4), request_resources(bundles=[{"CPU": 1}]))
    """
    assert run_driver(START + code).stdout == "None None\n"


def test_a_runtime_context_knows_whether_this_is_the_driver() -> None:
    code = """
    ray.init(num_cpus=1)
    @ray.remote
    def inside():
        return ray.get_runtime_context().worker.mode
    print(ray.get_runtime_context().worker.mode == ray.SCRIPT_MODE, ray.get(inside.remote()) == ray.WORKER_MODE)
    ray.shutdown()
    """
    assert run_driver(START + code).stdout == "True True\n"


def test_the_logger_of_ray_is_set_up_by_init() -> None:
    code = """
    from ray import logger
    ray.init(num_cpus=1)
    logger.info("seen")
    logger.debug("not seen")
    assert ray.logger is logger
    ray.shutdown()
    """
    ran = run_driver(START + code)
    assert "INFO" in ran.stderr
    assert "seen" in ran.stderr
    assert "not seen" not in ran.stderr
