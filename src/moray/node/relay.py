"""The relay: a process beside the head, through which drivers are connected that nobody can connect to.

It is started by its node when the first connection for it comes (:mod:`moray.node.relay_process`), and ends when it has
had nothing to do for a while, or with its node. Connections are handed over to it as to any process: by the head, at
whose port drivers ask for it, and by the node's gate, for those who ask for a driver behind it.

A driver's tunnel (:mod:`moray.core.tunnel`) is a *session*. Its streams lead to the head and to gates of the cluster's
nodes, and nowhere else: the node is asked for each. What passes is encrypted between the two ends; the relay sees who
talks to whom, and how much. It keeps a session whose connection is lost for as long as the driver has asked for, and
buffers no more of it than the tunnel's credits.

Nothing of a connection is decoded before both sides have shown a certificate of the cluster.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable
from hmac import compare_digest
from pathlib import Path
from time import monotonic
from typing import Any, Final, NoReturn

import msgspec

from moray.core.tunnel import TooManyStreamsError
from moray.ids import PROCESS_BYTES, TAG_BYTES, tag_of
from moray.node.logs import log
from moray.node.tunnel_end import SILENCE_S, TunnelConnection, TunnelEnd, prefer_latency
from moray.platform import process_control
from moray.platform.memory_files import read_all
from moray.protocol import messages as m
from moray.protocol.reactor import READ, Reactor, Timer
from moray.protocol.relaying import RELAY_TARGET, receive_descriptor
from moray.protocol.tcp import FewLines, HalfOpen, parse_address, start_connect
from moray.security.contexts import contexts_of

#: Descriptors that it starts with: its RelayConfig, the inbox, its log, and what it asks its node through.
CONFIG_FD: Final = 0
INBOX_FD: Final = 1
CONTROL_FD: Final = 3
FIRST_OWN_FD: Final = 4
#: Without a session for so long, it ends.
IDLE_S: Final = 20.0
#: Sessions are looked at so often.
_LOOK_S: Final = 1.0
#: The longest that a driver may have its session kept.
MOST_PATIENCE_S: Final = 3600.0
#: What a driver has said to others before it left is given so long to arrive.
_LEAVING_S: Final = 2.0
#: A node that has not taken the last questions is asked again after this time.
_AGAIN_S: Final = 0.02
#: The longest question or answer of the control socket.
CONTROL_BYTES: Final = 512


class RelayConfig(msgspec.Struct, kw_only=True):
    """The settings of a relay."""

    #: Directory with the cluster's certificates.
    credentials: str
    #: "HOST:PORT" of the head's node, at which the drivers behind this relay are reached.
    gate: str


class Session:
    """One driver's tunnel."""

    def __init__(self, hello: m.TunnelHello, end: TunnelEnd) -> None:
        self.name = hello.session
        self.secret = hello.secret
        self.tag = hello.tag
        self.patience_s = min(max(0.0, hello.patience_s), MOST_PATIENCE_S)
        self.end = end
        self.connection: TunnelConnection | None = None
        #: When it had a connection last that was heard of.
        self._heard_at = monotonic()

    def hear(self, connection: TunnelConnection) -> None:
        """It has another connection from now on."""
        self.connection = connection
        self._heard_at = monotonic()

    def lose(self) -> None:
        """It has none any more."""
        self.connection, self._heard_at = None, self.heard_at()

    def heard_at(self) -> float:
        """When something was heard of it last."""
        return self._heard_at if self.connection is None else max(self._heard_at, self.connection.heard_at)

    def most_s(self) -> float:
        """How long nothing may be heard of it. A connection that is not known to be lost has the time in which its
        driver would be asked."""
        return self.patience_s if self.connection is None else max(self.patience_s, SILENCE_S)


