"""Sessions: however they end, nothing of them is left."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moray.launch import local, session_directory
from moray.launch.config import NodeConfig
from moray.launch.local import NodeStartError, find_sessions, start_node, sweep_stale
from moray.platform import process_table
from moray.protocol import messages as m
from moray.protocol.handshake import connect, receive_blocking, send_blocking
from tests.node.client import STANDIN, Driver, alive, running_node, session, tell, wait_for
from tests.support.procs import run_driver

#: A program that starts a session, says its name, and waits to be killed.
DRIVER_PROGRAM = """
import sys
sys.path[:0] = {path!r}
from tests.node.client import *
handle = start_node(NodeConfig(worker_entry=STANDIN, resources={{"CPU": 20000}}))
print(handle.session, handle.pid, flush=True)
driver = Driver(handle.address)
granted = driver.lease(2)
tell(granted[0], "sleep-child"), tell(granted[1], "daemon")
print("ready", flush=True)
time.sleep(1000)
"""


def nothing_left(name: str) -> bool:
    return not process_table.tagged("MORAY_SESSION", name) and not list_directories(name)


def list_directories(name: str) -> list[str]:
    root = session_directory.root_directory()
    return [entry for entry in (os.listdir(root) if os.path.isdir(root) else []) if name in entry]


def start_program() -> tuple[subprocess.Popen[str], str, int]:
    program = subprocess.Popen(
        [sys.executable, "-c", DRIVER_PROGRAM.format(path=sys.path)], stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    name, pid = program.stdout.readline().split()
    return program, name, int(pid)


def test_shutdown_leaves_nothing_and_says_so_last() -> None:
    with session() as (handle, driver):
        workers = [granted.worker_pid for granted in driver.lease(2)]
        begun = time.perf_counter()
        driver.shutdown()
        took = time.perf_counter() - begun
        # Said after everything is gone: no waiting here.
        assert not any(map(alive, workers))
        assert not os.path.exists(handle.session_dir)
        assert handle.wait_ended(10)
        assert handle.status == 0
        assert nothing_left(handle.session)
        assert took < 5
        print(f"shutdown took {took * 1e3:.0f} ms")


@pytest.mark.parametrize("moment", ["at once", "ready"])
def test_the_death_of_the_driver_leaves_nothing(moment: str) -> None:
    program, name, _pid = start_program()
    assert program.stdout is not None
    if moment == "ready":
        assert program.stdout.readline() == "ready\n"
        assert len(process_table.tagged("MORAY_SESSION", name)) >= 7
    program.kill()
    program.wait()
    program.stdout.close()
    wait_for(lambda: nothing_left(name), "the session has ended with its driver")


def test_a_driver_that_dies_while_its_node_starts_leaves_nothing() -> None:
    code = (
        f"import sys, os; sys.path[:0] = {sys.path!r}\n"
        "from moray.launch import local\n"
        "local._wait_ready = lambda *_: os.kill(os.getpid(), 9)\n"
        "spawn = local._spawn\n"
        "local._spawn = lambda config, fd: (print(config.session, flush=True), spawn(config, fd))[1]\n"
        "local.start_node(local.NodeConfig())\n"
    )
    program = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=False)
    assert program.returncode == -signal.SIGKILL
    name = program.stdout.strip()
    assert name.startswith("session_")
    wait_for(lambda: nothing_left(name), "the node finds its driver dead")


def test_a_node_that_nobody_waits_for_any_more_leaves_nothing() -> None:
    path = session_directory.new_path(session_directory.root_directory(), os.getpid())
    name = os.path.basename(path)
    config = NodeConfig(session=name, session_dir=path, driver_pid=os.getpid())
    pid, ready = local._spawn(config, 2)
    os.close(ready)
    assert os.waitpid(pid, 0) == (pid, 0)
    assert nothing_left(name)


def test_the_death_of_the_node_ends_its_workers_and_is_swept() -> None:
    with session() as (handle, driver):
        granted = driver.lease(2)
        child = int(tell(granted[0], "daemon"))
        os.kill(handle.pid, signal.SIGKILL)
        assert handle.wait_ended(10)
        assert handle.status == -signal.SIGKILL
        wait_for(lambda: not any(alive(grant.worker_pid) for grant in granted), "workers die with their node")
        assert alive(child)
        assert handle.session in sweep_stale()
        wait_for(lambda: nothing_left(handle.session), "the next start removes what is left")


def test_sigterm_is_an_orderly_end_and_sigint_is_none() -> None:
    with session() as (handle, driver):
        driver.lease(1)
        os.kill(handle.pid, signal.SIGINT)
        driver.state()
        os.kill(handle.pid, signal.SIGTERM)
        driver.expect(m.ShutdownDone)
        assert handle.wait_ended(10)
        assert handle.status == 0
        assert nothing_left(handle.session)


def test_a_further_driver_ends_only_its_job() -> None:
    with session(resources={"CPU": 4 * m.RESOURCE_UNIT}) as (handle, driver):
        (mine,) = driver.lease(1)
        other = Driver(handle.address)
        assert other.welcome.job_id == driver.welcome.job_id + 1
        theirs = other.lease(2)
        child = int(tell(theirs[0], "daemon"))
        other.shutdown()
        assert not any(alive(granted.worker_pid) for granted in theirs)
        other.close()
        wait_for(lambda: not alive(child), "what its workers started is gone")
        assert alive(mine.worker_pid)
        state = driver.state()
        assert state["available"]["CPU"] == 3 * m.RESOURCE_UNIT
        assert [job["job"] for job in state["jobs"]] == [driver.welcome.job_id]
        assert len(process_table.children(handle.pid)) == 1, "only the template is left"


def test_the_death_of_a_further_driver_ends_only_its_job() -> None:
    code = (
        f"import sys; sys.path[:0] = {sys.path!r}\n"
        "from tests.node.client import *\n"
        "driver = Driver(sys.argv[1])\n"
        "print(*[granted.worker_pid for granted in driver.lease(2)], flush=True)\n"
        "time.sleep(1000)\n"
    )
    with session(resources={"CPU": 4 * m.RESOURCE_UNIT}) as (handle, driver):
        (mine,) = driver.lease(1)
        program = subprocess.Popen([sys.executable, "-c", code, handle.address], stdout=subprocess.PIPE, text=True)
        assert program.stdout is not None
        workers = [int(pid) for pid in program.stdout.readline().split()]
        # LIVENESS: a fork of the driver holds its socket open; its death counts all the same.
        program.kill()
        program.wait()
        program.stdout.close()
        wait_for(lambda: not any(map(alive, workers)), "its workers end")
        wait_for(lambda: len(driver.state()["jobs"]) == 1, "its job ends")
        assert alive(mine.worker_pid)


def test_the_objects_of_a_dead_owner_are_freed() -> None:
    with session() as (_handle, driver):
        (owner,) = driver.lease(1)
        name = b"\0" * 7 + b"\1" + owner.worker + driver.welcome.job_id.to_bytes(4, "big") + b"\0" * 4
        driver.send(m.CreateObject(1, name, 1_000_000))
        driver.expect(m.ObjectCreated)
        driver.send(m.SealObject(2, name))
        driver.expect(m.StoreDone)
        used = driver.state()["store"]
        tell(owner, "exit 0")
        driver.expect(m.ProcessDied)
        assert driver.state()["store"] != used
        driver.send(m.PinObject(3, name))
        another = b"\0" * 7 + b"\2" + owner.worker + driver.welcome.job_id.to_bytes(4, "big") + b"\0" * 4
        driver.send(m.CreateObject(4, another, 1_000_000))
        driver.expect(m.ObjectCreated)
        driver.send(m.SealObject(5, another))
        driver.expect(m.StoreDone)
        assert driver.state()["store"]["objects"] == 0


# --- starting ------------------------------------------------------------------------------------


def test_a_node_that_cannot_start_tells_its_last_words() -> None:
    before = process_table.children()
    with pytest.raises(NodeStartError, match=r"(?s)last lines of its log.*Expected `float`"):
        start_node(NodeConfig(system_config={"handshake_timeout_s": "soon"}))
    assert process_table.children() == before
    with pytest.raises(NodeStartError, match="not ready after 0 s"):
        start_node(NodeConfig(), timeout_s=0)
    assert process_table.children() == before


def test_an_unknown_setting_is_ignored() -> None:
    with session(system_config={"some_setting_of_ray": 1}) as (_handle, driver):
        assert driver.state()["total"]["CPU"] == 2 * m.RESOURCE_UNIT


def test_what_is_not_said_is_detected() -> None:
    with session(resources={}) as (_handle, driver):
        assert driver.welcome.resources["CPU"] >= m.RESOURCE_UNIT
        assert driver.welcome.resources["memory"] > 0
        assert driver.welcome.arena_bytes > 1 << 20


def test_sessions_are_found_newest_first() -> None:
    with running_node() as older, running_node() as newer:
        ours = [found.session for found in find_sessions() if found.session in {older.session, newer.session}]
        assert ours == [newer.session, older.session]
        assert find_sessions()[0].address == newer.address
    assert not {older.session, newer.session} & {found.session for found in find_sessions()}


def test_a_directory_may_have_a_path_of_any_length(tmp_path: Path) -> None:
    deep = tmp_path / ("x" * 200) / ("y" * 200)
    code = f"""
