"""Every message of docs/troubleshooting.md is really raised, word for word."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import moray
from tests.support.procs import poll_until, run_driver
from tests.tidy.source import ROOT

_SECTION = re.compile(r"^### (?P<title>.+?)\n\n```text\n(?P<message>.*?)\n```$", re.MULTILINE | re.DOTALL)
MESSAGES = {
    match["title"].replace("\\", ""): match["message"]
    for match in _SECTION.finditer((ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
}


class Told(Exception):  # noqa: N818 - no error
    """A text that is no error's message."""


class A:
    def __init__(self, bad: bool = False) -> None:
        if bad:
            raise ValueError("bad start")

    def f(self) -> int:
        return 1

    def slow(self) -> None:
        threading.Event().wait()


def f(x: Any = 0) -> Any:
    return x


def make(**options: Any) -> Any:
    actor_class: Any = moray.remote(A)
    return actor_class.options(**options).remote() if options else actor_class.remote()


def task(body: Callable[[], Any], **options: Any) -> Any:
    """The result of a task f() that runs `body`."""

    def f() -> Any:
        return body()

    remote: Any = moray.remote(max_retries=0, **options)(f)
    return moray.get(remote.remote())


def exit_actor_process(**options: Any) -> None:
    class A:
        def end(self) -> None:
            os._exit(1)

    actor: Any = moray.remote(**options)(A) if options else moray.remote(A)
    handle = actor.remote()
    moray.get(handle.end.remote())


def timed_out() -> None:
    actor = make()
    moray.get(actor.slow.remote(), timeout=0.1)


def failed_constructor() -> None:
    actor: Any = moray.remote(A)
    moray.get(actor.remote(True).f.remote())


def killed() -> None:
    actor = make()
    moray.kill(actor)
    moray.get(actor.f.remote())


def many_pending() -> None:
    actor = make(max_pending_calls=1)
    _pending = actor.slow.remote()
    actor.f.remote()


def name_taken() -> None:
    _first = make(name="x")
    make(name="x")


def owner_gone() -> None:
    class Owner:
        def make(self) -> list[Any]:
            return [moray.put(np.zeros(100))]

    actor: Any = moray.remote(Owner)
    owner = actor.remote()
    (ref,) = moray.get(owner.make.remote())
    moray.kill(owner)
    with pytest.raises(moray.exceptions.ActorDiedError):
        moray.get(owner.make.remote())
    moray.get(ref)


def hostile_error() -> None:
    class E(Exception):  # noqa: N818 - a short name for a message
        def __init__(self) -> None:
            super().__init__("no connection")
            self.lock = threading.Lock()

    def fail() -> None:
        raise E

    try:
        task(fail)
    except moray.exceptions.TaskError as error:
        lines = [line for line in str(error).splitlines() if "E: " in line or "cause" in line]
        raise Told("\n".join(lines).removeprefix(f"{__name__}.")) from None


def explained() -> None:
    remote: Any = moray.remote(num_cpus=64)(f)
    ref = remote.remote()
    assert poll_until(lambda: "infeasible" in moray.explain(ref), 10)
    text = moray.explain(ref)
    moray.cancel(ref)
    raise Told(text)


REMOTE: Any = moray.remote(f)
PROVOKED: dict[str, Callable[[], Any]] = {
    "a remote function is called with .remote()": lambda: REMOTE(1),
    "too many positional arguments": lambda: REMOTE.remote(1, 2),
    "did you mean": lambda: REMOTE.options(num_cpu=2),
    "get() takes an ObjectRef or a list of ObjectRefs": lambda: moray.get({"a": REMOTE.remote()}),  # type: ignore[call-overload]
    "an ObjectRef is not iterable": lambda: list(REMOTE.remote()),
    "put() of an ObjectRef": lambda: moray.put(moray.put(1)),
    "actor has no method": lambda: make().g,
    "cannot be pickled": lambda: REMOTE.remote(threading.Lock()),
    "assignment destination is read-only": lambda: moray.get(moray.put(np.zeros(10))).__setitem__(0, 1),
    "No module named": lambda: task(lambda: __import__("nowhere")),
    "num_returns": lambda: task(lambda: 1, num_returns=2),
    "this stands for the original exception": hostile_error,
    "get() timed out": timed_out,
    "infeasible": explained,
    "killed by SIGKILL": lambda: task(lambda: os.kill(os.getpid(), signal.SIGKILL)),
    "killed by SIGSEGV": lambda: task(lambda: os.kill(os.getpid(), signal.SIGSEGV)),
    "exited with code": lambda: task(lambda: os._exit(3)),
    "the actor died because its __init__ raised": failed_constructor,
    "it is not restarted, because max_restarts is 0": exit_actor_process,
    "the actor cannot be reached now": lambda: exit_actor_process(max_restarts=1),
    "killed by moray.kill()": killed,
    "has unanswered calls": many_pending,
    "no living actor is named": lambda: moray.get_actor("y"),
    "the name belongs to an actor": name_taken,
    "is lost: its owner": owner_gone,
    "this process is already connected": moray.init,
    "the runtime_env could not be set up": lambda: moray.get(REMOTE.options(runtime_env={"pip": ["x"]}).remote()),
}
#: Those that need a program of their own; it prints the message.
_SHOW = """
def show(run):
    try:
        run()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", flush=True)

import os, sys, threading
import moray
"""
PROGRAMS: dict[str, str] = {
    "cannot be pickled because of its global variable": "lock = threading.Lock()\n"
    "show(lambda: moray.remote(lambda: lock).remote())",
    "belongs to a session that has ended": "ref = moray.put(1)\nmoray.shutdown()\nshow(lambda: moray.get(ref))",
    "there is no session": "show(lambda: moray.init('/nowhere'))",
    "is a fork of process": "moray.init()\n"
    "if os.fork() == 0:\n    show(lambda: moray.put(1))\n    os._exit(0)\nos.wait()",
}


def pattern(message: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)


@pytest.mark.parametrize("title", PROVOKED)
def test_message(title: str, shared_session: ModuleType) -> None:
    with pytest.raises(BaseException) as caught:
        PROVOKED[title]()
    raised = str(caught.value)
    if isinstance(caught.value, moray.exceptions.TaskError):
        raised = raised.rpartition("\n")[2]  # After the traceback: the type that was raised, and its text.
    elif not isinstance(caught.value, Told):
        raised = f"{type(caught.value).__name__}: {raised}"
    assert pattern(MESSAGES[title]).fullmatch(raised), raised


@pytest.mark.parametrize("title", PROGRAMS)
def test_message_of_a_program(title: str) -> None:
    printed = run_driver(_SHOW + PROGRAMS[title]).stdout.strip()
    assert pattern(MESSAGES[title]).fullmatch(printed), printed


def test_every_message_is_provoked() -> None:
    assert set(MESSAGES) == {*PROVOKED, *PROGRAMS}
