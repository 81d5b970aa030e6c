"""Errors that nobody fetched are shown once, and those that somebody was given are not."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.procs import run_driver

PRELUDE = """
import asyncio, os, sys, time
import moray
moray.init(num_cpus=2)

@moray.remote
def fail(text):
    raise ValueError(text)

@moray.remote
def last(): pass

def caught(ref):
    try:
        moray.get(ref)
    except Exception:
        pass

def settle():
    '''Whatever failed before this has been shown: the marker takes the same ways, after it.'''
    marker = "end-" + os.urandom(4).hex()
    fail.remote(marker)
    deadline = time.monotonic() + 20
    while marker not in open("err").read():
        assert time.monotonic() < deadline, "the marker was never shown"
        time.sleep(0.02)

os.dup2(os.open("err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
"""
EPILOGUE = """
settle()
moray.shutdown()
print(open("err").read())
"""


def run(body: str, **options: object) -> subprocess.CompletedProcess[str]:
    return run_driver(PRELUDE + body + EPILOGUE, **options)  # type: ignore[arg-type]


def shown(body: str) -> list[str]:
    """The texts of the ValueErrors that were shown while `body` ran."""
    texts = re.findall(r"ValueError: (\S+)", run(body).stdout)
    return [text for text in texts if not text.startswith("end-")]


def test_a_dropped_error_is_shown_with_its_traceback() -> None:
    text = run("fail.remote('lost')").stdout
    assert re.search(r"\(moray\) an error that nobody fetched: task fail failed \(pid=\d+", text)
    assert "(moray) ValueError: lost" in text
    assert "raise ValueError(text)" in text
    assert text.count("ValueError: lost") == 1


def test_what_was_fetched_is_not_shown() -> None:
    body = """
caught(fail.remote("get"))
caught([fail.remote("list"), fail.remote("list")])

async def await_it():
    try:
        await fail.remote("await")
    except ValueError:
        pass

asyncio.run(await_it())
fail.remote("future").future().exception()
"""
    assert shown(body) == []


def test_wait_alone_fetches_nothing() -> None:
    assert shown("moray.wait([fail.remote('waited')])") == ["waited"]


def test_what_a_task_takes_as_its_argument_is_the_tasks_error() -> None:
    body = """
@moray.remote
def use(x): pass

caught(use.remote(fail.remote("handed")))
use.remote(fail.remote("dropped"))
"""
    assert shown(body) == ["dropped"]


def test_what_a_borrower_asked_for_is_not_shown() -> None:
    body = """
@moray.remote
def look(box):
    caught(box[0])

ref = fail.remote("borrowed")
moray.get(look.remote([ref]))
del ref
"""
    assert shown(body) == []


def test_several_results_are_one_error() -> None:
    body = """
fail.options(num_returns=3).remote("three")
a, b = fail.options(num_returns=2).remote("two")
caught(b)
del a, b
"""
    assert shown(body) == ["three"]


def test_an_error_that_nobody_could_fetch() -> None:
    assert shown("fail.options(num_returns=0).remote('none')") == ["none"]


def test_attempts_that_were_retried_are_not_shown() -> None:
    assert shown("fail.options(max_retries=2, retry_exceptions=True).remote('thrice')") == ["thrice"]


def test_cancelled_tasks_are_not_shown() -> None:
    text = run("""
sleep = moray.remote(time.sleep)
refs = [sleep.remote(60) for _ in range(30)]
for ref in refs:
    moray.cancel(ref)
moray.wait(refs, num_returns=30)
del refs, ref
""").stdout
    assert text.count("nobody fetched") == 1  # The marker.


def test_a_generator_gives_its_error_as_its_last_item() -> None:
    body = """
@moray.remote
def items(text):
    yield 1
    raise ValueError(text)

for ref in items.remote("taken"):
    caught(ref)
unread = items.remote("unread")
next(unread)
moray.wait([unread.completed()])
time.sleep(0.2)
del ref, unread
"""
    assert shown(body) == ["unread"]


def test_calls_of_a_killed_actor_are_not_shown_and_others_are() -> None:
    body = """
@moray.remote
class Actor:
    def sleep(self): time.sleep(60)
    def fail(self, text): raise ValueError(text)

actor = Actor.remote()
ref = actor.fail.remote("call")
moray.wait([ref])
del ref
refs = [actor.sleep.remote() for _ in range(3)]
moray.kill(actor)
moray.wait(refs, num_returns=3)
del refs
"""
    text = run(body).stdout
    assert "ValueError: call" in text
    assert "ActorDiedError" not in text


def test_an_actor_that_died_by_itself_is_shown() -> None:
    body = """
@moray.remote
class Actor:
    def die(self): os._exit(3)

actor = Actor.remote()
ref = actor.die.remote()
moray.wait([ref])
del ref
"""
    assert "ActorDiedError" in run(body).stdout


def test_a_constructor_that_raised_without_a_call() -> None:
    body = """
@moray.remote
class Actor:
    def __init__(self): raise ValueError("constructor")

actor = Actor.remote()
deadline = time.monotonic() + 20
while "constructor" not in open("err").read() and time.monotonic() < deadline:
    time.sleep(0.02)
"""
    assert shown(body) == ["constructor"]


def test_a_crashed_worker_is_shown() -> None:
    text = run("moray.wait([moray.remote(max_retries=0)(os._exit).remote(3)])").stdout
    assert "nobody fetched: WorkerCrashedError: the worker" in text


def test_a_workers_own_lost_errors_travel_to_the_driver() -> None:
    body = """
@moray.remote
def parent():
    caught(fail.remote("seen"))
    fail.remote("inner")
    time.sleep(0.5)

moray.get(parent.remote())
"""
    text = run(body).stdout
    assert re.search(r"\(parent pid=\d+\)\S* \(moray\) an error that nobody fetched: task fail failed", text)
    assert "ValueError: seen" not in text


def test_only_so_many_in_a_minute() -> None:
    body = """
from moray.runtime import unfetched
unfetched._WINDOW_S = 2.0
refs = [fail.remote(f"many-{i}") for i in range(50)]
moray.wait(refs, num_returns=50)
del refs
deadline = time.monotonic() + 20
while "there were" not in open("err").read() and time.monotonic() < deadline:
    time.sleep(0.02)
"""
    text = run(body).stdout
    assert text.count("ValueError: many-") == 20
    assert "an error that nobody fetched: there were 30 more: at most 20 are shown in a minute" in text


@pytest.mark.parametrize("variable", ["MORAY_IGNORE_UNHANDLED_ERRORS", "RAY_IGNORE_UNHANDLED_ERRORS"])
def test_it_can_be_silenced(variable: str) -> None:
    program = PRELUDE + "\nmoray.wait([fail.remote('silent')])\nmoray.get(last.remote())\ntime.sleep(0.3)\n"
    finished = run_driver(program + "moray.shutdown()\nprint(open('err').read())", env={variable: "1"})
    assert "nobody fetched" not in finished.stdout


def test_the_end_of_the_session_is_quiet() -> None:
    program = PRELUDE + "\nref = fail.remote('late')\nmoray.wait([ref])\nsleep = moray.remote(time.sleep).remote(60)\n"
    finished = run_driver(program + "moray.shutdown()\ndel ref, sleep\nprint(open('err').read())")
    assert "nobody fetched" not in finished.stdout
