"""Identifiers: layouts, identity, order, pickling."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, strategies as st

from moray import ids

TYPES = [
    (ids.JobID, 4),
    (ids.TaskID, 24),
    (ids.ActorID, 16),
    (ids.PlacementGroupID, 18),
    (ids.NodeID, 28),
    (ids.WorkerID, 28),
    (ids.FunctionID, 28),
    (ids.ActorClassID, 28),
    (ids.UniqueID, 28),
]
PROCESS = bytes(range(12))
JOB = ids.JobID.from_int(7)


@pytest.mark.parametrize(("kind", "size"), TYPES)
def test_every_type_has_the_common_methods(kind: type[ids.BaseID], size: int) -> None:
    made = kind(bytes(range(size)))
    assert kind.size() == made.size() == size
    assert kind.from_binary(made.binary()) == made
    assert kind.from_hex(made.hex()) == made
    assert repr(made) == f"{kind.__name__}({made.hex()})"
    assert hash(kind(made.binary())) == hash(made)
    assert pickle.loads(pickle.dumps(made)) == made
    assert kind.nil().is_nil()
    assert kind.nil().hex() == "ff" * size
    assert not made.is_nil()
    assert 0 <= made.redis_shard_hash() < 1 << 64


@pytest.mark.parametrize(("kind", "size"), TYPES)
def test_wrong_bytes_are_refused(kind: type[ids.BaseID], size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes"):
        kind(bytes(size + 1))
    with pytest.raises(ValueError, match=f"{2 * size} hexadecimal"):
        kind.from_hex("xy")
    with pytest.raises(TypeError, match="str"):
        kind("a" * size)  # type: ignore[arg-type]


def test_ids_are_immutable() -> None:
    with pytest.raises(AttributeError):
        JOB._binary = b"1234"
    with pytest.raises(AttributeError):
        del JOB._binary


def test_types_are_never_equal() -> None:
    node = ids.NodeID.from_random()
    assert node != ids.WorkerID(node.binary())
    assert node != node.binary()
    with pytest.raises(TypeError):
        _ = node < ids.WorkerID(node.binary())  # type: ignore[operator]


def test_random_ids_differ() -> None:
    assert len({ids.NodeID.from_random() for _ in range(100)}) == 100
    assert ids.PlacementGroupID.of(JOB) != ids.PlacementGroupID.of(JOB)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_ids_sort_by_number(a: int, b: int) -> None:
    one, two = ids.JobID.from_int(a), ids.JobID.from_int(b)
    assert one.int() == a
    assert (one < two, one <= two, one > two, one >= two) == (a < b, a <= b, a > b, a >= b)


@given(
    st.integers(0, 2**64 - 1), st.binary(min_size=12, max_size=12), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)
)
def test_object_ids_are_the_task_and_an_index(seq: int, process: bytes, job: int, index: int) -> None:
    binary = ids.object_id(seq, process, job, index)
    task = ids.TaskID.of(seq, process, ids.JobID.from_int(job))
    assert binary == task.binary() + index.to_bytes(4, "big")
    assert ids.split_object_id(binary) == (seq, process, job, index)
    assert (task.seq(), task.process(), task.job_id().int()) == (seq, process, job)


def test_ids_that_follow_from_others() -> None:
    parent = ids.TaskID.for_driver_task(JOB)
    actor = ids.ActorID.of(JOB, parent, 1)
    assert actor == ids.ActorID.of(JOB, parent, 1)
    assert actor != ids.ActorID.of(JOB, parent, 2)
    creation = ids.TaskID.for_actor_creation_task(actor)
    call = ids.TaskID.for_actor_task(JOB, parent, 3, actor)
    normal = ids.TaskID.for_normal_task(JOB, parent, 3)
    assert creation.actor_id() == actor
    assert len({creation, call, normal, parent, ids.TaskID.for_fake_task(JOB)}) == 5
    assert all(made.job_id() == JOB for made in (creation, call, normal, ids.PlacementGroupID.of(JOB)))
    assert normal.actor_id().binary()[:12] == b"\xff" * 12
    assert normal.actor_id().job_id == actor.job_id == JOB
