"""Workers on a real node: how they start, what they are like, how they end (LIVENESS)."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from moray.platform import process_table
from moray.protocol import messages as m
from tests.node.client import DEADLINE_S, Driver, alive, session, tell, wait_for


def test_leases_are_granted_up_to_the_cpus() -> None:
    with session() as (_handle, driver):
        granted = driver.lease(2)
        assert len({grant.worker for grant in granted}) == 2
        assert len({grant.lease for grant in granted}) == 2
        state = driver.state()
        assert state["available"]["CPU"] == 0
        driver.send(m.ReturnLease(granted[0].lease))
        wait_for(lambda: driver.state()["available"]["CPU"] == m.RESOURCE_UNIT, "the CPU is given back")
        assert driver.lease(1, key=2)[0].worker == granted[0].worker, "an idle worker is used again"


def test_a_worker_resembles_its_driver_and_no_other_worker() -> None:
    environ = dict(os.environ) | {"MORAY_TEST_COLOUR": "green"}
    with session() as (handle, driver):
        other = Driver(handle.address, environ=environ, cwd="/", sys_path=[*sys.path, "/nowhere"])
        (theirs,) = other.lease(1, CPU=0)
        mine, second = driver.lease(2)
        assert tell(theirs, "env MORAY_TEST_COLOUR") == "green"
        assert tell(mine, "env MORAY_TEST_COLOUR") == "None"
        assert tell(theirs, "cwd") == "/"
        assert "/nowhere" in tell(theirs, "path")
        assert tell(mine, "env MORAY_SESSION") == handle.session
        assert tell(mine, "random") != tell(second, "random")
        assert len(set(tell(mine, "sid").split())) == 1
        assert tell(mine, "threads") == "1"
        other.shutdown()
        other.close()


def test_a_worker_holds_no_descriptor_of_its_template() -> None:
    with session() as (handle, driver):
        (granted,) = driver.lease(1)
        fds = tell(granted, "fds")
        assert fds.count("socket:") == 3, fds  # The node's, the listener, and ours.
        assert "pidfd" not in fds
        assert "node.lock" not in fds
        assert f"{handle.session_dir}/logs/worker-{granted.worker.hex()[:8]}-{granted.worker_pid}.err" in fds


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("exit 3", 3, "exited with code 3"),
        (f"signal {signal.SIGSEGV}", -signal.SIGSEGV, "killed by SIGSEGV"),
        (f"signal {signal.SIGKILL}", -signal.SIGKILL, "killed by SIGKILL"),
        (f"signal {signal.SIGTERM}", -signal.SIGTERM, "killed by SIGTERM"),
        ("raise flower", 1, "exited with code 1"),
    ],
)
def test_a_death_is_told_with_status_reason_and_last_words(command: str, status: int, words: str) -> None:
    with session() as (_handle, driver):
        victim, witness = driver.lease(2)
        tell(victim, "say some last words")
        tell(victim, command)
        death = driver.expect(m.ProcessDied)
        assert (death.process, death.pid, death.status) == (victim.worker, victim.worker_pid, status)
        assert words in death.reason
        assert "some last words" in death.stderr
        if command.startswith("raise"):
            assert "ValueError: flower" in death.stderr
        if status == -signal.SIGSEGV:
            assert "Segmentation fault" in death.stderr
        assert alive(witness.worker_pid)
        # Its CPU is free again, and a new worker takes its place.
        assert driver.lease(1, key=2)[0].worker != victim.worker


def test_a_closed_connection_is_not_a_death_until_it_stays_closed() -> None:
    with session(system_config={"worker_reconnect_s": 0.2}) as (_handle, driver):
        (granted,) = driver.lease(1)
        driver.send(m.RequestLeases(1, 0, 1, {"CPU": 1}))
        # A frame that is none makes the node hang up on whoever sent it; a live worker without a node is useless.
        tell(granted, "garbage")
        death = driver.expect(m.ProcessDied)
        assert death.process == granted.worker
        assert "connection was lost" in death.reason


def test_the_end_of_a_worker_takes_its_children_along() -> None:
    with session() as (_handle, driver):
        victim, witness = driver.lease(2)
        child, daemon = int(tell(victim, "sleep-child")), int(tell(victim, "daemon"))
        kept = int(tell(witness, "daemon"))
        assert process_table.has_tag(daemon, "MORAY_WORKER", victim.worker.hex())
        tell(victim, "exit 0")
        driver.expect(m.ProcessDied)
        wait_for(lambda: not alive(child) and not alive(daemon), "children and daemons of the dead worker are gone")
        assert alive(kept), "what a living worker detached is left alone"
        assert alive(witness.worker_pid)
    wait_for(lambda: not alive(kept), "the session's end ends it")


def test_revocation_frees_a_worker_for_another_driver() -> None:
    with session() as (handle, driver):
        driver.lease(2)
        other = Driver(handle.address)
        other.request(1)
        driver.expect(m.LeaseRevoked)
        other.expect(m.LeaseGranted)
        other.shutdown()
        other.close()


def test_blocked_workers_lend_their_cpus() -> None:
    with session(resources={"CPU": m.RESOURCE_UNIT}) as (_handle, driver):
        (outer,) = driver.lease(1)
        tell(outer, "blocked")
        wait_for(lambda: driver.state()["available"]["CPU"] == m.RESOURCE_UNIT, "the CPU is lent")
        (inner,) = driver.lease(1, key=2)
        tell(outer, "unblocked")
        wait_for(lambda: driver.state()["available"]["CPU"] == -m.RESOURCE_UNIT, "the account is negative")
        driver.send(m.ReturnLease(inner.lease))
        wait_for(lambda: driver.state()["available"]["CPU"] == 0, "it is even again")


def test_an_infeasible_request_is_refused_with_the_reason() -> None:
    with session() as (_handle, driver):
        driver.request(1, unobtainium=1)
        refused = driver.expect(m.LeaseRefused)
        assert refused.infeasible
        assert "unobtainium" in refused.reason
        assert driver.state()["pending"]


def test_a_discarded_worker_ends_and_a_hanging_one_is_killed() -> None:
    with session(system_config={"worker_stop_grace_s": 0.2}) as (_handle, driver):
        polite, stubborn = driver.lease(2)
        tell(stubborn, "hang")
        driver.send(m.ReturnLease(polite.lease, discard=True))
        driver.send(m.ReturnLease(stubborn.lease, discard=True))
        deaths = {death.process: death for death in (driver.expect(m.ProcessDied), driver.expect(m.ProcessDied))}
        assert deaths[polite.worker].status == 0
        assert deaths[stubborn.worker].status == -signal.SIGKILL
        assert "ended by the node" in deaths[polite.worker].reason


def test_a_worker_that_cannot_start_is_refused_with_the_reason() -> None:
    with session(worker_entry="tests.node.standin:absent") as (_handle, driver):
        driver.request(1)
        refused = driver.expect(m.LeaseRefused)
        assert not refused.infeasible
        assert "absent" in refused.reason


def test_a_preloaded_module_that_fails_is_refused_with_its_traceback() -> None:
    with session() as (handle, driver):
        other = Driver(handle.address, preload=["tests.node.modules.broken"])
        other.request(1)
        assert "ZeroDivisionError" in other.expect(m.LeaseRefused).reason
        assert driver.lease(1), "other jobs go on"
        other.shutdown()
        other.close()


def test_a_preloaded_module_with_threads_is_imported_after_the_fork() -> None:
    preload = ["tests.node.modules.plain", "tests.node.modules.threaded"]
    with session() as (handle, _driver):
        other = Driver(handle.address, preload=preload)
        (granted,) = other.lease(1)
        assert tell(granted, "module tests.node.modules.plain") == "True"
        assert tell(granted, "module tests.node.modules.threaded") == "True"
        assert tell(granted, "threads") == "2"
        other.shutdown()
        other.close()


def test_variables_that_work_at_exec_only_get_a_fresh_interpreter() -> None:
    environ = dict(os.environ) | {"PYTHONHASHSEED": "7"}
    with session() as (handle, driver):
        (plain,) = driver.lease(1)
        other = Driver(handle.address, environ=environ)
        (granted,) = other.lease(1)
        assert tell(granted, "env PYTHONHASHSEED") == "7"
        assert process_table.has_tag(granted.worker_pid, "PYTHONHASHSEED", "7")
        assert not process_table.has_tag(plain.worker_pid, "PYTHONHASHSEED", "7")
        assert process_table.has_tag(granted.worker_pid, "MORAY_WORKER", granted.worker.hex())
        other.shutdown()
        other.close()
        wait_for(lambda: not alive(granted.worker_pid), "its job has ended")


def test_a_missing_interpreter_is_said() -> None:
    with session() as (handle, _driver):
        other = Driver(handle.address, executable="/nowhere/python")
        other.request(1)
        assert "/nowhere/python" in other.expect(m.LeaseRefused).reason
        other.shutdown()
        other.close()


def test_a_dead_template_takes_its_workers_along_and_is_replaced() -> None:
    with session() as (_handle, driver):
        (granted,) = driver.lease(1)
        stat = process_table.read_stat(granted.worker_pid)
        assert stat is not None
        os.kill(stat.parent, signal.SIGKILL)
        death = driver.expect(m.ProcessDied)
        assert (death.process, death.status) == (granted.worker, -signal.SIGKILL)
        assert driver.lease(1, key=2)[0].worker != granted.worker


def test_a_runtime_environment_sets_variables() -> None:
    with session() as (_handle, driver):
        (granted,) = driver.lease(1, runtime_env='{"env_vars": {"MORAY_TEST_COLOUR": "red"}}')
        assert tell(granted, "env MORAY_TEST_COLOUR") == "red"
        driver.request(1, key=2, runtime_env='{"conda": "no"}')
        assert "conda" in driver.expect(m.LeaseRefused).reason


def test_forks_take_milliseconds(capsys: pytest.CaptureFixture[str]) -> None:
    import time

    with session(resources={"CPU": 64 * m.RESOURCE_UNIT}) as (_handle, driver):
        driver.lease(1)  # The template is ready.
        begun = time.perf_counter()
        granted = driver.lease(20, key=2)
        each = (time.perf_counter() - begun) / 20
        with capsys.disabled():
            print(f"\n[a worker from request to lease: {each * 1e3:.1f} ms each, 20 at once]")
        assert len({grant.worker_pid for grant in granted}) == 20
        assert each < DEADLINE_S / 100
