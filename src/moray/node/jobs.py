"""Jobs: what their workers look like, and how a job ends.

A job ends when its driver dies or says goodbye. Then everything that belongs to it goes: requests, leases, workers,
templates, objects. The end is complete, and told to a driver that waits for it, when the last of its processes has been
reaped.

A detached actor has a job of its own, without a driver, made like its creator's: it ends when the actor is dead.

Workers on the driver's host have its ``sys.path``, environment and working directory. On other hosts, those that lie in
what was shipped (:mod:`moray.node.packages`) are there; the interpreter and its libraries are that host's own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec

from moray.node.clients import Client, PidWatch
from moray.node.packages import Found, Packages
from moray.node.template_messages import TemplateConfig
from moray.node.templates import Templates, worker_environ
from moray.protocol import messages as m


class Job:
    """One driver's (or detached actor's) job, from its beginning until nothing of it is left."""

    __slots__ = (
        "config", "driver", "ended", "number", "on_gone", "origin", "owns_session", "remote_driver", "templates",
        "watch",
    )  # fmt: skip

    def __init__(
        self, number: int, config: m.JobConfig, driver: Client | None, owns_session: bool, origin: int
    ) -> None:
        self.number = number
        self.config = config
        #: None: it is a detached actor's, or the driver is at another node.
        self.driver = driver
        #: (process, pid, address) of a driver at another node.
        self.remote_driver = (b"", 0, "")
        #: The driver's job that it comes from; its own number if it has a driver.
        self.origin = origin
        #: Its end is the session's.
        self.owns_session = owns_session
        #: Tells of the driver's death.
        self.watch: PidWatch | None = None
        self.ended = False
        #: Templates whose end is awaited.
        self.templates: set[int] = set()
        #: Called once nothing is left.
        self.on_gone: Callable[[], None] | None = None


class RuntimeEnv(msgspec.Struct, forbid_unknown_fields=True):
    """What a runtime environment of the wire, a JSON object, may say."""

    #: Added to the job's environment.
    env_vars: dict[str, str] = {}
    #: What the user has said of directories, for whoever asks: `packages` has it, too.
    working_dir: str = ""
    py_modules: list[str] = []
    excludes: list[str] = []
    #: Settings of Ray's that mean nothing here.
    config: dict[str, Any] = {}
    #: In their order on sys.path.
    packages: list[m.Package] = msgspec.field(default_factory=list, name="_packages")


#: A driver's environment goes with its job, but these say something about its machine, its login or its installation,
#: and are those of the node on other hosts.
_OF_THE_HOST: Final = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "SHELL", "HOSTNAME", "PWD", "OLDPWD", "TMPDIR", "TMP", "TEMP", "VIRTUAL_ENV",
    "CONDA_PREFIX", "CONDA_DEFAULT_ENV", "CUDA_HOME", "CUDA_VISIBLE_DEVICES", "DISPLAY", "MORAY_HOST_ID",
})  # fmt: skip
_OF_THE_HOST_PREFIXES: Final = ("LD_", "PYTHON", "MALLOC_", "GLIBC_", "XDG_", "SSH_", "NVIDIA_")


class TemplateConfigs:
    """Makes the configuration of a job's templates."""

    def __init__(
        self, session: str, session_dir: str, node_address: str, worker_entry: str, packages: Packages
    ) -> None:
        self._session = session
        self._session_dir = session_dir
        self._node_address = node_address
        self._worker_entry = worker_entry
        self._packages = packages

    def make(
        self, job: Job, runtime_env: str, templates: Templates, then: Callable[[TemplateConfig | None, str], None]
    ) -> None:
        """For the job's own environment (""), or one that differs from it.

        `then` gets it, or why it cannot be had: at once, or when what is on other hosts has come; of a job that ends,
        never.
        """
        try:
            extra = _parse(runtime_env)
        except ValueError as error:
            then(None, str(error))
            return

        def found(places: Found | None, problem: str) -> None:
            if places is None:
                then(None, f"this node cannot set up the runtime environment: {problem}")
            else:
                then(self._make(job, extra, places, templates), "")

        self._packages.prepare(job, runtime_env, _wanted(job.config, extra), found)

    def _make(self, job: Job, extra: RuntimeEnv, found: Found, templates: Templates) -> TemplateConfig:
        config = job.config
        environ, executable = config.environ, config.executable
        if found.foreign:
            environ, executable = _environ_here(environ) | _parse_vars(config.runtime_env), sys.executable
        environ = worker_environ(environ | extra.env_vars, self._session)
        sys_path, cwd = _paths(config, found)
        return TemplateConfig(
            job=job.number,
            session_dir=self._session_dir,
            node_address=self._node_address,
            worker_entry=self._worker_entry,
            sys_path=sys_path,
            cwd=cwd,
            environ=environ,
            preload=config.preload,
            late=[],
            executable=executable if templates.needs_exec(executable, environ) else "",
        )


