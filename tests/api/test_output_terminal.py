"""What a person sees on a terminal: colours, and progress bars of many workers below everything else."""

from __future__ import annotations

import re

import pytest

from tests.support.procs import run_driver
from tests.support.terminal import run_on_terminal

SPEAK = """
import moray
moray.init(num_cpus=1)

@moray.remote
def speak():
    print("words")

moray.get(speak.remote())
"""

BARS = """
import os, sys, time
import moray
from moray.experimental import tqdm_ray
moray.init(num_cpus=3)
"""


# --- colours ---------------------------------------------------------------------------------------------


def test_prefix_is_coloured_on_a_terminal() -> None:
    text, lines = run_on_terminal(SPEAK)
    assert re.search(r"\x1b\[\d+m\(speak pid=\d+\)\x1b\[0m words", text)
    assert [line for line in lines if re.fullmatch(r"\(speak pid=\d+\) words", line)]


@pytest.mark.parametrize("env", [{"NO_COLOR": "1"}, {"RAY_COLOR_PREFIX": "0"}, {"TERM": "dumb"}], ids=str)
def test_no_colours_if_not_wanted(env: dict[str, str]) -> None:
    text, _lines = run_on_terminal(SPEAK, env=env)
    assert "\x1b" not in text
    assert "words" in text


def test_colours_that_are_asked_for_win_over_no_color() -> None:
    text, _lines = run_on_terminal(SPEAK, env={"NO_COLOR": "1", "RAY_COLOR_PREFIX": "1"})
    assert "\x1b[" in text


def test_no_colours_where_there_is_no_terminal() -> None:
    finished = run_driver(SPEAK, env={"RAY_COLOR_PREFIX": "1"})
    assert "\x1b" not in finished.stdout + finished.stderr
    assert "words" in finished.stdout


def test_a_worker_keeps_its_colour() -> None:
    text, _lines = run_on_terminal(SPEAK + "for _ in range(3):\n    moray.get(speak.remote())\n")
    by_pid: dict[str, set[str]] = {}
    for code, pid in re.findall(r"\x1b\[(\d+)m\(speak pid=(\d+)\)", text):
        by_pid.setdefault(pid, set()).add(code)
    assert by_pid
    assert all(len(codes) == 1 for codes in by_pid.values())


# --- bars ----------------------------------------------------------------------------------------------------


def test_bars_of_many_workers_do_not_tear() -> None:
    text, lines = run_on_terminal(
        BARS
        + """
@moray.remote
def work(i):
    print("begin", "abcdef"[i])
    for k in tqdm_ray.tqdm(range(30), desc=f"part {i}", position=i, flush_interval_s=0.01):
        time.sleep(0.01)
        if k % 10 == 9:
            print("abcdef"[i], "reached", "xyz"[k // 10])
            print("abcdef"[i], "warns", "xyz"[k // 10], file=sys.stderr)

refs = [work.remote(i) for i in range(6)]
bar = tqdm_ray.tqdm(total=6, desc="all", position=10)
while refs:
    done, refs = moray.wait(refs)
    bar.update(len(done))
    tqdm_ray.safe_print("done:", 6 - len(refs))
bar.close()
moray.shutdown()
print("end")
""",
        columns=100,
        rows=12,
    )
    assert text.count("\x1b[J") > 10
    worker = r"\(work pid=\d+\) "
    expected = [rf"{worker}begin {letter}" for letter in "abcdef"]
    expected += [
        rf"{worker}{letter} {verb} {mark}" for letter in "abcdef" for mark in "xyz" for verb in ("reached", "warns")
    ]
    expected += [rf"{worker}part {i}: 100% \|█+\| 30/30 \[\S+, \S+ it/s\]" for i in range(6)]
    expected += [rf"done: {i}" for i in range(1, 7)] + [r"all: 100% \|█+\| 6/6 \[\S+, \S+ it/s\]", "end", ""]
    for pattern in expected:
        found = [line for line in lines if re.fullmatch(pattern, line)]
        assert len(found) == 1, (pattern, found, lines)
    assert len(lines) == len(expected), lines
    assert lines[-2:] == ["end", ""]