class Relay:
    """See the module. Owned by the loop."""

    def __init__(self, config: RelayConfig, inbox: socket.socket, control: socket.socket) -> None:
        self._config = config
        self.reactor = Reactor()
        self._credentials = Path(config.credentials)
        self._half_open = HalfOpen(self.reactor)
        self._inbox = inbox
        self._control = control
        self._sessions: dict[bytes, Session] = {}
        self._by_tag: dict[bytes, Session] = {}
        #: Questions to the node: number → what to do with the answer, an address or "".
        self._questions: dict[int, Callable[[str], None]] = {}
        self._numbers = 0
        #: Those that the node has not taken yet, oldest first.
        self._unasked: deque[bytes] = deque()
        #: Strangers can ask for anybody.
        self._say = FewLines(log)
        self._busy_at = monotonic()
        self.reactor.register(inbox.fileno(), READ, self._on_handover)
        self.reactor.register(control.fileno(), READ, self._on_answer)
        self._timer: Timer = self.reactor.call_later(_LOOK_S, self._look)

    def run(self) -> NoReturn:
        """Turn the loop until the node ends, or there is nothing to do."""
        with self.reactor.lead:
            while True:
                self.reactor.turn()

    # --- who comes in -----------------------------------------------------------------------------------------

    def _on_handover(self, _events: int) -> None:
        while (found := receive_descriptor(self._inbox)) is not None:
            data, sock = found
            target, source = data[:PROCESS_BYTES], data[PROCESS_BYTES:].decode(errors="replace")
            if sock is None:
                self._say_dropped(target, source, "this relay has no descriptors left")
            elif target == RELAY_TARGET:
                self._accept(sock, source)
            else:
                self._pass_on(sock, target, source)

    def _accept(self, sock: socket.socket, source: str) -> None:
        """A driver's node."""
        try:
            context = contexts_of(self._credentials).server
        except OSError as error:
            self._say("credentials", f"a driver at {source} was refused: {error}")
            sock.close()
            return
        prefer_latency(sock)
        TunnelConnection(
            sock,
            self.reactor,
            self._on_message,
            self._on_close,
            context=context,
            server_side=True,
            half_open=self._half_open,
            peer_address=source,
        )

    def _pass_on(self, sock: socket.socket, target: bytes, source: str) -> None:
        """Somebody asks for a driver, or its node."""
        session = self._by_tag.get(tag_of(target))
        if session is None:
            sock.close()
            self._say_dropped(target, source, "no driver with this tag is here")
            return
        try:
            session.end.open(target + source.encode(), sock)
        except TooManyStreamsError as error:
            self._say_dropped(target, source, str(error))
            sock.close()

    def _say_dropped(self, target: bytes, source: str, why: str) -> None:
        self._say("dropped", f"a connection from {source} for {target.hex()} was dropped: {why}")

    # --- sessions ---------------------------------------------------------------------------------------------

    def _on_message(self, connection: TunnelConnection, message: Any) -> None:
        session: Session | None = connection.peer
        if session is None:
            if isinstance(message, m.TunnelHello):
                self._on_hello(connection, message)
            else:
                connection.close("the first message was not TunnelHello")
            return
        if session.connection is not connection:
            return
        if isinstance(message, m.TunnelLeaves):
            self._leave(session, message.reason)
            return
        session.end.on_message(connection, message)

    def _on_hello(self, connection: TunnelConnection, hello: m.TunnelHello) -> None:
        refused = self._why_not(hello)
        if refused is not None:
            self._say("refused", f"a driver at {connection.peer_address} was refused: {refused.reason}")
            connection.send(refused)
            connection.flush()
            # It hangs up; if it does not, the connection has no peer and is of no use to it.
            self.reactor.call_later(_LEAVING_S, lambda: connection.close(refused.reason))
            return
        session = self._sessions.get(hello.session)
        if session is None:
            other = self._by_tag.get(hello.tag)
            if other is not None:
                self._end(other, "its node has begun another one")
            session = self._begin(hello)
            log(f"a driver at {connection.peer_address}, node {hello.tag.hex()}, is connected")
        before, end = session.connection, session.end
        if hello.attempt <= end.core.attempt:
            connection.close("a later connection of its session has come before it")
            return
        # From here on the old connection is not heard any more, so what is said of what has arrived stays true.
        session.hear(connection)
        connection.peer = session
        connection.send(m.TunnelWelcome(end.core.acknowledgement(), self._config.gate))
        end.attach(connection, hello.attempt, hello.received)
        if before is not None:
            before.close("a later connection of its session has come")

    def _why_not(self, hello: m.TunnelHello) -> m.Refused | None:
        session, other = self._sessions.get(hello.session), self._by_tag.get(hello.tag)
        if hello.version != m.PROTOCOL_VERSION:
            return m.Refused(f"it speaks protocol {hello.version}, this relay {m.PROTOCOL_VERSION}", "version")
        if len(hello.tag) != TAG_BYTES or not hello.session:
            return m.Refused("its first message makes no sense", "session")
        for known in (session, other):
            if known is not None and not (known.tag == hello.tag and compare_digest(known.secret, hello.secret)):
                return m.Refused(f"node {known.tag.hex()} has a session, and this is not its secret", "session")
        if session is None and not hello.fresh:
            return m.Refused("its session was given up, or the relay was started anew", "unknown")
        return None

    def _begin(self, hello: m.TunnelHello) -> Session:
        end = TunnelEnd(
            self.reactor,
            1,
            lambda stream, target: self._on_open(session, stream, target),
            lambda fault: self._end(session, f"it broke the rules of the tunnel: {fault}"),
        )
        session = Session(hello, end)
        self._sessions[session.name] = self._by_tag[session.tag] = session
        return session

    def _on_close(self, connection: TunnelConnection, reason: str) -> None:
        session: Session | None = connection.peer
        if session is None or session.connection is not connection:
            return
        log(f"the connection to node {session.tag.hex()} is lost ({reason}): kept for {session.patience_s:g} s")
        session.lose()
        session.end.detach()

    def _leave(self, session: Session, reason: str) -> None:
        """It says goodbye; what it has told others shall arrive."""
        log(f"node {session.tag.hex()} has left: {reason}")
        self._forget(session)
        session.end.detach()
        session.end.finish()
        self.reactor.call_later(_LEAVING_S, session.end.close)

    def _end(self, session: Session, reason: str) -> None:
        log(f"the session of node {session.tag.hex()} has ended: {reason}")
        self._forget(session)
        session.end.close()

    def _forget(self, session: Session) -> None:
        if self._sessions.pop(session.name, None) is None:
            return
        del self._by_tag[session.tag]
        connection, session.connection = session.connection, None
        if connection is not None:
            connection.close("its session has ended")

    def _look(self) -> None:
        """Whether somebody has been away for too long, or there is nobody at all."""
        self._timer = self.reactor.call_later(_LOOK_S, self._look)
        now = monotonic()
        for session in list(self._sessions.values()):
            away_s = now - session.heard_at()
            if away_s > session.most_s() + _LOOK_S:
                self._end(session, f"nothing was heard of it for {away_s:.0f} s")
        if self._sessions or len(self._half_open):
            self._busy_at = now
        elif now - self._busy_at > IDLE_S:
            # What comes at this very moment stays in the inbox, which is the node's, for the next relay.
            log("the relay ends: nobody needs it")
            os._exit(0)

    # --- streams ------------------------------------------------------------------------------------------------

    def _on_open(self, session: Session, stream: int, target: bytes) -> None:
        """A driver wants to connect to the head (""), or a node's gate."""
        wanted = target.decode(errors="replace")

        def connect(address: str) -> None:
            if not session.end.is_open(stream):
                return
            if not address:
                log(f"node {session.tag.hex()} wants to connect to {wanted!r}, which is no node of the cluster")
                session.end.refuse(stream, "it is no node of the cluster")
                return
            try:
                sock = start_connect(*parse_address(address))
            except (OSError, ValueError) as error:
                session.end.refuse(stream, str(error))
                return
            session.end.begin(stream, sock)

        self._ask(wanted, connect)

    def _ask(self, wanted: str, on_answer: Callable[[str], None]) -> None:
        """May somebody connect to this address? The node knows."""
        self._numbers += 1
        question = f"{self._numbers} {wanted}".encode()
        if len(question) > CONTROL_BYTES:
            on_answer("")
            return
        self._questions[self._numbers] = on_answer
        self._unasked.append(question)
        if len(self._unasked) == 1:
            self._ask_node()

    def _ask_node(self) -> None:
        while self._unasked:
            try:
                self._control.send(self._unasked[0])
            except BlockingIOError:
                # The node has not read hundreds of them: it is stopped, or computes.
                self.reactor.call_later(_AGAIN_S, self._ask_node)
                return
            except OSError:
                os._exit(0)  # It has ended.
            self._unasked.popleft()

    def _on_answer(self, _events: int) -> None:
        while True:
            try:
                data = self._control.recv(CONTROL_BYTES)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                log("the relay ends: its node has ended")
                os._exit(0)
            number, _, address = data.decode().partition(" ")
            on_answer = self._questions.pop(int(number), None)
            if on_answer is not None:
                on_answer(address)


def main() -> NoReturn:
    """Be a relay."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.chdir("/")
    process_control.close_from(FIRST_OWN_FD)
    process_control.set_name("moray:relay")
    process_control.raise_descriptor_limit()
    try:
        config = msgspec.msgpack.decode(read_all(CONFIG_FD), type=RelayConfig)
        inbox = socket.socket(fileno=os.dup(INBOX_FD))
        control = socket.socket(fileno=os.dup(CONTROL_FD))
        null = os.open(os.devnull, os.O_RDONLY)
        for fd in (CONFIG_FD, INBOX_FD):
            os.dup2(null, fd)
        os.close(CONTROL_FD)
        os.close(null)
        for sock in (inbox, control):
            sock.setblocking(False)
        log(f"relay {os.getpid()} is ready, Python {sys.version.split()[0]}")
        Relay(config, inbox, control).run()
    except BaseException:  # noqa: BLE001 - whatever it is, the node starts another one when it is needed
        log(f"the relay failed:\n{traceback.format_exc()}")
    os._exit(1)
