"""The command line: real daemons, started, looked at and stopped as users do it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moray.launch.cluster import find_nodes, own_head
from tests.support.procs import wait_until

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sessions() -> Iterator[Path]:
    """A directory for sessions; pytest's own have paths that are too long for sockets."""
    with tempfile.TemporaryDirectory(prefix="moray-cli-") as path:
        yield Path(path)


@pytest.fixture
def cli(sessions: Path) -> Iterator[Cli]:
    """Runs ``moray …`` with sessions below a directory of the test's own; ends what it started."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("MORAY_", "RAY_"))}
    environ |= {"TMPDIR": str(sessions), "HOME": str(sessions), "MORAY_TEST_RUN": os.environ.get("MORAY_TEST_RUN", "")}

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "moray", *arguments],
            env=environ | more,
            text=True,
            capture_output=True,
            timeout=60,
            check=False,
        )

    yield run
    run("stop", "--force")


def start_head(cli: Cli, *more: str) -> str:
    """Start a cluster: its address."""
    done = cli("start", "--head", "--port=0", "--node-ip-address=127.0.0.1", "--num-cpus=1", *more)
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if "moray.init" in line).split('"')[1]


def test_start_join_status_stop(cli: Cli, sessions: Path) -> None:
    # Options of `ray start` without meaning here, as its scripts give them.
    address = start_head(cli, "--labels=zone=a", "--min-worker-port=0", "--include-dashboard", "false", "--no-monitor")
    joined = cli("start", "--address=auto", "--num-cpus=2", "--resources", '{"disk": 3}')
    assert joined.returncode == 0, joined.stderr
    assert len(json.loads(cli("status", "--json", f"--address={address}").stdout)["nodes"]) == 2
    status = json.loads(cli("status", "--json").stdout)
    assert [node["resources"]["CPU"] for node in status["nodes"]] == [[0, 1], [0, 2]]
    assert status["nodes"][0]["head"]
    assert status["nodes"][0]["labels"]["zone"] == "a"
    assert status["nodes"][1]["resources"]["disk"] == [0, 3]
    assert status["pending"] == []
    stopped = cli("stop")
    assert stopped.returncode == 0
    assert stopped.stdout.count("has ended") == 2
    assert find_nodes(str(sessions)) == []
    assert list(sessions.iterdir()) == []
    assert "no node of a cluster runs here" in cli("stop").stdout


@pytest.mark.parametrize("how", ["directory", "config", "variable"])
def test_where_nodes_spill_to(cli: Cli, sessions: Path, how: str) -> None:
    spilled = sessions / "spilled"
    config = {"object_spilling_config": {"type": "filesystem", "params": {"directory_path": str(spilled)}}}
    options = {
        "directory": ["--object-spilling-directory", str(spilled)],
        "config": ["--system-config", json.dumps(config)],
        "variable": [],
    }[how]
    environ = {"MORAY_SPILL_DIR": str(spilled)} if how == "variable" else {}
    begin = ["start", "--head", "--port=0", "--node-ip-address=127.0.0.1", "--num-cpus=1"]
    done = cli(*begin, "--object-store-memory", str(32 << 20), "--enable-resource-isolation", *options, **environ)
    assert done.returncode == 0, done.stderr
    program = sessions / "program.py"
    program.write_text(
        "import moray, os, sys\n"
        "moray.init('auto')\n"
        "refs = [moray.put(bytes(4 << 20)) for _ in range(16)]\n"
        "print(sum(len(files) for _, _, files in os.walk(sys.argv[1])) > 0, sum(map(len, moray.get(refs[:1]))) >> 20)\n"
    )
    assert cli("run", str(program), str(spilled)).stdout.split() == ["True", "4"]


@pytest.mark.parametrize("given", ["{", "[]", '{"object_spilling_config": {"type": "abc"}}'])
def test_settings_that_are_none(cli: Cli, given: str) -> None:
    done = cli("start", "--head", "--port=0", "--system-config", given)
    assert done.returncode
    assert "Traceback" not in done.stderr


def test_a_drained_node_leaves(cli: Cli) -> None:
    address = start_head(cli)
    assert cli("start", f"--address={address}", "--num-cpus=2").returncode == 0
    nodes = json.loads(cli("status", "--json").stdout)["nodes"]
    head, other = (next(node["id"] for node in nodes if node["head"] is which) for which in (True, False))
    refused = cli("drain", head[:12])
    assert refused.returncode == 1
    assert "has the head" in refused.stderr
    assert "0 living nodes" in cli("drain", "ffffffffffffffff").stderr
    drained = cli("drain", other[:12], "--deadline=30s", "--reason=test")
    assert drained.returncode == 0, drained.stderr

    def alive() -> list[str]:
        found = json.loads(cli("status", "--json", f"--address={address}").stdout)["nodes"]
        return [node["id"] for node in found if node["state"] == "alive"]

    wait_until(lambda: alive() == [head], 20)


def test_a_program_uses_the_cluster(cli: Cli, tmp_path: Path) -> None:
    start_head(cli)
    program = tmp_path / "program.py"
    program.write_text("import moray\nmoray.init('auto')\nprint(moray.get(moray.remote(lambda: 6 * 7).remote()))\n")
    assert cli("run", str(program)).stdout.strip() == "42"


def test_a_head_of_this_machine_is_meant_by_localhost(cli: Cli, sessions: Path) -> None:
    """It listens on its own address alone, and needs no token here."""
    started = cli("start", "--head", "--port=0", "--node-ip-address=127.0.0.2", "--num-cpus=1")
    assert started.returncode == 0, started.stderr
    address = next(line for line in started.stdout.splitlines() if "moray.init" in line).split('"')[1]
    port = address.partition(":")[2]
    program = sessions / "program.py"
    program.write_text(
        "import moray, sys\n"
        "for address in sys.argv[1:]:\n"
        "    with moray.init(address):\n"
        "        print(moray.get(moray.remote(lambda: 42).remote()))\n"
    )
    ran = cli("run", str(program), f"localhost:{port}", f"ray://127.0.0.1:{port}", "ray://localhost:10001")
    assert ran.stdout.split() == ["42"] * 3, ran.stderr
    joined = cli("start", f"--address=localhost:{port}", "--node-ip-address=127.0.0.3")
    assert joined.returncode == 0, joined.stderr
    assert len(json.loads(cli("status", "--json", f"--address=localhost:{port}").stdout)["nodes"]) == 2


def test_what_listens_at_localhost_is_meant_first(cli: Cli, sessions: Path) -> None:
    """A tunnel to another machine's head, for example."""
    assert cli("start", "--head", "--port=0", "--node-ip-address=127.0.0.2", "--num-cpus=1").returncode == 0
    head = find_nodes(str(sessions))[0].node.head
    port = int(head.partition(":")[2])
    assert own_head(f"localhost:{port}", str(sessions)) == head
    assert own_head("localhost:10001", str(sessions)) == "localhost:10001"
    assert own_head(f"127.0.0.9:{port}", str(sessions), any_port=True) == head
    assert own_head(f"10.1.2.3:{port}", str(sessions), any_port=True) == f"10.1.2.3:{port}"
    assert own_head("nonsense", str(sessions)) == "nonsense"
    with socket.create_server(("127.0.0.1", port)):
        assert own_head(f"127.0.0.1:{port}", str(sessions)) == f"127.0.0.1:{port}"


