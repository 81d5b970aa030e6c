"""CPUs, memory and GPUs of containers and machines."""

from __future__ import annotations

from pathlib import Path

import pytest

from moray.platform import machine
from moray.platform.machine import ControlGroups


def groups(tmp_path: Path, membership: str, files: dict[str, str]) -> ControlGroups:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="ascii")
    (tmp_path / "membership").write_text(membership, encoding="ascii")
    return ControlGroups(str(tmp_path), str(tmp_path / "membership"))


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("150000 100000", 2), ("50000 100000", 1), ("max 100000", 3), ("10000000 100000", 3), ("", 3)],
)
def test_cpus_are_the_quota_rounded_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: {0, 1, 2})
    assert machine.cpu_count(groups(tmp_path, "0::/box\n", {"box/cpu.max": quota})) == expected


def test_limits_of_ancestors_hold_too(tmp_path: Path) -> None:
    found = groups(
        tmp_path,
        "0::/a/b\n",
        {"a/b/memory.max": "max\n", "a/memory.max": "1000\n", "a/memory.current": "700\n"}
        | {"a/memory.stat": "anon 5\ninactive_file 100\n", "a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"},
    )
    assert found.memory_limit() == 1000
    assert found.memory_used() == 600
    assert found.cpu_quota() == 2
    assert machine.memory_total(found) == 1000
    assert machine.memory_used(found) == 600


def test_version_1_has_a_tree_per_controller(tmp_path: Path) -> None:
    found = groups(
        tmp_path,
        "4:cpu,cpuacct:/box\n3:memory:/box\n1:name=systemd:/\n",
        {
            "cpu,cpuacct/box/cpu.cfs_quota_us": "350000\n",
            "cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "memory/box/memory.limit_in_bytes": "5000\n",
            "memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
    )
    assert found.cpu_quota() == 3.5
    assert found.memory_limit() == 5000


def test_a_path_that_is_the_hosts_falls_back_to_what_is_mounted(tmp_path: Path) -> None:
    found = groups(tmp_path, "0::/kubepods/pod1/abc\n", {"memory.max": "4096\n", "cpu.max": "100000 100000\n"})
    assert found.memory_limit() == 4096
    assert found.cpu_quota() == 1


def test_without_limits_the_machine_counts(tmp_path: Path) -> None:
    found = groups(tmp_path, "0::/\n", {})
    assert found.cpu_quota() is None
    assert found.memory_limit() is None
    assert machine.memory_total(found) > 1 << 26
    assert 0 < machine.memory_used(found) < machine.memory_total(found)
    assert machine.cpu_count() >= 1


@pytest.mark.parametrize(
    ("text", "count"), [("0,1", 2), ("", 0), ("-1", 0), ("0,-1,1", 1), ("GPU-12ab, GPU-34cd", 2), ("NoDevFiles", 0)]
)
def test_gpus_are_those_that_are_visible(monkeypatch: pytest.MonkeyPatch, text: str, count: int) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert machine.gpu_count() == count


@pytest.mark.parametrize(
    ("text", "count", "ids"),
    [
        ("5,3", 2, ["3", "5"]),
        ("5,3,GPU-a", 2, ["3", "5"]),
        ("1", 2, ["1", "0"]),  # One name is no other's index.
        ("", 2, ["1", "0"]),
    ],
)
def test_gpus_are_called_what_the_environment_calls_them(
    monkeypatch: pytest.MonkeyPatch, text: str, count: int, ids: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    assert machine.gpu_ids([1, 0], machine.gpu_names(count)) == ids


def test_gpus_are_counted_by_a_program_if_nothing_else_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_GPU_LIST", str(tmp_path / "absent"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.gpu_count() == 0
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'GPU 0: X (UUID: 1)'\necho 'GPU 1: X (UUID: 2)'\n", encoding="ascii")
    program.chmod(0o755)
    assert machine.gpu_count() == 2
