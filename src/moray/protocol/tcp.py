"""The machine's one TCP port: who may come in, before TLS begins.

A connection begins with :data:`PREFACE` plain bytes: a magic, the protocol's number, and the process that is asked for
(zeros: whoever owns the port). :class:`TcpServer` reads exactly these and hands the untouched rest of the
stream on, so that a process behind the port does the TLS handshake itself and the port's owner copies no byte.

Strangers must cost little. A connection that does not begin as it should is closed at its first wrong byte. Those that
are slow are *half open*: they hold a descriptor, and there may be only so many of them, in all and per address;
the oldest is cut first, because an honest peer is through in milliseconds. All share one timer
(:class:`HalfOpen`). Everything is counted, and logged with a few lines per kind and minute (:class:`FewLines`).
"""

from __future__ import annotations

import errno
import ipaddress
import os
import resource
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

from moray.ids import PROCESS_BYTES
from moray.protocol.messages import PROTOCOL_VERSION
from moray.protocol.reactor import READ, Reactor, Timer

MAGIC: Final = b"moray1\n"
#: Asks for whoever owns the port.
NODE_TARGET: Final = bytes(PROCESS_BYTES)
#: Asks the head for a certificate (:mod:`moray.security.join`); no process has this id.
JOIN_TARGET: Final = b"moray-join\0\0"
PREFACE: Final = len(MAGIC) + 1 + PROCESS_BYTES

#: A peer has this long for the preface and the TLS handshake together.
HANDSHAKE_TIMEOUT_S: Final = 10.0
#: Half-open connections at most, in all and from one address: a thousand nodes may come back at once, and all the
#: processes of one large machine. A quarter of the process's descriptors is the most in any case.
MOST_HALF_OPEN: Final = 1024
MOST_PER_ADDRESS: Final = 256
#: Connections that are accepted in one turn of the loop, so that a flood leaves time for others.
_ACCEPT_AT_ONCE: Final = 64
_RETRY_S: Final = 0.2
_BACKLOG: Final = 4096
#: Of one kind of event, so many lines are logged in so many seconds.
_LINES: Final = 3
_LINES_S: Final = 60.0
#: Said of a connection from which nothing is heard: after so long the kernel asks, so often, so many times.
_KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 15), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 3))
#: Errors of accept() that say that no more descriptors or memory are to be had.
_EXHAUSTED: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def preface(target: bytes = NODE_TARGET) -> bytes:
    """What a connection to this process begins with."""
    if len(target) != PROCESS_BYTES:
        raise ValueError(f"a process id has {PROCESS_BYTES} bytes, not {len(target)}")
    return MAGIC + bytes((PROTOCOL_VERSION,)) + target


# --- connecting ---------------------------------------------------------------------------------------


def connect_tcp(host: str, port: int, target: bytes = NODE_TARGET, timeout_s: float = 10.0) -> socket.socket:
    """A connection to `target` behind a machine's port, the preface sent: TLS comes next. Blocking, for drivers and
    launchers; OSError, naming the address, if nobody is there."""
    try:
        sock = socket.create_connection((host, port), timeout_s)
    except OSError as error:
        raise type(error)(
            error.errno, f"no connection to {format_address(host, port)}: {error.strerror or error}"
        ) from None
    try:
        tune(sock)
        sock.sendall(preface(target))
    except BaseException:
        sock.close()
        raise
    return sock


def start_connect(host: str, port: int) -> socket.socket:
    """A socket that is being connected, for the loop, which must not wait: `host` is a number, not a name. What sends
    on it, such as a TlsConnection given :func:`preface`, learns how that went."""
    family, kind, protocol, _name, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    try:
        tune(sock)
        if (code := sock.connect_ex(address)) not in (0, errno.EINPROGRESS):
            raise OSError(code, f"no connection to {format_address(host, port)}: {os.strerror(code)}")
    except BaseException:
        sock.close()
        raise
    return sock


