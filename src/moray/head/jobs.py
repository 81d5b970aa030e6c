"""The jobs of the cluster: their numbers, settings and ends.

A number is given once in the life of the storage. A job ends when its driver's node says so, or is dead; every node is
told. A detached actor's job is made like its creator's and ends with the actor.
"""

from __future__ import annotations

from typing import Final

import msgspec

from moray.head.commits import Commits
from moray.head.storage import Storage
from moray.ids import tag_of
from moray.protocol import messages as m

#: Number → Job. Key b"": the last number that was given.
_JOBS: Final = "jobs"

_decode_config: Final = msgspec.msgpack.Decoder(m.JobConfig).decode


class Job(msgspec.Struct, array_like=True):
    """A job that has not ended."""

    number: int
    #: Its driver; b"": it is a detached actor's.
    process: bytes
    pid: int
    address: str
    #: Encoded JobConfig.
    config: bytes
    #: The driver's job that it comes from; its own number if it has a driver.
    origin: int


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


class Jobs:
    """All that have not ended."""

    def __init__(self, commits: Commits) -> None:
        self._commits = commits
        self._jobs: dict[int, Job] = {}
        self._last = 0

    def load(self, storage: Storage) -> None:
        """Go on where the last head was."""
        for key, value in storage.scan(_JOBS):
            if key:
                job = msgspec.msgpack.decode(value, type=Job)
                self._jobs[job.number] = job
            else:
                self._last = int.from_bytes(value, "big")

    def get(self, number: int) -> Job | None:
        return self._jobs.get(number)

    def all(self) -> list[Job]:
        return list(self._jobs.values())

    def of_node(self, tag: bytes) -> list[Job]:
        """Those whose drivers live with a node."""
        return [job for job in self._jobs.values() if tag_of(job.process) == tag]

    def begin(self, started: m.JobStarted) -> Job:
        """A driver is here. One that has a number keeps it: a head gave it whose storage is lost."""
        number = started.job or self._last + 1
        return self._add(Job(number, started.process, started.pid, started.address, started.config, number))

    def begin_detached(self, origin: int, name: str) -> Job:
        """A job for a detached actor that somebody in the living job `origin` has made."""
        creators = self._jobs[origin]
        config = msgspec.structs.replace(_decode_config(creators.config), entrypoint=f"detached actor {name}")
        return self._add(Job(self._last + 1, b"", 0, "", msgspec.msgpack.encode(config), creators.origin))

    def end(self, number: int) -> Job | None:
        """It is over; None: it was, or never began."""
        job = self._jobs.pop(number, None)
        if job is not None:
            self._commits.write(_JOBS, _key(number), None)
        return job

    def settings(self, number: int) -> m.JobSettings:
        """The answer to GetJob."""
        job = self._jobs.get(number)
        if job is None:
            return m.JobSettings(number, b"")
        driver = self.driver_of(job)
        return m.JobSettings(
            number, job.config, (driver.process, driver.pid, driver.address) if driver else (b"", 0, "")
        )

    def driver_of(self, job: Job) -> Job | None:
        """Whose driver shows a job's output and warnings; None: there is none any more."""
        if job.process:
            return job
        origin = self._jobs.get(job.origin)
        return origin if origin is not None and origin.process else None

    def _add(self, job: Job) -> Job:
        self._jobs[job.number] = job
        if job.number > self._last:
            self._last = job.number
            self._commits.write(_JOBS, b"", self._last.to_bytes(8, "big"))
        self._commits.write(_JOBS, _key(job.number), msgspec.msgpack.encode(job))
        return job
