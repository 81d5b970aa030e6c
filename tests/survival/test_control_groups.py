"""Limits of real control groups: the CPU quota is what init() counts, and a worker that the memory limit ends says so.

They need the right to make a group below this process's own (root, and the controller mounted for writing).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.procs import run_driver

ROOT = Path("/sys/fs/cgroup")
#: What every driver here does first: it moves itself, and so all that it starts, into the group.
ENTER = """
import os
with open({procs!r}, "w") as file:
    file.write(str(os.getpid()))
import moray
"""


@contextlib.contextmanager
def control_group(controller: str, v1: dict[str, str], v2: dict[str, str]) -> Iterator[str]:
    """A group below this process's own, with these settings; yields the file that takes members. Skips if there can be
    none."""
    paths: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path.strip("/"))
    if controller in paths and (ROOT / controller).is_dir():
        parent, settings = ROOT / controller / paths[controller], v1
    else:
        parent, settings = ROOT / paths.get("", ""), v2
        if controller not in _read(parent / "cgroup.subtree_control").split():
            pytest.skip(f"no control groups: {parent} does not hand the controller {controller!r} on")
    group = parent / f"moray-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no control groups: {group} cannot be made: {error}")
    try:
        for name, value in settings.items():
            try:
                (group / name).write_text(value)
            except OSError as error:
                pytest.skip(f"no control groups: {group / name} cannot be set: {error}")
        yield str(group / "cgroup.procs")
    finally:
        group.rmdir()


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a quota of one CPU says nothing on one CPU")
def test_init_counts_the_cpus_of_the_quota() -> None:
    v1 = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "60000"}
    with control_group("cpu", v1, {"cpu.max": "60000 100000"}) as procs:
        program = ENTER + 'moray.init()\nprint("cpus", moray.cluster_resources()["CPU"])\nmoray.shutdown()\n'
        assert run_driver(program.format(procs=procs)).stdout == "cpus 1.0\n"


HUNGRY = (
    ENTER
    + """
import pytest

moray.init(num_cpus=1, object_store_memory=50_000_000)

@moray.remote(max_retries=0)
def eat():
    held = []
    while True:
        held.append(bytearray(b"x" * (8 << 20)))

@moray.remote
def alive():
    return 1

assert moray.get(alive.remote(), timeout=30) == 1
with pytest.raises(moray.exceptions.WorkerCrashedError) as caught:
    moray.get(eat.remote(), timeout=50)
print(str(caught.value).replace(chr(10), " "))
assert moray.get(alive.remote(), timeout=30) == 1
moray.shutdown()
"""
)


def test_a_worker_beyond_the_memory_limit_is_reported_with_sizes() -> None:
    limit = str(400 << 20)
    v1 = {"memory.limit_in_bytes": limit}
    with control_group("memory", v1, {"memory.max": limit, "memory.swap.max": "0"}) as procs:
        text = run_driver(HUNGRY.format(procs=procs)).stdout
    assert "OOM killer" in text, text
    assert "not by the kernel's" not in text, text
    assert re.search(r"of 0\.4 GB in use", text), text


CROWDED = (
    ENTER
    + """
import subprocess, sys

held = b"x" * (32 << 20)  # The driver is the largest of all.
moray.init(num_cpus=1, object_store_memory=50_000_000)

@moray.remote
def alive():
    return 1

assert moray.get(alive.remote(), timeout=30) == 1
stranger = subprocess.run([sys.executable, "-c", {stranger!r}], timeout=50)
assert stranger.returncode == 0, stranger
assert moray.get(alive.remote(), timeout=30) == 1
moray.shutdown()
"""
)
#: Fills the group with what no process holds, until the kernel has ended two of its members for it.
STRANGER = """
import os

def kills():
    with open({counts!r}) as file:
        return int(dict(line.split() for line in file)["oom_kill"])

memory = os.memfd_create("stranger")
while kills() < 2:
    os.write(memory, bytes(1 << 16))
"""


def test_when_no_worker_is_left_the_kernel_takes_their_template_and_not_the_driver() -> None:
    """It does so too when a worker that it has just ended has not given its memory back yet."""
    limit = str(200 << 20)
    v1 = {"memory.limit_in_bytes": limit}
    with control_group("memory", v1, {"memory.max": limit, "memory.swap.max": "0"}) as procs:
        group = Path(procs).parent
        counts = next(path for path in (group / "memory.oom_control", group / "memory.events") if path.exists())
        run_driver(CROWDED.format(procs=procs, stranger=STRANGER.format(counts=str(counts))))