import moray, numpy
moray.init(num_cpus=2, _temp_dir={str(deep)!r})

@moray.remote
class Sum:
    def of(self, values):
        return float(moray.get(total.remote(values)))

@moray.remote
def total(values):
    return values.sum()

print(moray.get(Sum.remote().of.remote(numpy.ones(1_000_000))))
"""
    assert run_driver(code).stdout.split() == ["1000000.0"]


def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "moray"
    root.mkdir(mode=0o755)
    with pytest.raises(PermissionError, match="mode 0700"):
        session_directory.create(session_directory.new_path(str(root), 1))


def test_sessions_in_a_directory_of_somebody_else_are_neither_found_nor_swept(tmp_path: Path) -> None:
    """Who makes the directory before its user does could have drivers connect to a socket of his, and name processes
    that are killed."""
    session_dir = session_directory.new_path(session_directory.root_directory(str(tmp_path)), 1)
    lock = session_directory.create(session_dir)
    Path(session_dir, session_directory.NODE_SOCKET).touch()
    root = os.path.dirname(session_dir)

    def found() -> list[str]:
        return [session.session_dir for session in find_sessions(str(tmp_path))]

    assert found() == [session_dir]
    for mode in (0o770, 0o707):
        os.chmod(root, mode)
        assert not found()
    os.chmod(root, 0o700)
    elsewhere = tmp_path / "elsewhere"
    os.rename(root, elsewhere)
    os.symlink(elsewhere, root)
    assert not found()
    os.unlink(root)
    os.rename(elsewhere, root)
    os.close(lock)
    if not os.geteuid():
        os.chown(root, 12345, 12345)
        assert not sweep_stale(str(tmp_path))
        os.chown(root, 0, 0)
    assert sweep_stale(str(tmp_path)) == [os.path.basename(session_dir)]


def test_who_tidies_temporary_directories_sees_that_it_is_in_use() -> None:
    with running_node() as handle:
        held = os.open(os.path.dirname(handle.address), os.O_RDONLY | os.O_DIRECTORY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(held)


@pytest.mark.long
def test_fifty_sessions_leave_nothing() -> None:
    fds = len(os.listdir("/proc/self/fd"))
    starts, ends = [], []
    for _ in range(50):
        begun = time.perf_counter()
        handle = start_node(NodeConfig(worker_entry=STANDIN))
        starts.append(time.perf_counter() - begun)
        driver = Driver(handle.address)
        begun = time.perf_counter()
        driver.shutdown()
        assert handle.wait_ended(10)
        ends.append(time.perf_counter() - begun)
        driver.close()
        assert nothing_left(handle.session)
    assert len(os.listdir("/proc/self/fd")) == fds
    print(f"start {sorted(starts)[25] * 1e3:.0f} ms, end {sorted(ends)[25] * 1e3:.0f} ms (medians)")


# --- clients that misbehave ---------------------------------------------------------------------------


def test_silent_and_hostile_clients_delay_nobody() -> None:
    with session(system_config={"handshake_timeout_s": 0.5}) as (handle, driver):
        silent = [connect(handle.address) for _ in range(50)]
        halves = connect(handle.address)
        halves.sendall(b"\x10\0\0\0\1\0")
        begun = time.perf_counter()
        driver.state()
        assert time.perf_counter() - begun < 0.5, "they cost a timer and a descriptor"
        for hostile, words in (
            (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "protocol"),
            (b"\xff\xff\xff\x7f\1\0\0\0", "at most"),
            (b"\x04\0\0\0\1\0\0\0\xc1\xc1\xc1\xc1", "MessagePack"),
            (b"\x04\0\0\0\x63\0\0\0\xc1\xc1\xc1\xc1", "protocol 99"),
        ):
            with connect(handle.address) as sock:
                sock.sendall(hostile)
                answer, _fds, _rest = receive_blocking(sock)
                assert isinstance(answer, m.Refused)
                assert words in answer.reason
                assert sock.recv(1) == b""
        for sock in [*silent, halves]:
            assert isinstance(receive_blocking(sock)[0], m.Refused), "in the end they are refused"
            sock.close()
        driver.state()


def test_a_client_must_be_who_it_says() -> None:
    with session() as (handle, driver):
        (granted,) = driver.lease(1)
        impostors = [
            m.Hello(m.PROTOCOL_VERSION, "driver", b"x" * 12, 1, "", None),
            m.Hello(m.PROTOCOL_VERSION, "worker", granted.worker, os.getpid(), "", None, 1),
            m.Hello(m.PROTOCOL_VERSION, "worker", b"x" * 12, os.getpid(), "", None, 1),
            m.Hello(m.PROTOCOL_VERSION, "peer", b"x" * 12, os.getpid(), "", None, 1),
            m.Hello(m.PROTOCOL_VERSION + 1, "driver", b"x" * 12, os.getpid(), "", None),
        ]
        for hello in impostors:
            with connect(handle.address) as sock:
                send_blocking(sock, hello)
                assert isinstance(receive_blocking(sock)[0], m.Refused)
        driver.send(m.Welcome(1, "", "", b"", 1, 1, 1, {}, ""))
        with pytest.raises((EOFError, ConnectionResetError)):
            driver.expect(m.ShutdownDone)


def test_a_driver_resumes_with_a_new_connection() -> None:
    with session() as (handle, driver):
        (granted,) = driver.lease(1)
        driver.sock.shutdown(socket.SHUT_RDWR)
        tell(granted, "exit 5")
        wait_for(lambda: not alive(granted.worker_pid), "the worker ends while its driver is away")
        again = Driver(handle.address, driver.process)
        assert again.welcome.job_id == driver.welcome.job_id
        assert again.expect(m.ProcessDied).status == 5
        again.close()


# --- idleness ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_idle_node_hardly_wakes_up_and_is_small(capsys: pytest.CaptureFixture[str]) -> None:
    with session() as (handle, driver):
        driver.lease(2)
        driver.send(m.ReturnLease(1))
        driver.send(m.ReturnLease(2))
        driver.state()
        (root,) = process_table.children(handle.pid)
        (job,) = process_table.children(root)
        before = [switches(pid) for pid in (handle.pid, root, job)]
        time.sleep(2)
        woken = [switches(pid) - count for pid, count in zip((handle.pid, root, job), before, strict=True)]
        sizes = [process_table.proportional_memory(pid) / 1e6 for pid in (handle.pid, root, job)]
        with capsys.disabled():
            print(f"\n[PSS of node, template, job template: {', '.join(f'{size:.1f}' for size in sizes)} MB]")
        assert woken[0] <= 3
        assert woken[1:] == [0, 0]
        assert sizes[0] < 20


def switches(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("voluntary_ctxt_switches"):
            return int(line.split()[1])
    raise ProcessLookupError(pid)