def tune(sock: socket.socket) -> None:
    """Send at once, and notice a machine that has vanished."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        sock.setsockopt(socket.IPPROTO_TCP, option, value)


def format_address(host: str, port: int) -> str:
    """HOST:PORT, with brackets where IPv6 needs them."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(text: str) -> tuple[str, int]:
    """(host, port) of HOST:PORT or [IPv6]:PORT; ValueError otherwise."""
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not bare or not port.isdecimal() or not 0 < int(port) < 1 << 16 or (":" in bare and bare is host):
        raise ValueError(f"{text!r} is not an address: write HOST:PORT, such as 10.0.0.1:6379 or [fd00::1]:6379")
    return bare, int(port)


# --- limits for strangers -------------------------------------------------------------------------------


class FewLines:
    """Lines of a log for what strangers do, who can do it as often as they like: a few per kind and minute. The
    first of the next minute says how many more there were."""

    def __init__(self, log: Callable[[str], None], clock: Callable[[], float] = monotonic) -> None:
        self._log = log
        self._clock = clock
        #: Kind → since when its lines are counted, and how many there were.
        self._counts: dict[str, tuple[float, int]] = {}

    def __call__(self, kind: str, text: str) -> None:
        """Something of this kind happened; there are few kinds."""
        now = self._clock()
        since, count = self._counts.get(kind, (now, 0))
        more = 0
        if now - since >= _LINES_S:
            since, count, more = now, 0, max(0, count - _LINES)
        self._counts[kind] = since, count + 1
        if count < _LINES:
            self._log(f"{text} (and {more} more like it since the last such line)" if more else text)


class Admission:
    """One connection that has not shown who it is."""

    __slots__ = ("_limits", "address", "cut", "due", "source")

    def __init__(self, limits: HalfOpen, address: str, cut: Callable[[str], None], due: float) -> None:
        self._limits = limits
        self.address = address
        #: Whom `address` counts as.
        self.source = _source(address)
        #: Ends it, with the reason.
        self.cut = cut
        self.due = due

    def release(self, kind: str = "") -> None:
        """It has shown who it is, or is gone; counted as `kind`. Loop only."""
        self._limits.release(self)
        if kind:
            self._limits.stats[kind] += 1


