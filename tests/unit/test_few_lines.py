"""What strangers bring about fills no log."""

from __future__ import annotations

from moray.protocol.tcp import FewLines


def test_a_flood_is_a_few_lines_and_a_number() -> None:
    lines: list[str] = []
    now = 1000.0
    say = FewLines(lines.append, lambda: now)
    for i in range(10_000):
        say("odd", f"odd {i}")
    assert lines == ["odd 0", "odd 1", "odd 2"]
    say("other", "other")
    assert lines[3:] == ["other"], "each kind has its own"
    now += 60
    for i in range(5):
        say("odd", f"again {i}")
    assert lines[4:] == ["again 0 (and 9997 more like it since the last such line)", "again 1", "again 2"]
    now += 3600
    say("other", "other")
    say("odd", "odd")
    assert lines[7:] == ["other", "odd (and 2 more like it since the last such line)"]
