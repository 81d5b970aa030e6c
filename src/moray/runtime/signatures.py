"""Signatures that can be checked in any process, also where the function is not.

A call with wrong arguments is refused where it is written, with the words of Python's own TypeError. The usual call,
with positional arguments only, costs two comparisons.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any, Final, TypeAlias

#: Name, kind (as in :class:`inspect.Parameter`), and whether it has a default.
Parameter: TypeAlias = tuple[str, int, bool]

_POSITIONAL_ONLY: Final = int(inspect.Parameter.POSITIONAL_ONLY)
_POSITIONAL: Final = (_POSITIONAL_ONLY, int(inspect.Parameter.POSITIONAL_OR_KEYWORD))
_VAR_POSITIONAL: Final = int(inspect.Parameter.VAR_POSITIONAL)
_VARIADIC: Final = (_VAR_POSITIONAL, int(inspect.Parameter.VAR_KEYWORD))
_KINDS: Final = {
    int(kind): kind
    for kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
}


def parameters_of(function: Callable[..., Any], *, bound: bool = False) -> list[Parameter] | None:
    """The parameters of what a call really calls, not of what a decorator wrapped; None if they are not known.

    Args:
        function: a function or class.
        bound: the first parameter is filled in already (``self``).
    """
    try:
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):
        return None
    found = [(p.name, int(p.kind), p.default is not p.empty) for p in signature.parameters.values()]
    if bound and found and found[0][1] in _POSITIONAL:
        del found[0]
    return found


class Signature:
    """What arguments fit."""

    __slots__ = ("_least", "_most", "_parameters", "_signature", "needs_arguments")

    def __init__(self, parameters: list[Parameter] | None) -> None:
        self._parameters = parameters
        self._signature: inspect.Signature | None = None
        #: How many positional arguments, at least and at most, surely fit.
        self._least, self._most = 1, 0
        #: A call without any is not known to fit.
        self.needs_arguments = parameters is None
        if parameters is not None:
            self._count(parameters)

    def _count(self, parameters: list[Parameter]) -> None:
        needed = [kind for _name, kind, default in parameters if not default and kind not in _VARIADIC]
        self.needs_arguments = bool(needed)
        if all(kind in _POSITIONAL for kind in needed):
            kinds = [kind for _name, kind, _default in parameters]
            self._least = len(needed)
            self._most = sys.maxsize if _VAR_POSITIONAL in kinds else sum(kind in _POSITIONAL for kind in kinds)

    def check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Raise the TypeError that the call of `name` would raise for arguments that do not fit."""
        if (not kwargs and self._least <= len(args) <= self._most) or self._parameters is None:
            return
        signature = self._signature
        if signature is None:
            signature = self._signature = inspect.Signature(
                [
                    inspect.Parameter(p, _KINDS[kind], default=None if default else inspect.Parameter.empty)
                    for p, kind, default in self._parameters
                ]
            )
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{name}(): {error}") from None
