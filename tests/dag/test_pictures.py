"""Pictures of graphs: the text that is drawn, and what happens where nothing can draw it."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType

import pytest

import moray
from moray.dag import DAGNode, InputNode, MultiOutputNode, plot


@moray.remote
def add(x: int, y: int) -> int:
    return x + y


@moray.remote
class Stage:
    def scale(self, x: int) -> int:
        return 2 * x


def graph() -> DAGNode:
    with InputNode() as inp:
        both = add.bind(inp[0], inp.more)
        return MultiOutputNode([add.bind(both, both), both])


TEXT = """digraph {
  1 [label="input"];
  2 [label="input[0]"];
  1 -> 2;
  3 [label="input.more"];
  1 -> 3;
  4 [label="add"];
  2 -> 4;
  3 -> 4;
  5 [label="add"];
  4 -> 5;
  6 [label="outputs"];
  5 -> 6;
  4 -> 6;
}"""


def test_each_node_once_and_after_what_it_needs(tmp_path: Path) -> None:
    assert plot(graph()) == TEXT
    path = tmp_path / "graph.dot"
    assert plot(graph(), path) == TEXT
    assert path.read_text() == TEXT + "\n"


def test_a_program_draws_the_other_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name shows how it is called; where there is none the error says what to do."""
    program = tmp_path / "dot"
    program.write_text('#!/bin/sh\n[ "$1" = -Tpng ] && { head -c 7 > "$3"; exit; }\necho "no $1" >&2; exit 3\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    plot(graph(), tmp_path / "graph.png")
    assert (tmp_path / "graph.png").read_text() == "digraph"
    with pytest.raises(RuntimeError, match="no -Tsvg"):
        plot(graph(), tmp_path / "graph.svg")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(RuntimeError, match=r"ends in \.dot"):
        plot(graph(), tmp_path / "graph.png")


def test_compiled_graphs_say_how_values_travel(shared_session: ModuleType, tmp_path: Path) -> None:
    first, second = Stage.remote(), Stage.remote()
    with InputNode() as x:
        node = second.scale.bind(first.scale.bind(first.scale.bind(x)))
    with node.experimental_compile() as compiled:
        assert compiled.visualize(format="ascii", channel_details=True).splitlines() == [
            "1: input",
            "2: Stage.scale <- 1 (channel)",
            "3: Stage.scale <- 2 (same process)",
            "4: Stage.scale <- 3 (channel)",
        ]
        text = compiled.visualize(str(tmp_path / "pipeline"), format="dot")
    assert (tmp_path / "pipeline.dot").read_text() == text + "\n"
    assert text.count("->") == 3
