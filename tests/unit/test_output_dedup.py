"""Gathering repetitions: everything is printed or counted, and one worker's lines are never gathered."""

from __future__ import annotations

import re

from hypothesis import given, strategies as st

from moray.runtime import output_dedup
from moray.runtime.output_dedup import LONGEST, WINDOW_S, Block, Dedup

TEXTS = ["loading", "step 1", "step 22", "0x1f done", "17", "", "x" * (LONGEST + 1), "warning: slow"]
_COUNT = re.compile(r" \[repeated (\d+)x across cluster\]")


def lines_of(blocks: list[Block]) -> list[str]:
    return [line for block in blocks for line in block.lines]


def total(blocks: list[Block]) -> int:
    """How many lines came in, as the printed ones tell."""
    counts = [_COUNT.search(line) for line in lines_of(blocks)]
    return sum(int(found[1]) if found else 1 for found in counts)


def block(pid: int, *lines: str, stream: str = "out") -> Block:
    return Block(stream, "task", pid, list(lines))


def test_repetitions_of_other_workers_are_counted() -> None:
    dedup = Dedup()
    assert lines_of(dedup.feed(0, block(1, "step 1"))) == ["step 1"]
    assert dedup.due is None
    for pid in range(2, 14):
        assert dedup.feed(1, block(pid, f"step {pid}")) == []
    assert dedup.due == WINDOW_S
    assert dedup.expire(WINDOW_S - 0.01) == []
    assert dedup.expire(WINDOW_S) == [block(13, "step 13 [repeated 12x across cluster]")]
    assert dedup.due is None
    # The window is over: it begins anew.
    assert lines_of(dedup.feed(6, block(5, "step 5"))) == ["step 5"]


def test_one_repetition_is_the_line_itself() -> None:
    dedup = Dedup()
    dedup.feed(0, block(1, "loading"))
    dedup.feed(0, block(2, "loading"))
    assert dedup.flush() == [block(2, "loading")]
    assert dedup.flush() == []


def test_one_worker_is_never_gathered() -> None:
    dedup = Dedup()
    for number in range(100):
        assert lines_of(dedup.feed(number / 100, block(1, f"step {number}"))) == [f"step {number}"]


def test_the_first_worker_goes_on_at_once() -> None:
    dedup = Dedup()
    dedup.feed(0, block(1, "loading"))
    dedup.feed(0, block(2, "loading"))
    assert lines_of(dedup.feed(1, block(1, "loading"))) == ["loading"]


def test_streams_are_apart() -> None:
    dedup = Dedup()
    dedup.feed(0, block(1, "loading"))
    assert lines_of(dedup.feed(0, block(2, "loading", stream="err"))) == ["loading"]


def test_numbers_alone_empty_lines_and_long_ones_are_not_gathered() -> None:
    dedup = Dedup()
    lines = ["17", "", "  -- ", "x" * (LONGEST + 1)]
    for pid in (1, 2):
        assert lines_of(dedup.feed(0, block(pid, *lines))) == lines


def test_lines_that_are_never_gathered_by_the_user_s_wish() -> None:
    dedup = Dedup("ERR(OR)?")
    for pid in (1, 2):
        assert lines_of(dedup.feed(0, block(pid, "an ERROR"))) == ["an ERROR"]
    dedup.feed(0, block(1, "fine"))
    assert dedup.feed(0, block(2, "fine")) == []


def test_hint_is_given_once() -> None:
    dedup = Dedup(hint=" (hint)")
    for pid in (1, 2, 3):
        dedup.feed(0, block(pid, "one", "two"))
    assert lines_of(dedup.flush()) == [
        "one [repeated 2x across cluster] (hint)",
        "two [repeated 2x across cluster]",
    ]


def test_memory_is_bounded_and_nothing_is_lost_by_it() -> None:
    dedup = Dedup()
    printed: list[Block] = []
    dedup.feed(0, block(1, "first"))
    dedup.feed(0, block(2, "first"))
    names = [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(17_000)]
    printed += dedup.feed(0, block(1, *names))
    assert len(dedup._groups) <= output_dedup.MOST_GROUPS
    printed += dedup.feed(0, block(1, *(f"{name} more" for name in names)))
    assert len(dedup._groups) <= output_dedup.MOST_GROUPS
    # Its window has ended early.
    assert printed[-1] == block(2, "first")
    assert total(printed) == 2 * len(names) + 1


@given(
    st.lists(
        st.tuples(
            st.floats(0, 3),
            st.integers(1, 4),
            st.sampled_from(["out", "err"]),
            st.lists(st.sampled_from(TEXTS), max_size=5),
        )
    )
)
def test_everything_is_printed_or_counted(events: list[tuple[float, int, str, list[str]]]) -> None:
    dedup = Dedup()
    now = 0.0
    printed: list[Block] = []
    came = 0
    for passed, pid, stream, lines in events:
        now += passed
        came += len(lines)
        printed += dedup.feed(now, block(pid, *lines, stream=stream))
        # What is gathered is printed in time.
        held = [group.ends for group in dedup._groups.values() if group.count]
        assert all(ends > now for ends in held)
        assert (dedup.due is None) == (not held)
        assert dedup.due is None or dedup.due <= min(held)
        assert total(printed) + sum(group.count for group in dedup._groups.values()) == came
    printed += dedup.flush()
    assert total(printed) == came


@given(st.lists(st.tuples(st.floats(0, 3), st.lists(st.sampled_from(TEXTS), max_size=5))))
def test_a_single_worker_s_output_is_as_it_was(events: list[tuple[float, list[str]]]) -> None:
    dedup = Dedup()
    now = 0.0
    for passed, lines in events:
        now += passed
        assert lines_of(dedup.feed(now, block(1, *lines))) == lines
    assert dedup.flush() == []
