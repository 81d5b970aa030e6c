"""The program's files on other hosts. Nodes with another MORAY_HOST_ID take themselves for another host's."""

from __future__ import annotations

import os
import subprocess
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moray.cluster_utils import Cluster, ClusterNode
from tests.support.procs import run_driver

Run = Callable[..., str]


def add_foreign(cluster: Cluster, name: str, **environ: str) -> ClusterNode:
    """A node that believes itself on another host; it has the resource `name`."""
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in {"MORAY_HOST_ID": name, **environ}.items():
            patch.setenv(variable, value)
        return cluster.add_node(num_cpus=2, resources={name: 100})


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[Cluster]:
    """The head's node, one beside it on the same host ("near"), and one on another host ("far")."""
    del module_leaks
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "resources": {"head": 100}}) as cluster:
        cluster.add_node(num_cpus=2, resources={"near": 100})
        add_foreign(cluster, "far")
        yield cluster


def far(cluster: Cluster) -> ClusterNode:
    return cluster.worker_nodes[1]


def packages_of(node: ClusterNode) -> set[str]:
    """What lies in a node's directory of packages."""
    folder = Path(node.session_dir) / "packages"
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


HEADER = """
import os, sys, time
import moray

def at(name):
    return {"resources": {name: 1}}

def get(ref):
    return moray.get(ref, timeout=60)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    return folder


@pytest.fixture
def run(project: Path, request: pytest.FixtureRequest) -> Run:
    """Runs a program in the project's directory as a driver of the cluster, and gives its output."""

    def run_program(code: str, cluster: Cluster | None = None, cwd: Path | None = None, **env: str) -> str:
        cluster = cluster or request.getfixturevalue("shared_session")
        assert cluster.head_node is not None
        (project / "main.py").write_text(HEADER + textwrap.dedent(code))
        environ = {"MORAY_ADDRESS": cluster.head_node.raylet_socket_name, "PYTHONPATH": "", **env}
        return run_driver("", argv=[str(project / "main.py")], cwd=cwd or project, env=environ).stdout

    return run_program


# --- without configuration --------------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_session")
def test_modules_beside_the_program_and_files_of_its_directory(run: Run, project: Path) -> None:
    (project / "beside.py").write_text("class Point:\n    def __init__(self, x): self.x = x\n")
    (project / "inner").mkdir()
    (project / "inner" / "__init__.py").write_text("VALUE = 7\n")
    (project / "data.txt").write_text("found")
    out = run(
        """
        from beside import Point
        moray.init()

        @moray.remote
        def look(point):
            import beside, inner
            return (point.x, inner.VALUE, open("data.txt").read(), beside.__file__, os.getcwd(), Point(5))

        for place in ("head", "near", "far"):
            x, value, text, file, cwd, point = get(look.options(**at(place)).remote(Point(3)))
            assert (x, value, text, point.x) == (3, 7, "found", 5)
            print(os.path.dirname(file) == cwd, cwd == os.getcwd())
        """
    )
    assert out.split("\n")[:3] == ["True True", "True True", "True False"]


@pytest.mark.usefixtures("shared_session")
def test_a_program_of_another_directory_than_the_working_one(run: Run, project: Path, tmp_path: Path) -> None:
    (project / "beside.py").write_text("VALUE = 1\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data.txt").write_text("here")
    out = run(
        """
        moray.init()

        @moray.remote(**at("far"))
        def look():
            import beside
            return beside.VALUE, open("data.txt").read(), beside.__file__

        value, text, file = get(look.remote())
        print(value, text, file.startswith(os.path.dirname(__file__)))
        """,
        cwd=elsewhere,
    )
    assert out.split() == ["1", "here", "False"]


@pytest.mark.usefixtures("shared_session")
def test_what_is_left_out(run: Run, project: Path) -> None:
    for name in (".git", ".venv", "node_modules", "__pycache__", "ignored", "kept", "other-venv"):
        (project / name).mkdir()
        (project / name / "file").write_text("x")
    (project / "other-venv" / "pyvenv.cfg").write_text("")
    (project / ".gitignore").write_text("# comment\n/ignored/\n*.log\n!important.log\n")
    for name in ("a.log", "important.log", "large.bin", "run.sh"):
        (project / name).write_text("x")
    (project / "run.sh").chmod(0o755)
    out = run(
        """
        moray.init(runtime_env={"excludes": ["*.bin"]})

        @moray.remote(**at("far"))
        def names():
            assert os.access("run.sh", os.X_OK) and not os.access("main.py", os.X_OK)
            return sorted(os.listdir("."))

        print(*get(names.remote()))
        """
    )
    assert out.split() == [".gitignore", "important.log", "kept", "main.py", "run.sh"]


