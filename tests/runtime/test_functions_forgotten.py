"""Functions travel with the first task that uses them, and are not kept for ever (FUNCTIONS)."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import moray
from moray.runtime.executor import FUNCTIONS_KEPT


@moray.remote
def known_functions() -> int:
    from moray.runtime import state

    worker: Any = state.runtime
    return sum(len(functions) for functions in worker.executor._functions.values()) + len(worker.executor._loaded)


def test_a_program_that_makes_functions_without_end_does_not_grow_its_workers(moray_session: ModuleType) -> None:
    for start in range(0, 4 * FUNCTIONS_KEPT, 500):
        refs = [moray.remote(lambda number=number: number).remote() for number in range(start, start + 500)]
        assert moray.get(refs) == list(range(start, start + 500))
    # At most so many definitions, and as many of them unpickled.
    assert moray.get(known_functions.remote()) <= 2 * (FUNCTIONS_KEPT + 500)


def test_a_forgotten_function_comes_again_with_its_next_task(moray_session: ModuleType) -> None:
    first = moray.remote(lambda: "first")
    assert moray.get([first.remote() for _ in range(10)]) == ["first"] * 10
    for start in range(0, 4 * FUNCTIONS_KEPT, 500):
        moray.get([moray.remote(lambda number=number: number).remote() for number in range(start, start + 500)])
        assert moray.get(first.remote()) == "first"
    assert moray.get([first.remote() for _ in range(100)]) == ["first"] * 100
