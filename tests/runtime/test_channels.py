"""Channels between real processes: order, room, large messages, ends, deaths, interrupts."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from moray.exceptions import ChannelError, ChannelTimeoutError
from moray.runtime import channels
from moray.runtime.channels import KEPT_IN_PLACE, SLOT_BYTES, Channel, ChannelClosed, Reader, Writer
from moray.serialization import loads, serialize

#: A process that has opened the channels of its argument: `into` are writers, `out_of` readers of index 0.
_CHILD = """
import os, sys, time
import numpy as np
from moray.runtime.channels import *
from moray.serialization import loads, serialize
specs = [ChannelSpec(*map(int, text.split(","))) for text in sys.argv[1:]]
opened = [Channel.open(spec) for spec in specs]
"""


@contextmanager
def child(program: str, *opened: Channel) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `program` and is gone at the end."""
    specs = [",".join(map(str, channel.spec)) for channel in opened]
    process = subprocess.Popen(
        [sys.executable, "-c", _CHILD + program, *specs], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        for channel in opened:
            channel.close()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()


_ECHO = """
reader, writer = Reader(opened[0], 0), Writer(opened[1])
try:
    while True:
        writer.write(serialize(loads(reader.take()[1])))
except ChannelClosed:
    pass
"""


def value(reader: Reader, timeout_s: float = 20.0) -> Any:
    return loads(reader.take(time.monotonic() + timeout_s)[1])


def test_messages_come_in_order_through_another_process() -> None:
    there, back = Channel.create(4, 1), Channel.create(4, 1)
    with child(_ECHO, there, back) as process:
        writer, reader = Writer(there), Reader(back, 0)
        for number in range(2_000):
            writer.write(serialize(number))
            if number >= 4:
                assert value(reader) == number - 4
        assert [value(reader) for _ in range(4)] == list(range(1_996, 2_000))
        there.close()
        back.close()
        assert process.wait(10) == 0


def test_each_reader_gets_everything_and_the_slowest_decides() -> None:
    channel = Channel.create(3, 2)
    writer, quick, slow = Writer(channel), Reader(channel, 0), Reader(channel, 1)
    for number in range(3):
        writer.write(serialize(number))
    assert [value(quick) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ChannelTimeoutError, match="taken message 0 of 3"):
        writer.write(serialize(3), deadline=time.monotonic() + 0.05)
    assert value(slow) == 0
    writer.write(serialize(3))
    assert [value(slow) for _ in range(3)] == [1, 2, 3]
    assert value(quick) == 3


def test_a_writer_that_waits_for_room_is_woken() -> None:
    channel = Channel.create(1, 1)
    writer, reader = Writer(channel), Reader(channel, 0)
    writer.write(serialize(0))
    got: list[Any] = []

    def read_later() -> None:
        time.sleep(0.1)
        got.extend((value(reader), value(reader)))

    thread = threading.Thread(target=read_later)
    begin = time.monotonic()
    thread.start()
    writer.write(serialize(1))
    # Less than the heartbeat: it was woken, and did not look by itself.
    assert 0.05 < time.monotonic() - begin < channels.HEARTBEAT_S - 0.2
    thread.join()
    assert got == [0, 1]


def test_several_threads_may_wait_for_one_reader() -> None:
    channel = Channel.create(4, 1)
    writer, reader = Writer(channel), Reader(channel, 0)
    awake: list[int] = []

    def wait(number: int) -> None:
        reader.wait(number)
        awake.append(number)

    threads = [threading.Thread(target=wait, args=(number,)) for number in (1, 2, 2, 3)]
    for thread in threads:
        thread.start()
    begin = time.monotonic()
    for number in range(3):
        writer.write(serialize(number))
    for thread in threads:
        thread.join(10)
    assert sorted(awake) == [1, 2, 2, 3]
    assert time.monotonic() - begin < channels.HEARTBEAT_S - 0.2
    assert channel._words[reader._waits] == 0


@pytest.mark.parametrize("size", [SLOT_BYTES - 200, SLOT_BYTES + 200, 5_000_000])
def test_values_of_any_size(size: int) -> None:
    there, back = Channel.create(4, 1), Channel.create(4, 1)
    with child(_ECHO, there, back):
        writer, reader = Writer(there), Reader(back, 0)
        for number in range(10):
            sent = np.full(size, number, dtype="u1")
            writer.write(serialize(sent))
            got = value(reader)
            assert np.array_equal(got, sent)
            assert not got.flags.writeable


def test_arrays_stay_as_they_are_while_they_are_held() -> None:
    channel = Channel.create(2, 1)
    writer, reader = Writer(channel), Reader(channel, 0)
    held = []
    for number in range(3 * KEPT_IN_PLACE):
        writer.write(serialize(np.full(20_000, number, dtype="u1")))
        held.append(value(reader))
    assert all((array == number).all() for number, array in enumerate(held))
    # The first ones lie in the channel, the rest was copied.
    assert len(writer._extents) == KEPT_IN_PLACE + 2
    size = os.fstat(channel._file.fd).st_size
    del held[1:]
    gc.collect()
    for _ in range(3 * KEPT_IN_PLACE):
        writer.write(serialize(np.full(20_000, 200, dtype="u1")))
        value(reader)
    assert (held[0] == 0).all()
    assert os.fstat(channel._file.fd).st_size == size  # What was let go is used again.


def test_memory_of_small_extents_goes_back_when_larger_ones_replace_them() -> None:
    channel = Channel.create(2, 1)
    writer, reader = Writer(channel), Reader(channel, 0)
    for size in range(1, 9):
        writer.write(serialize(np.zeros(size * 1_000_000, dtype="u1")))
        assert value(reader).nbytes == size * 1_000_000
    held_bytes = os.fstat(channel._file.fd).st_blocks * 512
    assert held_bytes < 25_000_000  # Two extents or three; all eight would be 40 MB.


def test_closing_wakes_both_sides_and_keeps_what_was_published() -> None:
    channel = Channel.create(1, 1)
    writer, reader = Writer(channel), Reader(channel, 0)
    writer.write(serialize("last"))
    ended: list[str] = []

    def write() -> None:
        try:
            writer.write(serialize("too late"))
        except ChannelClosed:
            ended.append("writer")

    thread = threading.Thread(target=write)
    thread.start()
    time.sleep(0.05)
    begin = time.monotonic()
    channel.close()
    thread.join(10)
    assert time.monotonic() - begin < channels.HEARTBEAT_S - 0.2
    assert ended == ["writer"]
    assert value(reader) == "last"
    with pytest.raises(ChannelClosed):
        reader.take()
    with pytest.raises(ChannelClosed):
        writer.write(serialize(1))


def test_a_writer_killed_in_the_middle_has_written_nothing() -> None:
    """The message that it was writing is not seen; what it had published is."""
    program = """
writer = Writer(opened[0])
writer.write(serialize("whole"))
class Half(bytes):
    pass
value = serialize(np.zeros(1_000_000))
def write_into(target, copy=None):
    target[:1000] = bytes(1000)
    print("half", flush=True)
    time.sleep(60)
type(value).write_into = lambda self, target, copy=None: write_into(target)
writer.write(value)
"""
    channel = Channel.create(4, 1)
    reader = Reader(channel, 0)
    with child(program, channel) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        assert value(reader) == "whole"
        assert not reader.wait(2, time.monotonic() + 0.1)


def test_the_check_ends_a_wait_for_a_dead_process() -> None:
    channel = Channel.create(2, 1)
    with child("time.sleep(60)", channel) as process:

        class DeadError(Exception):
            pass

        def check() -> None:
            if process.poll() is not None:
                raise DeadError

        process.kill()
        begin = time.monotonic()
        with pytest.raises(DeadError):
            Reader(channel, 0, check).take()
        assert time.monotonic() - begin < 3 * channels.HEARTBEAT_S


def test_a_channel_of_a_process_that_has_ended_is_an_error() -> None:
    channel = Channel.create(2, 1)
    spec = channel.spec
    with pytest.raises(ChannelError, match="cannot be opened"):
        Channel.open(spec._replace(token=spec.token + 1))
    del channel
    with pytest.raises(ChannelError, match="one machine"):
        Channel.open(spec)


def test_no_memory_is_an_error_and_asks_the_kernel_for_nothing() -> None:
    """In a process that may not make large files: were the kernel asked, it would refuse, and not look for memory."""
    program = """
import resource
from moray.exceptions import ChannelError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 26, 1 << 26))
writer = Writer(opened[0])
class Huge:
    blob = None
for Huge.size in (1 << 50, 1 << 27):
    try:
        writer.write(Huge())
    except ChannelError as error:
        print(error, flush=True)
writer.write(serialize("still works"))
"""
    channel = Channel.create(2, 1)
    with child(program, channel) as process:
        assert value(Reader(channel, 0)) == "still works"
        assert process.stdout is not None
        beyond, refused = process.stdout.read().splitlines()
        assert "of this machine's memory are free" in beyond
        assert "no memory for 151.0 MB" in refused
        assert "File too large" in refused


class StepInterruptedError(Exception):
    pass


def _interrupt_everywhere(step: Callable[[], None], after: Callable[[], None]) -> int:
    """Run `step`, interrupted before each bytecode of the channel's code in turn, then `after`; how many there were."""
    lines = 0
    while True:
        left = lines

        def trace(frame: Any, event: str, _arg: Any) -> Any:
            nonlocal left
            if frame.f_code.co_filename != channels.__file__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode":
                if left == 0:
                    sys.settrace(None)
                    raise StepInterruptedError
                left -= 1
            return trace

        sys.settrace(trace)
        try:
            step()
        except StepInterruptedError:
            pass
        else:
            return lines
        finally:
            sys.settrace(None)
        after()
        lines += 1


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 20_000])
def test_a_reader_interrupted_anywhere_loses_nothing(size: int) -> None:
    """INTERRUPT: between any two bytecodes of peek() and advance()."""
    channel = Channel.create(2, 1)
    writer, reader = Writer(channel), Reader(channel, 0)
    sent = 0
    got: dict[int, int] = {}

    def fill() -> None:
        nonlocal sent
        while writer.channel.published - reader.taken < 2:
            sent += 1
            writer.write(serialize(np.full(size, sent % 251, dtype="u1")), deadline=time.monotonic() + 1)

    def step() -> None:
        message = reader.peek()
        assert message is not None
        got[reader.taken + 1] = int(loads(message[1])[-1])
        reader.advance()

    def after() -> None:
        while writer.channel.published > reader.taken:
            step()
        fill()

    fill()
    assert _interrupt_everywhere(step, after) > 50
    assert all(last == number % 251 for number, last in got.items())
    assert list(got) == list(range(1, len(got) + 1))
    assert len(writer._extents) <= 5


@pytest.mark.slow
@pytest.mark.parametrize("size", [10, 20_000])
def test_a_writer_interrupted_anywhere_writes_whole_messages(size: int) -> None:
    """INTERRUPT: what was interrupted is there whole, or not at all, and the next one follows."""
    channel = Channel.create(2, 1)
    writer, reader = Writer(channel), Reader(channel, 0)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        writer.write(serialize(np.full(size + count * 50, count % 251, dtype="u1")))

    def after() -> None:
        while (message := reader.peek()) is not None:
            array = loads(message[1])
            assert len(set(array.tolist())) == 1
            reader.advance()
        writer.write(serialize("next"))
        assert value(reader) == "next"

    assert _interrupt_everywhere(step, after) > 50
    assert len(writer._extents) <= 4


def test_a_fork_closes_nothing_of_its_parents() -> None:
    channel = Channel.create(2, 1)
    program = "import os\nopened[0].close() if os.fork() == 0 else os.wait()\nprint(opened[0].closed, flush=True)"
    with child(program, channel) as process:
        assert process.stdout is not None
        assert set(process.stdout.read().split()) == {"False"}
