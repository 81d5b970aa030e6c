"""The directory of a session: ``<temporary directory>/moray-<uid>/session_<time>_<pid>_<random>``.

It holds the sockets, logs and spilled objects of one session and belongs to one user, mode 0700. The file
``node.lock`` in it is locked (``flock``) as long as the node lives, which the kernel sees to however the node ends.
So a session is alive if and only if its lock is taken, and a directory whose lock is free may be removed.
A new directory gets its lock before its final name, so that nobody takes it for a dead one. The node makes it itself,
once it watches its driver: so there is no moment at which a driver could die and leave a directory behind.
"""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

from moray import config
from moray.launch.config import SESSION_VARIABLE
from moray.platform import process_control, process_table

LOCK_NAME: Final = "node.lock"
NODE_SOCKET: Final = "node.sock"
NODE_LOG: Final = "node.log"
#: The node's id, 28 bytes, for whoever connects: process ids begin with its tag.
NODE_ID: Final = "node.id"
#: What cluster the node belongs to (:mod:`moray.launch.cluster`), and its certificate.
CLUSTER_FILE: Final = "cluster.json"
TLS_FOLDER: Final = "tls"
LOG_FOLDER: Final = "logs"
SPILL_FOLDER: Final = "spill"
_PREFIX: Final = "session_"
#: In the environment: where the sessions of clusters are that this program, or one above it, has made for itself alone
#: (:mod:`moray.cluster_utils`); several are separated like those of PATH, the newest first.
OWN_CLUSTERS: Final = "MORAY_OWN_CLUSTERS"
#: A directory that has no final name yet.
_NEW_PREFIX: Final = ".new_"
_CLUSTER_PREFIX: Final = "moray-cluster-"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
#: How long making a directory may take before it counts as abandoned.
_ABANDONED_S: Final = 60.0


class Session(NamedTuple):
    """A live session of this user."""

    session: str
    session_dir: str
    #: The socket where its node accepts clients.
    address: str


def root_directory(temp_dir: str = "") -> str:
    """The directory of all sessions of this user; not necessarily there."""
    parent = temp_dir or config.env_str("TMPDIR") or os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - checked, 0700
    return os.path.join(os.path.abspath(parent), f"moray-{os.getuid()}")


def own_clusters() -> list[str]:
    """The directories of :data:`OWN_CLUSTERS`."""
    return [path for path in os.environ.get(OWN_CLUSTERS, "").split(os.pathsep) if path]


def new_path(root: str, pid: int) -> str:
    """A path below `root` for a new session of the driver `pid`."""
    return f"{root}/{_PREFIX}{time.strftime('%Y-%m-%d_%H-%M-%S')}_{pid}_{os.urandom(2).hex()}"


def empty(session_dir: str) -> None:
    """Remove what a node leaves that begins anew at the same place (:mod:`moray.node.rejoin`): all but its lock, its
    certificate, its logs, and by what others find it."""
    with os.scandir(session_dir) as entries:
        for entry in entries:
            if entry.name in {LOCK_NAME, CLUSTER_FILE, TLS_FOLDER, LOG_FOLDER}:
                continue
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                _unlink(entry.path)


def create(session_dir: str) -> int:
    """Make a session's directory: the descriptor that holds its lock. Called by the node itself."""
    while True:
        _make_root(os.path.dirname(session_dir))
        try:
            return _create_locked(session_dir)
        except FileNotFoundError:
            continue  # The end of another session removed the empty root at this very moment.


