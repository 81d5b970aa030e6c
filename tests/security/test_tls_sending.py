"""Threads that send on an encrypted connection by themselves: interrupted anywhere, many at once, and at its end."""

from __future__ import annotations

import contextlib
import opcode
import random
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from moray.protocol import cluster_messages as m, tls_sending
from moray.protocol.connection import encode_frame
from moray.protocol.reactor import Reactor
from moray.protocol.tls import TlsConnection
from moray.security.authority import Authority
from moray.security.identity import Identity, client_context, server_context
from tests.support.procs import wait_until


@pytest.fixture(scope="module")
def identity() -> Identity:
    return Authority.create().issue("node")


class Ends:
    """Two connected ends. The near one's loop is turned by the test or by a thread, the far one's by a thread."""

    def __init__(self, identity: Identity) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
        self.reactors = [Reactor(), Reactor()]
        self.got: list[list[Any]] = [[], []]
        self.reasons = ["", ""]
        #: Of each end: its loop has to pause.
        self.pause = [threading.Event(), threading.Event()]
        self.paused = [threading.Event(), threading.Event()]
        self.stopping = False
        self.threads: list[threading.Thread] = []
        self.near = self._make(near, 0, client_context(identity))
        self.far = self._make(far, 1, server_context(identity))
        while not (self.near.ready and self.far.ready):
            for reactor in self.reactors:
                with reactor.lead:
                    reactor.turn(0.005)
        self.start(1)

    def _make(self, sock: socket.socket, index: int, context: ssl.SSLContext) -> TlsConnection:
        def close(_connection: TlsConnection, reason: str) -> None:
            self.reasons[index] = reason

        return TlsConnection(
            sock,
            self.reactors[index],
            lambda _connection, message: self.got[index].append(message),
            close,
            context=context,
            server_side=index == 1,
        )

    def start(self, index: int) -> None:
        """Have a thread turn this end's loop."""
        reactor = self.reactors[index]

        def loop() -> None:
            with reactor.lead:
                while not self.stopping:
                    reactor.turn()
                    while self.pause[index].is_set() and not self.stopping:
                        self.paused[index].set()
                        time.sleep(0.001)

        self.threads.append(threading.Thread(target=loop))
        self.threads[-1].start()

    def numbers(self, index: int = 1) -> list[int]:
        """What has come there."""
        return [message.request for message in self.got[index]]

    def turn(self) -> None:
        """Turn the near end's loop once."""
        with self.reactors[0].lead:
            self.reactors[0].turn(0)

    def close(self) -> None:
        self.stopping = True
        for reactor in self.reactors:
            reactor.interrupt()
        for thread in self.threads:
            thread.join()
        for end in (self.near, self.far):
            end.close()
        for reactor in self.reactors:
            reactor.close()


@pytest.fixture
def ends(identity: Identity) -> Iterator[Ends]:
    ends = Ends(identity)
    yield ends
    ends.close()


def put(number: int, size: int = 0) -> bytes:
    return encode_frame(m.KvRequest(number, "put", b"", b"", bytes(size)))


# --- who sends ----------------------------------------------------------------------------------------------


def test_a_thread_sends_by_itself(ends: Ends) -> None:
    """Nobody turns its loop."""
    for number, size in enumerate([0, 100, 20_000, 200_000]):
        assert ends.near.send_frame(put(number, size), number)
        assert not ends.near.out
        assert [entry[2] for entry in ends.near.settled] == list(range(number + 1))
        wait_until(lambda number=number: ends.numbers() == list(range(number + 1)))  # type: ignore[misc]


def test_the_loop_sends_together_what_a_turn_has_to_say(ends: Ends) -> None:
    """In the next turn, as one piece."""

    def say() -> None:
        for number in range(50):
            ends.near.send_frame(put(number))
        assert len(ends.near.out) == 50

    ends.turn()
    ends.reactors[0].call_later(0.0, say)
    ends.pause[1].set()
    ends.reactors[1].interrupt()
    ends.paused[1].wait()
    ends.turn()
    ends.turn()
    assert not ends.near.out
    assert _records(ends.far) == 1
    ends.pause[1].clear()
    wait_until(lambda: ends.numbers() == list(range(50)))


def _records(connection: TlsConnection) -> int:
    """How many encrypted records wait to be read."""
    select.select([connection.fd], [], [], 5)
    data, count = connection._sock.recv(1 << 20, socket.MSG_PEEK), 0
    while data:
        data, count = data[5 + int.from_bytes(data[3:5], "big") :], count + 1
    return count


