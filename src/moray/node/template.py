"""The fork servers: processes that exist to be copied.

The **root template** is forked from the node at its very start, while that has no socket, thread or epoll set. It
imports what every worker needs. For each job it forks (or, for another interpreter, execs) a **job template**, which
takes on the driver's environment, working directory and ``sys.path``, imports the job's modules, and forks workers on
command, in about a millisecond each. Both reap their children and report how they ended: only a parent can.

*Single-threaded.* A fork copies one thread; locks that others held would stay held for ever. So the number of
threads is checked before each fork. A module that starts threads when it is imported cannot be preloaded; the node is
told which, and makes a new template whose workers import it themselves.

*Memory.* ``gc.freeze()`` before the first fork keeps the collector from touching, and so copying, the pages that
all workers share.

*Ends.* Every process here asks for SIGKILL when its parent's main thread ends, so the death of the node, or of a
template, ends all that came from it, and the end of a control socket ends its template.
"""

from __future__ import annotations

import gc
import os
import select
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module, invalidate_caches
from importlib.util import spec_from_file_location
from typing import Final, NamedTuple, NoReturn

import msgspec

from moray.launch.config import WORKER_VARIABLE
from moray.launch.session_directory import TLS_FOLDER
from moray.node import worker_process
from moray.node.logs import log
from moray.node.template_messages import (
    PACKET_BYTES,
    REASON_CHARACTERS,
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
    decode,
    encode,
)
from moray.platform import process_control, process_table
from moray.platform.memory_files import read_all

#: Imported by the root template for all jobs: what every worker uses. Never numpy: many jobs do not use it.
COMMON_MODULES: Final = ("pickle", "cloudpickle", "moray.compat")
#: Imported beside them where workers have peers at other machines: TLS alone takes longer than a worker's whole start.
CLUSTER_MODULES: Final = ("moray.runtime.remote",)
#: Imported by a template that had nothing to do for a while: what only some workers use. By the root template only if
#: there is no job yet, which has its own: then all jobs share it.
IDLE_MODULES: Final = ("moray.runtime.actor_loop",)
_IDLE_MS: Final = 300
#: Descriptors of a job template that was started by exec.
CONTROL_FD: Final = 3
CONFIG_FD: Final = 4

#: Made before the fork, like all that every template needs.
_decode_config: Final = msgspec.msgpack.Decoder(TemplateConfig).decode

_BOOT: Final = "import sys; sys.path[:] = {paths!r}; from moray.node.template import main_by_exec; main_by_exec()"


class _Child(NamedTuple):
    pid: int
    #: What the node calls it.
    key: bytes | int


class _ForkServer:
    """The loop that both kinds of template run: obey the node, reap children."""

    def __init__(self, control: socket.socket, idle_modules: Sequence[str] = (), credentials: str = "") -> None:
        self._control = control
        #: To be imported when there is nothing else to do.
        self._idle_modules = list(idle_modules)
        #: Directory of the certificate that workers show to other machines; "": they have no peers there.
        self._credentials = credentials
        #: pidfd → child that has not been reaped.
        self._children: dict[int, _Child] = {}
        self._poller = select.poll()
        self._poller.register(control.fileno(), select.POLLIN)

    def _wait(self, timeout_ms: int | None = None) -> list[int]:
        """The descriptors that have something to say; none when the time is over."""
        return [fd for fd, _events in self._poller.poll(timeout_ms)]

    def _receive(self) -> tuple[AnyPacket, list[int]]:
        data, fds, _flags, _address = socket.recv_fds(self._control, PACKET_BYTES, 2)
        if not data:
            # The node wants this template to end. Its children follow: they die with their parent.
            os._exit(0)
        return decode(data), fds

    def _send(self, packet: AnyPacket, fds: tuple[int, ...] = ()) -> None:
        try:
            socket.send_fds(self._control, [encode(packet)], list(fds))
        except (BrokenPipeError, ConnectionResetError):
            os._exit(0)

    def _fork(self, key: bytes | int) -> int | None:
        """The pidfd of a new child; None in the child, which shares nothing with this loop any more."""
        threads = process_table.thread_count()
        if threads != 1:
            raise RuntimeError(f"a template with {threads} threads cannot be forked safely")
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._leave()
            return None
        pidfd = os.pidfd_open(pid)
        self._children[pidfd] = _Child(pid, key)
        self._poller.register(pidfd, select.POLLIN)
        return pidfd

    def _warm_up(self) -> None:
        """Have what some workers need in memory before the next is forked; each would need as long by itself."""
        known = len(sys.modules)
        rehearsed = bool(self._credentials) and _rehearse(self._credentials)
        while self._idle_modules:
            try:
                import_module(self._idle_modules.pop(0))
            except Exception:  # noqa: BLE001, S110 - the job's own path may hide it: the worker that needs it will say so.
                pass
        if rehearsed or len(sys.modules) > known:
            _freeze()

    def _leave(self) -> None:
        """In a fresh child: close the parent's descriptors."""
        self._control.close()
        for pidfd in self._children:
            os.close(pidfd)
        self._children.clear()

    def _reap(self, pidfd: int) -> tuple[_Child, int]:
        child = self._children.pop(pidfd)
        self._poller.unregister(pidfd)
        _pid, status = os.waitpid(child.pid, 0)
        os.close(pidfd)
        return child, os.waitstatus_to_exitcode(status)


