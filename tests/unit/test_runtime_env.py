"""Runtime environments as objects, and what the autoscaler's module says while there is none."""

from __future__ import annotations

import pytest

from moray.autoscaler import sdk
from moray.cluster_utils import AutoscalingCluster
from moray.runtime_env import RuntimeEnv, RuntimeEnvConfig


def test_an_environment_is_a_dict_of_what_was_given() -> None:
    environment = RuntimeEnv(env_vars={"A": "1"}, working_dir="/tmp/x", pip=["numpy"], config={"eager_install": False})
    assert environment == {
        "env_vars": {"A": "1"},
        "working_dir": "/tmp/x",
        "pip": ["numpy"],
        "config": RuntimeEnvConfig(eager_install=False),
    }
    assert environment.env_vars() == {"A": "1"}
    assert environment.working_dir() == "/tmp/x"
    assert environment.py_modules() == []
    assert environment.has_pip()
    assert not environment.has_conda()
    environment.set("pip", None)
    assert "pip" not in environment
    assert RuntimeEnv.deserialize(environment.serialize()) == environment
    assert RuntimeEnv() == {}


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"setup_timeout_seconds": 0}, ValueError),
        ({"setup_timeout_seconds": "1"}, TypeError),
        ({"eager_install": 1}, TypeError),
        ({"log_files": "a.log"}, TypeError),
    ],
)
def test_a_wrong_config_is_refused(fields: dict[str, object], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(fields))):
        RuntimeEnv(config=fields)


def test_config_has_defaults() -> None:
    assert RuntimeEnvConfig.default_config() == {"setup_timeout_seconds": 600, "eager_install": True, "log_files": []}
    assert RuntimeEnvConfig(setup_timeout_seconds=-1).to_dict()["setup_timeout_seconds"] == -1


def test_what_comes_with_the_autoscaler_says_so() -> None:
    with pytest.warns(UserWarning, match=r"request_resources\(64 CPUs, 2 bundles\) asks for machines"):
        sdk.request_resources(num_cpus=64, bundles=[{"CPU": 1}, {"CPU": 2}])
    with pytest.raises(NotImplementedError, match=r"get_head_node_ip\(\): moray does not start"):
        sdk.get_head_node_ip("cluster.yaml")
    with pytest.raises(NotImplementedError, match="does not start machines by demand yet"):
        AutoscalingCluster({"CPU": 1}, {})
