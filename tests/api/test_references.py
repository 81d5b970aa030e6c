"""References as values: where they may be, what they are equal to, and how long their objects live."""

from __future__ import annotations

import copy
import dataclasses
import gc
import os
import pickle
import time
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import moray
from moray import ObjectRef

pytestmark = pytest.mark.usefixtures("shared_session")

#: Too large to travel in a message, so that its life in the store is what is tested.
LARGE = 300_000


@dataclasses.dataclass(frozen=True)
class Holder:
    ref: ObjectRef[Any]
    label: str = ""


class Node:
    """A linked list of references."""

    def __init__(self, value: int, following: ObjectRef[Any] | None) -> None:
        self.value = value
        self.following = following


@moray.remote
def fetch(holder: Any) -> Any:
    """Gets what is inside a container."""
    if isinstance(holder, Holder):
        return moray.get(holder.ref)
    return moray.get(list(holder))


@moray.remote
def make(size: int) -> bytes:
    return b"m" * size


# --- as Python objects ----------------------------------------------------------------------------


def test_equality_and_hash() -> None:
    first, second = moray.put(1), moray.put(1)
    assert first == copy.copy(first)
    assert first != second
    assert first not in [1, "something else"]
    assert len({first, second, copy.copy(first)}) == 2


def test_dictionary_keys() -> None:
    refs = [moray.put(i) for i in range(10)]
    table = {ref: i for i, ref in enumerate(refs)}
    assert [table[ref] for ref in refs] == list(range(10))


def test_dictionary_keys_after_a_trip() -> None:
    @moray.remote
    def same(table: dict[ObjectRef[int], int]) -> dict[ObjectRef[int], int]:
        return table

    table = {moray.put(i): i for i in range(5)}
    assert moray.get(same.remote(table)) == table


def test_reference_that_comes_back_is_equal() -> None:
    @moray.remote
    def same(items: list[Any]) -> list[Any]:
        return items

    ref = make.remote(10)
    [back] = moray.get(same.remote([ref]))
    assert back == ref
    assert hash(back) == hash(ref)


def test_copies_refer_to_the_same_object() -> None:
    ref = moray.put("one")
    assert moray.get([copy.copy(ref), copy.deepcopy(ref)]) == ["one", "one"]


def test_copy_keeps_the_object_alive() -> None:
    ref = moray.put(b"x" * LARGE)
    other = copy.deepcopy([ref])
    del ref
    gc.collect()
    assert len(moray.get(other[0])) == LARGE


def test_hex_and_binary() -> None:
    ref = moray.put(1)
    assert ref.hex() == ref.binary().hex()
    assert len(ref.binary()) == 28
    assert ref.hex() in repr(ref)


def test_returns_of_one_task_have_their_own_ids() -> None:
    @moray.remote(num_returns=3)
    def three() -> tuple[int, int, int]:
        return 1, 2, 3

    refs = three.remote()
    assert len({ref.hex() for ref in refs}) == 3
    assert len({ref.task_id() for ref in refs}) == 1


def test_reference_is_not_iterable() -> None:
    reference: Any = moray.put([1])
    with pytest.raises(TypeError):
        list(reference)


def test_reference_cannot_be_put_itself() -> None:
    with pytest.raises(TypeError):
        moray.put(moray.put(1))


@pytest.mark.parametrize("dump", [pickle.dumps, cloudpickle.dumps], ids=["pickle", "cloudpickle"])
def test_pickled_by_the_user(dump: Any) -> None:
    """REF-FREE: a reference pickled outside moray keeps its object until the job ends."""
    ref = moray.put(b"x" * LARGE)
    data = dump({"ref": ref})
    del ref
    gc.collect()
    assert len(moray.get(pickle.loads(data)["ref"], timeout=20)) == LARGE


# --- inside other values --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, LARGE])
def test_in_a_dataclass(size: int) -> None:
    assert len(moray.get(fetch.remote(Holder(moray.put(b"x" * size))))) == size


@pytest.mark.parametrize("size", [10, LARGE])
@pytest.mark.parametrize("container", [list, tuple, set])
def test_in_containers(container: Any, size: int) -> None:
    values = moray.get(fetch.remote(container([moray.put(b"x" * size), make.remote(size)])))
    assert [len(value) for value in values] == [size, size]


@pytest.mark.parametrize("size", [10, LARGE])
def test_object_in_an_object_outlives_the_callers_reference(size: int) -> None:
    """REF-FREE: a living value holds what it contains."""
    inner = moray.put(b"i" * size)
    outer = moray.put([inner])
    del inner
    gc.collect()
    assert len(moray.get(moray.get(outer)[0])) == size


