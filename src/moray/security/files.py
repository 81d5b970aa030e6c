"""Files with secrets: readable by their user alone, and never half written."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from moray.exceptions import AuthenticationError

#: No file of ours with a secret is longer.
_MOST_BYTES = 1 << 16


class SecretFileError(AuthenticationError, OSError):
    """A file with a secret is not as it has to be. Also an OSError: daemons treat it as a file that cannot be read."""


def write_secret(path: Path, content: bytes) -> None:
    """Write `path` with mode 0600, replacing it in one step; its directory is made 0700 if it is not there."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # It makes it 0600.
    temporary = Path(name)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_secret(path: Path, what: str) -> bytes:
    """The content of a file that nobody else may read; SecretFileError if others may, FileNotFoundError."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise SecretFileError(f"{path} should be a file with {what}, and is none")
        if status.st_uid not in (os.geteuid(), 0):
            raise SecretFileError(
                f"{path} belongs to user {status.st_uid}, not to user {os.geteuid()}: {what} is not taken from there"
            )
        if status.st_mode & 0o077:
            raise SecretFileError(
                f"{path} holds {what}, and others may read or change it (mode {stat.S_IMODE(status.st_mode):04o}): "
                f"make it yours alone by `chmod 600 {path}`, and make a new one if somebody may have seen it"
            )
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise SecretFileError(f"{path} should hold {what}, and is longer than {_MOST_BYTES} bytes")
    return content
