"""Jobs: what their workers look like, and how a job ends.

A job ends when its driver dies or says goodbye. Then everything that belongs to it goes: requests, leases, workers,
templates, objects. The end is complete, and told to a driver that waits for it, when the last of its processes has been
reaped.

A detached actor has a job of its own, without a driver, made like its creator's: it ends when the actor is dead.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec

from moray.node.clients import Client, PidWatch
from moray.node.template_messages import TemplateConfig
from moray.node.templates import Templates, worker_environ
from moray.protocol.messages import JobConfig


class Job:
    """One driver's (or detached actor's) job, from its beginning until nothing of it is left."""

    __slots__ = (
        "config", "driver", "ended", "number", "on_gone", "origin", "owns_session", "remote_driver", "templates",
        "watch",
    )  # fmt: skip

    def __init__(self, number: int, config: JobConfig, driver: Client | None, owns_session: bool, origin: int) -> None:
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
    #: A directory of this machine: the workers' working directory, first on their sys.path.
    working_dir: str = ""


class TemplateConfigs:
    """Makes the configuration of a job's templates."""

    def __init__(self, session: str, session_dir: str, node_address: str, worker_entry: str) -> None:
        self._session = session
        self._session_dir = session_dir
        self._node_address = node_address
        self._worker_entry = worker_entry

    def make(self, job: Job, runtime_env: str, templates: Templates) -> TemplateConfig:
        """For the job's own environment (""), or one that differs from it; ValueError if it cannot be had."""
        config, extra = job.config, _parse(runtime_env)
        environ = worker_environ(config.environ | extra.env_vars, self._session)
        return TemplateConfig(
            job=job.number,
            session_dir=self._session_dir,
            node_address=self._node_address,
            worker_entry=self._worker_entry,
            sys_path=[extra.working_dir, *config.sys_path] if extra.working_dir else config.sys_path,
            cwd=extra.working_dir or config.cwd,
            environ=environ,
            preload=config.preload,
            late=[],
            executable=config.executable if templates.needs_exec(config.executable, environ) else "",
        )


def _parse(runtime_env: str) -> RuntimeEnv:
    if not runtime_env:
        return RuntimeEnv()
    try:
        found = msgspec.json.decode(runtime_env, type=RuntimeEnv)
    except msgspec.DecodeError as error:
        raise ValueError(f"this node cannot set up the runtime environment {runtime_env}: {error}") from None
    if found.working_dir and not os.path.isdir(found.working_dir):
        raise ValueError(
            f"the runtime environment's working_dir {found.working_dir} is not a directory of this machine"
        )
    return found
