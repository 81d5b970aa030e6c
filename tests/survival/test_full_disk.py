"""A full disk, little shared memory: errors with numbers, then business as usual (STORE-SPACE)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.procs import run_driver
from tests.support.small_disks import needs_mount, small_disk

pytestmark = needs_mount


@pytest.fixture(name="disk")
def _disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "30m") as directory:
        yield directory


PRELUDE = """
import gc, os, sys, time
import numpy as np
import moray
from moray.exceptions import ObjectStoreFullError, OutOfDiskError

moray.init(num_cpus=2, object_store_memory=80_000_000)

def block(number):
    return np.full(1_250_000, number)

@moray.remote
def make(number):
    return block(number)
"""


def run(body: str, disk: Path) -> str:
    return run_driver(PRELUDE + body, env={"MORAY_SPILL_DIR": str(disk)}, timeout_s=100).stdout


def test_full_disk_is_an_error_with_numbers(disk: Path) -> None:
    out = run(
        """
refs = []
try:
    for i in range(40):
        refs.append(moray.put(block(i)))
except (ObjectStoreFullError, OutOfDiskError) as error:
    print("refused after", len(refs), "blocks:", error)
for i, ref in enumerate(refs):
    assert (moray.get(ref, timeout=30) == i).all(), i
""",
        disk,
    )
    line = next(line for line in out.splitlines() if line.startswith("refused"))
    assert 7 <= int(line.split()[2]) <= 11
    assert any(character.isdigit() for character in line.split("blocks:")[1])


def test_room_that_is_made_is_used(disk: Path) -> None:
    out = run(
        """
refs = []
for _ in range(3):
    try:
        for i in range(40):
            refs.append(moray.put(block(i)))
    except (ObjectStoreFullError, OutOfDiskError):
        print("full")
    refs.clear()
    gc.collect()
assert (moray.get(moray.put(block(5))) == 5).all()
assert not [p for p in os.scandir(os.environ["MORAY_SPILL_DIR"]) if p.is_file() and p.stat().st_size]
""",
        disk,
    )
    assert out.split() == ["full"] * 3


def test_results_that_do_not_fit_are_errors_of_their_tasks(disk: Path) -> None:
    """The worker lives on, and so does every task whose result fits."""
    out = run(
        """
refs = [make.options(max_retries=0).remote(i) for i in range(30)]
good = bad = 0
for i, ref in enumerate(refs):
    try:
        assert (moray.get(ref, timeout=60) == i).all()
        good += 1
    except (ObjectStoreFullError, OutOfDiskError):
        bad += 1
print(good, bad)
refs.clear()
gc.collect()
while moray.available_resources()["object_store_memory"] < 40_000_000:
    time.sleep(0.01)  # What was dropped is booked by another thread than the one that submits next.
assert (moray.get(make.remote(3), timeout=30) == 3).all()
""",
        disk,
    )
    good, bad = map(int, out.split()[-2:])
    assert good + bad == 30
    assert good >= 7
    assert bad >= 1


def test_disk_that_fills_up_for_another_reason(disk: Path) -> None:
    """Somebody else's file takes the space while objects are being spilled; afterwards it goes on."""
    run(
        """
disk = os.environ["MORAY_SPILL_DIR"]
with open(os.path.join(disk, "other"), "wb") as other:
    try:
        while True:
            other.write(bytes(100_000))
            other.flush()
    except OSError:
        pass
refs = []
try:
    for i in range(20):
        refs.append(moray.put(block(i)))
except (ObjectStoreFullError, OutOfDiskError):
    pass
assert refs
os.remove(os.path.join(disk, "other"))
refs += [moray.put(block(len(refs)))]
for i, ref in enumerate(refs):
    assert (moray.get(ref, timeout=30) == i).all()
""",
        disk,
    )


def test_small_objects_need_no_disk(disk: Path) -> None:
    run(
        """
refs = []
try:
    for i in range(40):
        refs.append(moray.put(block(i)))
except (ObjectStoreFullError, OutOfDiskError):
    pass
small = moray.remote(lambda x: x + 1)
assert moray.get([small.remote(i) for i in range(1000)], timeout=30) == list(range(1, 1001))
""",
        disk,
    )


# --- /dev/shm of a container ----------------------------------------------------------------------

#: Runs the rest of the program with a /dev/shm of 64 MB that nobody else sees.
SMALL_SHM = """
import ctypes, os, subprocess
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS = 0x20000
if libc.unshare(CLONE_NEWNS):
    print("not allowed")
    raise SystemExit
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"], check=True)
import numpy as np
import moray
"""


def run_with_small_shm(body: str) -> tuple[str, str]:
    finished = run_driver(SMALL_SHM + body)
    if "not allowed" in finished.stdout:
        pytest.skip("a mount namespace of its own is not allowed here")
    return finished.stdout, finished.stderr


def test_shared_memory_of_64_megabytes() -> None:
    """Nothing dies by SIGBUS: more than fits works all the same."""
    run_with_small_shm(
        """
moray.init(num_cpus=2)
refs = [moray.put(np.full(1_250_000, i)) for i in range(20)]
assert all((moray.get(ref) == i).all() for i, ref in enumerate(refs))
make = moray.remote(lambda i: np.full(1_250_000, i))
refs += [make.remote(100 + i) for i in range(10)]
assert all((moray.get(ref, timeout=60) == 100 + i).all() for i, ref in enumerate(refs[20:]))
"""
    )


def test_shared_memory_of_64_megabytes_and_a_larger_store() -> None:
    """Asking for more than there is falls back, with a warning that says what to change."""
    _, stderr = run_with_small_shm(
        """
moray.init(num_cpus=1, object_store_memory=200_000_000)
held = [moray.get(moray.put(np.full(1_250_000, i))) for i in range(15)]
assert all((array == i).all() for i, array in enumerate(held))
"""
    )
    assert "Traceback" not in stderr