class _RootTemplate(_ForkServer):
    """Makes job templates."""

    def serve(self) -> tuple[socket.socket, TemplateConfig]:
        """Obey; returns only in a child, which is to be a job template."""
        while True:
            ready = self._wait(_IDLE_MS if self._idle_modules else None)
            if not ready:
                self._warm_up()
            for fd in ready:
                if fd != self._control.fileno():
                    child, status = self._reap(fd)
                    assert isinstance(child.key, int)
                    self._send(TemplateEnded(child.key, child.pid, status))
                    continue
                packet, fds = self._receive()
                assert isinstance(packet, NewTemplate), packet
                made = self._make(packet.number, *fds)
                if made is not None:
                    return made

    def _make(self, number: int, control: int, config_fd: int) -> tuple[socket.socket, TemplateConfig] | None:
        me = os.getpid()
        self._idle_modules.clear()
        try:
            pidfd = self._fork(number)
        except (OSError, RuntimeError) as error:
            self._send(TemplateNotStarted(number, f"cannot fork a template: {error}"))
            os.close(control)
            os.close(config_fd)
            return None
        if pidfd is not None:
            os.close(control)
            os.close(config_fd)
            self._send(TemplateStarted(number, self._children[pidfd].pid))
            return None
        process_control.die_with_parent(me)
        config = _read_config(config_fd)
        if config.executable:
            _exec_template(config, control, config_fd)
        os.close(config_fd)
        return socket.socket(fileno=control), config


class _JobTemplate(_ForkServer):
    """Makes workers of one job and environment."""

    def serve(self) -> bytes:
        """Obey; returns only in a child, which is to be the worker with the returned process id."""
        while True:
            ready = self._wait(_IDLE_MS if self._idle_modules else None)
            if not ready:
                self._warm_up()
            for fd in ready:
                if fd != self._control.fileno():
                    child, status = self._reap(fd)
                    assert isinstance(child.key, bytes)
                    self._send(WorkerEnded(child.key, child.pid, status))
                    continue
                packet, _fds = self._receive()
                assert isinstance(packet, Fork), packet
                if self._make(packet.process):
                    return packet.process

    def _make(self, process: bytes) -> bool:
        """Whether this is the child."""
        try:
            pidfd = self._fork(process)
        except (OSError, RuntimeError) as error:
            self._send(ForkFailed(process, f"cannot fork a worker: {error}"))
            return False
        if pidfd is None:
            return True
        self._send(Forked(process, self._children[pidfd].pid), (pidfd,))
        return False

    def give_up(self, error: PrepareFailed) -> NoReturn:
        """Tell the node why there will be no workers, and end."""
        self._send(error)
        os._exit(1)


# --- the processes -------------------------------------------------------------------------------


def main(control: socket.socket, parent: int, worker_entry: str, modules: Sequence[str], credentials: str) -> NoReturn:
    """The root template; runs in a child of the node that shares nothing with it but its log."""
    with _exit_with_traceback("the root template"):
        process_control.die_with_parent(parent)
        process_control.set_name("moray:template")
        _load_facade()
        for module in (*COMMON_MODULES, *_entry_ahead(worker_entry), *modules):
            import_module(module)
        _make_decoder()
        _freeze()
        _run_job_template(
            *_RootTemplate(control, IDLE_MODULES if _entry_ahead(worker_entry) else (), credentials).serve()
        )


def main_by_exec() -> NoReturn:
    """A job template in a fresh interpreter, started by the root template's exec; the death signal outlives that."""
    with _exit_with_traceback("a job's template"):
        process_control.close_from(CONFIG_FD + 1)
        config = _read_config(CONFIG_FD)
        os.close(CONFIG_FD)
        os.set_inheritable(CONTROL_FD, False)
        process_control.preload()
        import_module("moray.protocol.connection").prepare()
        _run_job_template(socket.socket(fileno=CONTROL_FD), config)


