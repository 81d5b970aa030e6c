"""Workers know `ray` before they unpickle what names it, whenever the driver installed it."""

from __future__ import annotations

from pathlib import Path

from tests.support.procs import run_driver

ASK = """
    def ask():
        import importlib.metadata
        import ray
        import moray
        from ray.exceptions import RayTaskError
        assert ray.ObjectRef is moray.ObjectRef
        return ray.__version__, importlib.metadata.version("ray"), ray._private.worker.global_worker.mode
"""


def printed(code: str, **kwargs: object) -> list[str]:
    return run_driver(code, **kwargs).stdout.splitlines()  # type: ignore[arg-type]


def test_installed_before_init() -> None:
    code = (
        ASK
        + """
    import moray.compat
    moray.compat.install()
    import ray
    ray.init(num_cpus=1)
    print(ray.get(ray.remote(ask).remote()))
    """
    )
    assert printed(code) == ["('2.60.0', '2.60.0', 1)"]


def test_installed_after_init() -> None:
    code = (
        ASK
        + """
    import moray, moray.compat, os
    moray.init(num_cpus=1)
    pid = moray.get(moray.remote(os.getpid).remote())
    moray.compat.install()
    import ray
    @ray.remote
    class Actor:
        def ask(self):
            return ask()
    print(ray.get(ray.remote(ask).remote()))
    print(ray.get(ray.remote(os.getpid).remote()) == pid)
    print(ray.get(Actor.remote().ask.remote()))
    """
    )
    assert printed(code) == ["('2.60.0', '2.60.0', 1)", "True", "('2.60.0', '2.60.0', 1)"]


def test_not_installed() -> None:
    code = """
    import moray
    moray.init(num_cpus=1)
    @moray.remote
    def look():
        try:
            import ray
        except ModuleNotFoundError as error:
            return str(error)
    print(moray.get(look.remote()))
    """
    assert printed(code) == ["No module named 'ray'"]


def test_a_module_that_imports_ray_is_loaded_with_the_function(tmp_path: Path) -> None:
    # The worker's first task: its function is pickled by reference to a module whose first line imports ray.
    (tmp_path / "uses_ray.py").write_text(
        "import ray\nfrom ray.exceptions import RayTaskError\n@ray.remote\ndef f(x):\n    return ray.put(x + 1)\n"
    )
    code = """
    import moray.compat
    moray.compat.install()
    import ray, uses_ray
    ray.init(num_cpus=1)
    print(ray.get(ray.get(uses_ray.f.remote(1))))
    """
    assert printed(code, env={"PYTHONPATH": str(tmp_path)}) == ["2"]


def test_detached_actors_and_tasks_of_tasks() -> None:
    code = (
        ASK
        + """
    import moray.compat
    moray.compat.install()
    import ray
    ray.init(num_cpus=2, namespace="n")
    @ray.remote
    class Actor:
        def ask(self):
            return ray.get(ray.remote(ask).remote())
    actor = Actor.options(name="a", lifetime="detached").remote()
    print(ray.get(actor.ask.remote()))
    ray.kill(ray.get_actor("a"))
    """
    )
    assert printed(code) == ["('2.60.0', '2.60.0', 1)"]


def test_errors_of_tasks_are_caught_by_rays_names() -> None:
    code = """
    import moray.compat
    moray.compat.install()
    import ray
    from ray.exceptions import RayActorError, RayError, RayTaskError
    ray.init(num_cpus=1)
    @ray.remote
    def fail():
        raise KeyError("x")
    @ray.remote
    class Dies:
        def end(self):
            import os
            os._exit(3)
    try:
        ray.get(fail.remote())
    except RayTaskError as error:
        print(isinstance(error, KeyError), isinstance(error, RayError))
    try:
        ray.get(Dies.remote().end.remote())
    except RayActorError as error:
        print(type(error).__name__)
    """
    assert printed(code) == ["True True", "ActorDiedError"]


def test_installed_while_another_thread_connects() -> None:
    # At the worst moment: the job has been described as one without ray, and there is no session yet to be told.
    code = (
        ASK
        + """
    import sys, moray, moray.compat
    seen = []
    def install(event, args):
        if event == "os.posix_spawn" and not seen:
            seen.append(moray.is_initialized())
            moray.compat.install()
    sys.addaudithook(install)
    moray.init(num_cpus=1)
    print(seen, moray.get(moray.remote(ask).remote()))
    """
    )
    assert printed(code) == ["[False] ('2.60.0', '2.60.0', 1)"]
