"""Directories as packages: zip files that are named by the hash of what is in them.

A package is how the code and the data of a program get to other hosts. The same content gives the same name: file times
are left out, names are sorted. What is not worth shipping is left out (:data:`DEFAULT_EXCLUDES`, what the root's
``.gitignore`` names, what the user excludes). Nothing here knows who sends what to whom: see
:mod:`moray.node.packages`.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from moray.config import env_bytes
from moray.launch import session_directory

if TYPE_CHECKING:
    from zipfile import ZipFile, ZipInfo

#: In the session's directory: packages, and what was unpacked.
FOLDER: Final = "packages"
#: In that: packages that a process has made and its node does not know yet.
MADE_FOLDER: Final = "made"
#: Left out of every directory.
DEFAULT_EXCLUDES: Final = (
    ".git", "__pycache__", "*.pyc", ".venv", "venv", "node_modules", ".mypy_cache", ".ruff_cache", ".pytest_cache",
    ".tox",
)  # fmt: skip
#: What has it is a virtual environment: as good as nothing on another host, and large.
_VIRTUALENV: Final = "pyvenv.cfg"
IGNORE_FILES: Final = (".gitignore", ".rayignore")
ARCHIVES: Final = (".zip", ".whl")

#: A larger package is refused, unless MORAY_PACKAGE_MAX_BYTES says otherwise: it would be sent to every host.
MAX_BYTES: Final = 100 * 1000 * 1000
#: Before compression, a directory may have so many times as much.
_MAX_RATIO: Final = 4
_MAX_FILES: Final = 50_000
_LARGEST: Final = 5
_CHUNK: Final = 1 << 20
#: The fastest: somebody waits for it.
_LEVEL: Final = 1
_NO_TIME: Final = (1980, 1, 1, 0, 0, 0)


class PackageError(ValueError):
    """A directory cannot be packed, or a package not unpacked; the message says why."""


class File(NamedTuple):
    """A file of a directory that is to be packed."""

    #: Relative, with "/".
    name: str
    path: str
    size: int
    mtime_ns: int
    executable: bool


def max_bytes() -> int:
    """The largest package that is made."""
    return env_bytes("PACKAGE_MAX_BYTES", MAX_BYTES)


def host_id() -> str:
    """What tells this host from others: hosts with equal ids see the same files. MORAY_HOST_ID overrides it.

    The root directory's identity tells containers of one machine apart.
    """
    given = os.environ.get("MORAY_HOST_ID")
    if given:
        return given
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    root = os.stat("/")
    return f"{os.uname().nodename}/{boot}/{root.st_dev}:{root.st_ino}"


def is_archive(path: str) -> bool:
    """Whether a path names a zip file rather than a directory."""
    return path.endswith(ARCHIVES)


# --- what belongs to a package -----------------------------------------------------------------------


class Excludes:
    """Patterns as in ``.gitignore``: the last one that fits decides, and ``!`` in front lets a path in again."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self._patterns = [found for found in map(_pattern, patterns) if found is not None]

    def __call__(self, name: str, is_directory: bool) -> bool:
        """Whether the path `name`, relative to the root, is left out."""
        excluded = False
        for expression, negated, directories_only in self._patterns:
            if (is_directory or not directories_only) and expression.fullmatch(name):
                excluded = not negated
        return excluded


def _pattern(line: str) -> tuple[re.Pattern[str], bool, bool] | None:
    """(expression, negated, directories only)."""
    text = line.strip()
    if not text or text.startswith("#"):
        return None
    negated, text = text.startswith("!"), text.removeprefix("!")
    directories_only, text = text.endswith("/"), text.rstrip("/")
    anchored, text = "/" in text, text.removeprefix("/")
    if not text:
        return None
    return re.compile(("" if anchored else "(?:.*/)?") + _translate(text)), negated, directories_only


_TOKEN: Final = re.compile(r"\*\*/|/\*\*$|\*+|\?|\[!?\]?[^\]]*\]|.", re.DOTALL)
_TRANSLATED: Final = {"**/": "(?:.*/)?", "/**": "/.*", "?": "[^/]"}


def _translate(text: str) -> str:
    parts = []
    for token in _TOKEN.findall(text):
        if token in _TRANSLATED:
            parts.append(_TRANSLATED[token])
        elif token.startswith("*"):
            parts.append("[^/]*")
        elif len(token) > 1:
            parts.append("[" + token[1:].replace("\\", "\\\\").replace("!", "^", 1 if token[1] == "!" else 0))
        else:
            parts.append(re.escape(token))
    return "".join(parts)


