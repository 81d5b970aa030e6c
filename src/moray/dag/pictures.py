"""Graphs as pictures: text in Graphviz's language, which its program ``dot`` draws, and plain text.

Every node is a line, after those that it needs. In a graph of actors' methods an edge is a channel of shared memory, or
a value that stays in its process.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

from moray.dag.nodes import (
    ClassMethodNode,
    ClassNode,
    DAGNode,
    FunctionNode,
    InputAttributeNode,
    InputNode,
    MultiOutputNode,
    ordered,
)

#: File names of these endings get the text itself.
_TEXT = frozenset({"dot", "gv"})


def plot(dag: DAGNode, to_file: str | os.PathLike[str] | None = None) -> str:
    """Draw a graph.

    Args:
        dag: its last node.
        to_file: where to; the ending says in which format: ``.dot`` is the text, others (``.png``, ``.svg``, …) are
            drawn by Graphviz's program ``dot``.

    Returns:
        The graph in Graphviz's language.

    Raises:
        RuntimeError: the format needs ``dot``, which is not installed, or refused.

    Example:
        >>> import moray
        >>> from moray.dag import InputNode, plot
        >>> @moray.remote
        ... def double(x):
        ...     return 2 * x
        >>> with InputNode() as x:
        ...     graph = double.bind(x)
        >>> print(plot(graph))
        digraph {
          1 [label="input"];
          2 [label="double"];
          1 -> 2;
        }
    """
    text = dot_of(dag)
    if to_file is not None:
        draw(text, os.fspath(to_file))
    return text


def dot_of(root: DAGNode, channels: bool = False) -> str:
    """The graph in Graphviz's language; `channels`: edges say how values travel."""
    lines = []
    for number, node, needs in _numbered(root):
        lines.append(f'{number} [label="{_escaped(label_of(node))}"];')
        for other, source in needs:
            way = f' [label="{_way(source, node)}"]' if channels else ""
            lines.append(f"{other} -> {number}{way};")
    return "\n".join(["digraph {", *(f"  {line}" for line in lines), "}"])


def text_of(root: DAGNode, channels: bool = False) -> str:
    """The graph as plain text: the steps in the order in which they are executed, and where their values come from."""
    lines = []
    for number, node, needs in _numbered(root):
        sources = [f"{other} ({_way(source, node)})" if channels else str(other) for other, source in needs]
        lines.append(f"{number}: {label_of(node)}" + (f" <- {', '.join(sources)}" if sources else ""))
    return "\n".join(lines)


def draw(text: str, path: str) -> None:
    """Write a picture of `text` to a file, in the format that its ending says."""
    ending = os.path.splitext(path)[1].removeprefix(".").lower() or "png"
    if ending in _TEXT:
        with open(path, "w", encoding="utf-8") as file:
            file.write(text + "\n")
        return
    command = ["dot", f"-T{ending}", "-o", path]
    try:
        subprocess.run(command, input=text.encode(), check=True, capture_output=True)
    except FileNotFoundError as error:
        raise RuntimeError(
            f"a picture of the graph as {ending} needs Graphviz's program dot, which is not installed; install it, or "
            "give a file name that ends in .dot, which needs nothing"
        ) from error
    except subprocess.CalledProcessError as error:
        raise RuntimeError(f"Graphviz's program dot failed: {error.stderr.decode(errors='replace').strip()}") from error


def label_of(node: DAGNode) -> str:
    """A node by the name that its user knows."""
    if isinstance(node, InputNode):
        return "input"
    if isinstance(node, InputAttributeNode):
        return f"input[{node._key!r}]" if node._accessor == "__getitem__" else f"input.{node._key}"
    if isinstance(node, MultiOutputNode):
        return "outputs"
    if isinstance(node, FunctionNode | ClassNode | ClassMethodNode):
        return repr(node).partition("(")[2][:-1]
    return repr(node)


def _numbered(root: DAGNode) -> Iterator[tuple[int, DAGNode, list[tuple[int, DAGNode]]]]:
    """Each node with its number, and the nodes that it needs with theirs."""
    numbers: dict[DAGNode, int] = {}
    for node in ordered(root):
        numbers[node] = len(numbers) + 1
        yield numbers[node], node, [(numbers[other], other) for other in dict.fromkeys(node._needs())]


def _way(source: DAGNode, node: DAGNode) -> str:
    """How a value gets from one step to another in a compiled graph."""
    source_actor, actor = (each._actor if isinstance(each, ClassMethodNode) else None for each in (source, node))
    return "same process" if source_actor == actor else "channel"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
