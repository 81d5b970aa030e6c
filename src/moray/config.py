"""Every tuning constant, each with the reason for its value, and the reading of environment variables.

A constant is a number that could be otherwise without making anything wrong. Limits of formats and
protocols stand with their formats. What a user may change has an option or a variable of the environment;
a variable ``MORAY_X`` is also read as ``RAY_X``, so that scripts written for Ray keep their settings, and
``MORAY_X`` wins.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

#: One CPU (or GPU, or custom resource, or byte of memory) in integer units, so that sums of fractions are
#: exact: 0.1 + 0.2 must leave nothing of 0.3. Four decimals are what Ray's users can ask for. On the wire
#: it is the same number (:mod:`moray.protocol.messages`).
RESOURCE_UNIT: Final = 10_000

#: A value up to this size (serialised) travels in the message itself; a larger one goes to shared memory and only
#: its place travels. Two extra messages to the node and a mapping cost about as much as copying
#: 100 KB through a socket twice. Ray's limit is the same, so programs tuned for it behave alike.
INLINE_MAX_BYTES: Final = 100 * 1024

#: How much work, in microseconds of run time, a worker may hold ahead of its current task. A round
#: trip costs 30-60 µs, so a millisecond hides it well over ten times; and a task that arrives behind a full
#: queue waits no longer than a human or another scheduler would notice.
PIPELINE_BUDGET_US: Final = 1000

#: Run times of a function that are remembered. The *maximum* of them decides the depth (LEASE), so the
#: window must be long enough to have seen a function's slow calls and short enough to forget a first
#: call that imported its modules.
PIPELINE_WINDOW: Final = 16

#: Tasks that one worker holds at most, however short they are. At 2 µs a task the budget allows 500; more
#: would only make recalls longer and the worker's death lose more starts.
PIPELINE_MAX_DEPTH: Final = 512

#: How long an idle lease is kept in case its owner submits again. A program that gets a result and submits the next
#: task needs microseconds; half a second also covers a step of the driver's own work between rounds. Who else
#: waits does not wait for it: the node takes lingering leases back on demand.
LEASE_LINGER_S: Final = 0.5

#: How long a get of another process's object may take before the CPUs of whoever waits are lent (LEASE): a finished
#: object's owner answers in a fraction of that, and each loan may start a process.
ANSWER_S: Final = 0.005

#: When a pending task, actor, group or get warns, once, about what it waits for. Nothing waits in silence, but
#: ordinary waiting (a cold start, a full machine) should say nothing. MORAY_WARN_AFTER_S overrides it, in drivers,
#: workers and the node; 0: no such warnings.
WARN_AFTER_S: Final = 10

#: What an owner keeps to make lost results again (LINEAGE): its finished tasks' arguments, and the values that are kept
#: for them alone. A recipe is a few kilobytes, so this is many of them, or some large values that were put.
#: MORAY_LINEAGE_BYTES overrides it.
LINEAGE_BYTES: Final = 1_000_000_000

#: The interpreter's switch interval in workers and drivers. An I/O thread behind CPU-bound Python code waits
#: one interval for the interpreter lock: at Python's 5 ms the median reply took 5.1 ms, at 1 ms 1.1 ms. The price
#: is under 1 % of throughput of the computing thread. Restored at shutdown.
SWITCH_INTERVAL_S: Final = 0.001

#: How long a driver behind a relay (``moray://``) may be out of reach: its connection is made anew, and everything goes
#: on. Long enough for a laptop that changes networks; and what its tasks hold in the cluster is not held for much
#: longer by somebody who is gone. MORAY_RELAY_PATIENCE_S overrides it.
RELAY_PATIENCE_S: Final = 60.0

#: How often a worker's output is looked at while it runs. Output that belongs to a result is sent before the result
#: at once; this is only for tasks that print as they go, where a tenth of a second looks live.
LOG_POLL_S: Final = 0.1

#: How nodes are chosen (:class:`moray.core.cluster_scheduler.Knobs`), by default and by the variables that say
#: otherwise. Ray's values, so that programs spread as they did: nodes are filled to one half one after the other, which
#: keeps others free for large needs, and a fifth of the nodes shares what many deciders send at the same moment.
SPREAD_THRESHOLD: Final = 0.5
TOP_K_FRACTION: Final = 0.2
TOP_K_ABSOLUTE: Final = 1

_TRUE: Final = frozenset({"1", "true", "yes", "on"})
_FALSE: Final = frozenset({"0", "false", "no", "off", ""})

#: Suffixes of sizes: decimal for kB, binary for KiB, as users write them.
_SIZE_SUFFIXES: Final = {
    "": 1, "b": 1,
    "k": 10**3, "kb": 10**3, "m": 10**6, "mb": 10**6, "g": 10**9, "gb": 10**9, "t": 10**12, "tb": 10**12,
    "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40,
}  # fmt: skip

_T = TypeVar("_T")


def env_name(name: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The variable that is set for `name`: ``MORAY_<name>``, else ``RAY_<name>``, else None."""
    environ = os.environ if environ is None else environ
    return next((full for full in (f"MORAY_{name}", f"RAY_{name}") if full in environ), None)


