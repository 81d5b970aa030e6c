"""nodes(), cluster_resources(), available_resources(), and the context of tasks and actors."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

import moray
from tests.support.procs import wait_until


@pytest.fixture(scope="module")
def session(module_leaks: set[str]) -> Iterator[ModuleType]:
    moray.init(num_cpus=2, num_gpus=2, resources={"token": 3}, labels={"zone": "here"}, object_store_memory=100 << 20)
    try:
        yield moray
    finally:
        moray.shutdown()


@pytest.fixture(autouse=True)
def shared_session(session: ModuleType) -> ModuleType:
    return session


# --- the cluster -------------------------------------------------------------------------------


def test_nodes_have_the_keys_that_programs_look_for() -> None:
    (node,) = moray.nodes()
    assert node["NodeID"] == moray.get_runtime_context().get_node_id()
    assert node["Alive"] is True
    assert node["alive"] is True
    assert node["NodeManagerAddress"] == "127.0.0.1"
    assert node["NodeManagerHostname"] == socket.gethostname()
    assert node["Resources"] == moray.cluster_resources()
    assert node["Labels"] == {"ray.io/node-id": node["NodeID"], "zone": "here"}
    for name in ("NodeManagerPort", "ObjectManagerPort", "MetricsExportPort", "RayletSocketName", "NodeName"):
        assert name in node


def test_resources_name_the_node() -> None:
    total = moray.cluster_resources()
    assert total["node:127.0.0.1"] == 1.0
    assert total["node:__internal_head__"] == 1.0
    assert (total["CPU"], total["GPU"], total["token"]) == (2.0, 2.0, 3.0)
    wait_until(lambda: moray.available_resources().keys() == total.keys(), what="everything free")


@pytest.mark.parametrize("name", ["node:127.0.0.1", "node:__internal_head__"])
def test_tasks_and_actors_can_be_sent_to_the_node(name: str) -> None:
    assert moray.get(moray.remote(os.getpid).options(resources={name: 0.01}).remote(), timeout=20)

    class Actor:
        def free(self) -> float:
            return moray.available_resources()[name]

    actor = moray.remote(Actor).options(resources={name: 0.01}).remote()
    assert moray.get(actor.free.remote(), timeout=20) <= 0.99


# --- the context --------------------------------------------------------------------------------


def context() -> dict[str, Any]:
    here = moray.get_runtime_context()
    return {
        "task": here.get_task_id(),
        "name": here.get_task_name(),
        "function": here.get_task_function_name(),
        "actor": here.get_actor_id(),
        "worker": here.get_worker_id(),
        "resources": here.get_assigned_resources(),
        "canceled": here.is_canceled(),
    }


class Plain:
    def context(self) -> dict[str, Any]:
        return context()

    def gpus(self) -> tuple[list[int], list[str], str | None]:
        devices = moray.get_runtime_context().get_accelerator_ids()["GPU"]
        return moray.get_gpu_ids(), devices, os.environ.get("CUDA_VISIBLE_DEVICES")

    def reconstructed(self) -> bool:
        return moray.get_runtime_context().was_current_actor_reconstructed


class Waiting:
    def __init__(self) -> None:
        self.begun = 0

    def context(self) -> dict[str, Any]:
        self.begun += 1
        deadline = time.monotonic() + 20
        while self.begun < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        return context()

    def until_canceled(self) -> bool:
        self.begun += 1
        here = moray.get_runtime_context()
        deadline = time.monotonic() + 20
        while not here.is_canceled() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.seen = here.is_canceled()
        return True

    def get(self, name: str) -> Any:
        return getattr(self, name, None)


class AsyncWaiting:
    def __init__(self) -> None:
        self.begun = 0
        self.both = asyncio.Event()

    async def context(self) -> dict[str, Any]:
        self.begun += 1
        if self.begun == 2:
            self.both.set()
        await self.both.wait()
        return context()


def test_of_tasks() -> None:
    ref = moray.remote(context).options(name="mine", num_cpus=2, resources={"token": 1}).remote()
    found = moray.get(ref)
    assert found["task"] == ref.task_id().hex()
    assert (found["name"], found["function"], found["actor"]) == ("mine", "context", None)
    assert found["resources"] == {"CPU": 2.0, "token": 1.0}
    assert found["canceled"] is False
    assert moray.get(moray.remote(context).remote())["resources"] == {"CPU": 1.0}
    assert context()["task"] is None


def test_of_actors() -> None:
    actor = moray.remote(Plain).options(num_cpus=1, resources={"token": 2}).remote()
    refs = [actor.context.remote() for _ in range(2)]
    found = moray.get(refs)
    assert [each["task"] for each in found] == [ref.task_id().hex() for ref in refs]
    assert {each["actor"] for each in found} == {actor._actor_id.hex()}
    assert found[0]["resources"] == {"CPU": 1.0, "token": 2.0}


@pytest.mark.parametrize("kind", [Waiting, AsyncWaiting])
def test_calls_that_run_at_once_have_their_own_task_ids(kind: type) -> None:
    actor = moray.remote(kind).options(max_concurrency=2).remote()  # type: ignore[var-annotated]
    refs = [actor.context.remote(), actor.context.remote()]
    assert [each["task"] for each in moray.get(refs)] == [ref.task_id().hex() for ref in refs]


def test_threads_can_see_that_they_are_cancelled() -> None:
    actor = moray.remote(Waiting).options(max_concurrency=3).remote()
    first = actor.until_canceled.remote()
    wait_until(lambda: moray.get(actor.get.remote("begun")) == 1, what="the call's begin")
    moray.cancel(first)
    wait_until(lambda: moray.get(actor.get.remote("seen")) is True, what="is_canceled()")
    assert moray.get(moray.remote(context).remote())["canceled"] is False


def test_gpus_of_actors() -> None:
    actors = [moray.remote(Plain).options(num_gpus=1).remote() for _ in range(2)]
    found = moray.get([actor.gpus.remote() for actor in actors])
    assert sorted(each[0] for each in found) == [[0], [1]]
    for ids, devices, visible in found:
        assert devices == [str(ids[0])]
        assert visible == str(ids[0])
    assert moray.get_gpu_ids() == []


def test_restarted_actors_know_it() -> None:
    actor = moray.remote(Plain).options(max_restarts=1, max_task_retries=-1).remote()
    assert moray.get(actor.reconstructed.remote()) is False
    moray.kill(actor, no_restart=False)
    wait_until(lambda: moray.get(actor.reconstructed.remote(), timeout=20) is True, what="the restart")
    with pytest.raises(RuntimeError, match="does not run in an actor"):
        assert moray.get_runtime_context().was_current_actor_reconstructed
