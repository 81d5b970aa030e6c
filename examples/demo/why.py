"""Explain: what something waits for, through all processes on the way; and a deadlock, named as one."""

from __future__ import annotations

import time
from typing import Any

import moray
from examples.demo.show import Show, check

#: Seconds until a story must have been told, on a busy machine.
PATIENCE_S = 20.0


class Friend:
    """Runs one call at a time."""

    def ask(self, other: Any) -> object:
        """Ask another one, which asks back, while this one can answer nothing."""
        return moray.get(other.ask_back.remote(moray.get_runtime_context().current_actor))

    def ask_back(self, asker: Any) -> object:
        return moray.get(asker.answer.remote())

    def answer(self) -> str:
        return "yes"


def prepare() -> None:
    time.sleep(600)


def train(_data: object) -> None:
    """Never runs: its argument never comes."""


def story(ref: Any, word: str) -> str:
    """What `ref` waits for, as soon as the story has `word` in it."""
    deadline = time.monotonic() + PATIENCE_S
    while word not in (told := moray.explain(ref)):
        check(time.monotonic() < deadline, f"explain() never said {word!r}, but: {told}")
        time.sleep(0.01)
    return told


class WhyShow(Show):
    name = "explain"
    detail = "a task whose argument is not ready, and two actors that wait for each other"

    def run(self) -> str:
        preparing = moray.remote(prepare).remote()
        waiting = moray.remote(train).remote(preparing)
        told = story(waiting, "running in pid")
        moray.cancel(preparing)

        friend = moray.remote(Friend)
        one, other = friend.remote(), friend.remote()
        question = one.ask.remote(other)
        circle = story(question, "This is a deadlock")
        for actor in one, other:
            moray.kill(actor)
        moray.wait([question])
        return f"{told}\n{circle}"
