"""Lines that several workers print alike: the first at once, the others as one with their number."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping

import pytest

from tests.support.procs import run_driver

PRELUDE = """
import os, sys, time
import moray
moray.init(num_cpus=4)

@moray.remote
def together(directory, number, text):
    \"\"\"Prints while four of these run, each in a worker of its own.\"\"\"
    open(f"{directory}/{number}", "w").close()
    while not all(os.path.exists(f"{directory}/{i}") for i in range(4)):
        time.sleep(0.01)
    print(text.format(number))
    return os.getpid()

def four(text):
    directory = os.path.abspath(text[:4])
    os.mkdir(directory)
    pids = moray.get([together.remote(directory, number, text) for number in range(4)])
    assert len(set(pids)) == 4, pids
"""


def run(body: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return run_driver(PRELUDE + body, env=env)


def texts(stdout: str) -> list[str]:
    """The workers' lines without their prefix."""
    return re.findall(r"^\(together pid=\d+\) (.*)$", stdout, re.MULTILINE)


def test_alike_lines_of_four_workers_are_one_and_a_number() -> None:
    finished = run('four("loading part {}")\nprint("got them")\nmoray.shutdown()\nprint("end")')
    first, rest = texts(finished.stdout)
    assert re.fullmatch(r"loading part \d", first)
    assert re.fullmatch(r"loading part \d \[repeated 3x across cluster\] \(MORAY_DEDUP_LOGS=0 .*\)", rest)
    order = re.findall(r"got them|repeated|end|loading part \d$", finished.stdout, re.MULTILINE)
    assert order == [first, "got them", "repeated", "end"]


def test_numbers_alone_are_all_printed() -> None:
    finished = run('four("00{}")')
    assert sorted(texts(finished.stdout)) == ["000", "001", "002", "003"]


@pytest.mark.parametrize("variable", ["MORAY_DEDUP_LOGS", "RAY_DEDUP_LOGS"])
def test_switched_off(variable: str) -> None:
    finished = run('four("loading part {}")', {variable: "0"})
    assert sorted(texts(finished.stdout)) == [f"loading part {number}" for number in range(4)]


def test_lines_that_the_user_wants_to_see_all_or_not_at_all() -> None:
    finished = run(
        'four("load {}")\nfour("error {}")\nfour("noise {}")\n',
        {"RAY_DEDUP_LOGS_ALLOW_REGEX": "^err", "RAY_DEDUP_LOGS_SKIP_REGEX": "noise"},
    )
    found = texts(finished.stdout)
    assert len([text for text in found if text.startswith("load")]) == 2
    assert sorted(text for text in found if text.startswith("error")) == [f"error {number}" for number in range(4)]
    assert not [text for text in found if "noise" in text]


def test_a_wrong_expression_is_an_error_of_init() -> None:
    finished = run_driver(
        "import moray\ntry:\n    moray.init(num_cpus=1)\nexcept ValueError as error:\n    print(error)",
        env={"RAY_DEDUP_LOGS_SKIP_REGEX": "("},
    )
    assert "RAY_DEDUP_LOGS_SKIP_REGEX='('" in finished.stdout


@pytest.mark.slow
def test_the_number_comes_while_the_program_waits() -> None:
    """Nobody has to call anything: what was gathered is printed when its time is over."""
    finished = run(
        """
class Watch:
    def __init__(self, stream):
        self.stream = stream
        self.seen = False
    def write(self, text):
        self.seen |= "[repeated 3x across cluster]" in text
        return self.stream.write(text)
    def __getattr__(self, name):
        return getattr(self.stream, name)

sys.stdout = watch = Watch(sys.stdout)
began = time.monotonic()
four("loading part {}")
assert not watch.seen
while not watch.seen and time.monotonic() - began < 30:
    time.sleep(0.01)
print("seen", watch.seen, 4 < time.monotonic() - began < 15)
"""
    )
    assert "seen True True" in finished.stdout


def test_everything_adds_up_when_the_session_ends() -> None:
    finished = run(
        """
@moray.remote
def chatter(who):
    for i in range(200):
        print("step", i, "abc"[i % 3])

moray.get([chatter.remote(who) for who in range(8)])
"""
    )
    lines = re.findall(r"^\(chatter pid=\d+\) step .*$", finished.stdout, re.MULTILINE)
    counts = [re.search(r"\[repeated (\d+)x across cluster\]", line) for line in lines]
    assert sum(int(found[1]) if found else 1 for found in counts) == 8 * 200