def test_nobody_waits_for_a_slow_reader(ends: Ends) -> None:
    """Threads go on when the socket is full; the loop sends the rest, in order, when there is room (FLOW)."""
    ends.pause[1].set()
    ends.reactors[1].interrupt()
    ends.paused[1].wait()
    ends.start(0)
    frames, size, threads = 150, 50_000, 4
    begin = time.monotonic()

    def send(base: int) -> None:
        for number in range(frames):
            assert ends.near.send_frame(put(base * frames + number, size))

    senders = [threading.Thread(target=send, args=(base,)) for base in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert time.monotonic() - begin < 20
    assert ends.near.out  # 30 MB are more than sockets hold.
    ends.pause[1].clear()
    wait_until(lambda: len(ends.got[1]) == frames * threads, 60)
    for base in range(threads):
        mine = [number for number in ends.numbers() if number // frames == base]
        assert mine == list(range(base * frames, (base + 1) * frames))
    wait_until(lambda: not ends.near.out)


def test_threads_of_both_sides_flood_each_other(ends: Ends) -> None:
    """Directly and by the loops, while both read."""
    ends.start(0)
    frames, threads = 1_500, 3

    def send(end: TlsConnection, base: int) -> None:
        chance = random.Random(base)
        for number in range(frames):
            size = chance.choice((0, 0, 100, 1_000, 17_000))
            assert end.send_frame(put(base * frames + number, size), number if number % 3 else None)

    senders = [
        threading.Thread(target=send, args=(end, base)) for end in (ends.near, ends.far) for base in range(threads)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    wait_until(lambda: all(len(got) == threads * frames for got in ends.got), 60)
    for index in (0, 1):
        for base in range(threads):
            mine = [number for number in ends.numbers(index) if number // frames == base]
            assert mine == list(range(base * frames, (base + 1) * frames))


# --- interrupts -----------------------------------------------------------------------------------------------


class NarrowSocket:
    """A socket that takes part of what it is given, and nothing the next time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.recv_into, self.close = sock.recv_into, sock.close
        self._calls = 0

    def send(self, data: bytes | memoryview) -> int:
        self._calls += 1
        if self._calls % 3 == 0:
            raise BlockingIOError
        return self._sock.send(data[: len(data) // 2 + 1])


class Interrupted(BaseException):
    """A signal handler has raised."""


#: After these Python looks for signals (and nowhere between the two halves of a `with`).
CHECKS = {"RESUME", "CALL", "CALL_FUNCTION_EX", "JUMP_BACKWARD"} | {
    f"POP_JUMP_BACKWARD_IF_{what}" for what in ("TRUE", "FALSE", "NONE", "NOT_NONE")
}


def _interrupt_at(step: int, codes: set[CodeType], call: Callable[[], Any]) -> bool:
    """Make `call`, and raise the `step`th time that Python would look for signals in `codes`. Whether it came to it."""
    steps = [step]

    def on_call(frame: FrameType, _event: str, _argument: object) -> Any:
        if frame.f_code not in codes:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        before = [""]

        def in_frame(frame: FrameType, event: str, _argument: object) -> Any:
            if event == "opcode":
                if before[0] in CHECKS:
                    if not steps[0]:
                        sys.settrace(None)
                        raise Interrupted
                    steps[0] -= 1
                before[0] = opcode.opname[frame.f_code.co_code[frame.f_lasti]]
            return in_frame

        return in_frame

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        call()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


def _codes() -> set[CodeType]:
    """All that a sender runs. In `SSLObject.write`, an interrupt after the call is one that SSL_write itself sees."""
    functions = [value for value in vars(tls_sending.TlsSender).values() if callable(value)]
    return {function.__code__ for function in functions if hasattr(function, "__code__")} | {
        ssl.SSLObject.write.__code__
    }


@pytest.mark.parametrize("kind", ["plain", "recorded", "several", "long", "partly"])
def test_an_interrupt_between_any_two_bytecodes(identity: Identity, kind: str) -> None:
    """What was committed comes once, in order, and records are settled once, whichever step was the last."""
    ends = Ends(identity)
    end, codes, number, committed = ends.near, _codes(), 0, list[int]()
    size = {"several": 1_000, "long": tls_sending.SEAL_BYTES + 10}.get(kind, 10)
    if kind == "partly":
        end._sock = NarrowSocket(end._sock)
    try:
        for step in range(2_000):
            number += 1
            if kind == "several":
                committed += range(number, number + 3)
                end.out.extend([(put(number + extra), None, number + extra, None) for extra in range(3)])
                number += 3
            frame, record = put(number, size), number if kind != "plain" else None
            hit = _interrupt_at(step, codes, lambda frame=frame, record=record: end.send_frame(frame, record))  # type: ignore[misc]
            assert not end.inside()
            committed.append(number)
            number += 1
            committed.append(number)
            end.send_frame(put(number), number)  # Whoever comes next goes on.
            while ends.numbers()[-1:] != [number]:
                ends.turn()  # The first interrupts come before the commit.
            if number - 1 not in ends.numbers()[-2:]:
                committed.pop(-2)
            if not hit:
                break
        assert ends.numbers() == committed
        if kind != "plain":
            assert [entry[2] for entry in end.settled] == committed
        assert not end.unfinished()
        assert 10 < step < 1_999
    finally:
        ends.close()


@pytest.mark.parametrize("narrow", [False, True])
def test_interrupts_one_after_another(identity: Identity, narrow: bool) -> None:
    """Whoever finishes what another one has begun is interrupted, too; raw bytes as well as frames."""
    ends, chance, codes = Ends(identity), random.Random(7), _codes()
    end, number, sent, came, done = ends.near, 0, dict[int, bytes](), dict[int, bytes](), list[int]()
    if narrow:
        end._sock = NarrowSocket(end._sock)

    def on_message(connection: TlsConnection, message: Any) -> None:
        into = bytearray(int.from_bytes(message.key, "big"))

        def complete() -> None:
            came[message.request] = bytes(into)

        connection.receive_raw(len(into), memoryview(into), complete)

    ends.far.on_message = on_message

    def send(number: int) -> None:
        data = sent[number] = chance.randbytes(chance.choice((0, 5, 1_000, tls_sending.SEAL_BYTES + 9)))
        frame = encode_frame(m.KvRequest(number, "put", b"", len(data).to_bytes(4, "big")))
        if data:
            end.send_raw(frame, memoryview(data), lambda: done.append(number))
        else:
            end.send_frame(frame, number)

    try:
        for _round in range(80):
            for _ in range(chance.randrange(4)):
                number += 1
                _interrupt_at(chance.randrange(110), codes, lambda number=number: send(number))  # type: ignore[misc]
                assert not end.inside()
            number += 1
            send(number)
            begin = time.monotonic()
            while number not in came:
                assert time.monotonic() - begin < 20
                ends.turn()
        ends.turn()
        assert list(came) == sorted(came)
        assert all(came[number] == sent[number] for number in came)
        assert sorted([*done, *(entry[2] for entry in end.settled)]) == list(came)
        assert not end.unfinished()
    finally:
        ends.close()


def _storm(ends: Ends, wanted: int, handle: Callable[[], None], raised: list[int]) -> threading.Thread:
    """Real signals to this thread at random moments, each of which calls `handle` if it hits `send_frame`, but not a
    destructor there, which would swallow what that raises."""
    main, pauses, codes = threading.get_ident(), random.Random(5), _codes()

    def handler(_number: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_code in codes:
            while frame is not None and frame.f_code is not TlsConnection.send_frame.__code__:
                frame = frame.f_back
            if frame is not None:
                handle()

    def storm() -> None:
        while len(raised) < wanted:
            signal.pthread_kill(main, signal.SIGUSR1)
            ends.far.send_frame(put(1, 100))
            time.sleep(pauses.random() * 0.0001)

    signal.signal(signal.SIGUSR1, handler)
    thread = threading.Thread(target=storm)
    thread.start()
    return thread


@pytest.mark.timeout(400)
@pytest.mark.parametrize("wanted", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_random_interrupts(ends: Ends, wanted: int) -> None:
    """At any moment, while the other side sends, too: by handlers that send and by handlers that raise."""
    ends.start(0)
    end, chance = ends.near, random.Random(3)
    raised, number, from_handlers = list[int](), 0, list[int]()

    def handle() -> None:
        if chance.random() < 0.3:
            from_handlers.append(10_000_000 + len(from_handlers))
            end.send_frame(put(from_handlers[-1]), from_handlers[-1])
            return
        raised.append(number)
        raise Interrupted

    previous = signal.getsignal(signal.SIGUSR1)
    storm = _storm(ends, wanted, handle, raised)
    try:
        while len(raised) < wanted:
            number += 1
            frame = put(number, chance.choice((0, 100, 2_000)))
            while len(end.out) > 100:
                time.sleep(0.0005)  # Nothing here says when to stop: that is for those who make work (FLOW).
            with contextlib.suppress(Interrupted):
                end.send_frame(frame, number)
    finally:
        storm.join()
        signal.signal(signal.SIGUSR1, previous)
    assert end.send_frame(put(number + 1), number + 1)
    wait_until(lambda: number + 1 in ends.numbers()[-5:], 20)
    wait_until(lambda: not end.unfinished())
    came = ends.numbers()
    assert came == [entry[2] for entry in end.settled]
    assert len(set(came)) == len(came)
    own = [value for value in came if value < 10_000_000]
    assert own == sorted(own)
    assert len(own) > number / 2  # Most were committed before the interrupt, or not interrupted at all.
    by_handlers = {value for value in came if value >= 10_000_000}
    # A handler may itself be interrupted, by the next one, before it has committed anything.
    assert by_handlers <= set(from_handlers)
    assert len(by_handlers) > 0.9 * len(from_handlers)


# --- keys and the end ---------------------------------------------------------------------------------------------


def test_key_updates_while_threads_send(identity: Identity, tmp_path: Path) -> None:
    """To read one makes the connection write: the other side asks for new keys (`openssl s_client`, K)."""
    certificate = tmp_path / "identity.pem"
    certificate.write_bytes(identity.certificate + identity.key)
    (tmp_path / "authority.pem").write_bytes(identity.authority)
    reactor, stopping = Reactor(), threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-cert", str(certificate)]
        command += ["-key", str(certificate), "-CAfile", str(tmp_path / "authority.pem")]
        with open(tmp_path / "output", "wb") as output, open(tmp_path / "errors", "wb") as errors:
            client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=errors)
        accepted, _ = listener.accept()
    reasons: list[str] = []
    end = TlsConnection(
        accepted,
        reactor,
        lambda *_: None,
        lambda _connection, reason: reasons.append(reason),
        context=server_context(identity),
        server_side=True,
    )

    def loop() -> None:
        with reactor.lead:
            while not stopping.is_set():
                reactor.turn()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        wait_until(lambda: end.ready)
        assert client.stdin is not None
        sent, updates = 0, 30
        for update in range(updates):
            client.stdin.write(b"K\n")
            client.stdin.flush()
            begin = time.monotonic()
            while (tmp_path / "errors").read_bytes().count(b"KEYUPDATE") <= update:
                assert time.monotonic() - begin < 20
                time.sleep(0.005)  # It looks at K only when no bytes of ours wait.
                for _ in range(20):
                    sent += 1
                    assert end.send_frame(b"<%06d>" % sent * 20)
        path, last = tmp_path / "output", b"<%06d>" % sent * 20
        wait_until(lambda: last in path.read_bytes(), 20)
        came = path.read_bytes()
        came = came[came.index(b"<000001>") :]
        assert came[: sent * 160] == b"".join(b"<%06d>" % number * 20 for number in range(1, sent + 1))
        assert not reasons
    finally:
        stopping.set()
        reactor.interrupt()
        thread.join()
        end.close()
        client.kill()
        client.wait()
        if client.stdin is not None:
            client.stdin.close()
        reactor.close()


@pytest.mark.parametrize("who", ["here", "there"])
def test_an_end_at_any_moment(identity: Identity, who: str) -> None:
    """Each record is settled, or found in `out`, or refused; what is found in `out` has not come; nobody blocks."""
    for round_number in range(15):
        ends = Ends(identity)
        ends.start(0)
        accepted: list[list[int]] = [[], [], []]
        left: list[Any] = []
        end = ends.near
        closed = threading.Event()

        def on_close(
            connection: TlsConnection, _reason: str, left: list[Any] = left, closed: threading.Event = closed
        ) -> None:
            left.extend(entry[2] for entry in connection.out)
            closed.set()

        end.on_close = on_close

        def send(base: int, end: TlsConnection = end, accepted: list[list[int]] = accepted) -> None:
            number = base * 1_000_000
            while end.send_frame(put(number, 3_000 if base else 0), number):
                accepted[base].append(number)
                number += 1

        senders = [threading.Thread(target=send, args=(base,)) for base in range(3)]
        for sender in senders:
            sender.start()
        time.sleep(0.001 * round_number)
        index = 0 if who == "here" else 1
        victim = end if who == "here" else ends.far
        ends.reactors[index].call_later(0.0, lambda victim=victim: victim.close("cut"))  # type: ignore[misc]
        # A timer that another thread sets is seen in the next turn.
        ends.reactors[index].interrupt()
        for sender in senders:
            sender.join(20)
            assert not sender.is_alive()
        assert closed.wait(10)
        settled = [entry[2] for entry in end.settled]
        found = settled + left
        assert sorted(found) == sorted(chain(*accepted))
        assert set(ends.numbers()) <= set(settled)
        for base in range(3):
            assert [number for number in found if number // 1_000_000 == base] == accepted[base]
        ends.close()


def test_the_loop_finds_what_an_interrupted_thread_left(ends: Ends) -> None:
    """Encrypted, taken, and not sent: after a heartbeat at most."""
    end = ends.near
    assert end._ssl is not None
    end._ssl.write(put(1))
    assert not end.out
    assert end.unfinished()
    ends.start(0)
    wait_until(lambda: ends.numbers() == [1], 5)
