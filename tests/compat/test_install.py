"""After install(), `import ray` and all below it give moray's own objects, in the driver and in its workers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.procs import run_driver

#: Runs under the name ray from here on.
INSTALL = "import moray.compat; moray.compat.install()\n"


def printed(code: str, **kwargs: object) -> list[str]:
    return run_driver(code, **kwargs).stdout.splitlines()  # type: ignore[arg-type]


def test_import_of_moray_does_not_load_it() -> None:
    code = "import sys, moray; print([name for name in sys.modules if name.startswith('moray.compat')])"
    assert printed(code) == ["[]"]


def test_a_session_without_it_does_not_load_it_either() -> None:
    code = """
        import sys, moray
        moray.init(num_cpus=1)
        moray.get(moray.remote(abs).remote(-1))
        print([name for name in sys.modules if name.startswith('moray.compat')])
    """
    assert printed(code) == ["[]"]


def test_one_set_of_objects() -> None:
    code = INSTALL + (
        "import ray, moray, moray.actor, moray.exceptions, moray.util\n"
        "import ray.actor, ray.exceptions, ray.remote_function, ray.runtime_context, ray.util, ray._raylet\n"
        "from ray.exceptions import RayTaskError, RayActorError, GetTimeoutError\n"
        "assert ray.ObjectRef is moray.ObjectRef is ray._raylet.ObjectRef is ray.ObjectID\n"
        "assert ray.actor is moray.actor and ray.util is moray.util and ray.exceptions is moray.exceptions\n"
        "assert RayTaskError is moray.exceptions.TaskError and RayActorError is moray.exceptions.ActorError\n"
        "assert ray.get is moray.get and ray.get_actor is moray.actor.get_actor\n"
        "assert ray.JobID is moray.JobID and ray.LoggingConfig is moray.LoggingConfig\n"
        "assert moray.util.__spec__.name == moray.util.__name__ == 'moray.util'\n"
        "print(ray.__name__, ray.__version__, moray.__version__ != ray.__version__)\n"
    )
    assert printed(code) == ["ray 2.60.0 True"]


def test_modules_are_reached_by_attribute_too() -> None:
    code = INSTALL + (
        "import ray, moray\n"
        "print(ray.util is moray.util, ray.actor.ActorHandle, ray._private.worker.global_worker.mode)\n"
        "print(hasattr(ray, 'tune'), hasattr(ray, 'node'), hasattr(ray, 'nonsense'), 'get' in dir(ray))\n"
    )
    assert printed(code) == ["True <class 'moray.actor.ActorHandle'> None", "False False False True"]


def test_metadata() -> None:
    code = INSTALL + (
        "from importlib.metadata import distribution, distributions, version, PackageNotFoundError\n"
        "print(version('ray'), distribution('ray').metadata['Name'], version('moray') != version('ray'))\n"
        "print(sum(found.metadata['Name'] == 'ray' for found in distributions()) >= 1)\n"
        "try: version('rays')\n"
        "except PackageNotFoundError: print('none')\n"
    )
    assert printed(code) == ["2.60.0 ray True", "True", "none"]


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("import ray.nonsense", "'ray.nonsense'"),
        ("from ray import nonsense", "'ray.nonsense'"),
        ("from ray.nonsense.deeper import Thing", "'ray.nonsense'"),
        ("import ray.util.nonsense", "'ray.util.nonsense'"),
        ("import ray._private.nonsense", "'ray._private.nonsense'"),
        ("import ray.node", "'ray.node'"),  # moray has one, which is not for users.
    ],
)
def test_what_is_missing_is_named(statement: str, named: str) -> None:
    code = INSTALL + f"try: {statement}\nexcept ModuleNotFoundError as error: print(error)\n"
    (message,) = printed(code)
    assert named in message
    assert "moray" in message.replace(named, "")


def test_find_spec_of_what_is_missing_is_none() -> None:
    code = INSTALL + (
        "from importlib.util import find_spec\n"
        "print(find_spec('ray.nonsense'), find_spec('ray').name, find_spec('ray.util') is not None)\n"
    )
    assert printed(code)[0].startswith("None ")
    assert printed(code)[0].endswith(" True")


def test_errors_inside_a_module_are_not_hidden(tmp_path: Path) -> None:
    # A module of moray whose own import fails: its error, not "no counterpart".
    code = INSTALL + (
        "import sys, moray.util\n"
        f"moray.util.__path__.append({str(tmp_path)!r})\n"
        "try: import ray.util.broken\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    (tmp_path / "broken.py").write_text("import not_installed_anywhere")
    assert printed(code) == ["No module named 'not_installed_anywhere'"]


def fake_ray(folder: Path) -> dict[str, str]:
    """The environment for a program that finds another ray installed."""
    (folder / "ray").mkdir()
    (folder / "ray" / "__init__.py").write_text("__version__ = '1.0'\n")
    return {"PYTHONPATH": str(folder)}


def test_an_installed_ray_is_not_touched_without_it(tmp_path: Path) -> None:
    code = "import moray, ray; print(ray.__version__)"
    assert printed(code, env=fake_ray(tmp_path)) == ["1.0"]


def test_an_installed_ray_is_passed_over(tmp_path: Path) -> None:
    code = INSTALL + "import ray; print(ray.__version__)"
    assert printed(code, env=fake_ray(tmp_path)) == ["2.60.0"]


def test_too_late(tmp_path: Path) -> None:
    code = "import ray, moray.compat\ntry: moray.compat.install()\nexcept RuntimeError as error: print(error)"
    (message,) = printed(code, env=fake_ray(tmp_path))
    assert "too late" in message
    assert "ray 1.0" in message
    assert str(tmp_path) in message


def test_twice_is_once() -> None:
    code = (
        INSTALL * 2
        + "import sys, ray; moray.compat.install()\nprint(len([f for f in sys.meta_path if 'RayF' in repr(f)]))"
    )
    assert printed(code) == ["1"]


def test_a_directory_called_ray_is_no_ray(tmp_path: Path) -> None:
    (tmp_path / "ray").mkdir()
    code = "import ray, moray.compat; moray.compat.install()\nimport ray; print(ray.__version__)"
    assert printed(code, env={"PYTHONPATH": str(tmp_path)}) == ["2.60.0"]


def test_threads_that_import_at_once_get_one_module() -> None:
    code = INSTALL + (
        "import threading\n"
        "found, barrier = [], threading.Barrier(8)\n"
        "def look():\n"
        "    barrier.wait()\n"
        "    import ray.util, ray._private.worker, ray.exceptions\n"
        "    found.append((ray, ray.util, ray._private.worker.global_worker, ray.exceptions.RayError))\n"
        "threads = [threading.Thread(target=look) for _ in range(8)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]\n"
        "print(len(found), len(set(found)))\n"
    )
    assert printed(code) == ["8 1"]


def test_stand_ins_import_in_a_fresh_interpreter() -> None:
    names = [
        "_private", "_private.ray_constants", "_private.services", "_private.state", "_private.utils",
        "_private.worker", "_raylet", "cloudpickle", "job_config", "ray_constants", "runtime_env", "services", "state",
        "types", "util.client", "util.client.common", "worker",
    ]  # fmt: skip
    code = INSTALL + "".join(f"import ray.{name}\n" for name in names)
    subprocess.run([sys.executable, "-c", code], check=True)
