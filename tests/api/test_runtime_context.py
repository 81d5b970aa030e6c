"""``get_runtime_context()`` before and after a session, and names of namespaces."""

from __future__ import annotations

from typing import Any

import pytest

import moray
from tests.support.procs import run_driver


def test_it_starts_a_session_and_outlives_it() -> None:
    code = """
    import os
    import moray
    context = moray.get_runtime_context()
    print(moray.is_initialized(), len(context.get_job_id()), context.get_actor_id())
    try:
        context.nonsense
    except AttributeError as error:
        print(error)
    if not os.fork():
        try:
            moray.get_runtime_context()  # It is nobody's session: nothing to start or to refuse before it is asked.
        finally:
            os._exit(0)
    print(os.wait()[1])
    early = moray.runtime_context.RuntimeContext()
    moray.shutdown()
    for kind, ask in ((RuntimeError, early.get_job_id), (AssertionError, early.get_node_id)):
        try:
            ask()
        except kind as error:
            print("call init() first" in str(error))
    print(moray.is_initialized())
    """
    assert run_driver(code).stdout.splitlines() == [
        "True 8 None", "the runtime context has no attribute 'nonsense'", "0", "True", "True", "False",
    ]  # fmt: skip


@pytest.mark.usefixtures("shared_session")
def test_ids_of_a_task_or_actor_are_there_where_there_is_one() -> None:
    @moray.remote
    def task() -> list[str]:
        return sorted(moray.get_runtime_context().get())

    @moray.remote
    class Actor:
        def ids(self) -> list[str]:
            return sorted(moray.get_runtime_context().get())

    actor: Any = Actor.remote()
    own = ["job_id", "namespace", "node_id"]
    assert sorted(moray.get_runtime_context().get()) == own
    assert moray.get(task.remote(), timeout=20) == [*own, "task_id"]
    assert moray.get(actor.ids.remote(), timeout=20) == ["actor_id", *own, "task_id"]


def test_a_namespace_is_a_filled_string() -> None:
    code = """
    import moray
    for local in (False, True):
        for namespace in (5, b"x", ""):
            try:
                moray.init(num_cpus=1, namespace=namespace, local_mode=local)
            except (TypeError, ValueError) as error:
                print(type(error).__name__, "namespace must" in str(error), moray.is_initialized())
    """
    told = ["TypeError True False", "TypeError True False", "ValueError True False"]
    assert run_driver(code).stdout.splitlines() == told * 2
