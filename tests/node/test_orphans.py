"""What a dead worker had started goes, also what nobody can tell the origin of at that moment (LIVENESS)."""

from __future__ import annotations

import os
import subprocess
import sys

from moray.launch.config import WORKER_VARIABLE
from moray.node.orphans import Orphans
from moray.protocol.reactor import Reactor
from tests.support.procs import is_alive, wait_until

#: Has no environment, as a process in the middle of an exec, until it is told to go on.
STARTING = """
import os, sys
sys.stdin.readline()
os.execve(sys.executable, [sys.executable, "-c", "import time; print(flush=True); time.sleep(1000)"], {tag!r})
"""
#: No process has this number.
DEAD_PID = (1 << 22) + 1


def test_a_child_that_has_no_environment_yet_is_looked_at_again() -> None:
    worker = os.urandom(12)
    code = STARTING.format(tag={WORKER_VARIABLE: worker.hex()})
    command = [sys.executable, "-S", "-c", code]
    reactor = Reactor()
    with subprocess.Popen(command, env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            wait_until(lambda: not _environment(child.pid), what="the child's first exec")
            orphans = Orphans(0, reactor)
            orphans.worker_ended(DEAD_PID, worker)
            reactor.turn(0.2)
            assert is_alive(child.pid), "it may be anybody's"
            child.stdin.write("\n")
            child.stdin.flush()
            child.stdout.readline()

            def ended() -> bool:
                reactor.turn(0.1)
                return not is_alive(child.pid)

            wait_until(ended, what="the end of the child")
        finally:
            child.kill()
            reactor.close()


def _environment(pid: int) -> bytes:
    with open(f"/proc/{pid}/environ", "rb") as file:
        return file.read()
