"""See the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from examples.pictures.diagrams import processes, task
from examples.pictures.reduce import reduce

PICTURES = {"processes": processes, "task": task, "reduce": reduce}
FOLDER = Path(__file__).parents[2] / "docs" / "pictures"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m examples.pictures", description="Draw the pictures of the documents."
    )
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {', '.join(PICTURES)}; all if none is given")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - PICTURES.keys():
        parser.error(f"there is no picture {', '.join(sorted(unknown))}")
    for name in chosen.names or PICTURES:
        PICTURES[name](chosen.folder / f"{name}.svg")


if __name__ == "__main__":
    main()
