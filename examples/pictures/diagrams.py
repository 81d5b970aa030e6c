"""The processes of a session, and the life of a task."""

from __future__ import annotations

from pathlib import Path

from examples.pictures.canvas import GREY, INK, arrow, box, figure, save

#: (from, to, what is said, whether it is only now and then); columns of the life of a task.
COLUMNS = ("your thread", "I/O thread", "node", "worker")
STEPS = (
    (0, 1, "f.remote(x): pickle, queue", False),
    (1, 2, "so many workers, please", True),
    (2, 3, "fork one, or take an idle one", True),
    (2, 1, "here is a worker: the lease", True),
    (1, 3, "the task, directly; short ones several at a time", False),
    (3, 3, "the function runs", False),
    (3, 1, "the result, directly; if large, its place in shared memory", False),
    (1, 0, "get(ref) wakes up, and unpickles", False),
    (1, 2, "idle: the lease goes back", True),
)


def processes(path: Path) -> None:
    drawn, axes = figure(7.6, 3.6)
    box(axes, 20, 215, 150, 80, "driver", "your program")
    box(axes, 305, 215, 150, 80, "node", "resources, workers, space")
    box(axes, 590, 215, 150, 80, "template", "forks workers")
    for index, text in enumerate(("runs tasks", "runs tasks", "is an actor")):
        box(axes, 205 + index * 180, 85, 150, 60, "worker", text)
    box(axes, 20, 10, 720, 36, "shared memory: large objects, read in place by all of them")
    arrow(axes, (172, 255), (303, 255), "leases, places", both=True)
    arrow(axes, (457, 255), (588, 255), "start one")
    for x in (300, 470, 640):
        arrow(axes, (665, 213), (x, 147), dashed=True)
    arrow(axes, (95, 213), (203, 115), both=True)
    axes.text(22, 150, "tasks, calls,\nresults: directly", color=INK, fontsize=8.5)
    arrow(axes, (357, 115), (383, 115), both=True)
    arrow(axes, (537, 115), (563, 115), both=True)
    axes.text(20, 330, "A session on one machine", color=INK, fontsize=12, weight="bold")
    save(drawn, path)


def task(path: Path) -> None:
    height = 100 + 42 * len(STEPS)
    drawn, axes = figure(7.6, height / 100)
    places = [70, 270, 470, 670]
    for x, name in zip(places, COLUMNS, strict=True):
        box(axes, x - 60, height - 50, 120, 34, name)
        axes.plot([x, x], [10, height - 52], color=GREY, lw=0.8)
    for index, (start, end, said, seldom) in enumerate(STEPS):
        y = height - 90 - 42 * index
        if start == end:
            axes.text(places[start] - 8, y + 4, said, ha="right", color=INK, fontsize=8.5, style="italic")
            axes.plot([places[start]] * 2, [y - 8, y + 18], color=INK, lw=5, solid_capstyle="butt")
        else:
            arrow(axes, (places[start], y), (places[end], y), said, dashed=seldom)
    axes.text(70, 2, "dashed: not for every task", color=INK, fontsize=8)
    save(drawn, path)
