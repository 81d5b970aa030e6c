"""Connecting: a blocking exchange of Hello and Welcome before a socket joins the reactor.

Unix sockets live in the session's 0700 directory, and the accepting side checks with ``SO_PEERCRED``
that the peer is the same user (or root) before it reads a byte. The directory's path may have any length.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from moray.protocol.connection import HEADER, ProtocolError, decode_body, encode_frame
from moray.protocol.messages import PROTOCOL_VERSION, AnyMessage, Message

_UCRED = struct.Struct("3i")
_MAX_HANDSHAKE = 1 << 22
#: Bytes of a path that the kernel takes for a Unix socket, without the final zero.
_SOCKET_PATH_BYTES: Final = 107


@contextmanager
def short_path(path: str) -> Iterator[str]:
    """A path to `path` that is short enough for a Unix socket: itself, or one by way of its directory's descriptor."""
    if len(os.fsencode(path)) <= _SOCKET_PATH_BYTES:
        yield path
        return
    directory, name = os.path.split(path)
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def listen(path: str) -> socket.socket:
    """A non-blocking Unix socket that accepts at `path`, readable by this user only."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(path) as short:
        sock.bind(short)
    os.chmod(path, 0o600)
    sock.listen(512)
    sock.setblocking(False)
    return sock


def inbox_path(session_dir: str, process: bytes) -> str:
    """Where a node of a cluster hands connections from other machines over to one of its processes."""
    return f"{session_dir}/{process.hex()}.in"


def open_inbox(session_dir: str, process: bytes) -> socket.socket:
    """A non-blocking socket that takes them over, readable by this user only."""
    path = inbox_path(session_dir, process)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with short_path(path) as short:
        sock.bind(short)
    os.chmod(path, 0o600)
    return sock


def connect(path: str, timeout_s: float = 10.0) -> socket.socket:
    """A blocking connection to `path`. OSError if nobody listens there."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout_s)
        with short_path(path) as short:
            sock.connect(short)
    except OSError:
        sock.close()
        raise
    return sock


def peer_pid(sock: socket.socket) -> int:
    """The connecting process's pid, after checking that it is our user. PermissionError otherwise."""
    pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid not in (os.getuid(), 0):
        raise PermissionError(f"process {pid} of user {uid} may not connect to a session of user {os.getuid()}")
    return int(pid)


def send_blocking(sock: socket.socket, message: Message, fds: tuple[int, ...] = ()) -> None:
    """Send one frame on a blocking socket, with file descriptors if any."""
    frame = encode_frame(message)
    if fds:
        sent = socket.send_fds(sock, [frame], list(fds))
        frame = frame[sent:]
    sock.sendall(frame)


def receive_blocking(sock: socket.socket, fds_wanted: int = 0) -> tuple[AnyMessage, list[int], bytes]:
    """Read one frame: (message, received fds, bytes that came after it).

    Raises ProtocolError on another protocol or a closed connection, TimeoutError as the socket says.
    """
    data, fds = b"", list[int]()
    while True:
        if len(data) >= HEADER.size:
            size, version = HEADER.unpack_from(data)
            if version != PROTOCOL_VERSION:
                raise ProtocolError(f"the peer speaks protocol {version}, this process {PROTOCOL_VERSION}")
            if size > _MAX_HANDSHAKE:
                raise ProtocolError(f"a handshake of {size} bytes is too large")
            if len(data) >= HEADER.size + size:
                end = HEADER.size + size
                return decode_body(data[HEADER.size : end]), fds, data[end:]
        if fds_wanted and not fds:
            chunk, fds, _flags, _address = socket.recv_fds(sock, 1 << 16, fds_wanted)
            for fd in fds:
                os.set_inheritable(fd, False)  # recv_fds() of Python 3.11 does not pass its flags on.
        else:
            chunk = sock.recv(1 << 16)
        if not chunk:
            raise ProtocolError("the peer closed the connection during the handshake")
        data += chunk