@pytest.mark.usefixtures("shared_session")
def test_the_home_directory_is_not_shipped_and_errors_say_so(run: Run, project: Path) -> None:
    out = run(
        """
        moray.init()

        @moray.remote(**at("far"))
        def fails():
            import nowhere_to_be_found.at_all

        try:
            get(fails.remote())
        except ModuleNotFoundError as error:
            print(error)
        """,
        HOME=str(project),
    )
    assert "No module named 'nowhere_to_be_found'" in out
    assert "shipped from there: nothing" in out
    assert f"not shipped: {project} (it is the home directory)" in out
    assert '"py_modules": ["path/to/nowhere_to_be_found"]' in out
    assert f"host {os.uname().nodename}" in out


@pytest.mark.usefixtures("shared_session")
def test_a_directory_that_is_too_large_is_not_shipped(run: Run, project: Path) -> None:
    (project / "large.bin").write_bytes(os.urandom(300_000))
    out = run(
        """
        moray.init()

        @moray.remote
        def fails():
            import nowhere_to_be_found

        for place in ("far", "near"):
            try:
                get(fails.options(**at(place)).remote())
            except ModuleNotFoundError as error:
                print(error, "---")
        """,
        MORAY_PACKAGE_MAX_BYTES="200000",
    )
    far_error, near_error = out.split("---")[:2]
    assert f"not shipped: {project} (" in far_error
    assert "too large to be sent" in far_error
    assert "large.bin (0.3 MB)" in far_error
    assert "No module named 'nowhere_to_be_found'" in near_error
    assert "shipped" not in near_error


