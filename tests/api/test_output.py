"""What workers write: it reaches the driver in time, says who wrote it, and is kept in files."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.support.procs import run_driver

PRELUDE = """
import logging, os, subprocess, sys, time
import moray
context = moray.init(num_cpus=2{options})
"""


def run(body: str, options: str = "") -> subprocess.CompletedProcess[str]:
    return run_driver(PRELUDE.format(options=options) + body)


def test_print_is_prefixed_with_name_and_pid() -> None:
    finished = run(
        """
@moray.remote
def greet():
    print("hello from a task")
    return os.getpid()

pid = moray.get(greet.remote())
print("pid is", pid)
"""
    )
    match = re.search(r"pid is (\d+)", finished.stdout)
    assert match is not None
    assert re.search(rf"\(greet pid={match[1]}[^)]*\)\S*\s+hello from a task", finished.stdout)


def test_output_comes_before_the_get_that_follows() -> None:
    finished = run(
        """
@moray.remote
def speak(i):
    print("said", i)

for i in range(50):
    moray.get(speak.remote(i))
    print("heard", i)
"""
    )
    words = [tuple(m) for m in re.findall(r"(said|heard) (\d+)", finished.stdout)]
    assert words == [(word, str(i)) for i in range(50) for word in ("said", "heard")]


def test_output_comes_before_a_wait_and_before_an_await() -> None:
    finished = run(
        """
import asyncio

@moray.remote
def speak(text):
    print("said", text)

ref = speak.remote("first")
moray.wait([ref])
moray.get(ref)
print("heard first")

async def main():
    await speak.remote("second")
    print("heard second")

asyncio.run(main())
"""
    )
    words = re.findall(r"(?:said|heard) \w+", finished.stdout)
    assert words == ["said first", "heard first", "said second", "heard second"]


def test_stderr_goes_to_stderr() -> None:
    finished = run(
        """
@moray.remote
def complain():
    print("to the error stream", file=sys.stderr)

moray.get(complain.remote())
"""
    )
    assert re.search(r"\(complain pid=\d+[^)]*\)\S*\s+to the error stream", finished.stderr)
    assert "to the error stream" not in finished.stdout


def test_name_option_is_the_prefix() -> None:
    finished = run(
        """
@moray.remote
def speak():
    print("words")

moray.get(speak.options(name="orator").remote())
"""
    )
    assert re.search(r"\(orator pid=\d+[^)]*\)\S*\s+words", finished.stdout)


def test_every_line_is_prefixed() -> None:
    finished = run(
        """
@moray.remote
def speak():
    print("line one\\nline two\\n\\nline four")

moray.get(speak.remote())
"""
    )
    assert len(re.findall(r"\(speak pid=\d+[^)]*\)\S*\s+line (?:one|two|four)", finished.stdout)) == 3


def test_line_without_an_end() -> None:
    finished = run(
        """
@moray.remote
def speak():
    sys.stdout.write("unfinished")

moray.get(speak.remote())
print("after")
"""
    )
    assert re.search(r"unfinished.*after", finished.stdout, re.DOTALL)


def test_bytes_that_are_no_text() -> None:
    finished = run(
        """
@moray.remote
def speak():
    os.write(1, b"bad \\xff\\xfe bytes\\n")
    print("\\N{SNOWMAN}")

moray.get(speak.remote())
"""
    )
    assert "bytes" in finished.stdout
    assert "\N{SNOWMAN}" in finished.stdout


def test_output_of_child_processes_and_c_code() -> None:
    finished = run(
        """
@moray.remote
def speak():
    subprocess.run(["echo", "from a child"], check=True)
    os.write(1, b"from the descriptor\\n")

moray.get(speak.remote())
"""
    )
    assert "from a child" in finished.stdout
    assert "from the descriptor" in finished.stdout


def test_logging_of_a_task() -> None:
    finished = run(
        """
@moray.remote
def speak():
    logging.warning("a warning of the task")

moray.get(speak.remote())
"""
    )
    assert "a warning of the task" in finished.stderr


def test_much_output_is_complete_and_in_order() -> None:
    finished = run(
        """
@moray.remote
def count(n):
    for i in range(n):
        print("number", i)

moray.get(count.remote(20_000))
"""
    )
    assert [int(n) for n in re.findall(r"number (\d+)", finished.stdout)] == list(range(20_000))


def test_long_line_is_complete() -> None:
    finished = run(
        """
@moray.remote
def speak():
    print("x" * 1_000_000)

moray.get(speak.remote())
"""
    )
    assert finished.stdout.count("x") >= 1_000_000


def test_output_while_the_task_still_runs() -> None:
    finished = run(
        """
import threading

@moray.remote
def speak(path):
    print("early")
    while not os.path.exists(path):
        time.sleep(0.01)

class Watch:
    \"\"\"Lets the task end as soon as its output was seen.\"\"\"
    def __init__(self, stream):
        self.stream = stream
    def write(self, text):
        if "early" in text:
            open("seen", "w").close()
        return self.stream.write(text)
    def __getattr__(self, name):
        return getattr(self.stream, name)

sys.stdout = Watch(sys.stdout)
moray.get(speak.remote(os.path.abspath("seen")), timeout=20)
"""
    )
    assert "early" in finished.stdout


def test_output_of_a_thread_after_its_task() -> None:
    """The worker is idle then: it looks by itself."""
    finished = run(
        """
import threading

@moray.remote
def speak(path):
    def late():
        while not os.path.exists(path):
            time.sleep(0.01)
        print("late words")
    threading.Thread(target=late, daemon=True).start()

