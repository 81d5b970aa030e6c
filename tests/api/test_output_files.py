"""Workers' log files are rotated while they are written; nothing is lost on the way to the driver or comes twice."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

from tests.support.procs import run_driver

PRELUDE = """
import os, signal, subprocess, sys, time
from pathlib import Path
import moray
context = moray.init(num_cpus=2)
logs = Path(context.address_info["session_dir"]) / "logs"

def sizes(kind):
    return {path.name.partition(".")[2]: path.stat().st_size for path in logs.iterdir() if f".{kind}" in path.name}
"""
SMALL = {"MORAY_LOG_MAX_BYTES": "20kB", "MORAY_LOG_BACKUPS": "2"}


def run(body: str, env: Mapping[str, str] = SMALL) -> subprocess.CompletedProcess[str]:
    return run_driver(PRELUDE + body, env=env)


def numbers(text: str, word: str) -> list[int]:
    return [int(number) for number in re.findall(rf"^\(\w+ pid=\d+\) {word} (\d+)$", text, re.MULTILINE)]


def test_one_long_task() -> None:
    finished = run(
        """
@moray.remote
def count(n):
    for i in range(n):
        print("number", i)
        if i % 100 == 0:
            print("warning", i, file=sys.stderr)
            time.sleep(0.005)

moray.get(count.remote(20_000))
print("files", sorted(sizes("out")))
print("largest", max(sizes("out").values()))
"""
    )
    assert numbers(finished.stdout, "number") == list(range(20_000))
    assert numbers(finished.stderr, "warning") == list(range(0, 20_000, 100))
    assert "files ['out', 'out.1', 'out.2']" in finished.stdout


def test_many_short_tasks() -> None:
    """The main thread leads between short tasks: the loop rotates there."""
    finished = run(
        """
@moray.remote
def say(i):
    print("number", i)
    print("x" * 200)

for i in range(2000):
    moray.get(say.remote(i))
print("rotated", len(sizes("out")) > 1)
""",
        SMALL | {"MORAY_DEDUP_LOGS": "0"},
    )
    assert numbers(finished.stdout, "number") == list(range(2000))
    assert "rotated True" in finished.stdout


def test_children_of_a_task_go_on_writing() -> None:
    finished = run(
        """
@moray.remote
def parent():
    program = "i=0; while read line; do echo child $i; i=$((i+1)); done"
    child = subprocess.Popen(["sh", "-c", program], stdin=subprocess.PIPE)
    for i in range(100):
        child.stdin.write(b"go\\n")
        child.stdin.flush()
        for k in range(40):
            print("number", i * 40 + k)
        time.sleep(0.005)
    child.stdin.close()
    child.wait()

moray.get(parent.remote())
"""
    )
    assert numbers(finished.stdout, "number") == list(range(4000))
    assert numbers(finished.stdout, "child") == list(range(100))


def test_worker_that_is_killed_after_rotations() -> None:
    finished = run(
        """
@moray.remote(max_retries=0)
def count():
    for i in range(30_000):
        print("number", i)
    print("oops", file=sys.stderr)
    os.kill(os.getpid(), signal.SIGKILL)

for _ in range(5):
    try:
        moray.get(count.remote())
    except moray.exceptions.WorkerCrashedError as error:
        print("told:", "oops" in str(error))
""",
        SMALL | {"MORAY_DEDUP_LOGS": "0"},
    )
    assert numbers(finished.stdout, "number") == list(range(30_000)) * 5
    assert finished.stdout.count("told: True") == 5


def test_files_without_log_to_driver_are_rotated_too() -> None:
    finished = run_driver(
        PRELUDE.replace("num_cpus=2", "num_cpus=2, log_to_driver=False")
        + """
@moray.remote
def count():
    for i in range(12_000):
        print("number", i)
        if i % 100 == 0:
            time.sleep(0.01)

moray.get(count.remote())
print("files", sorted(sizes("out")))
""",
        env=SMALL,
    )
    assert finished.stdout == "files ['out', 'out.1', 'out.2']\n"


def test_the_environment_says_so_by_default() -> None:
    finished = run_driver(
        """
import os
os.environ["RAY_LOG_TO_DRIVER"] = "0"
import moray
moray.init(num_cpus=1)

@moray.remote
def speak():
    print("words", "MORAY_JOB_LOGGING" in os.environ)
    return "MORAY_JOB_LOGGING" in os.environ

print(moray.get(speak.remote()))
"""
    )
    assert finished.stdout == "False\n"


def test_a_wrong_cap_is_an_error_of_init() -> None:
    finished = run_driver(
        "import moray\ntry:\n    moray.init(num_cpus=1)\nexcept ValueError as error:\n    print(error)",
        env={"MORAY_LOG_MAX_BYTES": "much"},
    )
    assert "MORAY_LOG_MAX_BYTES='much'" in finished.stdout