class HalfOpen:
    """The connections of a process that have not shown who they are, oldest first, and their limits. Loop only."""

    def __init__(
        self,
        reactor: Reactor,
        stats: Counter[str] | None = None,
        most: int = MOST_HALF_OPEN,
        most_per_address: int = MOST_PER_ADDRESS,
        timeout_s: float = HANDSHAKE_TIMEOUT_S,
    ) -> None:
        self._reactor = reactor
        #: How many were admitted, shown, and cut for which reason.
        self.stats: Counter[str] = Counter() if stats is None else stats
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._most = min(most, max(16, descriptors // 4)) if descriptors > 0 else most
        self._most_per_address = min(most_per_address, self._most)
        self._timeout_s = timeout_s
        self._all: OrderedDict[Admission, None] = OrderedDict()
        self._by_source: dict[str, OrderedDict[Admission, None]] = {}
        self._timer: Timer | None = None

    def __len__(self) -> int:
        return len(self._all)

    def admit(self, address: str, cut: Callable[[str], None]) -> Admission:
        """One more, from `address`; `cut` is called if it must go."""
        admission = Admission(self, address, cut, monotonic() + self._timeout_s)
        same = self._by_source.setdefault(admission.source, OrderedDict())
        if len(same) >= self._most_per_address:
            self._cut(next(iter(same)), "too_many_of_address", "too many half-open connections from its address")
        elif len(self._all) >= self._most:
            self._cut_oldest()
        self._all[admission] = None
        self._by_source.setdefault(admission.source, same)[admission] = None
        if self._timer is None:
            self._arm()
        return admission

    def release(self, admission: Admission) -> None:
        """See Admission.release."""
        if self._all.pop(admission, self) is self:
            return
        same = self._by_source[admission.source]
        del same[admission]
        if not same:
            del self._by_source[admission.source]

    def make_room(self) -> bool:
        """Cut the oldest; whether there was one."""
        return self._cut_oldest() if self._all else False

    def close(self) -> None:
        """Cut all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for admission in list(self._all):
            self.release(admission)
            admission.cut("closed here")

    def _cut_oldest(self) -> bool:
        self._cut(next(iter(self._all)), "too_many", "too many half-open connections")
        return True

    def _cut(self, admission: Admission, kind: str, reason: str) -> None:
        self.release(admission)
        self.stats[kind] += 1
        admission.cut(reason)

    def _arm(self) -> None:
        due = next(iter(self._all)).due
        self._timer = self._reactor.call_later(max(0.0, due - monotonic()), self._look)

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        while self._all and (oldest := next(iter(self._all))).due <= now:
            self._cut(oldest, "too_slow", f"it did not finish its handshake within {self._timeout_s:g} s")
        if self._all:
            self._arm()


def _source(address: str) -> str:
    """Whom an address counts as: a host has one IPv4 address, and a whole /64 of IPv6."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    return str(parsed.ipv4_mapped or parsed.packed[:8].hex())


# --- accepting --------------------------------------------------------------------------------------------


class _Newcomer:
    """A connection whose preface is not complete."""

    __slots__ = ("admission", "data", "fd", "server", "sock")

    def __init__(self, server: TcpServer, sock: socket.socket, address: str) -> None:
        self.server = server
        self.sock = sock
        self.fd = sock.fileno()
        self.data = b""
        self.admission: Admission | None = server.half_open.admit(address, self.cut)

    def on_events(self, _events: int) -> None:
        """The reactor's callback."""
        self.server.read(self)

    def cut(self, reason: str) -> None:
        """Too slow, or too many."""
        admission, self.admission = self.admission, None
        self.server.forget(self)
        self.sock.close()
        self.server.report("slow or flooding", reason, admission.address if admission else "")


class TcpServer:
    """The listening socket of a node or of the head. Loop only."""

    def __init__(
        self,
        reactor: Reactor,
        host: str,
        port: int,
        on_connection: Callable[[socket.socket, bytes, str], None],
        *,
        log: Callable[[str], None],
        half_open: HalfOpen | None = None,
    ) -> None:
        """Listen.

        Args:
            reactor: whose loop this is.
            host: the address to bind; "" for all of them.
            port: 0 for any; see :attr:`address`.
            on_connection: called with the raw socket, the process asked for, and the peer's address. TLS has not begun,
                so the connection is still a stranger: admit it to :attr:`half_open` (TlsConnection does), or pass the
                socket on.
            log: takes a line.
            half_open: other limits than the usual ones.
        """
        self._reactor = reactor
        self._on_connection = on_connection
        self._say = FewLines(log)
        #: Limits, for newcomers and for the TLS handshakes that follow in this process.
        self.half_open = half_open if half_open is not None else HalfOpen(reactor)
        #: Counts by kind: "accepted", "handed_on", and of those that were closed: "http", "tls", "plain", "protocol",
        #: "vanished", "too_slow", "too_many", "too_many_of_address"; "accept_failed". Of TLS handshakes here:
        #: "authenticated", "not_authenticated".
        self.stats = self.half_open.stats
        self._newcomers: dict[int, _Newcomer] = {}
        self._retry: Timer | None = None
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(_BACKLOG)
        except OSError as error:
            self._socket.close()
            where = format_address(host or "any address", port)
            raise type(error)(error.errno, f"cannot listen at {where}: {error.strerror}") from None
        #: (host, port) that it is bound to.
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._listen()

    def close(self) -> None:
        """Accept nobody any more, and end those who have not shown who they are."""
        if self._retry is not None:
            self._retry.cancel()
        self._reactor.unregister(self._socket.fileno())
        self._socket.close()
        self.half_open.close()

    def fileno(self) -> int:
        """The listening descriptor."""
        return self._socket.fileno()

    def _listen(self) -> None:
        self._retry = None
        self._reactor.register(self._socket.fileno(), READ, self._accept)

    def _accept(self, _events: int) -> None:
        for _ in range(_ACCEPT_AT_ONCE):
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError, InterruptedError):
                return
            except OSError as error:
                self.stats["accept_failed"] += 1
                self.report("not accepted", f"a connection could not be accepted: {error}", "")
                if error.errno in _EXHAUSTED and self.half_open.make_room():
                    continue
                # Try again when some descriptors may be closed; until then the kernel keeps those who come.
                self._reactor.unregister(self._socket.fileno())
                self._retry = self._reactor.call_later(_RETRY_S, self._listen)
                return
            self.stats["accepted"] += 1
            sock.setblocking(False)
            newcomer = _Newcomer(self, sock, address[0])
            self.read(newcomer)  # Most often it is all there, and was half open for no time.
            if newcomer.admission is not None:
                self._newcomers[newcomer.fd] = newcomer
                self._reactor.register(newcomer.fd, READ, newcomer.on_events)

    def read(self, newcomer: _Newcomer) -> None:
        """Read what is missing of the preface, and never more."""
        try:
            data = newcomer.sock.recv(PREFACE - len(newcomer.data))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        newcomer.data += data
        if not data:
            self._refuse(newcomer, "vanished", "closed before it said what it wanted")
            return
        begun = newcomer.data
        if begun[: len(MAGIC)] != MAGIC[: len(begun)]:
            self._refuse(newcomer, *_what_else(begun))
        elif len(begun) == PREFACE:
            version = begun[len(MAGIC)]
            if version != PROTOCOL_VERSION:
                reason = f"it speaks protocol {version}, this process {PROTOCOL_VERSION}"
                self._answer_version(newcomer.sock)
                self._refuse(newcomer, "protocol", reason)
            else:
                self._hand_on(newcomer, begun[len(MAGIC) + 1 :])

    def _hand_on(self, newcomer: _Newcomer, target: bytes) -> None:
        admission, newcomer.admission = newcomer.admission, None
        assert admission is not None  # Who was cut is read no more.
        self.forget(newcomer)
        admission.release()
        self.stats["handed_on"] += 1
        tune(newcomer.sock)
        try:
            self._on_connection(newcomer.sock, target, admission.address)
        except OSError as error:
            # Our own certificate cannot be read: strangers' bytes must not end this process because of that.
            newcomer.sock.close()
            self.report("not taken", f"this process cannot take it: {error}", admission.address)

    def _answer_version(self, sock: socket.socket) -> None:
        """Which number we speak, in plain bytes, so that its error can name both (PROTOCOL)."""
        try:
            sock.send(MAGIC + bytes((PROTOCOL_VERSION,)))
        except OSError:
            pass  # It is gone; our log has it.

    def _refuse(self, newcomer: _Newcomer, kind: str, reason: str) -> None:
        admission, newcomer.admission = newcomer.admission, None
        self.forget(newcomer)
        newcomer.sock.close()
        self.stats[kind] += 1
        if admission is not None:
            admission.release()
            self.report(kind, reason, admission.address)

    def forget(self, newcomer: _Newcomer) -> None:
        """It is no newcomer any more; its socket is still open."""
        if self._newcomers.pop(newcomer.fd, None) is not None:
            self._reactor.unregister(newcomer.fd)

    def report(self, kind: str, reason: str, address: str) -> None:
        """Log a connection that was closed, unless there were many like it."""
        self._say(kind, f"a connection from {address or 'unknown'} was closed: {reason}")


def _what_else(data: bytes) -> tuple[str, str]:
    """(kind, reason) of bytes that are not ours."""
    if data[:2] == b"\x16\x03"[: len(data)]:
        return "tls", "it began TLS without saying what it wanted; is it a program of this cluster?"
    if data[0:1].isupper() and data[:4].split(b" ")[0].isalpha():
        return "http", "it spoke HTTP, or something like it, and this is no web server"
    return "plain", f"it did not begin as moray's connections do, but with {data[:16]!r}"
