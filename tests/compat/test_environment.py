"""MORAY_… and RAY_… names that init() reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.procs import run_driver, spawn_driver

NAMESPACE = "import moray; moray.init(num_cpus=1); print(moray.get_runtime_context().namespace)"
ENVIRONMENT = """
    import moray, os
    moray.init(num_cpus=1, runtime_env={"env_vars": {"A": "init"}})
    print(moray.get([moray.remote(os.getenv).remote(name) for name in "AB"]))
"""


@pytest.mark.parametrize("name", ["MORAY_NAMESPACE", "RAY_NAMESPACE"])
def test_namespace(name: str) -> None:
    assert run_driver(NAMESPACE, env={name: "outer"}).stdout.strip() == "outer"


def test_namespace_given_to_init_wins() -> None:
    code = NAMESPACE.replace("num_cpus=1", "num_cpus=1, namespace='inner'")
    assert run_driver(code, env={"MORAY_NAMESPACE": "outer"}).stdout.strip() == "inner"


@pytest.mark.parametrize("name", ["MORAY_RUNTIME_ENV", "RAY_RUNTIME_ENV"])
def test_runtime_env_is_merged(name: str) -> None:
    found = run_driver(ENVIRONMENT, env={name: '{"env_vars": {"A": "outer", "B": "outer"}}'})
    assert found.stdout.strip() == "['init', 'outer']"


@pytest.mark.parametrize("text", ["{", "3", "[1]"])
def test_runtime_env_that_is_none(text: str) -> None:
    found = run_driver(ENVIRONMENT, env={"RAY_RUNTIME_ENV": text}, check=False)
    assert found.returncode == 1
    assert "the environment variable RAY_RUNTIME_ENV=" in found.stderr


@pytest.mark.parametrize("name", ["MORAY_ADDRESS", "RAY_ADDRESS"])
def test_address(name: str) -> None:
    first = """
        import moray, sys, time
        print("address", moray.init(num_cpus=1)["address"])
        time.sleep(60)
    """
    with spawn_driver(first) as driver:
        address = driver.wait_line("address ")
        code = "import moray; print(moray.init()['address'])"
        assert run_driver(code, env={name: address}).stdout.strip() == address


def test_runtime_env_hook(tmp_path: Path) -> None:
    (tmp_path / "hooks.py").write_text(
        "def add(found):\n    return {**found, 'env_vars': {**found['env_vars'], 'B': 'hook'}}\n"
    )
    environment = {"RAY_RUNTIME_ENV_HOOK": "hooks.add", "PYTHONPATH": str(tmp_path)}
    assert run_driver(ENVIRONMENT, env=environment).stdout.strip() == "['init', 'hook']"
    skipped = ENVIRONMENT.replace("num_cpus=1", "num_cpus=1, _skip_env_hook=True")
    assert run_driver(skipped, env=environment).stdout.strip() == "['init', None]"


@pytest.mark.parametrize("hook", ["nothing", "os.nothing", "no_such_module.function"])
def test_runtime_env_hook_that_is_none(hook: str) -> None:
    found = run_driver(ENVIRONMENT, env={"MORAY_RUNTIME_ENV_HOOK": hook}, check=False)
    assert found.returncode == 1
    assert f"MORAY_RUNTIME_ENV_HOOK={hook} should name a function" in found.stderr
