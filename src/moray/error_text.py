"""Exceptions as text: one line for messages, and the traceback that travels with a remote error.

A remote traceback is for the user, so moray's own frames are left out, and it is made from objects
that may misbehave (``str`` that raises, odd attributes), so nothing here lets an exception out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from traceback import TracebackException

#: Frames of files under this directory are moray's own and mean nothing to the user.
_PACKAGE_DIR: Final = __file__.rpartition("/")[0] + "/"


#: Characters kept of one exception's text, and of a traceback: an exception that holds megabytes
#: carries them once, as its value, and not again in every text about it.
MAX_TEXT: Final = 4_000
MAX_TRACEBACK: Final = 60_000


def describe(exc: BaseException) -> str:
    """``TypeName: text`` in one line or several, also for exceptions whose ``str`` raises."""
    text = text_of(exc)
    return f"{type(exc).__name__}: {text}" if text else type(exc).__name__


def text_of(exc: BaseException) -> str:
    """``str(exc)``, shortened, or a note in its place when that raises."""
    try:
        return _shortened(str(exc), MAX_TEXT)
    except Exception as error:  # noqa: BLE001 (a user's object)
        return f"<its str() raised {type(error).__name__}>"


def _shortened(text: str, limit: int) -> str:
    """Beginning and end, where tracebacks say most."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def type_name(exc: BaseException) -> str:
    """The qualified name of the exception's type, without ``builtins``."""
    kind = type(exc)
    if kind.__module__ in ("builtins", "__main__"):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def format_remote(exc: BaseException, ends_here: type[BaseException]) -> str:
    """The traceback of `exc` with its chain, without moray's own frames.

    Exceptions of type `ends_here` already carry the text of what led to them: they are shown without
    their causes, so that a chain over several tasks shows each step once.
    """
    from traceback import TracebackException

    try:
        report = TracebackException(type(exc), exc, exc.__traceback__, compact=True)
        _prune(report, exc, ends_here)
        return _shortened("".join(report.format()).rstrip("\n"), MAX_TRACEBACK)
    except Exception as error:  # noqa: BLE001 (a user's object)
        return f"{describe(exc)}\n(its traceback could not be formatted: {describe(error)})"


def _prune(report: TracebackException, exc: BaseException | None, ends_here: type[BaseException]) -> None:
    """Walk the report beside the exceptions that it describes, cutting what is ours."""
    if exc is None:
        return
    report.stack[:] = [f for f in report.stack if not f.filename.startswith(_PACKAGE_DIR)] or report.stack
    if isinstance(exc, ends_here):
        report.__cause__ = report.__context__ = report.exceptions = None
    if report.__cause__ is not None:
        _prune(report.__cause__, exc.__cause__, ends_here)
    if report.__context__ is not None:
        _prune(report.__context__, exc.__context__, ends_here)
    if report.exceptions is not None and isinstance(exc, BaseExceptionGroup):
        for part, member in zip(report.exceptions, exc.exceptions, strict=True):
            _prune(part, member, ends_here)
