"""A client that sends bytes that are no message loses its connection, and nobody else notices."""

from __future__ import annotations

import os

import pytest

from moray.protocol import messages as m
from moray.protocol.connection import HEADER, encode_frame
from moray.protocol.handshake import connect
from tests.node.client import Driver, job_config, running_node
from tests.node.raw_bytes import UNREADABLE

pytestmark = pytest.mark.slow


def frame(body: bytes) -> bytes:
    return HEADER.pack(len(body), m.PROTOCOL_VERSION) + body


@pytest.mark.parametrize("body", UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_bytes_end_the_connection_alone(body: bytes) -> None:
    with running_node() as node:
        first, other = Driver(node.address), Driver(node.address)
        hello = m.Hello(m.PROTOCOL_VERSION, "driver", os.urandom(12), os.getpid(), "", job_config())
        # As the first message; behind it in one piece; and later.
        for begin in (b"", encode_frame(hello)):
            with connect(node.address, 10.0) as sock:
                sock.sendall(begin + frame(body))
                while sock.recv(1 << 16):
                    pass
        first.sock.sendall(frame(body))
        while first.sock.recv(1 << 16):
            pass
        first.close()
        other.send(m.ClusterInfo(5))
        assert other.expect(m.ClusterState).request == 5
        other.close()