def why_not(root: str) -> str:
    """Why nobody can have meant to ship this directory; "": it may be shipped."""
    real = os.path.realpath(root)
    home = os.path.realpath(os.path.expanduser("~"))
    if real == "/":
        return "it is the root directory"
    if real == home:
        return "it is the home directory"
    if home.startswith(f"{real}/"):
        return "the home directory is in it"
    return ""


def scan(
    root: str, excludes: Sequence[str] = (), limit: int = 0, check: Callable[[], None] = lambda: None
) -> list[File]:
    """The files that a package of the directory `root` has, sorted by name.

    Args:
        root: a directory.
        excludes: patterns of the user's.
        limit: the package's; 0: :func:`max_bytes`.
        check: is called again and again, and may raise.

    Raises:
        PackageError: there are too many, or they are too large; the message has the largest.
        OSError: something cannot be read.
    """
    rules = Excludes((*DEFAULT_EXCLUDES, *_ignore_files(root), *excludes))
    limit = limit or max_bytes()
    found: list[File] = []
    total = 0
    pending: list[tuple[str, str, tuple[str, ...]]] = [("", root, (os.path.realpath(root),))]
    while pending:
        prefix, directory, above = pending.pop()
        check()
        try:
            with os.scandir(directory) as entries:
                listed = list(entries)
        except FileNotFoundError:
            if directory == root:
                raise
            continue  # It was removed at this moment.
        if directory != root and any(entry.name == _VIRTUALENV for entry in listed):
            continue
        for entry in listed:
            name = prefix + entry.name
            is_directory = entry.is_dir()
            if rules(name, is_directory):
                continue
            if is_directory:
                real = os.path.realpath(entry.path)
                if not entry.is_symlink() or real not in above:  # A link to where it lies has no end.
                    pending.append((f"{name}/", entry.path, (*above, real)))
            elif entry.is_file():  # Neither sockets nor pipes, nor links to nowhere.
                try:
                    about = entry.stat()
                except FileNotFoundError:
                    continue  # As above: editors and compilers do so.
                executable = bool(about.st_mode & stat.S_IXUSR)
                found.append(File(name, entry.path, about.st_size, about.st_mtime_ns, executable))
                total += about.st_size
                if total > limit * _MAX_RATIO or len(found) > _MAX_FILES:
                    raise _too_large(root, found, limit, f"has over {len(found) - 1} files with {_size(total)}")
    found.sort()
    return found


def _ignore_files(root: str) -> list[str]:
    lines: list[str] = []
    for name in IGNORE_FILES:
        try:
            with open(f"{root}/{name}", encoding="utf-8", errors="replace") as file:
                lines += file.read().splitlines()
        except OSError:
            continue  # Most directories have none.
    return lines


def _too_large(root: str, files: list[File], limit: int, what: str) -> PackageError:
    largest = sorted(files, key=lambda file: file.size, reverse=True)[:_LARGEST]
    names = ", ".join(f"{file.name} ({_size(file.size)})" for file in largest)
    return PackageError(
        f"{root} is too large to be sent to other hosts: it {what}; a package may have {_size(limit)} zipped, "
        f"{_size(limit * _MAX_RATIO)} before that and {_MAX_FILES} files. The largest files: {names}. Leave out "
        'what is not needed (runtime_env={"excludes": […]}, or a .gitignore there), put data where all hosts '
        "can read it, or set MORAY_PACKAGE_MAX_BYTES"
    )


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


# --- packing -----------------------------------------------------------------------------------------


def pack(
    source: str,
    target: str,
    *,
    excludes: Sequence[str] = (),
    prefix: str = "",
    limit: int = 0,
    check: Callable[[], None] = lambda: None,
) -> str:
    """Make the package `target`, a path that does not exist, and return its name, a SHA-256 in hex.

    Args:
        source: a directory; a Python file; or a zip file, which is taken as it is.
        target: where the package goes; on failure nothing is left there.
        excludes: patterns of the user's.
        prefix: put before all names in it.
        limit: its largest size in bytes; 0: :func:`max_bytes`.
        check: is called again and again, and may raise.

    Raises:
        PackageError: it is too large.
        OSError: something cannot be read, or the disk is full.
    """
    limit = limit or max_bytes()
    try:
        if is_archive(source):
            _copy(source, target, limit, check)
        else:
            about = os.stat(source)
            if stat.S_ISDIR(about.st_mode):
                files = scan(source, excludes, limit, check)
            else:
                files = [File(os.path.basename(source), source, about.st_size, 0, False)]
            _write(source, files, target, prefix, limit, check)
        return digest(target)
    except BaseException:
        _unlink(target)
        raise


