"""``python -m moray``: the command ``moray``."""

from __future__ import annotations

from moray.cli import main

if __name__ == "__main__":
    main()
