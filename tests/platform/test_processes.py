"""Process control and the process table, on real processes."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from moray.platform import process_control, process_table
from moray.platform.memory_files import create_memory_file, read_all


def in_child(act: Callable[[], object]) -> str:
    """What `act` returned, as text, in a forked child."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write_end, str(act()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as file:
        text = file.read().decode()
    os.waitpid(pid, 0)
    return text


def test_a_name_is_cut_to_what_fits() -> None:
    def act() -> str:
        process_control.set_name("moray:a-very-long-name")
        with open("/proc/self/comm", encoding="ascii") as file:
            return file.read()

    assert in_child(act) == "moray:a-very-lo\n"


def test_a_child_dies_with_its_parent_also_if_that_is_dead_already() -> None:
    read_end, write_end = os.pipe()
    middle = os.fork()
    if middle == 0:
        me = os.getpid()
        for parent in (me, -1):
            if os.fork() == 0:
                process_control.die_with_parent(parent)
                os.write(write_end, b"x")
                time.sleep(100)
                os._exit(0)
        # Only the child whose parent is who it thinks says something, and waits.
        os.close(write_end)
        os.read(read_end, 1)
        os._exit(0)
    os.close(write_end)
    os.waitpid(middle, 0)
    with open(read_end, "rb") as file:
        assert file.read() == b"", "both are gone: the pipe has no writer"


def test_a_pidfd_tells_of_the_end() -> None:
    process = subprocess.Popen(["sleep", "100"])
    pidfd = process_control.open_pidfd(process.pid)
    assert pidfd is not None
    assert not process_control.has_ended(pidfd)
    assert process_control.kill_pidfd(pidfd)
    assert process_control.wait_pidfd(pidfd, 10)
    assert process.wait() == -signal.SIGKILL
    assert not process_control.kill_pidfd(pidfd)
    assert not process_control.kill(process.pid)
    assert process_control.open_pidfd(process.pid) is None
    os.close(pidfd)


def test_our_own_group_is_never_killed() -> None:
    assert not process_control.kill_group(os.getpgrp())
    assert not process_control.kill_group(0)
    assert not process_control.kill_group(1)


def test_a_subreaper_gets_the_orphans() -> None:
    def act() -> bool:
        process_control.become_subreaper()
        read_end, write_end = os.pipe()
        if os.fork() == 0:
            orphan = os.fork()
            if orphan == 0:
                time.sleep(100)
                os._exit(0)
            os.write(write_end, str(orphan).encode())
            os._exit(0)
        os.wait()
        orphan = int(os.read(read_end, 20))
        mine = process_table.children() == [orphan]
        os.kill(orphan, signal.SIGKILL)
        process_control.wait_for_child(10)
        return mine and process_control.reap() == (orphan, -signal.SIGKILL)

    assert in_child(act) == "True"


def test_the_tag_of_a_process_is_its_forks_too() -> None:
    code = (
        "import os, sys\n"
        "from moray.platform import process_control, process_table\n"
        "process_control.retag('MORAY_TEST_TAG', 'bbbb')\n"
        "assert os.environ['MORAY_TEST_TAG'] == 'bbbb'\n"
        "if os.fork() == 0:\n"
        "    sys.exit(not process_table.has_tag(os.getpid(), 'MORAY_TEST_TAG', 'bbbb'))\n"
        "sys.exit(os.wait()[1])\n"
    )
    subprocess.run([sys.executable, "-c", code], env={**os.environ, "MORAY_TEST_TAG": "aaaa"}, check=True)


def test_processes_are_found_by_their_tag() -> None:
    with subprocess.Popen(["sleep", "100"], env={"MORAY_TEST_TAG": "here"}) as process:
        try:
            assert process_table.tagged("MORAY_TEST_TAG", "here") == [process.pid]
            assert process_table.tagged("MORAY_TEST_TAG", "her") == []
            stat = process_table.read_stat(process.pid)
            assert stat is not None
            assert (stat.parent, stat.session) == (os.getpid(), os.getsid(0))
            assert process_table.proportional_memory(process.pid) > 0
        finally:
            process.kill()
    assert process_table.read_stat(process.pid) is None
    assert process_table.children(process.pid) == []


def test_descriptors_are_closed_but_for_the_kept() -> None:
    def act() -> object:
        null = os.open(os.devnull, os.O_RDONLY)
        # Above the pipe to the parent, wherever that is.
        fds = [fcntl.fcntl(null, fcntl.F_DUPFD, 500) for _ in range(5)]
        process_control.close_from(fds[0], (fds[2],))
        return [fd for fd in fds if os.path.exists(f"/proc/self/fd/{fd}")] == [fds[2]]

    assert in_child(act) == "True"


def test_a_memory_file_has_a_content_and_no_name() -> None:
    fd = create_memory_file("moray-test", b"content")
    assert read_all(fd) == b"content"
    os.close(fd)


def test_the_switch_interval_is_set_and_told() -> None:
    before = sys.getswitchinterval()
    assert process_control.set_switch_interval(0.001) == pytest.approx(before)
    assert process_control.set_switch_interval(before) == pytest.approx(0.001)
