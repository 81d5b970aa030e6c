"""The node's end of the fork servers: which templates there are, and orders to them.

One job template serves one (job, runtime environment). It is made with the job, so that it is ready when the first
worker is wanted, and made anew if it dies. A fork of the root template will do, unless the job wants another
interpreter or differs in variables that only work when a program is executed (:data:`EXEC_NAMES`).

A job template whose preloaded modules start threads says which; its successor's workers import them after the fork.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import count
from socket import socket
from typing import Final, Protocol

import msgspec

from moray.launch.config import NO_WORKER, SESSION_VARIABLE, WORKER_VARIABLE
from moray.node.channel import Channel, socket_pair
from moray.node.deaths import signal_name
from moray.node.logs import log
from moray.node.template_messages import (
    AnyPacket,
    Fork,
    Forked,
    ForkFailed,
    NewTemplate,
    PrepareFailed,
    TemplateConfig,
    TemplateEnded,
    TemplateNotStarted,
    TemplateStarted,
    WorkerEnded,
)
from moray.platform import process_control
from moray.platform.memory_files import create_memory_file
from moray.protocol.reactor import Reactor

#: Beginnings of names of variables that the loader, the C library or the interpreter reads once, when it starts.
EXEC_NAMES: Final = ("LD_", "PYTHON", "MALLOC_", "GLIBC_", "LC_", "LANG")
#: What is carried over otherwise: the driver's sys.path has it in it.
#: LC_CTYPE is set by an interpreter itself that finds the C locale.
_NOT_EXEC_NAMES: Final = frozenset({"PYTHONPATH", "LC_CTYPE"})


class TemplateEvents(Protocol):
    """Who hears what templates report."""

    def forked(self, process: bytes, pid: int, pidfd: int) -> None: ...
    def fork_failed(self, process: bytes, reason: str) -> None: ...
    def worker_ended(self, process: bytes, status: int) -> None: ...
    def template_gone(self, number: int) -> None: ...


class Template:
    """A job template, from the order to make it until the root template reports its end."""

    __slots__ = ("cause", "channel", "config", "key", "number", "orders", "pid", "successor")

    def __init__(self, number: int, key: tuple[int, str], config: TemplateConfig) -> None:
        self.number = number
        #: (job, runtime environment).
        self.key = key
        self.config = config
        #: 0: not yet known.
        self.pid = 0
        self.channel: Channel | None = None
        #: Workers ordered and not yet forked.
        self.orders: dict[bytes, None] = {}
        #: Why it ends, if it said so.
        self.cause = ""
        #: Takes over the orders, if it could not be what it should be.
        self.successor: Template | None = None


class Templates:
    """All job templates of the node."""

    def __init__(self, root: socket, reactor: Reactor, events: TemplateEvents, node_environ: dict[str, str]) -> None:
        self._reactor = reactor
        self._events = events
        self._node_exec = exec_part(node_environ)
        self._root = Channel(root, reactor, self._on_root, self._on_root_lost)
        self._numbers = count(1)
        self._by_number: dict[int, Template] = {}
        #: The one that takes orders now.
        self._by_key: dict[tuple[int, str], Template] = {}

    def prepare(self, key: tuple[int, str], config: TemplateConfig) -> Template:
        """The template for `key`, made now if there is none."""
        template = self._by_key.get(key)
        return template if template is not None else self._make(key, config)

    def fork(self, template: Template, process: bytes) -> None:
        """Order a worker. The answer is `forked` or `fork_failed`."""
        template.orders[process] = None
        assert template.channel is not None
        template.channel.send(Fork(process))

    def give_up(self, template: Template, cause: str) -> None:
        """It does not answer: kill it, which fails its orders. The next worker gets a new one."""
        if self._by_key.get(template.key) is template:
            del self._by_key[template.key]
        self._end(template, cause)

    def end_job(self, job: int) -> list[int]:
        """Kill the job's templates, and with them its workers; the numbers of those whose end will be told."""
        ending = [template for template in self._by_number.values() if template.key[0] == job]
        for template in ending:
            self._by_key.pop(template.key, None)
            self._end(template, "its job has ended")
        return [template.number for template in ending]

    def count(self) -> int:
        """How many there are, those that are ending included."""
        return len(self._by_number)

    # --- making -----------------------------------------------------------------------------------

    def _make(self, key: tuple[int, str], config: TemplateConfig) -> Template:
        template = Template(next(self._numbers), key, config)
        ours, theirs = socket_pair()
        template.channel = Channel(
            ours, self._reactor, lambda packet, fds: self._on_packet(template, packet, fds), lambda: None
        )
        self._by_number[template.number] = self._by_key[key] = template
        file = create_memory_file("moray-template", msgspec.msgpack.encode(config))
        self._root.send(NewTemplate(template.number), [theirs.detach(), file])
        return template

    def needs_exec(self, executable: str, environ: dict[str, str]) -> bool:
        """Whether workers like this need a fresh interpreter rather than a fork of this one."""
        return executable != sys.executable or exec_part(environ) != self._node_exec

    def _end(self, template: Template, cause: str) -> None:
        """Make an end of a template; with its pid unknown, the end of its socket does it."""
        template.cause = template.cause or cause
        if template.pid:
            process_control.kill(template.pid)
        if template.channel is not None:
            template.channel.close()

    # --- what the root template says --------------------------------------------------------------------

    def _on_root(self, packet: AnyPacket, _fds: list[int]) -> None:
        match packet:
            case TemplateStarted(number, pid):
                template = self._by_number[number]
                template.pid = pid
                if template.cause:
                    process_control.kill(pid)  # Its job ended before it began.
            case TemplateEnded(number, pid, status):
                self._gone(self._by_number.pop(number), _ending(status))
            case TemplateNotStarted(number, reason):
                self._gone(self._by_number.pop(number), reason)
            case _:
                raise AssertionError(packet)

    def _on_root_lost(self) -> None:
        raise RuntimeError("the root template, from which all workers are forked, has ended")

    def _gone(self, template: Template, ending: str) -> None:
        if self._by_key.get(template.key) is template:
            del self._by_key[template.key]
        if template.channel is not None:
            # What it said before its end may still be unread; that includes how its workers ended.
            template.channel.drain()
            template.channel.close()
        if template.successor is None:
            cause = template.cause or f"the template of its job {ending}"
            if not template.cause:
                log(f"template {template.number} (pid {template.pid}) of job {template.key[0]} {ending}")
            for process in template.orders:
                self._events.fork_failed(process, cause)
        self._events.template_gone(template.number)

    # --- what a job template says -------------------------------------------------------------------

    def _on_packet(self, template: Template, packet: AnyPacket, fds: list[int]) -> None:
        match packet:
            case Forked(process, pid):
                template.orders.pop(process, None)
                self._events.forked(process, pid, fds[0])
            case WorkerEnded(process, _pid, status):
                self._events.worker_ended(process, status)
            case ForkFailed(process, reason):
                template.orders.pop(process, None)
                self._events.fork_failed(process, reason)
            case PrepareFailed(reason, module):
                self._replace(template, reason, module)
            case _:
                raise AssertionError(packet)

    def _replace(self, template: Template, reason: str, module: str) -> None:
        """The template cannot serve: hand its orders to one that imports `module` later, or fail them."""
        template.cause = reason
        config = template.config
        if self._by_key.get(template.key) is not template:
            return  # Its job has ended.
        del self._by_key[template.key]
        if module not in config.preload:
            log(f"template {template.number} of job {template.key[0]}: {reason}")
            return
        later = [name for name in config.preload if name != module]
        changed = msgspec.structs.replace(config, preload=later, late=[*config.late, module])
        template.successor = self._make(template.key, changed)
        for process in template.orders:
            self.fork(template.successor, process)


def worker_environ(job_environ: dict[str, str], session: str) -> dict[str, str]:
    """A job's environment, with the session's marks in it."""
    return job_environ | {SESSION_VARIABLE: session, WORKER_VARIABLE: NO_WORKER}


def exec_part(environ: dict[str, str]) -> dict[str, str]:
    """The variables that only work when a program is executed."""
    return {
        name: value for name, value in environ.items() if name.startswith(EXEC_NAMES) and name not in _NOT_EXEC_NAMES
    }


def start_root(run: Callable[[socket, int], None]) -> tuple[socket, int]:
    """Fork the root template, which is to `run(its socket, our pid)` for ever: our end of its socket, its pid."""
    ours, theirs = socket_pair()
    me = os.getpid()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            run(theirs, me)
        finally:
            os._exit(70)
    theirs.close()
    return ours, pid


def _ending(status: int) -> str:
    return f"exited with code {status}" if status >= 0 else f"was killed by {signal_name(-status)}"