def _write(root: str, files: list[File], target: str, prefix: str, limit: int, check: Callable[[], None]) -> None:
    import zipfile

    with (
        open(_create(target), "wb") as raw,
        zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive,
    ):
        for file in files:
            try:
                content = open(file.path, "rb")  # noqa: SIM115 - closed by the next `with`
            except FileNotFoundError:
                continue  # It was removed since it was listed.
            info = zipfile.ZipInfo(prefix + file.name, _NO_TIME)
            info.external_attr = (stat.S_IFREG | (0o755 if file.executable else 0o644)) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            with content, archive.open(info, "w", force_zip64=True) as packed:
                while chunk := content.read(_CHUNK):
                    check()
                    packed.write(chunk)
                    if raw.tell() > limit:
                        raise _too_large(root, files, limit, f"has more than {_size(limit)} zipped")


def _copy(source: str, target: str, limit: int, check: Callable[[], None]) -> None:
    import zipfile

    if not zipfile.is_zipfile(source):
        raise PackageError(f"{source} is not a zip file")
    size = os.stat(source).st_size
    if size > limit:
        raise PackageError(
            f"{source} has {_size(size)}; a package may have {_size(limit)}: set MORAY_PACKAGE_MAX_BYTES"
        )
    with open(source, "rb") as content, open(_create(target), "wb") as copy:
        while chunk := content.read(_CHUNK):
            check()
            copy.write(chunk)


def _create(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def digest(path: str) -> str:
    """The name of the package at `path`."""
    import hashlib

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Made(msgspec.Struct, array_like=True):
    """A package that a process has made, for its node: it becomes the node's when that moves it."""

    name: str
    #: In :data:`MADE_FOLDER`.
    file: str


def make(
    session_dir: str,
    source: str,
    excludes: Sequence[str] = (),
    prefix: str = "",
    limit: int = 0,
    check: Callable[[], None] = lambda: None,
) -> Made:
    """Make a package in a session's directory. Arguments and exceptions as of :func:`pack`."""
    folder = f"{session_dir}/{FOLDER}/{MADE_FOLDER}"
    os.makedirs(folder, mode=0o700, exist_ok=True)
    file = f"{os.getpid()}-{os.urandom(8).hex()}"
    target = f"{folder}/{file}"
    return Made(pack(source, target, excludes=excludes, prefix=prefix, limit=limit, check=check), file)


# --- unpacking ------------------------------------------------------------------------------------------


def unpack(package: str, target: str, check: Callable[[], None] = lambda: None) -> None:
    """Make the directory `target` of a package; all of it appears at once, or nothing.

    Raises:
        PackageError: it is no package, is too large, or names paths outside of `target`.
        OSError: the disk is full, or something cannot be read.
    """
    import zipfile

    new = f"{target}.new"
    os.mkdir(new, 0o700)
    try:
        with zipfile.ZipFile(package) as archive:
            _check_members(package, archive)
            for info in archive.infolist():
                check()
                _unpack_member(archive, info, f"{new}/{info.filename}", check)
        os.rename(new, target)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        session_directory.remove_tree(new)
        raise PackageError(f"{package} cannot be unpacked: {error}") from None
    except BaseException:
        session_directory.remove_tree(new)
        raise


def _check_members(package: str, archive: ZipFile) -> None:
    members = archive.infolist()
    total = sum(info.file_size for info in members)
    # Whoever made it has looked at its own size.
    limit = max(max_bytes(), os.stat(package).st_size) * _MAX_RATIO
    if total > limit or len(members) > _MAX_FILES + 1:
        raise PackageError(
            f"{package} has {len(members)} files with {_size(total)} unpacked; "
            f"allowed are {_MAX_FILES} files with {_size(limit)}"
        )
    for info in members:
        parts = info.filename.rstrip("/").split("/")
        if "\\" in info.filename or any(part in ("", ".", "..") for part in parts):
            raise PackageError(f"{package} has a member with the path {info.filename!r}, which leads out of it")


def _unpack_member(archive: ZipFile, info: ZipInfo, path: str, check: Callable[[], None]) -> None:
    if info.is_dir():
        os.makedirs(path, mode=0o700, exist_ok=True)
        return
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    left = info.file_size
    # Links are unpacked as files with their targets as text: nothing leads out of the directory.
    with archive.open(info) as content, open(_create(path), "wb") as file:
        while chunk := content.read(_CHUNK):
            check()
            left -= len(chunk)
            if left < 0:
                raise PackageError(f"the member {info.filename!r} has more bytes than the package says")
            file.write(chunk)
    if (info.external_attr >> 16) & stat.S_IXUSR:
        os.chmod(path, 0o700)


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # It was not made yet.
