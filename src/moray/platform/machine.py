"""How much of the machine this process may use: CPUs, memory, GPUs.

A container sees the whole machine in ``/proc``; what it may use is in its control group. Version 2 keeps one
tree (``cpu.max``, ``memory.max``), version 1 one tree per controller (``cpu.cfs_quota_us``,
``memory.limit_in_bytes``). The limits of all ancestors hold too, so the least of them counts. Inside a
container the path in ``/proc/self/cgroup`` may be the host's and absent here; then the root of what is
mounted is the container's own group.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Final

#: Version 1 says "no limit" by a number near 2^63.
_NO_LIMIT_V1: Final = 1 << 60
_GPU_LIST: Final = "/proc/driver/nvidia/gpus"
#: How long `nvidia-smi` may take; it hangs when a driver does.
_NVIDIA_SMI_TIMEOUT_S: Final = 3.0


class ControlGroups:
    """The control groups of this process. `root` and `membership` are parameters for tests."""

    def __init__(self, root: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> None:
        self._root = root
        #: Controller → path; version 2 has the key "".
        self._paths: dict[str, str] = {}
        for line in _read(membership).splitlines():
            _number, controllers, path = line.split(":", 2)
            for controller in controllers.split(","):
                self._paths[controller.removeprefix("name=")] = path

    def cpu_quota(self) -> float | None:
        """CPUs' worth of time that this process may use; None: no limit."""
        quotas = [_cpu_max(_read(f"{folder}/cpu.max")) for folder in self._folders("")]
        quotas += [_cfs_quota(folder) for folder in self._folders("cpu")]
        return min((quota for quota in quotas if quota is not None), default=None)

    def memory_limit(self) -> int | None:
        """Bytes that this process and its group may use; None: no limit."""
        limits = [_number(_read(f"{folder}/memory.max")) for folder in self._folders("")]
        limits += [_number(_read(f"{folder}/memory.limit_in_bytes")) for folder in self._folders("memory")]
        return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT_V1), default=None)

    def memory_used(self) -> int | None:
        """Bytes in use by the group whose limit is the least, pages that can be dropped not counted."""
        for controller, limit, usage in (
            ("", "memory.max", "memory.current"),
            ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            for folder in self._folders(controller):
                allowed = _number(_read(f"{folder}/{limit}"))
                used = _number(_read(f"{folder}/{usage}"))
                if used is not None and allowed is not None and allowed < _NO_LIMIT_V1:
                    return max(0, used - _field(_read(f"{folder}/memory.stat"), "inactive_file"))
        return None

    def _folders(self, controller: str) -> Iterator[str]:
        """Our group's folder and those of its ancestors, innermost first."""
        if controller not in self._paths:
            return
        tree = self._tree(controller)
        path = self._paths[controller].rstrip("/")
        while path:
            yield tree + path
            path = path.rpartition("/")[0]
        yield tree

    def _tree(self, controller: str) -> str:
        if not controller:
            # Version 2 may be mounted beside version 1.
            return f"{self._root}/unified" if os.path.isdir(f"{self._root}/unified") else self._root
        together = f"{self._root}/cpu,cpuacct"
        return together if controller == "cpu" and os.path.isdir(together) else f"{self._root}/{controller}"


def cpu_count(groups: ControlGroups | None = None) -> int:
    """CPUs that this process may run on: its affinity, limited by its control group's quota, rounded up."""
    affinity = len(os.sched_getaffinity(0))
    quota = (groups or ControlGroups()).cpu_quota()
    return max(1, affinity if quota is None else min(affinity, -int(-quota // 1)))


def memory_total(groups: ControlGroups | None = None) -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's if that is less."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = (groups or ControlGroups()).memory_limit()
    return physical if limit is None else min(physical, limit)


def memory_used(groups: ControlGroups | None = None) -> int:
    """Bytes of :func:`memory_total` that are in use and cannot simply be dropped."""
    used = (groups or ControlGroups()).memory_used()
    if used is not None:
        return used
    information = _read("/proc/meminfo").replace(":", "")
    return (_field(information, "MemTotal") - _field(information, "MemAvailable")) * 1024


def gpu_count() -> int:
    """NVIDIA GPUs that this process may use, found without loading any library."""
    visible = visible_gpus()
    if visible is not None:
        return len(visible)
    try:
        return len(os.listdir(_GPU_LIST))
    except OSError:
        return _count_by_nvidia_smi()


def visible_gpus() -> list[str] | None:
    """The entries of CUDA_VISIBLE_DEVICES that count; None if it is not set, so that all are visible."""
    text = os.environ.get("CUDA_VISIBLE_DEVICES")
    if text is None or text == "NoDevFiles":
        return None if text is None else []
    entries: list[str] = []
    for entry in filter(None, (part.strip() for part in text.split(","))):
        if entry.startswith("-"):
            break  # CUDA ignores the first invalid entry and all that follow.
        entries.append(entry)
    return entries


def gpu_names(count: int) -> list[str]:
    """What CUDA calls so many GPUs of this machine, by index, if CUDA_VISIBLE_DEVICES names them all; else [], and each
    is called by its index."""
    visible = visible_gpus() or []
    return visible[:count] if len(visible) >= count else []


def gpu_ids(indices: Sequence[int], names: Sequence[str]) -> list[str]:
    """What CUDA calls the GPUs with these indices; `names`: as :func:`gpu_names` gives them."""
    return [names[index] if names else str(index) for index in indices]


def _count_by_nvidia_smi() -> int:
    program = next(
        (path for folder in os.get_exec_path() if os.access(path := f"{folder}/nvidia-smi", os.X_OK)),
        None,
    )
    if program is None:
        return 0
    import subprocess

    try:
        listing = subprocess.run(
            [program, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


def _cpu_max(text: str) -> float | None:
    fields = text.split()
    if len(fields) != 2 or not fields[0].isdigit():
        return None
    return int(fields[0]) / int(fields[1])


def _cfs_quota(folder: str) -> float | None:
    quota, period = _number(_read(f"{folder}/cpu.cfs_quota_us")), _number(_read(f"{folder}/cpu.cfs_period_us"))
    return quota / period if quota is not None and period else None


def _number(text: str) -> int | None:
    """A whole number; None for "max", "-1" and what is not there."""
    return int(text) if (text := text.strip()).isdigit() else None


def _field(text: str, name: str) -> int:
    for line in text.splitlines():
        key, _, rest = line.partition(" ")
        if key == name:
            return int(rest.split()[0])
    return 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
