"""Fixtures of all tests: nobody leaves anything behind, sessions, hypothesis profiles, loud skips.

The `leaks` fixtures hold for every test without asking. A test that shares a session with its module
(`shared_session`) is not looked at by itself, because the session may start workers and open connections at any
time; its module is, when it ends.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.leaks import leaks_since, mark_run, take_snapshot

mark_run()
# An end from outside unwinds like Ctrl-C, so that what tests have started and written goes with them. Processes that
# tests fork die of it as ever: the standard library's Pool ends its workers that way and waits for them.
signal.signal(signal.SIGTERM, signal.default_int_handler)
os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))

# A shell that runs pytest in the background has it ignore SIGINT, and every driver program that a test starts would
# inherit that: no Ctrl-C would reach it, nor this process, which tests interrupt too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

#: CPUs of the sessions that fixtures start.
SESSION_CPUS = 2

# Deadlines would measure the load of the machine; the whole test has a timeout.
settings.register_profile("default", max_examples=50, deadline=None, print_blob=True)
settings.register_profile("dev", max_examples=10, deadline=None, print_blob=True)
# Forty times the default: about five minutes for all machines together, so that
# `make test-long` ends in less than half an hour.
settings.register_profile(
    "long", max_examples=2_000, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(os.environ.get("MORAY_HYPOTHESIS", "default"))


# --- leaks ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def module_leaks() -> Iterator[set[str]]:
    """Fails the module's last test if anything that the module started is left; yields what is known."""
    known = set(take_snapshot().all())
    yield known
    if left := leaks_since(frozenset(known)):
        pytest.fail(_leak_message("this module of tests", left), pytrace=False)


@pytest.fixture(autouse=True)
def leaks(request: pytest.FixtureRequest, module_leaks: set[str]) -> Iterator[None]:
    """Fails the test that left something behind."""
    if "shared_session" in request.fixturenames:
        yield
        return
    before = take_snapshot().all()
    yield
    if left := leaks_since(before):
        # Once is enough: the module's own check does not repeat it.
        module_leaks.update(left)
        pytest.fail(_leak_message("this test", left), pytrace=False)


def _leak_message(who: str, left: list[str]) -> str:
    return "\n".join([f"{who} left behind:", *(f"  {line}" for line in left)])


# --- sessions -----------------------------------------------------------------------------------


def _session() -> Iterator[ModuleType]:
    import moray

    moray.init(num_cpus=SESSION_CPUS)
    try:
        yield moray
    finally:
        moray.shutdown()


@pytest.fixture
def moray_session() -> Iterator[ModuleType]:
    """The module `moray`, with a session of two CPUs for this test alone."""
    yield from _session()


@pytest.fixture(scope="module")
def shared_session(module_leaks: set[str]) -> Iterator[ModuleType]:
    """The module `moray`, with a session of two CPUs that the module's tests share, for speed."""
    yield from _session()


# --- skips ----------------------------------------------------------------------------------------


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Every skip with its reason: a skipped test is a test that did not show anything."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    reasons = Counter(_skip_reason(report) for report in skipped)
    terminalreporter.section(f"{len(skipped)} SKIPPED, and why", yellow=True, bold=True)
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:5} x {reason}", yellow=True)


def _skip_reason(report: Any) -> str:
    longrepr = report.longrepr
    reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    return str(reason).removeprefix("Skipped: ")
