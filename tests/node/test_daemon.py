"""Daemons that are children of their node: the pauses between them."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from moray.head.config import HeadConfig
from moray.node.head_process import HeadProcess
from moray.node.relay import RelayConfig
from moray.node.relay_process import RelayProcess
from moray.protocol.reactor import Reactor


@contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", ["head", "relay"])
def test_starts_that_fail_are_repeated_with_growing_pauses(kind: str, tmp_path: Path) -> None:
    """Those, too, that fail before there is a process, however long ago the last one was started."""
    reactor, directory = Reactor(), str(tmp_path)
    child: HeadProcess | RelayProcess
    if kind == "relay":
        config = RelayConfig(credentials="", gate="")
        child = RelayProcess(reactor, directory, directory, "test", config, lambda _address, _answer: None)
    pauses = []
    with no_descriptors():
        if kind == "head":
            child = HeadProcess(HeadConfig(), directory, "test", reactor, lambda _ready: None)
        for _ in range(3):
            child._start()
            assert not child.pid
            pauses.append(child._pause_s)
    child.close()
    reactor.close()
    assert pauses == sorted(set(pauses))
