"""Joining from other hosts: what goes well on unusual ones, and one clear line for what does not."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import moray
from moray.launch.cluster import find_nodes
from moray.launch.session_directory import find_sessions
from tests.support.hosts import Hosts, hosts, require_programs

STORE = "--object-store-memory=300000000"

# With the other modules here it would be over a minute.
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[Hosts]:
    """Two hosts; nobody is connected."""
    del module_leaks
    with hosts(("--num-cpus=1", STORE), ("--num-cpus=1", STORE)) as cluster:
        yield cluster


def alive(cluster: Hosts) -> list[str]:
    """Addresses of the living nodes, as the head knows them."""
    done = cluster.hosts[0].moray("status", "--json")
    assert done.returncode == 0, done.stderr
    return sorted(
        node["address"].rpartition(":")[0] for node in json.loads(done.stdout)["nodes"] if node["state"] == "alive"
    )


def test_two_nodes_on_one_host_and_a_session_beside(shared_session: Hosts) -> None:
    """`moray stop` ends the host's nodes of clusters; not a program's own session, nor anything elsewhere."""
    first, host = shared_session.hosts
    started = host.moray("start", f"--address={shared_session.address}", STORE, MORAY_TOKEN=shared_session.token)
    assert started.returncode == 0, started.stderr
    assert len(find_nodes(host.directory)) == 2
    assert alive(shared_session) == sorted([first.address, host.address, host.address])
    program = 'import moray, time; moray.init("local", num_cpus=1); print("here", flush=True); time.sleep(1_000)'
    with host.start("sh", "-c", f"exec {sys.executable} -c '{program}'") as local:
        assert local.stdout is not None
        assert local.stdout.readline() == "here\n"
        before = {session.session for session in find_sessions(host.directory)}
        stopped = host.moray("stop")
        assert stopped.returncode == 0
        assert stopped.stdout.count("has ended") == 2
        left = {session.session for session in find_sessions(host.directory)}
        assert len(before) == 3
        assert len(left) == 1
        assert local.poll() is None
        local.terminate()
        local.communicate()
    assert alive(shared_session) == [first.address]
    again = host.moray("start", f"--address={shared_session.address}", STORE, MORAY_TOKEN=shared_session.token)
    assert again.returncode == 0, again.stderr
    assert alive(shared_session) == sorted([first.address, host.address])


def test_no_shared_memory_folder(shared_session: Hosts) -> None:
    """Containers may have none, or one that is too small: nothing of ours is in it."""
    host = shared_session.hosts[1]
    start = f"{sys.executable} -m moray start --address={shared_session.address} {STORE}"
    command = f"while umount -l /dev/shm 2> /dev/null; do :; done; exec {start}"
    done = host.run(
        "unshare", "-m", "sh", "-c", f"{command} --resources='{{\"x\": 1}}'", MORAY_TOKEN=shared_session.token
    )
    assert done.returncode == 0, done.stderr
    program = """
import moray, os, numpy
moray.init("auto")
@moray.remote(resources={"x": 1})
def f(a):
    return os.path.ismount("/dev/shm"), int(a.sum())
print(*moray.get(f.remote(numpy.ones(1 << 20))))
"""
    assert shared_session.run_program(shared_session.hosts[0], program).split() == ["False", str(1 << 20)]


def faketime() -> str:
    require_programs({"faketime": "faketime"})
    return str(next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")))


@pytest.mark.parametrize("hours", [-50, -20])
def test_clocks_that_differ(shared_session: Hosts, hours: int) -> None:
    """Up to a day is nothing. More is said, with the number."""
    host = shared_session.hosts[1]
    before = alive(shared_session)
    skew = {"LD_PRELOAD": faketime(), "FAKETIME": f"{hours:+d}h", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    done = host.moray("start", f"--address={shared_session.address}", STORE, MORAY_TOKEN=shared_session.token, **skew)
    if abs(hours) < 24:
        assert done.returncode == 0, done.stderr
        assert len(alive(shared_session)) == len(before) + 1
        return
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    found = re.search(r"this machine's clock is (\S+) days behind the head's", done.stderr)
    assert found, done.stderr
    assert abs(24 * float(found[1]) + hours) < 2
    assert alive(shared_session) == before


def test_another_protocol(shared_session: Hosts, tmp_path: Path) -> None:
    """Both numbers are named (PROTOCOL)."""
    source = Path(moray.__file__).parent
    shutil.copytree(source, tmp_path / "moray", ignore=shutil.ignore_patterns("__pycache__"))
    base = tmp_path / "moray" / "protocol" / "base.py"
    text = base.read_text(encoding="utf-8")
    number = int(re.search(r"PROTOCOL_VERSION: Final = ([0-9]+)", text)[1])  # type: ignore[index]
    base.write_text(re.sub(r"PROTOCOL_VERSION: Final = [0-9]+", "PROTOCOL_VERSION: Final = 99", text), "utf-8")
    before = alive(shared_session)
    done = shared_session.hosts[1].moray(
        "start",
        f"--address={shared_session.address}",
        STORE,
        MORAY_TOKEN=shared_session.token,
        PYTHONPATH=str(tmp_path),
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert f"protocol {number}" in done.stderr
    assert "99" in done.stderr
    assert alive(shared_session) == before


def test_no_way_there(shared_session: Hosts) -> None:
    """A head that does not answer, and one that is not there."""
    host = shared_session.hosts[1]
    host.cut_off()
    try:
        done = host.moray("start", f"--address={shared_session.address}", MORAY_TOKEN=shared_session.token)
    finally:
        host.heal()
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert shared_session.address in done.stderr
    done = host.moray("start", f"--address={host.address}:{6379}", MORAY_TOKEN=shared_session.token)
    assert done.returncode == 1
    assert re.search(r"Error: .*:6379: Connection refused", done.stderr), done.stderr
    assert os.path.isdir(host.directory)
