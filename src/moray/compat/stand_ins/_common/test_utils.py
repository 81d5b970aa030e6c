"""``ray._common.test_utils``: what tests of distributed programs wait by, and drivers of their own.

The actors need no CPU, so that a test can have them beside tasks that take all.
"""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

from moray.api import remote

__all__ = [
    "FakeTimer", "Semaphore", "SignalActor", "async_wait_for_condition", "is_named_tuple", "run_string_as_driver",
    "wait_for_condition",
]  # fmt: skip

#: How long a driver may run before it is ended.
_DRIVER_S: Final = 300.0
#: What a driver runs first: `import ray` shall give it what it gives here. Its script comes by stdin.
_START: Final = (
    "import sys, moray.compat; moray.compat.install(); exec(compile(sys.stdin.read(), '<stdin>', 'exec'), globals())"
)


@remote(num_cpus=0)
class SignalActor:
    """An event that tasks wait for: `wait` returns once somebody has called `send`."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._waiting = 0

    def send(self, clear: bool = False) -> None:
        """Let all go on who wait; with `clear`, only those who wait now."""
        self._event.set()
        if clear:
            self._event.clear()

    async def wait(self, should_wait: bool = True) -> None:
        """Return when the signal was sent."""
        if should_wait:
            self._waiting += 1
            try:
                await self._event.wait()
            finally:
                self._waiting -= 1

    async def cur_num_waiters(self) -> int:
        """How many wait."""
        return self._waiting


@remote(num_cpus=0)
class Semaphore:
    """An :class:`asyncio.Semaphore` for several processes."""

    def __init__(self, value: int = 1) -> None:
        self._semaphore = asyncio.Semaphore(value)

    async def acquire(self) -> None:
        """Take one, when there is one."""
        await self._semaphore.acquire()

    async def release(self) -> None:
        """Give one back."""
        self._semaphore.release()

    async def locked(self) -> bool:
        """Whether none is left."""
        return self._semaphore.locked()


def wait_for_condition(
    condition_predictor: Callable[..., Any],
    timeout: float = 10,
    retry_interval_ms: float = 100,
    raise_exceptions: bool = False,
    **kwargs: Any,
) -> None:
    """Return when ``condition_predictor(**kwargs)`` is true. What it raises counts as false.

    Args:
        condition_predictor: is called again and again.
        timeout: seconds.
        retry_interval_ms: the pause between two calls.
        raise_exceptions: let its exceptions pass.
        kwargs: its arguments.

    Raises:
        RuntimeError: it was never true, with what it raised last.
    """
    deadline, last = time.monotonic() + timeout, None
    while time.monotonic() <= deadline:
        try:
            if condition_predictor(**kwargs):
                return
        except Exception as error:
            if raise_exceptions:
                raise
            last = error
        time.sleep(retry_interval_ms / 1000)
    _not_met(timeout, last)


async def async_wait_for_condition(
    condition_predictor: Callable[..., Any],
    timeout: float = 10,  # noqa: ASYNC109 - Ray's parameter.
    retry_interval_ms: float = 100,
    **kwargs: Any,
) -> None:
    """The same for coroutines; the condition may be one, too."""
    deadline, last = time.monotonic() + timeout, None
    while time.monotonic() <= deadline:
        try:
            met = condition_predictor(**kwargs)
            if inspect.isawaitable(met):
                met = await met
            if met:
                return
        except Exception as error:  # noqa: BLE001 - whatever it raises is told when time is up.
            last = error
        await asyncio.sleep(retry_interval_ms / 1000)
    _not_met(timeout, last)


def _not_met(timeout: float, last: Exception | None) -> NoReturn:
    told = "" if last is None else f" Last exception: {type(last).__name__}: {last}"
    raise RuntimeError(f"the condition did not hold within {timeout:g} s.{told}") from last


def run_string_as_driver(
    driver_script: str, env: Mapping[str, str] | None = None, encode: str = "utf-8", timeout: float | None = _DRIVER_S
) -> str:
    """Run a program in a process of its own and return what it wrote to stdout and stderr.

    Args:
        driver_script: its text.
        env: its whole environment; None: this process's.
        encode: of the text and of what it writes.
        timeout: seconds; None: no limit.

    Raises:
        subprocess.CalledProcessError: it did not exit with 0; its output is printed.
        subprocess.TimeoutExpired: it ran longer than `timeout` seconds, and was killed.
    """
    done = run_driver(driver_script, env, encode, timeout, subprocess.STDOUT)
    return str(done.stdout.decode(encode))


def run_driver(
    script: str, env: Mapping[str, str] | None, encode: str, timeout: float | None, stderr: int
) -> subprocess.CompletedProcess[bytes]:
    """The same, with stderr apart if it is asked for."""
    done = subprocess.run(
        driver_command(),
        input=script.encode(encode),
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=env,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        sys.stdout.write((done.stdout + (done.stderr or b"")).decode(encode, "replace"))
        done.check_returncode()
    return done


def driver_command() -> list[str]:
    """What runs a script, given by stdin, in which ``import ray`` means what it means here."""
    return [sys.executable, "-c", _START]


class FakeTimer:
    """A clock that a test turns by hand."""

    def __init__(self, start_time: float | None = None) -> None:
        self.reset(start_time)

    def reset(self, start_time: float | None = None) -> None:
        """Set it: to the present time if nothing is given."""
        self._now = time.time() if start_time is None else start_time

    def time(self) -> float:
        """What it shows."""
        return self._now

    def advance(self, by: float) -> None:
        """Turn it by so many seconds."""
        self._now += by

    def realistic_sleep(self, amt: float) -> None:
        """Turn it by a little more, as a sleep takes."""
        self._now += amt + 0.001


def is_named_tuple(cls: type) -> bool:
    """Whether a class was made by ``collections.namedtuple``."""
    fields = getattr(cls, "_fields", None)
    return cls.__bases__ == (tuple,) and isinstance(fields, tuple) and all(type(name) is str for name in fields)