def _run_job_template(control: socket.socket, config: TemplateConfig) -> NoReturn:
    with _exit_with_traceback(f"the template of job {config.job}"):
        process_control.set_name(f"moray:job {config.job}")
        process_control.prefer_as_oom_victim(worker_process.TEMPLATE_OOM_SCORE)
        # Where the root template had no time for it.
        idle_modules = IDLE_MODULES if _entry_ahead(config.worker_entry) else ()
        template = _JobTemplate(control, idle_modules, f"{config.session_dir}/{TLS_FOLDER}" if idle_modules else "")
        failure = _prepare(config)
        if failure is not None:
            template.give_up(failure)
        _freeze()
        me = os.getpid()
        process = template.serve()
        worker_process.run(config, process, me)


class _exit_with_traceback:  # noqa: N801 - used as a function
    """No exception of a template may run on into the caller's code, which belongs to another process."""

    def __init__(self, who: str) -> None:
        self._who = who

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        if error[1] is not None:
            log(f"{self._who} failed:\n{traceback.format_exc()}")
        os._exit(70)


# --- becoming a job's template ---------------------------------------------------------------------


def _prepare(config: TemplateConfig) -> PrepareFailed | None:
    """Take on the job's surroundings and import its modules; what went wrong, if anything."""
    _adopt_environ(config.environ)
    sys.path[:] = config.sys_path
    invalidate_caches()
    try:
        os.chdir(config.cwd)
    except OSError as error:
        log(f"job {config.job}: its workers start in {config.session_dir}: {error}")
        os.chdir(config.session_dir)
    for module in (config.worker_entry.partition(":")[0], *config.preload):
        try:
            import_module(module)
        except BaseException:  # noqa: BLE001 - user code may raise anything, SystemExit included
            reason = traceback.format_exc()[-REASON_CHARACTERS:]
            return PrepareFailed(f"the module {module} cannot be imported:\n{reason}")
        if process_table.thread_count() != 1:
            return PrepareFailed(f"the module {module} starts threads when it is imported", module)
    return None


def _adopt_environ(environ: dict[str, str]) -> None:
    """Make this process's environment equal to `environ`, touching only what differs."""
    for name in [name for name in os.environ if name not in environ and name != WORKER_VARIABLE]:
        del os.environ[name]
    for name, value in environ.items():
        # The worker's tag must stay where exec put it (process_control.retag).
        if name != WORKER_VARIABLE and os.environ.get(name) != value:
            os.environ[name] = value
    time.tzset()


def _exec_template(config: TemplateConfig, control: int, config_fd: int) -> NoReturn:
    """Become a fresh interpreter that goes on in :func:`main_by_exec`."""
    try:
        # Copies above both targets, so that neither is overwritten before it is copied itself.
        copies = _duplicate_above(control, CONFIG_FD), _duplicate_above(config_fd, CONFIG_FD)
        os.lseek(config_fd, 0, os.SEEK_SET)
        os.dup2(copies[0], CONTROL_FD)
        os.dup2(copies[1], CONFIG_FD)
        code = _BOOT.format(paths=config.sys_path)
        command = [config.executable, "-c", code, "moray-template"]
        os.execve(config.executable, command, config.environ)  # noqa: S606 - no shell: an argument list of our own
    except OSError as error:
        failure = PrepareFailed(f"the job's interpreter {config.executable} cannot be started: {error}")
        socket.socket(fileno=copies[0]).send(encode(failure))
        os._exit(1)


def _duplicate_above(fd: int, lowest: int) -> int:
    import fcntl

    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, lowest + 1)


def _read_config(fd: int) -> TemplateConfig:
    return _decode_config(read_all(fd))


def _load_facade() -> None:
    """Make `moray` whole: the node was started without the package's facade (moray.launch.local), workers need it."""
    package = sys.modules["moray"]
    if package.__spec__ is not None:
        return
    folders = list(package.__path__)
    file = f"{folders[0]}/__init__.py"
    spec = spec_from_file_location("moray", file, submodule_search_locations=folders)
    assert spec is not None
    assert spec.loader is not None
    package.__spec__, package.__loader__, package.__file__ = spec, spec.loader, file
    package.__package__ = "moray"
    spec.loader.exec_module(package)


def _rehearse(credentials: str) -> bool:
    """Make the settings of connections to other machines, once; whether there was anything to do."""
    if not os.path.isdir(credentials):
        return False
    from pathlib import Path

    from moray.security.contexts import rehearse

    try:
        return rehearse(Path(credentials))
    except OSError as error:
        log(f"no connection to other machines could be rehearsed, and none may be possible: {error}")
        return False


def _entry_ahead(worker_entry: str) -> tuple[str, ...]:
    """The worker's module, if it is moray's own; another may need the job's sys.path."""
    module = worker_entry.partition(":")[0]
    return (module,) if module.startswith("moray.") else ()


def _make_decoder() -> None:
    """Of all messages: no process that is forked from here need make it."""
    connection = sys.modules.get("moray.protocol.connection")
    if connection is not None:
        connection.prepare()


def _freeze() -> None:
    """What is in memory now stays there, and forked children share it."""
    gc.collect()
    gc.freeze()