# --- runtime environments ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("shared_session")
def test_working_dir_of_a_job_a_task_and_an_actor(run: Run, tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.txt").write_text(name)
        (tmp_path / name / "which.py").write_text(f"NAME = {name!r}\n")
    out = run(
        f"""
        base = {str(tmp_path)!r}
        moray.init(runtime_env={{"working_dir": base + "/one", "env_vars": {{"A": "job", "B": "job"}}}})

        @moray.remote
        def look():
            import which
            return open("data.txt").read(), which.NAME, os.environ["A"], os.environ["B"]

        @moray.remote
        class Looker:
            def look(self):
                import which
                return open("data.txt").read(), which.NAME, os.environ["A"], os.environ["B"]

        for place in ("far", "near"):
            print(*get(look.options(**at(place)).remote()))
            env = {{"working_dir": base + "/two", "env_vars": {{"A": "task"}}}}
            print(*get(look.options(runtime_env=env, **at(place)).remote()))
            actor = Looker.options(runtime_env={{"working_dir": base + "/three"}}, **at(place)).remote()
            print(*get(actor.look.remote()))
        """
    )
    assert out.splitlines() == ["one one job job", "two two task job", "three three job job"] * 2


def test_variables_of_the_program_and_of_the_host(shared_session: Cluster, run: Run) -> None:
    del shared_session
    out = run(
        """
        moray.init(runtime_env={"env_vars": {"XDG_TWO": "asked"}})

        @moray.remote
        def look():
            return [os.environ.get(name) for name in ("OWN", "XDG_ONE", "XDG_TWO")], os.environ["PATH"]

        for place in ("near", "far"):
            found, path = get(look.options(**at(place)).remote())
            print(*found, path != os.environ["PATH"])
        """,
        OWN="own",
        XDG_ONE="driver's",
        XDG_TWO="driver's",
        PATH="/nowhere:/usr/bin:/bin",
    )
    assert out.splitlines() == ["own driver's asked False", "own None asked True"]


@pytest.mark.usefixtures("shared_session")
def test_an_actor_whose_module_is_missing(run: Run) -> None:
    out = run(
        """
        moray.init()

        @moray.remote(**at("far"))
        class Fails:
            def __init__(self):
                import nowhere_to_be_found

            def call(self):
                pass

        try:
            get(Fails.remote().call.remote())
        except moray.exceptions.RayActorError as error:
            print(error)
        """
    )
    assert "No module named 'nowhere_to_be_found'" in out
    assert "shipped from there: /" in out


@pytest.mark.usefixtures("shared_session")
def test_py_modules(run: Run, tmp_path: Path) -> None:
    package = tmp_path / "lib" / "parts"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("VALUE = 1\n")
    (package / "deep" / "__init__.py").write_text("class Deep:\n    pass\n")
    (tmp_path / "lib" / "sibling.py").write_text("")
    (tmp_path / "single.py").write_text("VALUE = 2\n")
    with zipfile.ZipFile(tmp_path / "wheel-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("wheeled/__init__.py", "VALUE = 3\n")
    (tmp_path / "imported").mkdir()
    (tmp_path / "imported" / "__init__.py").write_text("VALUE = 4\n")
    out = run(
        f"""
        base = {str(tmp_path)!r}
        sys.path.append(base)
        import imported
        sys.path.remove(base)
        names = ["/lib/parts", "/single.py", "/wheel-1.0-py3-none-any.whl"]
        moray.init(runtime_env={{"py_modules": [imported, *(base + name for name in names)]}})

        @moray.remote
        def look():
            import parts.deep, single, wheeled, imported
            try:
                import sibling
            except ModuleNotFoundError:
                return parts.VALUE, single.VALUE, wheeled.VALUE, imported.VALUE, parts.deep.Deep.__module__
            return "too much"

        for place in ("head", "far"):
            print(*get(look.options(**at(place)).remote()))
        """
    )
    assert out.splitlines() == ["1 2 3 4 parts.deep"] * 2


@pytest.mark.usefixtures("shared_session")
def test_a_zip_file_as_working_dir(run: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("data.txt", "zipped")
        archive.writestr("inner/module.py", "VALUE = 5\n")
    out = run(
        f"""
        moray.init()

        @moray.remote(runtime_env={{"working_dir": {str(tmp_path / "app.zip")!r}}})
        def look():
            import inner.module
            return open("data.txt").read(), inner.module.VALUE

        for place in ("head", "near", "far"):
            print(*get(look.options(**at(place)).remote()))
        """
    )
    assert out.splitlines() == ["zipped 5"] * 3


@pytest.mark.usefixtures("shared_session")
def test_changed_content_goes_to_other_workers(run: Run, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    out = run(
        f"""
        app = {str(tmp_path / "app")!r}
        moray.init()

        @moray.remote
        def look():
            import changing
            return changing.VALUE, os.getpid()

        pids = []
        for value in (1, 1, 2, 1):
            with open(app + "/changing.py", "w") as file:
                file.write(f"VALUE = {{value}}")
            found, pid = get(look.options(runtime_env={{"working_dir": app}}, **at("far")).remote())
            assert found == value
            pids.append(pid)
        print(pids[0] == pids[1] == pids[3], pids[2] == pids[1])
        """
    )
    assert out.split() == ["True", "False"]


@pytest.mark.usefixtures("shared_session")
def test_children_inherit_the_environment(run: Run, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "data.txt").write_text("app")
    out = run(
        f"""
        moray.init(runtime_env={{"env_vars": {{"A": "job"}}}})

        @moray.remote
        def look():
            return open("data.txt").read(), os.environ["A"], os.environ["B"], os.environ.get("C")

        @moray.remote
        def outer(place):
            same = look.options(**at(place)).remote()
            more = look.options(runtime_env={{"env_vars": {{"B": "child", "C": "child"}}}}, **at(place)).remote()
            return moray.get([same, more]), moray.get_runtime_context().runtime_env

        env = {{"working_dir": {str(tmp_path / "app")!r}, "env_vars": {{"B": "outer"}}}}
        for first, second in (("far", "near"), ("near", "far"), ("far", "far")):
            (same, more), shown = get(outer.options(runtime_env=env, **at(first)).remote(second))
            assert shown == env, shown
            print(*same, *more)
        """
    )
    assert out.splitlines() == ["app job outer None app job child child"] * 3


@pytest.mark.usefixtures("shared_session")
def test_a_working_dir_of_a_worker_on_another_host(run: Run) -> None:
    """Its files are packed there and reach the driver's host."""
    out = run(
        """
        moray.init()

        @moray.remote
        def look():
            return open("data.txt").read(), os.getcwd()

        @moray.remote(**at("far"))
        def outer(base):
            os.makedirs("/tmp/" + base)
            try:
                with open("/tmp/" + base + "/data.txt", "w") as file:
                    file.write("from afar")
                ref = look.options(runtime_env={"working_dir": "/tmp/" + base}, **at("near")).remote()
                return moray.get(ref)
            finally:
                os.unlink("/tmp/" + base + "/data.txt")
                os.rmdir("/tmp/" + base)

        text, cwd = get(outer.remote(f"moray-test-{os.getpid()}"))
        print(text, "packages" in cwd)
        """
    )
    assert out.split("\n")[0] == "from afar True"


@pytest.mark.usefixtures("shared_session")
def test_errors_of_users_are_told_at_once(run: Run, tmp_path: Path) -> None:
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "huge.bin").write_bytes(os.urandom(300_000))
    out = run(
        f"""
        large = {str(tmp_path / "large")!r}
        for env in ({{"working_dir": large}}, {{"pip": ["numpy"]}}):
            try:
                moray.init(runtime_env=env)
            except ValueError as error:
                print(error)
        moray.init()
        for env in ({{"working_dir": large}}, {{"working_dir": "/not/there"}}, {{"py_modules": ["/not/there"]}},
                    {{"working_dir": "s3://bucket/key.zip"}}, {{"env_vars": {{"A": 1}}}}, {{"py_modules": "x"}}):
            try:
                moray.remote(lambda: 1).options(runtime_env=env).remote()
            except (TypeError, ValueError) as error:
                print(error)
        """,
        MORAY_PACKAGE_MAX_BYTES="200000",
    )
    lines = out.splitlines()
    assert len(lines) == 8
    assert "huge.bin (0.3 MB)" in lines.pop(0)
    assert "runtime_env has pip" in lines.pop(0)
    assert "huge.bin (0.3 MB)" in lines[0]
    for line, word in zip(
        lines[1:], ("/not/there", "/not/there", "is a URL", "should be a string", "list"), strict=True
    ):
        assert word in line


# --- what it costs, and what is left ----------------------------------------------------------------------


def test_one_package_for_many_workers_and_none_on_one_host(shared_session: Cluster, run: Run, project: Path) -> None:
    (project / "data.bin").write_bytes(os.urandom(3_000_000))
    log = Path(far(shared_session).session_dir) / "logs" / "node.log"
    before = log.read_text().count(" came from node ")
    near_before = packages_of(shared_session.worker_nodes[0])
    out = run(
        """
        moray.init()

        @moray.remote
        def look():
            time.sleep(0.3)
            return os.getcwd(), os.getpid(), os.path.getsize("data.bin")

        found = moray.get([look.options(resources={"far": 0.01}).remote() for _ in range(8)], timeout=60)
        print(len({cwd for cwd, _, _ in found}), len({pid for _, pid, _ in found}) > 1, {size for _, _, size in found})
        print(found[0][0])
        get(look.options(**at("near")).remote())
        """
    )
    counts, cwd, *_ = out.split("\n")
    assert counts == "1 True {3000000}"
    assert log.read_text().count(" came from node ") == before + 1
    assert packages_of(shared_session.worker_nodes[0]) <= near_before
    # What was unpacked goes with the job; the package stays for the next one.
    wait_until(lambda: not os.path.exists(cwd), "what was unpacked is still there")
    assert {name for name in packages_of(far(shared_session)) if name.endswith(".zip")}
    wait_until(
        lambda: not {name for name in packages_of(far(shared_session)) if name.startswith((".", "job-"))},
        "the job's directory is still there",
    )
    run("moray.init()\nassert get(moray.remote(lambda: open('data.bin', 'rb').read(1)).options(**at('far')).remote())")
    # The program itself has changed, so its package has: one more, and no third for the node's second question.
    assert log.read_text().count(" came from node ") == before + 2


def test_packages_are_swept_when_nobody_uses_them(run: Run, project: Path) -> None:
    (project / "data.txt").write_text("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORAY_PACKAGE_CACHE_BYTES", "0")
        with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
            node = add_foreign(cluster, "far")
            assert cluster.head_node is not None
            run(
                """
                moray.init()

                @moray.remote(**at("far"))
                def look():
                    return open("data.txt").read()

                assert get(look.remote()) == "x"
                assert get(look.options(runtime_env={"py_modules": ["data.py"]}).remote()) == "x"
                """.replace('"data.py"', "__file__"),
                cluster,
            )
            for left in (node, cluster.head_node):
                wait_until(lambda left=left: packages_of(left) <= {"made"}, "there are packages left")  # type: ignore[misc]
                assert not list((Path(left.session_dir) / "packages").glob("made/*"))


def test_another_node_has_the_package_if_its_makers_is_dead(run: Run, tmp_path: Path) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "data.txt").write_bytes(os.urandom(2_000_000))
    with Cluster(initialize_head=True, head_node_args={"num_cpus": 1}) as cluster:
        first = add_foreign(cluster, "first")
        add_foreign(cluster, "x")
        add_foreign(cluster, "y")
        out = run(
            f"""
            import signal
            moray.init(namespace="n")

            @moray.remote(num_cpus=0)
            class Reader:
                def read(self):
                    return os.path.getsize("data.txt"), moray.get_runtime_context().get_node_id()

            @moray.remote(num_cpus=0, **at("first"))
            def make(reader, name, resources):
                env = {{"working_dir": {str(tmp_path / "app")!r}}}
                reader.options(name=name, lifetime="detached", resources=resources, runtime_env=env).remote()

            @moray.remote(num_cpus=0)
            class Blocker:
                def here(self):
                    pass

            blocker = Blocker.options(resources={{"y": 100}}).remote()
            get(blocker.here.remote())
            for name in "xy":
                get(make.remote(Reader, name, {{name: 100}}))
            size, x = get(moray.get_actor("x").read.remote())
            assert size == 2_000_000
            os.kill({first.pid}, signal.SIGKILL)
            while sum(node["Alive"] for node in moray.nodes()) == 4:
                time.sleep(0.05)
            moray.kill(blocker)
            size, y = get(moray.get_actor("y").read.remote())
            assert size == 2_000_000 and x != y
            moray.kill(moray.get_actor("x"))
            moray.kill(moray.get_actor("y"))
            print("found")
            """,
            cluster,
        )
        assert out.split() == ["found"]


def test_content_that_is_no_package_of_ours(tmp_path: Path) -> None:
    """Paths that lead out of a package, and more than it says, are refused."""
    from moray.launch import packages

    for name in ("../out", "/out", "a/../../out", "a//b", "a\\..\\b"):
        with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
            archive.writestr(name, "x")
        with pytest.raises(packages.PackageError, match="leads out"):
            packages.unpack(str(tmp_path / "bad.zip"), str(tmp_path / "target"))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(30_000_000))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MORAY_PACKAGE_MAX_BYTES", "100000")
        with pytest.raises(packages.PackageError, match=r"30\.0 MB unpacked"):
            packages.unpack(str(tmp_path / "bomb.zip"), str(tmp_path / "target"))
    (tmp_path / "bad.zip").write_bytes((tmp_path / "bomb.zip").read_bytes()[:-30])
    with pytest.raises(packages.PackageError, match="cannot be unpacked"):
        packages.unpack(str(tmp_path / "bad.zip"), str(tmp_path / "target"))
    assert sorted(os.listdir(tmp_path)) == ["bad.zip", "bomb.zip"]


def test_equal_content_has_equal_names(tmp_path: Path) -> None:
    from moray.launch import packages

    names = []
    for number, content in enumerate(("a", "a", "b")):
        folder = tmp_path / f"{number}"
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "file").write_text(content)
        (folder / "link").symlink_to("sub")
        (folder / "sub" / "loop").symlink_to("..")
        os.utime(folder / "sub" / "file", (number, number))
        names.append(packages.pack(str(folder), str(tmp_path / f"{number}.zip")))
    assert names[0] == names[1] != names[2]
    with zipfile.ZipFile(tmp_path / "0.zip") as archive:
        assert archive.namelist() == ["link/file", "sub/file"]


