"""The command ``moray``: what can be done without writing a program.

Each command has a module of its own, imported when it is called; rich is imported when there is a table to print. The
program that ``moray run`` runs is started outside of click, so that nothing of ours stands in its way or in its
tracebacks (:mod:`moray.cli.run`).
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The entry point of ``moray`` and of ``python -m moray``."""
    import click

    from moray.cli.commands import moray
    from moray.cli.run import Program

    try:
        outcome = moray.main(prog_name="moray", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    if isinstance(outcome, Program):
        outcome.run()
    else:
        sys.exit(outcome if isinstance(outcome, int) else 0)