def test_worker_that_dies_leaves_no_bar() -> None:
    text, lines = run_on_terminal(
        BARS
        + """
@moray.remote(max_retries=0)
def die():
    bar = tqdm_ray.tqdm(total=10, desc="doomed")
    bar.update(5)
    bar.refresh()
    print("last words", flush=True)
    time.sleep(0.3)  # So that it is seen.
    os._exit(1)

@moray.remote
def outer():
    \"\"\"The bar's way to the driver leads through this worker, which lives.\"\"\"
    try:
        moray.get(die.remote())
    except moray.exceptions.WorkerCrashedError:
        print("it died")

moray.get(outer.remote())
for number in range(3):
    print("after", number)
"""
    )
    assert "doomed:  50%" in text
    assert not [line for line in lines if "doomed" in line]
    assert [line for line in lines if line.endswith("it died")]
    assert [line for line in lines if line.startswith("after")] == ["after 0", "after 1", "after 2"]


def test_bar_that_is_left_ends_with_its_task_s_work() -> None:
    _text, lines = run_on_terminal(
        BARS
        + """
@moray.remote
def search():
    for k in tqdm_ray.tqdm(range(100), desc="searching"):
        if k == 50:
            return k

assert moray.get(search.remote()) == 50
moray.shutdown()
print("end")
"""
    )
    found = [line for line in lines if "searching" in line]
    assert len(found) == 1, lines
    assert " 50/100 " in found[0]
    assert lines[-2] == "end"


def test_more_bars_than_rows() -> None:
    text, lines = run_on_terminal(
        """
from moray.experimental import tqdm_ray
bars = [tqdm_ray.tqdm(total=10, desc=f"bar {i:02}", position=i) for i in range(20)]
for bar in bars:
    bar.update(10)
    bar.refresh()
print("a print that knows nothing of bars")
for bar in bars:
    bar.close()
print("end")
""",
        rows=10,
    )
    assert "… and 12 bars more" in text
    finals = [line for line in lines if re.match(r"bar \d\d: 100%", line)]
    assert len(finals) >= 20
    assert lines[-2] == "end"


def test_narrow_terminal_and_odd_descriptions() -> None:
    text, lines = run_on_terminal(
        """
from moray.experimental import tqdm_ray
with tqdm_ray.tqdm(total=4, desc="wide 漢字漢字漢字 and \\x1b[31mred\\nbroken " + "x" * 300) as bar:
    for _ in range(4):
        bar.update()
        bar.refresh()
print("end")
""",
        columns=30,
    )
    assert "\x1b[31m" not in text
    assert len(lines) == 3
    assert lines[0].startswith("wide 漢字漢字漢字 and")
    assert lines[1] == "end"


# --- bars where there is no terminal -----------------------------------------------------------------------------


def test_bars_without_a_terminal_are_lines_now_and_then() -> None:
    finished = run_driver(
        BARS
        + """
from moray.runtime import screen
screen.LINE_EVERY_S = 0.2

@moray.remote
def work():
    for k in tqdm_ray.tqdm(range(100), desc="part", flush_interval_s=0):
        time.sleep(0.01)

moray.get(work.remote())
"""
    )
    assert "\x1b" not in finished.stderr
    assert "\r" not in finished.stderr
    lines = [line for line in finished.stderr.splitlines() if "part" in line]
    assert 2 <= len(lines) <= 8, lines
    assert re.fullmatch(r"\(work pid=\d+\) part: 100% \|\S+\| 100/100 \[\S+, \S+ it/s\]", lines[-1])
    assert "part" not in finished.stdout


def test_bar_of_an_unknown_total_and_wrong_arguments() -> None:
    finished = run_driver(
        """
from moray.experimental import tqdm_ray
with tqdm_ray.tqdm((i for i in range(5)), desc="some", unit="rows") as bar:
    print(sum(bar), bar.n)
try:
    tqdm_ray.tqdm(flush_interval_s=-1)
except ValueError as error:
    print(error)
try:
    list(tqdm_ray.tqdm(total=3))
except TypeError as error:
    print(error)
with tqdm_ray.instance().hide_bars() or tqdm_ray.tqdm([]):
    tqdm_ray.instance().unhide_bars()
"""
    )
    assert "10 5" in finished.stdout
    assert "flush_interval_s=-1" in finished.stdout
    assert "no iterable" in finished.stdout
    assert re.search(r"some: 5 rows \[\S+, \S+ rows/s\]", finished.stderr)


def test_bars_are_not_drawn_without_log_to_driver() -> None:
    finished = run_driver(
        """
import moray
from moray.experimental import tqdm_ray
moray.init(num_cpus=1, log_to_driver=False)

@moray.remote
def work():
    print("words")
    for _ in tqdm_ray.tqdm(range(3), desc="part"):
        pass

moray.get(work.remote())
"""
    )
    assert finished.stdout + finished.stderr == ""
