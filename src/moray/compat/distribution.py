"""What importlib.metadata says of ``ray``: its name and the version whose programs run."""

from __future__ import annotations

import os
from importlib.metadata import Distribution, PackagePath
from pathlib import Path

from moray.compat import RAY_VERSION

_METADATA = f"""\
Metadata-Version: 2.1
Name: ray
Version: {RAY_VERSION}
Summary: moray, under the name that programs for Ray ask for
"""


class RayDistribution(Distribution):
    """A distribution without files."""

    def read_text(self, filename: str) -> str | None:
        """The text of a file of its metadata; None if there is none of that name."""
        return {"METADATA": _METADATA, "INSTALLER": "moray", "top_level.txt": "ray\n"}.get(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> Path:
        """Where a file of the package would be."""
        return Path(__file__).parent / path

    @property
    def files(self) -> list[PackagePath] | None:
        """None: not known."""
        return None
