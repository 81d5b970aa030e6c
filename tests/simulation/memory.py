"""The bytes of objects: the arena and the files, without the bytes.

A region's *content* is the encoded value that was written there. Writing over a region destroys what was in it, so a
reader that is shown a wrong place, or whose place was given away, does not find what it looks for (STORE-PIN).
"""

from __future__ import annotations

from tests.simulation.world import ViolationError


class Memory:
    """Everything that can be mapped."""

    def __init__(self) -> None:
        #: File number (0 is the arena) → offset → (size, content).
        self._files: dict[int, dict[int, tuple[int, bytes]]] = {0: {}}
        #: Bytes of the arena that have pages.
        self.backed = 0

    def write(self, file: int, offset: int, size: int, content: bytes) -> None:
        if file == 0 and offset + size > self.backed:
            raise ViolationError(
                f"a write to {offset + size} of an arena with {self.backed} bytes: SIGBUS (STORE-SPACE)"
            )
        regions = self._files.setdefault(file, {})
        for start, (length, _) in list(regions.items()):
            if start < offset + size and offset < start + length:
                del regions[start]
        regions[offset] = size, content

    def read(self, file: int, offset: int, size: int) -> bytes:
        """The content; b"" if something else, or nothing, is there."""
        length, content = self._files.get(file, {}).get(offset, (0, b""))
        return content if length == size else b""

    def copy(self, source: tuple[int, int], target: tuple[int, int], size: int) -> None:
        """What the disk thread does for a spill or a restore."""
        self.write(*target, size, self.read(*source, size))

    def make_file(self, file: int) -> None:
        self._files[file] = {}

    def delete(self, file: int) -> None:
        self._files.pop(file, None)

    def files(self) -> list[int]:
        """Numbers of the files on disk."""
        return [file for file in self._files if file]
