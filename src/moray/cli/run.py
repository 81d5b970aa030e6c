"""``moray run``: a program as ``__main__``, as the interpreter itself would run it.

It gets its own ``sys.argv`` and ``sys.path[0]`` and a new module ``__main__``, which stays when it ends: its threads
and exit handlers still use it. Its exceptions, exit codes and Ctrl-C are the interpreter's business; only our own
frames are taken out of the traceback.
"""

from __future__ import annotations

import builtins
import io
import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import find_spec
from types import CodeType, ModuleType, TracebackType
from typing import Any, NamedTuple

import click

_HERE = os.path.dirname(os.path.abspath(__file__))


class RunCommand(click.Command):
    """Takes nothing that follows ``-m MODULE`` or ``-c CODE`` for an option of its own, like the interpreter."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """See click."""
        for index, word in enumerate(args):
            if word == "--" or not word.startswith("-"):
                break
            if word.startswith(("-m", "-c")):
                end = index + (2 if len(word) == 2 else 1)
                if end <= len(args):
                    args = [*args[:end], "--", *args[end:]]
                break
        return super().parse_args(ctx, args)


class Program(NamedTuple):
    """What is to be run, once click is out of the way."""

    load: Callable[[], tuple[CodeType, dict[str, Any]]]
    as_ray: bool
    argv: list[str]
    #: The first entry of sys.path.
    path: str

    def run(self) -> None:
        """Run it; what it raises goes on to the interpreter."""
        sys.excepthook = _without_our_frames(sys.excepthook)
        sys.argv[:] = self.argv
        if not sys.flags.safe_path:
            sys.path[0] = self.path
        if self.as_ray:
            from moray import compat

            compat.install()
            compat.install_in_children()
        code, names = self.load()
        main = ModuleType("__main__")
        main.__dict__.update(names, __builtins__=builtins)
        # The interpreter's own __main__ must outlive the program, as it is below us on the stack.
        sys.modules["moray.cli.__main__"], sys.modules["__main__"] = sys.modules["__main__"], main
        exec(code, main.__dict__)  # noqa: S102 - it is what the user asked for


def plan(as_ray: bool, module: str | None, code: str | None, arguments: list[str]) -> Program:
    """What the command line asks for. UsageError if it asks for nothing that is there."""
    if module is not None and code is not None:
        raise click.UsageError("give -m or -c, not both")
    if module is not None:
        return Program(lambda: _load_module(module), as_ray, [module, *arguments], os.getcwd())
    if code is not None:
        return Program(lambda: (_compile(code, "<string>"), {}), as_ray, ["-c", *arguments], "")
    if not arguments:
        raise click.UsageError("what shall be run? Give a script, -m MODULE or -c CODE")
    script = _script(arguments[0])
    folder = os.path.dirname(os.path.realpath(script))
    return Program(lambda: _load_script(script), as_ray, arguments, folder)


def _script(path: str) -> str:
    """The file to run: `path`, or ``__main__.py`` in it."""
    script = os.path.join(path, "__main__.py") if os.path.isdir(path) else path
    if path.startswith("-"):
        raise click.UsageError(f"no such option: {path}; options of the program come after its name")
    try:
        with open(script, "rb"):
            return script
    except OSError as error:
        raise click.UsageError(f"cannot read {script}: {error.strerror}") from None


def _load_script(path: str) -> tuple[CodeType, dict[str, Any]]:
    full = os.path.abspath(path)
    with io.open_code(full) as file:
        code = _compile(file.read(), full)
    return code, {"__file__": full, "__loader__": SourceFileLoader("__main__", full), "__spec__": None}


def _load_module(name: str) -> tuple[CodeType, dict[str, Any]]:
    spec = _find(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = _find(f"{name}.__main__")
    get_code = getattr(spec.loader, "get_code", None) if spec is not None else None
    code = get_code(spec.name) if spec is not None and get_code is not None else None
    if spec is None or code is None:
        click.echo(f"Error: there is no module {name} that can be run (python -m {name} would fail, too)", err=True)
        sys.exit(2)
    sys.argv[0] = spec.origin or name
    names = {"__spec__": spec, "__loader__": spec.loader, "__package__": spec.parent, "__file__": spec.origin}
    return code, names


def _find(name: str) -> ModuleSpec | None:
    try:
        return find_spec(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return None
        raise


def _compile(source: str | bytes, name: str) -> CodeType:
    # Not with this file's `from __future__` imports.
    return compile(source, name, "exec", dont_inherit=True)


_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], Any]


def _without_our_frames(hook: _Hook) -> _Hook:
    def shown(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        rest, ours = traceback, False
        while rest is not None and not (ours and not _is_ours(rest)):
            ours = ours or _is_ours(rest)
            rest = rest.tb_next
        # Without the last of ours nothing may be left: a syntax error in the script.
        error.__traceback__ = rest if ours else traceback
        hook(kind, error, error.__traceback__)

    return shown


def _is_ours(traceback: TracebackType) -> bool:
    return os.path.dirname(traceback.tb_frame.f_code.co_filename) == _HERE
