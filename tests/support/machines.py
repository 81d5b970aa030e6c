"""State machines of hypothesis: a search for faults, and walks that are the same each time."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def searched(machine: type[RuleBasedStateMachine], steps: int = 50) -> Any:
    """The test case of a machine, for pytest to collect: the profile says how many walks, of `steps` at most."""
    machine.TestCase.settings = _search(steps)
    return machine.TestCase


def search(machine: type[RuleBasedStateMachine], steps: int = 50) -> None:
    """Run it once: the profile says how many walks."""
    run_state_machine_as_test(machine, settings=_search(steps))


def walk_fixed(machine: type[RuleBasedStateMachine], walks: int, steps: int = 50) -> None:
    """The same walks each time, and no search for smaller ones: seeded faults are judged by them (tests/mutants)."""
    fixed = settings(_search(steps), max_examples=walks, derandomize=True, database=None, phases=[Phase.generate])
    run_state_machine_as_test(machine, settings=fixed)


def _search(steps: int) -> settings:
    # Rules that rarely apply and large worlds are in the nature of these machines; the test has its own deadline.
    return settings(stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck))