def env_str(name: str, default: str = "", environ: Mapping[str, str] | None = None) -> str:
    """The text of ``MORAY_<name>`` or ``RAY_<name>``."""
    return _env(name, default, str, "text", environ)


def env_int(name: str, default: int, environ: Mapping[str, str] | None = None) -> int:
    """A whole number; ValueError naming the variable if it is none."""
    return _env(name, default, int, "a whole number", environ)


def env_float(name: str, default: float, environ: Mapping[str, str] | None = None) -> float:
    """A number; ValueError naming the variable if it is none."""
    return _env(name, default, float, "a number", environ)


def env_bool(name: str, default: bool, environ: Mapping[str, str] | None = None) -> bool:
    """1, true, yes, on or 0, false, no, off, empty, in any case; ValueError naming the variable otherwise."""
    return _env(name, default, _to_bool, "one of 1, true, yes, on, 0, false, no, off", environ)


def env_bytes(name: str, default: int, environ: Mapping[str, str] | None = None) -> int:
    """A size in bytes, such as ``64000000``, ``64MB`` or ``1.5 GiB``; ValueError naming the variable otherwise."""
    return _env(name, default, _to_bytes, "a size such as 64000000, 64MB or 1.5GiB", environ)


def scheduler_knobs(environ: Mapping[str, str] | None = None) -> tuple[float, float, int]:
    """(spread_threshold, top_k_fraction, top_k_absolute) of ``RAY_scheduler_…``, ``MORAY_scheduler_…`` or
    ``MORAY_SCHEDULER_…``; ValueError naming the variable that is out of range."""

    def read(name: str, default: float, most: float) -> float:
        lower = f"scheduler_{name}"
        chosen = lower if env_name(lower, environ) is not None else lower.upper()
        value = env_float(chosen, default, environ)
        if not 0 <= value <= most:
            raise ValueError(f"the environment variable {env_name(chosen, environ)}={value:g} should be 0 to {most:g}")
        return value

    return (
        read("spread_threshold", SPREAD_THRESHOLD, 1.0),
        read("top_k_fraction", TOP_K_FRACTION, 1.0),
        int(read("top_k_absolute", TOP_K_ABSOLUTE, 1e9)),
    )


def _env(name: str, default: _T, convert: Callable[[str], _T], expected: str, environ: Mapping[str, str] | None) -> _T:
    environ = os.environ if environ is None else environ
    full = env_name(name, environ)
    if full is None:
        return default
    text = environ[full]
    try:
        return convert(text.strip())
    except ValueError:
        raise ValueError(f"the environment variable {full}={text!r} should be {expected}") from None


def _to_bool(text: str) -> bool:
    word = text.lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError(text)


def _to_bytes(text: str) -> int:
    number = text.rstrip("bBkKmMgGtTiI ")
    factor = _SIZE_SUFFIXES.get(text[len(number) :].strip().lower())
    if factor is None or not 0 <= float(number) < float("inf"):
        raise ValueError(text)
    return int(float(number) * factor) if "." in number or "e" in number.lower() else int(number) * factor