def _create_locked(final: str) -> int:
    root, name = os.path.split(final)
    new = f"{root}/{_NEW_PREFIX}{name}"
    os.mkdir(new, 0o700)
    lock = os.open(f"{new}/{LOCK_NAME}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.mkdir(f"{new}/{LOG_FOLDER}", 0o700)
        os.rename(new, final)
    except BaseException:
        os.close(lock)
        remove_tree(new)
        raise
    return lock


def keep_from_tidiers(session_dir: str) -> int:
    """Say to those who tidy temporary directories (systemd-tmpfiles) that this one is in use, however old its files
    are: they leave a directory alone while its lock is taken. The descriptor that holds it."""
    held = os.open(session_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(held, fcntl.LOCK_SH)
    return held


def new_directory(root: str) -> str:
    """A directory of this user below `root` that is swept if nobody removes it in time."""
    _make_root(root)
    path = f"{root}/{_NEW_PREFIX}{os.urandom(8).hex()}"
    os.mkdir(path, 0o700)
    # Its time says how long nobody has wanted it.
    os.close(os.open(f"{path}/{LOCK_NAME}", os.O_WRONLY | os.O_CREAT, 0o600))
    return path


def _make_root(root: str) -> None:
    """The user's directory, which nobody else may have made: others could swap what is in it."""
    os.makedirs(os.path.dirname(root), exist_ok=True)
    try:
        os.mkdir(root, 0o700)
    except FileExistsError:
        found = os.lstat(root)
        if not _is_own(found) or found.st_mode & 0o077:
            raise PermissionError(
                f"{root} should be a directory of user {os.getuid()} with mode 0700; it is "
                f"{stat.filemode(found.st_mode)} of user {found.st_uid}: remove it, or set TMPDIR to another directory"
            ) from None


def _is_own(found: os.stat_result) -> bool:
    """Whether it is a directory of this user, in which nobody else can make anything."""
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022


def write_node_id(session_dir: str, node_id: bytes) -> None:
    """Say which node this is, before its socket is there."""
    with open(f"{session_dir}/{NODE_ID}", "wb") as file:
        file.write(node_id)


def read_node_id(session_dir: str) -> bytes:
    """Which node a session's is; OSError if the session has ended."""
    with open(f"{session_dir}/{NODE_ID}", "rb") as file:
        return file.read()


def is_alive(session_dir: str) -> bool:
    """Whether the node of a session lives: whether its lock is taken."""
    try:
        lock = os.open(f"{session_dir}/{LOCK_NAME}", os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True  # Nobody can tell (no descriptors left, say), and what counts as dead is killed.
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def find_sessions(temp_dir: str = "", *, starting: bool = False) -> list[Session]:
    """The live sessions of this user that accept connections, newest first; `starting`: those, too, that do not yet."""
    found = [
        Session(os.path.basename(path), path, f"{path}/{NODE_SOCKET}")
        for path in _directories(root_directory(temp_dir))
        if (starting or os.path.exists(f"{path}/{NODE_SOCKET}")) and is_alive(path)
    ]
    # Names begin with the time, which decides but for sessions of the same second.
    return sorted(found, key=lambda session: (session.session[:27], _made(session.session_dir)), reverse=True)


def sweep_stale(temp_dir: str = "") -> list[str]:
    """Remove what is left of sessions whose node is dead, processes included; the names of those sessions."""
    root = root_directory(temp_dir)
    stale = [path for path in _directories(root) if not is_alive(path)]
    for path in stale:
        kill_tagged(os.path.basename(path))
    abandoned = [path for path in _directories(root, _NEW_PREFIX) if time.time() - _made(path) > _ABANDONED_S]
    for path in (*stale, *abandoned):
        try:
            remove_tree(path)
        except OSError:
            pass  # Another process sweeps too, or a killed one is just ending; the next start will find it.
    return [os.path.basename(path) for path in stale]


def make_cluster_directory() -> tuple[str, int]:
    """A directory for the nodes of a `Cluster` object, and the lock on it: a descriptor to be kept as long.

    The last node removes the directory if the program is killed. What a program leaves that was killed while it started
    one, the next such call removes.
    """
    folder = tempfile.gettempdir()
    for name in os.listdir(folder):
        if name.startswith(_CLUSTER_PREFIX):
            _sweep_cluster(f"{folder}/{name}")
    path = tempfile.mkdtemp(prefix=_CLUSTER_PREFIX)
    lock = os.open(path, _DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return path, lock


def _sweep_cluster(path: str) -> None:
    try:
        found = os.lstat(path)
        if not _is_own(found) or time.time() - found.st_mtime < _ABANDONED_S:
            return
        lock = os.open(path, _DIRECTORY)
    except OSError:
        return  # Another process sweeps, too.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        sweep_stale(path)
        if not any(_directories(root_directory(path))):
            remove_tree(path)
    except OSError:
        pass  # Its program lives, or another process sweeps.
    finally:
        os.close(lock)


def kill_tagged(session: str) -> int:
    """SIGKILL every process that the session started; how many there were."""
    pids = process_table.tagged(SESSION_VARIABLE, session)
    return sum(process_control.kill(pid) for pid in pids)


def remove_session(session_dir: str) -> None:
    """Remove a session's directory, and the user's if it was the last in it.

    What that lies in goes too if it was made for the nodes of a `Cluster` object: its program may have been killed.
    """
    root, name = os.path.split(session_dir)
    hidden = f"{root}/{_NEW_PREFIX}{name}"
    try:
        # A directory of this name without a lock counts as a dead session's: whoever starts one now would kill the
        # node that is just removing it, before it has told its driver.
        os.rename(session_dir, hidden)
    except OSError:
        hidden = session_dir  # It has gone, or cannot be removed either.
    remove_tree(hidden)
    try:
        os.rmdir(root)
        if os.path.dirname(root) in own_clusters():
            os.rmdir(os.path.dirname(root))
    except OSError:
        pass  # Other sessions are in it.


def remove_tree(path: str) -> None:
    """Remove a directory and all in it; what is gone already is no error, and links are not followed."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    _unlink(entry.path)
        os.rmdir(path)
    except FileNotFoundError:
        return


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # A process that is just ending removed its own socket.


def _directories(root: str, prefix: str = _PREFIX) -> Iterator[str]:
    """Those in the user's directory; none if it is somebody else's, who could make sessions that drivers connect to,
    and dead ones whose processes would be killed."""
    try:
        found = os.lstat(root)
        names = os.listdir(root) if _is_own(found) else []
    except OSError:
        return
    yield from (f"{root}/{name}" for name in names if name.startswith(prefix))


def _made(path: str) -> float:
    """When a session's lock file was made; 0 if it is gone."""
    try:
        return os.stat(f"{path}/{LOCK_NAME}").st_mtime
    except OSError:
        return 0.0