def test_localhost_means_a_head_that_listens_there(cli: Cli, sessions: Path) -> None:
    """Under its number, by which its token is found."""
    assert cli("start", "--head", "--port=0", "--node-ip-address=127.0.0.1", "--num-cpus=1").returncode == 0
    head = find_nodes(str(sessions))[0].node.head
    assert own_head(f"localhost:{head.partition(':')[2]}", str(sessions)) == head


def test_connect_and_disconnect(cli: Cli, sessions: Path) -> None:
    address = start_head(cli)
    program = sessions / "program.py"
    program.write_text(
        "import moray\nfrom moray import util\n"
        f"print(util.connect({address!r}, namespace='n')['num_clients'])\n"
        "print(moray.get(moray.remote(lambda: 6 * 7).remote()))\n"
        "util.disconnect()\nprint(moray.is_initialized())\n"
    )
    assert cli("run", str(program)).stdout.split() == ["1", "42", "False"]


def test_the_token_is_needed_elsewhere(cli: Cli, sessions: Path) -> None:
    address = start_head(cli)
    elsewhere = sessions / "elsewhere"
    elsewhere.mkdir()
    refused = cli("start", f"--address={address}", TMPDIR=str(elsewhere))
    assert refused.returncode == 1
    assert refused.stderr.startswith("Error: no token: MORAY_TOKEN is not set")
    wrong = "moray1." + "0" * 64 + "." + "A" * 43
    refused = cli("start", f"--address={address}", TMPDIR=str(elsewhere), MORAY_TOKEN=wrong)
    assert refused.returncode == 1
    assert len(refused.stderr.splitlines()) == 1, refused.stderr
    nonsense = cli("start", f"--address={address}", MORAY_TOKEN="letmein")
    assert nonsense.returncode == 1
    assert "letmein" not in nonsense.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["start"], "say --head"),
        (["start", "--head", "--address=127.0.0.1:1"], "say --head"),
        (["start", "--address=127.0.0.1:1"], "no token"),
        (["start", "--address=nonsense"], "HOST:PORT"),
        (["start", "--head", "--resources", "{"], "JSON object"),
        (["drain", "abc", "--deadline=soon"], "90s, 10m or 2h"),
        (["status"], "no running session"),
    ],
)
def test_mistakes_are_one_line(cli: Cli, arguments: list[str], said: str) -> None:
    done = cli(*arguments)
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken(cli: Cli) -> None:
    port = start_head(cli).rpartition(":")[2]
    taken = cli("start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1")
    assert taken.returncode == 1
    assert f"127.0.0.1:{port}" in taken.stderr
    assert len(taken.stderr.splitlines()) == 1, taken.stderr


def test_block_lives_as_long_as_the_node(sessions: Path) -> None:
    environ = os.environ | {"TMPDIR": str(sessions)}
    command = [sys.executable, "-m", "moray", "start", "--head", "--port=0", "--node-ip-address=127.0.0.1", "--block"]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert any("moray stop" in line for line in iter(process.stdout.readline, "")), "it ended at once"
            assert len(find_nodes(str(sessions))) == 1
        finally:
            process.terminate()
        assert process.wait(30) == 0
    assert find_nodes(str(sessions)) == []
