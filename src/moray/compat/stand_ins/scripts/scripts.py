"""``ray.scripts.scripts``: the command line; commands of click, as Ray's are."""

from __future__ import annotations

from moray.cli.commands import moray as cli, start, status, stop

__all__ = ["cli", "main", "start", "status", "stop"]

main = cli
