"""The one name of ``ray.data`` that programs import before they need it; the library itself is not there.

modin imports it with its engine, and calls it only to make a dataset. Everything else of ``ray.data`` stays an
ImportError, so that a program that asks for it learns that it is missing.
A library ``moray.data`` takes its place.
"""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["from_pandas_refs"]


def from_pandas_refs(*_dfs: Any, **_options: Any) -> NoReturn:
    """Refuses: there are no datasets yet.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "ray.data.from_pandas_refs() makes a dataset, and moray has no datasets yet; pass the references to tasks, or "
        "get them and use pandas"
    )