class Watch:
    def __init__(self, stream):
        self.stream = stream
        self.seen = False
    def write(self, text):
        self.seen |= "late words" in text
        return self.stream.write(text)
    def __getattr__(self, name):
        return getattr(self.stream, name)

sys.stdout = watch = Watch(sys.stdout)
moray.get(speak.remote(os.path.abspath("go")))
open("go", "w").close()
deadline = time.monotonic() + 20
while not watch.seen and time.monotonic() < deadline:
    time.sleep(0.01)
print("seen", watch.seen)
"""
    )
    assert "seen True" in finished.stdout


def test_lines_of_a_task_and_its_children_are_whole() -> None:
    finished = run(
        """
@moray.remote
def speak():
    child = subprocess.Popen(["sh", "-c", "for i in $(seq 500); do echo child line $i; done"])
    i = 0
    while child.poll() is None:
        print("own", "line", i)
        i += 1
    return i

print("count", moray.get(speak.remote()))
"""
    )
    count = re.search(r"count (\d+)", finished.stdout)
    assert count is not None
    lines = [line.partition(") ")[2] for line in finished.stdout.splitlines() if line.startswith("(")]
    assert [line for line in lines if line.startswith("child")] == [f"child line {i}" for i in range(1, 501)]
    assert [line for line in lines if line.startswith("own")] == [f"own line {i}" for i in range(int(count[1]))]
    assert len(lines) == 500 + int(count[1])


def test_output_of_a_failing_task() -> None:
    finished = run(
        """
@moray.remote
def speak():
    print("last words")
    raise ValueError

try:
    moray.get(speak.remote())
except ValueError:
    print("it failed")
"""
    )
    assert re.search(r"last words.*it failed", finished.stdout, re.DOTALL)


def test_output_of_a_crashing_worker() -> None:
    finished = run(
        """
@moray.remote(max_retries=0)
def speak():
    print("last words", flush=True)
    os._exit(1)

try:
    moray.get(speak.remote())
except moray.exceptions.WorkerCrashedError:
    print("it crashed")
"""
    )
    assert re.search(r"last words.*it crashed", finished.stdout, re.DOTALL)


def test_output_of_nested_tasks() -> None:
    finished = run(
        """
@moray.remote
def inner():
    print("inner words")

@moray.remote
def outer():
    moray.get(inner.remote())
    print("outer words")

moray.get(outer.remote())
print("end")
"""
    )
    for name in ("inner", "outer"):
        assert re.search(rf"\({name} pid=\d+[^)]*\)\S*\s+{name} words.*end", finished.stdout, re.DOTALL)


def test_output_without_log_to_driver_is_only_in_files() -> None:
    finished = run(
        """
from pathlib import Path

@moray.remote
def speak():
    print("quiet words")

moray.get(speak.remote())
logs = Path(context.address_info["session_dir"]) / "logs"
print("found", any("quiet words" in f.read_text(errors="replace") for f in logs.rglob("*") if f.is_file()))
""",
        options=", log_to_driver=False",
    )
    assert "quiet words" not in finished.stdout
    assert "found True" in finished.stdout


def test_files_hold_both_streams() -> None:
    finished = run(
        """
from pathlib import Path

@moray.remote
def speak():
    print("to one stream")
    print("to the other", file=sys.stderr)

moray.get(speak.remote())
logs = Path(context.address_info["session_dir"]) / "logs"
texts = [f.read_text(errors="replace") for f in logs.rglob("*") if f.is_file()]
print("found", *(any(words in text for text in texts) for words in ("to one stream", "to the other")))
"""
    )
    assert "found True True" in finished.stdout


def test_driver_that_closed_its_output() -> None:
    """Nobody reads any more: the work goes on."""
    finished = run(
        """
@moray.remote
def speak(path):
    print("words")
    open(path, "w").close()

sys.stdout.close()
os.close(1)
moray.get(speak.remote(os.path.abspath("done")), timeout=20)
sys.stderr.write("done %s\\n" % os.path.exists("done"))
os._exit(0)
"""
    )
    assert "done True" in finished.stderr


def test_quiet_program_is_quiet(tmp_path: Path) -> None:
    """A program without trouble writes nothing but its own words."""
    finished = run(
        """
moray.get([moray.remote(lambda: 1).remote() for _ in range(10)])
moray.shutdown()
print("only this")
"""
    )
    assert finished.stdout.split("\n")[-2] == "only this"
    assert "Traceback" not in finished.stderr
    assert "Exception ignored" not in finished.stderr


def test_interrupted_gets_lose_no_line() -> None:
    """A handler that raises while `get` prints: the line is printed, if need be once more (INTERRUPT)."""
    finished = run(
        """
import random, signal

class Interrupt(Exception):
    pass

def interrupt(*_):
    raise Interrupt

signal.signal(signal.SIGALRM, interrupt)

@moray.remote
def speak(i):
    print("said", i)
    print("more", i)

interrupts = 0
for i in range(400):
    ref = speak.remote(i)
    done = False
    while not done:
        try:
            signal.setitimer(signal.ITIMER_REAL, random.uniform(0.00005, 0.002))
            moray.get(ref)
            signal.setitimer(signal.ITIMER_REAL, 0)
            done = True
        except Interrupt:
            interrupts += 1
print("interrupts", interrupts > 20)
"""
    )
    lines = [line.partition(") ")[2] for line in finished.stdout.splitlines() if line.startswith("(")]
    once = list(dict.fromkeys(lines))
    assert once == [f"{word} {i}" for i in range(400) for word in ("said", "more")]
    assert len(lines) < 1000
    assert "interrupts True" in finished.stdout
