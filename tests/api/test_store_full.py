"""A store that is too small: objects that are freed make room, others go to disk and come back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import moray
from tests.support.procs import run_driver, spill_directory, stored_bytes, wait_until

MB = 1_000_000
STORE_BYTES = 80 * MB

pytestmark = pytest.mark.usefixtures("shared_session")


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[Path]:
    """A store of 80 MB; yields where it spills to."""
    with moray.init(num_cpus=2, object_store_memory=STORE_BYTES) as context:
        yield spill_directory(context.address_info["session_dir"])


def block(number: int, megabytes: int = 10) -> npt.NDArray[np.int64]:
    return np.full(megabytes * MB // 8, number)


def is_block(array: npt.NDArray[np.int64], number: int) -> bool:
    return bool((array == number).all())


@moray.remote
def make_block(number: int) -> npt.NDArray[np.int64]:
    return block(number)


@moray.remote
def check_block(array: npt.NDArray[np.int64], number: int) -> bool:
    return is_block(array, number)


# --- freeing: nothing is spilled that nobody can ask for ------------------------------------------


def test_dropped_objects_make_room(shared_session: Path) -> None:
    """REF-FREE."""
    for i in range(30):
        assert is_block(moray.get(moray.put(block(i))), i)
    assert stored_bytes(shared_session) == 0


def test_dropped_results_make_room(shared_session: Path) -> None:
    for i in range(30):
        assert is_block(moray.get(make_block.remote(i)), i)
    assert stored_bytes(shared_session) == 0


def test_dropped_arguments_make_room(shared_session: Path) -> None:
    for i in range(30):
        assert moray.get(check_block.remote(block(i), i))
    assert stored_bytes(shared_session) == 0


def test_objects_in_dropped_objects_make_room(shared_session: Path) -> None:
    """REF-FREE: when the container goes, what it alone held goes."""
    for i in range(30):
        outer = moray.put([moray.put(block(i))])
        assert is_block(moray.get(moray.get(outer)[0]), i)
    assert stored_bytes(shared_session) == 0


def test_objects_of_finished_borrowers_make_room(shared_session: Path) -> None:
    @moray.remote
    def borrow(items: list[Any], number: int) -> bool:
        return is_block(moray.get(items[0]), number)

    for i in range(30):
        assert moray.get(borrow.remote([moray.put(block(i))], i))
    assert stored_bytes(shared_session) == 0


def test_objects_of_failed_tasks_make_room(shared_session: Path) -> None:
    @moray.remote
    def fail(array: npt.NDArray[np.int64]) -> None:
        raise ValueError(len(array))

    for i in range(30):
        with pytest.raises(ValueError):
            moray.get(fail.remote(block(i)))
    gc.collect()
    assert stored_bytes(shared_session) == 0


def test_objects_that_a_task_put_and_dropped_make_room(shared_session: Path) -> None:
    @moray.remote
    def churn(number: int) -> bool:
        return is_block(moray.get(moray.put(block(number))), number)

    for i in range(30):
        assert moray.get(churn.remote(i))
    assert stored_bytes(shared_session) == 0


# --- spilling -------------------------------------------------------------------------------------


def test_more_than_fits_is_spilled_and_restored(shared_session: Path) -> None:
    refs = [moray.put(block(i)) for i in range(25)]
    assert stored_bytes(shared_session) >= 25 * 10 * MB - STORE_BYTES
    for i, ref in enumerate(refs):
        assert is_block(moray.get(ref), i)
    for i in reversed(range(25)):
        assert is_block(moray.get(refs[i]), i)


def test_spilled_results_and_arguments() -> None:
    refs = [make_block.remote(i) for i in range(20)]
    assert all(moray.get([check_block.remote(ref, i) for i, ref in enumerate(refs)], timeout=60))


def test_spilled_files_go_with_their_objects(shared_session: Path) -> None:
    """REF-FREE: freed means every spilled byte as well."""
    refs = [moray.put(block(i)) for i in range(25)]
    assert stored_bytes(shared_session) > 0
    refs.clear()
    wait_until(lambda: stored_bytes(shared_session) == 0, what="the end of the spilled files")


def test_some_of_many_spilled_objects_are_dropped() -> None:
    refs = {i: moray.put(block(i)) for i in range(25)}
    for i in range(0, 25, 2):
        del refs[i]
    for i, ref in refs.items():
        assert is_block(moray.get(ref), i)


def test_many_middling_objects_are_spilled_together(shared_session: Path) -> None:
    """Fused files: a thousand objects are not a thousand files."""
    refs = [moray.put(np.full(25_000, i)) for i in range(1000)]
    files = [path for path in shared_session.rglob("*") if path.is_file()]
    assert 0 < len(files) < 300
    assert all(int(moray.get(ref)[0]) == i for i, ref in enumerate(refs))


def test_wait_and_get_timeout_of_spilled_objects() -> None:
    refs = [moray.put(block(i)) for i in range(20)]
    ready, rest = moray.wait(refs, num_returns=20, timeout=20)
    assert (len(ready), rest) == (20, [])


def test_tasks_that_write_at_the_same_time_wait_for_room() -> None:
    @moray.remote
    def produce(n: int) -> int:
        refs = [moray.put(block(i)) for i in range(n)]
        return sum(is_block(moray.get(ref), i) for i, ref in enumerate(refs))

    assert moray.get([produce.remote(10) for _ in range(4)], timeout=90) == [10] * 4


# --- everything is pinned -------------------------------------------------------------------------


def test_object_larger_than_the_store() -> None:
    """STORE-SPACE: it gets a mapped file of its own."""
    assert is_block(moray.get(moray.put(block(7, megabytes=120))), 7)


def test_views_of_everything_force_a_fallback() -> None:
    """STORE-SPACE: with all memory in use by views, new objects are mapped from disk."""
    refs = [moray.put(block(i)) for i in range(14)]
    arrays = [moray.get(ref) for ref in refs]
    more = [moray.put(block(100 + i)) for i in range(3)]
    assert all(is_block(array, i) for i, array in enumerate(arrays))
    assert all(is_block(moray.get(ref), 100 + i) for i, ref in enumerate(more))


def test_fallback_warns_once() -> None:
    finished = run_driver(
        """
        import numpy as np
        import moray
        moray.init(num_cpus=1, object_store_memory=80_000_000)
        held = []
        for i in range(14):
            held.append(moray.get(moray.put(np.full(1_250_000, i))))
        assert all((array == i).all() for i, array in enumerate(held))
        """
    )
    lines = [line for line in finished.stderr.splitlines() if "object_store_memory" in line]
    assert len(lines) == 1, finished.stderr


# --- where to -------------------------------------------------------------------------------------

SPILLING_PROGRAM = """
import os
import numpy as np
import moray
from pathlib import Path
directory = Path(os.environ["WHERE"])
options = {{"_system_config": {{"object_spilling_directory": str(directory)}}}} if {configured} else {{}}
context = moray.init(num_cpus=1, object_store_memory=80_000_000, **options)
refs = [moray.put(np.full(1_250_000, i)) for i in range(20)]
files = [p for p in directory.rglob("*") if p.is_file()]
assert files, list(directory.rglob("*"))
assert all((moray.get(ref) == i).all() for i, ref in enumerate(refs))
moray.shutdown()
assert not [p for p in directory.rglob("*") if p.is_file()]
"""


def test_spill_directory_by_environment(tmp_path: Path) -> None:
    run_driver(
        SPILLING_PROGRAM.format(configured=False),
        env={"MORAY_SPILL_DIR": str(tmp_path), "WHERE": str(tmp_path)},
    )


def test_spill_directory_by_configuration(tmp_path: Path) -> None:
    run_driver(SPILLING_PROGRAM.format(configured=True), env={"WHERE": str(tmp_path)})


# --- one large value again and again --------------------------------------------------------------


def test_large_argument_again_and_again_warns_once_and_says_put() -> None:
    finished = run_driver(
        """
        import numpy as np
        import moray
        moray.init(num_cpus=1)
        large = np.zeros(1_000_000)

        @moray.remote
        def total(array):
            return float(array.sum())

        for _ in range(20):
            assert moray.get(total.remote(large)) == 0
        print("done")
        """
    )
    assert len([line for line in finished.stderr.splitlines() if "put(" in line]) == 1, finished.stderr


def test_different_large_arguments_do_not_warn() -> None:
    finished = run_driver(
        """
        import numpy as np
        import moray
        moray.init(num_cpus=1)

        @moray.remote
        def total(array):
            return float(array.sum())

        for i in range(10):
            large = np.full(100_000, i)
            assert moray.get(total.remote(large)) == 100_000 * i
            del large
        """
    )
    assert "put(" not in finished.stderr
