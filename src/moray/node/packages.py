"""What workers need of other hosts' files: packages of directories, fetched, unpacked, and removed again.

Nodes of the driver's host (:func:`~moray.launch.packages.host_id`) use its directories as they are. A node of another
host wants a *package* of each, and unpacks it once for each job, whatever the number of its workers:

1. **Name.** What a runtime environment names is packed by the process that names it, and its name (a hash) travels with
   the environment, so that changed content means other workers. What nobody named, the driver's working directory and
   its ``sys.path``, is packed by the driver's node, when the first node of another host asks for its name
   (ResolvePackage): a session on one host packs nothing. All who ask for a job get the same name.
2. **Fetch** (:mod:`moray.node.package_fetches`), unless a package of this name is here already.
3. **Unpack** into a directory of this job, by a thread, which the loop does not wait for.

Packages stay for other jobs until all that no job uses are more than MORAY_PACKAGE_CACHE_BYTES; what was unpacked goes
with its job. All of it lies in the session's directory and ends with that.

If what nobody named cannot be shipped, workers do without, and an import that fails says why.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from moray.config import env_bytes
from moray.launch import packages
from moray.launch.session_directory import remove_tree
from moray.node.logs import log
from moray.node.package_fetches import CHUNK_BYTES, Fetches
from moray.protocol import messages as m
from moray.store.disk import DiskThread

if TYPE_CHECKING:
    from moray.node.jobs import Job

#: Packages without a job are kept up to this size; MORAY_PACKAGE_CACHE_BYTES says otherwise.
_CACHE_BYTES: Final = 1 << 30


class Found(NamedTuple):
    """What a worker needs, at this node."""

    #: Each package and where it is here; "": nowhere, workers do without.
    places: list[tuple[m.Package, str]]
    #: The driver is on another host.
    foreign: bool
    #: For errors, if something came from another host: what, and what did not.
    told: str = ""


class _Zip:
    """A package that is here."""

    __slots__ = ("jobs", "path", "size", "used")

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = os.stat(path).st_size
        #: Living jobs that use it.
        self.jobs: set[int] = set()
        #: Rises with each use.
        self.used = 0


class _Order:
    """A package that a job wants unpacked here."""

    __slots__ = ("done", "job", "package", "place", "reason", "waiting")

    def __init__(self, job: int, package: m.Package) -> None:
        self.job = job
        self.package = package
        self.done = False
        #: Where it is; "" with the reason: it cannot be had.
        self.place = self.reason = ""
        self.waiting: list[Callable[[], None]] = []


class _Resolution:
    """The name of something that is packed because another host asked."""

    __slots__ = ("asking", "job", "name", "reason")

    def __init__(self, job: int) -> None:
        self.job = job
        self.name = self.reason = ""
        #: (node, number of its question); None: the answer is known.
        self.asking: list[tuple[bytes, int]] | None = []


class Packages:
    """The node's packages. Owned by its loop.

    Args:
        session_dir: the session's directory.
        tag: this node's.
        post: has the loop make a call; any thread.
        lives: whether a job has not ended.
    """

    def __init__(
        self,
        session_dir: str,
        tag: bytes,
        post: Callable[[Callable[[], None]], None],
        lives: Callable[[int], bool],
    ) -> None:
        self._session_dir = session_dir
        self._folder = f"{session_dir}/{packages.FOLDER}"
        self._tag = tag
        self._job_lives = lives
        self._thread = DiskThread(post)
        self._closing = False
        self._numbers = count(1)
        self._zips: dict[str, _Zip] = {}
        self._orders: dict[tuple[int, bytes, str, str, str], _Order] = {}
        self._resolutions: dict[tuple[str, str, str], _Resolution] = {}
        #: Questions of this node: number → (node asked, what to do with the answer).
        self._asked: dict[int, tuple[bytes, Callable[[str, str], None]]] = {}
        #: (job, runtime environment) → what its workers are told.
        self._told: dict[tuple[int, str], str] = {}
        #: The cluster's nodes by their tags; a local session has none.
        self._nodes: Callable[[], dict[bytes, m.NodeInfo]] = dict
        self._send_to: Callable[[bytes, m.Message], None] = _send_nowhere
        #: Hosts of nodes, the dead ones' too.
        self._hosts: dict[bytes, str] = {}
        self._fetches = Fetches(self._folder, self._run, self._send, self._others, self._store)
        #: Messages of other nodes: (the node, message).
        self.link_handlers: dict[type[m.Message], Callable[[bytes, Any], None]] = {
            m.ResolvePackage: self._on_resolve,
            m.PackageResolved: self._on_resolved,
            m.GetPackage: self._on_get,
            m.PackageChunk: self._fetches.on_chunk,
        }

    def join(
        self, nodes: Callable[[], dict[bytes, m.NodeInfo]], send: Callable[[bytes, m.Message], None], host: str
    ) -> None:
        """Become one of several nodes."""
        self._nodes, self._send_to = nodes, send
        self._hosts[self._tag] = host

    def close(self) -> None:
        """Stop packing and unpacking; the session's end removes the files."""
        self._closing = True
        self._thread.close()

    # --- what workers need --------------------------------------------------------------------------------

    def prepare(
        self, job: Job, runtime_env: str, wanted: list[m.Package], then: Callable[[Found | None, str], None]
    ) -> None:
        """Have everything here, then call `then`: at once, if nothing has to be fetched; with the reason, if it fails.

        Of a job that ends meanwhile, nothing is told.
        """
        foreign = not self._is_here(job.config.source)
        orders: list[_Order] = []
        for package in wanted:
            if package.kind == "path" and not foreign:
                continue
            orders.append(self._order(job, package))
        left = sum(not order.done for order in orders)

        def arrived() -> None:
            nonlocal left
            left -= 1
            if not left:
                finish()

        def finish() -> None:
            failed = next((order for order in orders if not order.place and not _dispensable(order.package)), None)
            for order in orders:
                if not order.place and self._lives(order):
                    del self._orders[_key(job.number, order.package)]  # The next worker tries again.
            if failed is not None:
                then(None, f"the {failed.package.kind} {failed.package.path} of {self._where(failed)}: {failed.reason}")
                return
            found = Found([(order.package, order.place) for order in orders], foreign, self._tell(job, foreign, orders))
            self._told[job.number, runtime_env] = found.told
            then(found, "")

        for order in orders:
            if not order.done:
                order.waiting.append(arrived)
        if not left:
            finish()

    def told(self, job: int, runtime_env: str) -> str:
        """For workers of another host than their driver's: what came from there."""
        return self._told.get((job, runtime_env), "")

    def adopt(self, job: int, made: list[tuple[str, str]]) -> None:
        """A process of this node has made packages."""
        for name, file in made:
            try:
                self._store(name, f"{self._folder}/{packages.MADE_FOLDER}/{os.path.basename(file)}")
            except FileNotFoundError:
                log(f"job {job}: the package {name[:12]} is not where its maker said")
            else:
                self._use(name, job)

    def job_gone(self, job: int) -> None:
        """Nothing of the job is left: what was unpacked for it goes."""
        for key in [key for key in self._orders if key[0] == job]:
            order = self._orders.pop(key)
            order.waiting.clear()
        for about in [about for about in self._told if about[0] == job]:
            del self._told[about]
        for asked in [asked for asked, known in self._resolutions.items() if known.job == job]:
            del self._resolutions[asked]
        folder = self._job_folder(job)
        if os.path.isdir(folder):
            self._run(lambda: remove_tree(folder), _log_failure)
        for package in self._zips.values():
            package.jobs.discard(job)
        self._sweep()

    def node_died(self, tag: bytes) -> None:
        """It answers nothing any more."""
        self._fetches.node_died(tag)
        for number, (node, on_answer) in list(self._asked.items()):
            if node == tag:
                del self._asked[number]
                on_answer("", f"node {tag.hex()} died before it had packed it")
        for resolution in self._resolutions.values():
            if resolution.asking:
                resolution.asking = [asking for asking in resolution.asking if asking[0] != tag]

    # --- one package for one job ---------------------------------------------------------------------------

    def _order(self, job: Job, package: m.Package) -> _Order:
        key = _key(job.number, package)
        order = self._orders.get(key)
        if order is not None:
            return order
        order = self._orders[key] = _Order(job.number, package)
        if self._is_here(package.node):
            self._take_local(order)
        elif package.name:
            self._fetch(order, package.name)
        else:
            self._ask_name(job, order)
        return order

    def _take_local(self, order: _Order) -> None:
        """The directory itself, as it is."""
        path = order.package.path
        if packages.is_archive(path):
            if os.path.isfile(path):
                self._unpack(order, path)
            else:
                self._end(order, "", f"there is no file {path} on this machine")
        elif not os.path.exists(path):
            self._end(order, "", f"{path} is not a directory of this machine")
        elif order.package.kind == "py_module":
            self._end(order, self._link(path), "")
        elif os.path.isdir(path):
            self._end(order, path, "")
        else:
            self._end(order, "", f"{path} is not a directory of this machine")

    def _link(self, path: str) -> str:
        """A directory with nothing in it but this module."""
        from hashlib import sha256

        folder = f"{self._folder}/links/{sha256(os.fsencode(path)).hexdigest()[:16]}"
        os.makedirs(folder, mode=0o700, exist_ok=True)
        try:
            os.symlink(path, f"{folder}/{os.path.basename(path)}")
        except FileExistsError:
            pass  # Another job's workers have it, too.
        return folder

    def _ask_name(self, job: Job, order: _Order) -> None:
        number = next(self._numbers)

        def on_answer(name: str, reason: str) -> None:
            if name:
                self._fetch(order, name)
            else:
                self._end(order, "", reason)

        node = order.package.node
        if self._send(node, m.ResolvePackage(number, job.number, job.config.snapshot, order.package)):
            self._asked[number] = node, on_answer
        else:
            self._end(order, "", f"its node {node.hex()} is not in the cluster any more")

    def _on_resolved(self, tag: bytes, answer: m.PackageResolved) -> None:
        node, on_answer = self._asked.get(answer.request, (b"", None))
        if on_answer is not None and node == tag:
            del self._asked[answer.request]
            on_answer(answer.name, answer.reason)

    def _fetch(self, order: _Order, name: str) -> None:
        if not self._lives(order):
            return
        here = self._zips.get(name)
        if here is not None and os.path.exists(here.path):  # See _sweep.
            self._use(name, order.job)
            self._unpack(order, here.path)
            return

        def on_fetched(reason: str) -> None:
            if reason:
                self._end(order, "", reason)
            elif self._lives(order):
                self._use(name, order.job)
                self._unpack(order, self._zips[name].path)

        os.makedirs(self._folder, mode=0o700, exist_ok=True)
        self._fetches.want(name, order.job, order.package.node, on_fetched)

    def _unpack(self, order: _Order, path: str) -> None:
        folder = self._job_folder(order.job)
        place = f"{folder}/{next(self._numbers)}"

        def unpack() -> None:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            packages.unpack(path, place, self._check)

        def on_unpacked(_none: Any, reason: str) -> None:
            if self._lives(order):
                self._end(order, "" if reason else place, reason)
            else:
                # Its job has ended meanwhile, and its directory may have been removed before this one was made.
                self._run(lambda: remove_tree(folder), _log_failure)

        self._run(unpack, on_unpacked)

    def _end(self, order: _Order, place: str, reason: str) -> None:
        order.place, order.reason, order.done = place, reason, True
        waiting, order.waiting = order.waiting, []
        for call in waiting:
            call()

    def _lives(self, order: _Order) -> bool:
        return self._orders.get(_key(order.job, order.package)) is order

    def _job_folder(self, job: int) -> str:
        return f"{self._folder}/job-{job}"

    # --- the cache -------------------------------------------------------------------------------------------

    def _store(self, name: str, path: str) -> None:
        """A whole package lies at `path`. Only here, and in the loop, it gets its final place."""
        target = f"{self._folder}/{name}.zip"
        os.rename(path, target)
        if name not in self._zips:
            self._zips[name] = _Zip(target)

    def _use(self, name: str, job: int) -> None:
        package = self._zips[name]
        if self._job_lives(job):
            package.jobs.add(job)
        package.used = next(self._numbers)

    def _sweep(self) -> None:
        """Remove packages that no job uses, those not used for longest first, until the rest may stay."""
        idle = sorted(((package.used, name) for name, package in self._zips.items() if not package.jobs), reverse=True)
        kept, limit = 0, env_bytes("PACKAGE_CACHE_BYTES", _CACHE_BYTES)
        for _used, name in idle:
            kept += self._zips[name].size
            if kept > limit:
                gone = f"{self._folder}/.{next(self._numbers)}.gone"
                # A package of this name may come again before the thread has removed this one.
                try:
                    os.rename(self._zips.pop(name).path, gone)
                except FileNotFoundError:
                    continue  # Whatever removes old files of temporary directories was here first.
                self._run(lambda gone=gone: os.unlink(gone), _log_failure)  # type: ignore[misc]

    # --- what other nodes want ---------------------------------------------------------------------------------

    def _on_resolve(self, tag: bytes, question: m.ResolvePackage) -> None:
        package = question.package
        key = question.snapshot, package.path, package.kind
        known = self._resolutions.get(key)
        if known is not None and known.asking is None and known.name and known.name not in self._zips:
            known = None  # It was removed: nobody has used it here, and a detached actor elsewhere wants it.
        if known is None:
            known = self._resolutions[key] = _Resolution(question.job)
            self._pack(known, question)
        if known.asking is None:
            self._answer(tag, question.request, known)
        else:
            known.asking.append((tag, question.request))

    def _pack(self, resolution: _Resolution, question: m.ResolvePackage) -> None:
        package = question.package

        def on_packed(made: packages.Made | None, reason: str) -> None:
            log(f"job {question.job}: {package.path} for other hosts: {reason or f'package {made and made.name[:12]}'}")
            if made is not None:
                resolution.name = made.name
                self.adopt(question.job, [(made.name, made.file)])
            resolution.reason = reason
            asking, resolution.asking = resolution.asking or [], None
            for tag, request in asking:
                self._answer(tag, request, resolution)

        def pack() -> packages.Made:
            refusal = packages.why_not(package.path)
            if refusal:
                raise packages.PackageError(refusal)
            return packages.make(
                self._session_dir, package.path, package.excludes, limit=package.limit, check=self._check
            )

        self._run(pack, on_packed)

    def _answer(self, tag: bytes, request: int, resolution: _Resolution) -> None:
        self._send(tag, m.PackageResolved(request, resolution.name, resolution.reason))

    def _on_get(self, tag: bytes, question: m.GetPackage) -> None:
        package = self._zips.get(question.name)
        if package is None:
            reason = f"node {self._tag.hex()} does not have the package {question.name[:12]} (any more)"
            self._send(tag, m.PackageChunk(question.request, question.offset, 0, b"", reason))
            return
        package.used = next(self._numbers)
        path, size = package.path, package.size

        def on_read(data: bytes | None, reason: str) -> None:
            self._send(tag, m.PackageChunk(question.request, question.offset, size, data or b"", reason))

        self._run(lambda: _read(path, question.offset), on_read)

    # --- hosts, nodes, the thread ----------------------------------------------------------------------------

    def _is_here(self, tag: bytes) -> bool:
        """Whether a node's host is this one."""
        if tag in (b"", self._tag):
            return True
        info = self._nodes().get(tag)
        if info is not None:
            self._hosts[tag] = info.host
        return bool(info or tag in self._hosts) and self._hosts[tag] == self._hosts.get(self._tag, "")

    def _others(self) -> list[bytes]:
        return [tag for tag in self._nodes() if tag != self._tag]

    def _send(self, tag: bytes, message: m.Message) -> bool:
        if tag not in self._nodes():
            return False
        self._send_to(tag, message)
        return True

    def _where(self, order: _Order) -> str:
        info = self._nodes().get(order.package.node)
        if order.package.node in (b"", self._tag):
            return "this machine"
        return f"host {info.hostname}" if info is not None else f"node {order.package.node.hex()}"

    def _tell(self, job: Job, foreign: bool, orders: list[_Order]) -> str:
        """One line for errors of workers here."""
        if not foreign:
            return ""
        info = self._nodes().get(job.config.source)
        shipped = [order.package.path for order in orders if order.place]
        missing = [(order.package.path, order.reason) for order in orders if not order.place]
        missing += job.config.unshipped
        return (
            f"this is host {os.uname().nodename} (node {self._tag.hex()}), the program runs on "
            f"{f'host {info.hostname}' if info is not None else 'another host'}; "
            f"shipped from there: {', '.join(shipped) or 'nothing'}"
            + "".join(f"; not shipped: {path} ({reason})" for path, reason in missing)
        )

    def _check(self) -> None:
        if self._closing:
            raise packages.PackageError("the node ends")

    def _run(self, work: Callable[[], Any], then: Callable[[Any, str], None]) -> None:
        """`work` in the thread; then `then` in the loop, with its result and "", or with None and what went wrong."""
        results: list[Any] = []
        reasons: list[str] = []

        def guarded() -> None:
            try:
                self._check()
                results.append(work())
            except OSError as error:
                name = f" ({error.filename})" if error.filename else ""
                reasons.append(f"{error.strerror or error}{name}")
            except Exception as error:  # noqa: BLE001 - of a damaged archive, zipfile may raise anything
                reasons.append(str(error) or type(error).__name__)

        def done(_failure: str) -> None:
            if reasons:
                then(None, reasons[0])
            else:
                then(results[0], "")

        self._thread.submit(guarded, done)


def _key(job: int, package: m.Package) -> tuple[int, bytes, str, str, str]:
    return job, package.node, package.path, package.kind, package.name


def _dispensable(package: m.Package) -> bool:
    """Nobody asked for it by name: workers do without."""
    return package.kind == "path"


def _read(path: str, offset: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(fd, CHUNK_BYTES, offset)
    finally:
        os.close(fd)


def _log_failure(_none: Any, reason: str) -> None:
    if reason:
        log(f"packages: {reason}")


def _send_nowhere(_tag: bytes, _message: m.Message) -> None:
    raise AssertionError("a local session has no other nodes")