@pytest.mark.parametrize("size", [10, LARGE])
def test_inner_reference_outlives_the_outer_object(size: int) -> None:
    """REF-COVER: the reader holds its own reference when the container goes."""
    outer = moray.put([moray.put(b"i" * size)])
    [inner] = moray.get(outer)
    del outer
    gc.collect()
    assert len(moray.get(inner)) == size


def test_linked_list_of_objects() -> None:
    ref: ObjectRef[Any] | None = None
    for value in range(50):
        ref = moray.put(Node(value, ref))
    values = []
    while ref is not None:
        node = moray.get(ref)
        values.append(node.value)
        ref = node.following
    assert values == list(range(49, -1, -1))


def test_containers_in_containers() -> None:
    refs = [moray.put({"deep": [moray.put((moray.put("found"),))]})]
    assert moray.get(moray.get(moray.get(refs[0])["deep"][0])[0]) == "found"


def test_many_references_in_one_value() -> None:
    """Some made where they are read, some elsewhere, each there twice."""

    @moray.remote
    def more(refs: list[ObjectRef[int]]) -> tuple[list[ObjectRef[int]], dict[str, Any]]:
        refs = refs + [moray.put(i) for i in range(200, 400)]
        return refs, {"again": refs, "array": np.arange(1000)}

    refs = [moray.put(i) for i in range(200)]
    outer = more.remote(refs)
    for _ in range(2):
        first, rest = moray.get(outer)
        assert all(one is other for one, other in zip(first, rest["again"], strict=True))
        assert first[:200] == refs
        assert not rest["array"].flags.writeable
    assert moray.get(first) == list(range(400))
    assert moray.get(moray.get(moray.put([first, first]))[1]) == list(range(400))


# --- lives ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, LARGE])
def test_argument_lives_until_its_task_ran(size: int) -> None:
    """REF-FREE: a pending task holds its arguments, nested ones too."""

    @moray.remote
    def late(items: list[Any], direct: bytes) -> tuple[int, int]:
        time.sleep(0.2)
        return len(moray.get(items[0])), len(direct)

    nested, direct = moray.put(b"n" * size), moray.put(b"d" * size)
    ref = late.remote([nested], direct)
    del nested, direct
    gc.collect()
    assert moray.get(ref) == (size, size)


def test_worker_keeps_what_it_stored_away(tmp_path: Path) -> None:
    """REF-FREE: a borrower's global reference keeps the object, after task and driver let go."""

    @moray.remote(num_cpus=2)
    def keep(items: list[Any]) -> int:
        import builtins

        builtins.kept = items[0]  # type: ignore[attr-defined]
        return os.getpid()

    @moray.remote(num_cpus=2)
    def look() -> tuple[int, int]:
        import builtins

        kept = getattr(builtins, "kept", None)
        return os.getpid(), -1 if kept is None else len(moray.get(kept))

    ref = moray.put(b"k" * LARGE)
    pid = moray.get(keep.remote([ref]))
    del ref
    gc.collect()
    sizes = [size for worker, size in moray.get([look.remote() for _ in range(20)]) if worker == pid]
    assert sizes
    assert set(sizes) == {LARGE}


def test_reference_passed_down_three_levels() -> None:
    @moray.remote
    def level(items: list[Any], depth: int) -> int:
        if depth == 0:
            return len(moray.get(items[0]))
        return int(moray.get(level.remote(items, depth - 1)))

    ref = level.remote([moray.put(b"x" * LARGE)], 3)
    assert moray.get(ref, timeout=30) == LARGE


def test_reference_handed_on_by_a_finished_task() -> None:
    """REF-SEND: middle task returns what it got; the object must not vanish in the hand-over."""

    @moray.remote
    def hand_on(items: list[Any]) -> list[Any]:
        return items

    inner = moray.put(b"x" * LARGE)
    outer: Any = [inner]
    del inner
    for _ in range(20):
        outer = moray.get(hand_on.remote(outer))
    assert len(moray.get(outer[0])) == LARGE


def test_result_of_a_nested_task_through_its_caller() -> None:
    @moray.remote
    def start(size: int) -> list[ObjectRef[bytes]]:
        return [make.remote(size)]

    for size in (10, LARGE):
        [inner] = moray.get(start.remote(size))
        assert len(moray.get(inner)) == size


def test_unread_results_do_no_harm() -> None:
    for _ in range(200):
        make.remote(LARGE)
    assert len(moray.get(make.remote(5))) == 5


def test_results_of_dropped_tasks_are_still_side_effects(tmp_path: Path) -> None:
    """Dropping a reference does not cancel the task."""
    from tests.support.procs import wait_until

    @moray.remote
    def touch(name: str) -> None:
        (tmp_path / name).touch()

    for i in range(20):
        touch.remote(str(i))
    wait_until(lambda: len(list(tmp_path.iterdir())) == 20)
