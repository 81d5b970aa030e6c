"""What is said of a node that has ended."""

from __future__ import annotations

import os
from pathlib import Path

from moray.launch.node_ends import log_tail
from moray.launch.session_directory import LOG_FOLDER, NODE_LOG


def test_of_a_log_of_any_size_the_end_is_read(tmp_path: Path) -> None:
    """More would not fit into memory."""
    log = tmp_path / LOG_FOLDER / NODE_LOG
    log.parent.mkdir()
    with log.open("wb") as file:
        file.truncate(1 << 40)
        file.seek(0, os.SEEK_END)
        file.write(b"".join(b"\nline %d" % i for i in range(30)))
    text = log_tail(str(tmp_path), b"before")
    assert text.splitlines() == ["; the last lines of its log:", *(f"  line {i}" for i in range(10, 30))]


def test_what_was_said_before_there_was_a_log_comes_first(tmp_path: Path) -> None:
    assert log_tail(str(tmp_path)) == ""
    assert log_tail(str(tmp_path), b"early\n") == "; the last lines of its log:\n  early"
    log = tmp_path / LOG_FOLDER / NODE_LOG
    log.parent.mkdir()
    log.write_bytes(b"late\n")
    assert log_tail(str(tmp_path), b"early\n") == "; the last lines of its log:\n  early\n  late"
