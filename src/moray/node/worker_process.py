"""What a worker does between its fork and the first line of its runtime.

It leaves everything that it shares with its template behind: session and process group (so that its end can take its
own children along), output files, signal handlers, random numbers (otherwise all workers draw the same ones). What
it keeps is what it was forked for: the imported modules.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Final, NoReturn, TextIO, cast

from moray.launch.config import WORKER_VARIABLE
from moray.node.logs import worker_paths
from moray.node.template_messages import TemplateConfig
from moray.platform import process_control

#: When memory runs out, the kernel ends workers before drivers and the node; -1000 … 1000, the highest first. Their
#: template is in between: with no worker left, or with one that was ended and has not given its memory back yet, it
#: goes before what cannot be made anew.
OOM_SCORE: Final = 500
TEMPLATE_OOM_SCORE: Final = 400

Entry = Callable[[str, bytes, int, str, tuple[str, str]], NoReturn]


def run(config: TemplateConfig, process: bytes, template: int) -> NoReturn:
    """Be the worker with this process id; `template` is the parent's pid."""
    process_control.die_with_parent(template)
    status = 1  # Also if the entry returns, which it must not.
    try:
        os.setsid()
        process_control.set_name("moray:worker")
        process_control.prefer_as_oom_victim(OOM_SCORE)
        process_control.retag(WORKER_VARIABLE, process.hex())
        paths = worker_paths(config.session_dir, process, os.getpid())
        _open_output(paths)
        _reset_signals()
        _reset_interpreter()
        for module in config.late:
            import_module(module)
        _entry(config.worker_entry)(config.node_address, process, config.job, config.session_dir, paths)
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except BaseException:  # noqa: BLE001 - the last frame of this process
        traceback.print_exc()
    finally:
        # Nothing of the template's may run here: neither its `finally` blocks nor its exit handlers.
        os._exit(status & 0xFF)


def _open_output(paths: tuple[str, str]) -> None:
    """Input from nowhere, stdout and stderr to the worker's files."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(null, 0)
    os.close(null)
    for target, path in zip((1, 2), paths, strict=True):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        os.dup2(fd, target)
        os.close(fd)
    sys.stdin, sys.stdout, sys.stderr = _text(0, "r"), _text(1, "w"), _text(2, "w")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc,assignment]
    faulthandler.enable(file=2)


def _text(fd: int, mode: str) -> TextIO:
    # Line buffered: a worker that is killed has said what it had said.
    return cast("TextIO", open(fd, mode, buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False))


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    # A Ctrl-C in the terminal is the driver's business, which cancels what it wants cancelled.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)


def _reset_interpreter() -> None:
    """Random generators of its own, and a `__main__` that is nobody's."""
    gc.enable()
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    sys.modules["__main__"] = ModuleType("__main__")
    sys.argv = ["moray-worker"]


def _entry(name: str) -> Entry:
    module, _, function = name.partition(":")
    return cast("Entry", getattr(import_module(module), function))