def _parse(runtime_env: str) -> RuntimeEnv:
    if not runtime_env:
        return RuntimeEnv()
    try:
        found = msgspec.json.decode(runtime_env, type=RuntimeEnv)
    except msgspec.DecodeError as error:
        hint = (
            "; moray sets up env_vars, excludes, py_modules and working_dir: install packages in the environment that "
            "starts the program, on every host"
        )
        raise ValueError(
            f"this node cannot set up the runtime environment {runtime_env}: {error}"
            + (hint if "unknown field" in str(error) else "")
        ) from None
    if found.working_dir and not any(package.kind == "working_dir" for package in found.packages):
        found.packages.insert(0, m.Package(found.working_dir, b"", "working_dir"))
    return found


class _Vars(msgspec.Struct):
    env_vars: dict[str, str] = {}


def _parse_vars(runtime_env: str) -> dict[str, str]:
    """What a job's own environment says of variables, which is what the user wants on every host."""
    return msgspec.json.decode(runtime_env, type=_Vars).env_vars if runtime_env else {}


def _wanted(config: m.JobConfig, extra: RuntimeEnv) -> list[m.Package]:
    """What a task's environment says takes the place of what the job's says."""
    replaced = {package.kind for package in extra.packages}
    return [*extra.packages, *(package for package in config.packages if package.kind not in replaced)]


def _environ_here(environ: dict[str, str]) -> dict[str, str]:
    """The environment of another host's driver, as it makes sense here."""

    def of_the_host(name: str) -> bool:
        return name in _OF_THE_HOST or name.startswith(_OF_THE_HOST_PREFIXES)

    kept = {name: value for name, value in environ.items() if not of_the_host(name)}
    return kept | {name: value for name, value in os.environ.items() if of_the_host(name)}


def _paths(config: m.JobConfig, found: Found) -> tuple[list[str], str]:
    """sys.path, and the working directory."""
    by_kind: dict[str, list[str]] = {"working_dir": [], "py_module": []}
    shipped: dict[str, str] = {}
    for package, place in found.places:
        if package.kind == "path":
            shipped[package.path] = place
        else:
            by_kind[package.kind].append(place)
    sys_path, cwd = config.sys_path, config.cwd
    if found.foreign:
        # What was not shipped may be there all the same: a file system of all hosts.
        driver_path = [path for path in sys_path if path not in set(config.own_paths)]
        sys_path = [*(_place_of(path, shipped) for path in driver_path), *filter(None, sys.path)]
        cwd = _place_of(cwd, shipped)
    sys_path = [*by_kind["working_dir"], *by_kind["py_module"], *sys_path]
    return list(dict.fromkeys(sys_path)), (by_kind["working_dir"] or [cwd])[0]


def _place_of(path: str, shipped: dict[str, str]) -> str:
    """Where a path of the driver's host is here, if it lies in what has come from there."""
    for root, place in shipped.items():
        if place and (path == root or path.startswith(f"{root}/")):
            return place + path[len(root) :]
    return path
