"""Spilling to what is no local directory: object storage and the like, by fsspec.

All of it blocks and runs in the store's disk thread, which also imports fsspec and what a URL needs (s3fs for
``s3://``): most sessions never do. Whatever goes wrong there, of whatever type, is told as an OSError that names the
URL.

Only spilled objects go there. A file that readers map (STORE-SPACE) must be local: an object that finds no room in
the arena when it comes back is fetched into one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from typing import Any, Final

#: Bytes that are read or written at a time.
_PIECE: Final = 8 << 20


class RemoteFiles:
    """The files of one store below a URL."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        #: fsspec's file system and the path in it; None before the first use.
        self._place: tuple[Any, str] | None = None

    def spill(self, memory: int, name: str, parts: Iterable[tuple[int, int, int]]) -> None:
        """Write each (position, offset in the arena, size) to a new file. On failure it is gone again, if it can be."""

        def work(system: Any, root: str) -> None:
            system.makedirs(root, exist_ok=True)
            path = f"{root}/{name}"
            try:
                with system.open(path, "wb") as file:
                    end = 0
                    for position, offset, size in parts:
                        file.write(bytes(position - end))
                        for start in range(0, size, _PIECE):
                            file.write(os.pread(memory, min(_PIECE, size - start), offset + start))
                        end = position + size
                if system.size(path) != end:
                    raise OSError(errno.EIO, f"{system.size(path)} of {end} bytes arrived")
            except BaseException:
                _remove(system, path)
                raise

        self._do(name, work)

    def restore(self, name: str, position: int, memory: int, offset: int, size: int) -> None:
        """Read bytes of a file into the arena, or into any other file."""

        def work(system: Any, root: str) -> None:
            with system.open(f"{root}/{name}", "rb") as file:
                file.seek(position)
                done = 0
                while done < size:
                    piece = file.read(min(_PIECE, size - done))
                    if not piece:
                        raise OSError(errno.EIO, f"the file ends {size - done} bytes too early")
                    view = memoryview(piece)
                    while view.nbytes:
                        written = os.pwrite(memory, view, offset + done)
                        done += written
                        view = view[written:]

        self._do(name, work)

    def delete(self, name: str) -> None:
        """A file is not needed any more; it may be gone."""
        self._do(name, lambda system, root: _remove(system, f"{root}/{name}"))

    def delete_all(self) -> None:
        """Nothing below the URL is needed any more."""

        def work(system: Any, root: str) -> None:
            if system.exists(root):
                system.rm(root, recursive=True)

        self._do("", work)

    def _do(self, name: str, work: Callable[[Any, str], None]) -> None:
        url = f"{self.url}/{name}" if name else self.url
        try:
            if self._place is None:
                import fsspec.core

                system, root = fsspec.core.url_to_fs(self.url)
                self._place = system, root.rstrip("/")
            work(*self._place)
        except ImportError as error:
            raise OSError(errno.ENOSYS, f"{url}: {error}. Install it where the node runs") from error
        except Exception as error:
            # The libraries behind fsspec have exceptions of their own.
            number = getattr(error, "errno", None) or errno.EIO
            raise OSError(number, f"{url}: {str(error) or type(error).__name__}") from error


def _remove(system: Any, path: str) -> None:
    try:
        system.rm_file(path)
    except FileNotFoundError:
        pass


def open_target(target: str) -> str | RemoteFiles:
    """A directory, or what is below a URL."""
    if target.startswith("file://"):
        return target.removeprefix("file://")
    return RemoteFiles(target) if "://" in target else target