def test_patterns_are_those_of_git(tmp_path: Path) -> None:
    """The same files as `git check-ignore` says, for patterns of all kinds."""
    from moray.launch.packages import Excludes

    patterns = [
        "*.log",
        "!keep.log",
        "/top",
        "build/",
        "a/b",
        "**/deep/x",
        "docs/**",
        "te?t",
        "[a-c]1",
        "[!a-c]2",
        "x.y",
    ]
    files = [
        "a.log", "sub/a.log", "keep.log", "top", "sub/top", "build/f", "sub/build/f", "fbuild", "a/b", "s/a/b",
        "deep/x", "q/deep/x", "docs/p", "docs/q/p", "test", "teest", "a1", "d1", "a2", "d2", "xzy", "x.y",
    ]  # fmt: skip
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("\n".join(patterns))
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    asked = ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "--stdin"]
    ignored = subprocess.run(asked, input="\n".join(files), text=True, capture_output=True, check=False).stdout.split()
    excludes = Excludes(patterns)

    def is_excluded(name: str) -> bool:
        parts = name.split("/")
        above = ["/".join(parts[: count + 1]) for count in range(len(parts) - 1)]
        return any(excludes(folder, True) for folder in above) or excludes(name, False)

    assert [name for name in files if is_excluded(name)] == ignored
