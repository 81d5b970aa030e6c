"""What a runtime environment says about directories, checked and made ready to travel.

Directories are named by absolute paths of this host. In a cluster they are packed here (:mod:`moray.launch.packages`)
and the environment tells the hash of their content, so that what has changed goes to other workers; the node takes
the package over before it hears of anything that names it. A session on one host packs nothing.

A worker whose task has an environment of its own passes it on to the tasks and actors that it makes; what these
ask for themselves wins, and ``env_vars`` are merged.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import msgspec

from moray.ids import tag_of
from moray.launch import packages
from moray.launch.session_directory import CLUSTER_FILE
from moray.protocol import messages as m
from moray.runtime_env import RuntimeEnvConfig

if TYPE_CHECKING:
    from moray.runtime.runtime import Runtime

#: "config" has settings of Ray's that mean nothing here.
_FIELDS: Final = frozenset({"config", "env_vars", "excludes", "py_modules", "working_dir"})
#: Where the wire has the packages of an environment; no user sees it.
PACKAGES: Final = "_packages"

#: (session, job, path, patterns) → (the files as they were, the package's name): what need not be packed again.
_known: dict[tuple[str, int, str, tuple[str, ...]], tuple[list[packages.File], str]] = {}


# --- what users write ------------------------------------------------------------------------------------


def check(environment: Mapping[str, Any]) -> dict[str, Any]:
    """A runtime environment with absolute paths for what names files; empty fields are left out.

    Raises:
        TypeError: a field has a wrong type.
        ValueError: a path leads nowhere, or to nothing that workers could use.
    """
    found = {name: value for name, value in environment.items() if value}
    for name, value in _mapping("env_vars", found).items():
        if not isinstance(value, str):
            raise TypeError(f"runtime_env: env_vars[{name!r}]={value!r} should be a string")
    if "config" in found:
        found["config"] = RuntimeEnvConfig.parse_and_validate_runtime_env_config(_mapping("config", found))
    if "working_dir" in found:
        found["working_dir"] = _working_dir(found["working_dir"])
    if "py_modules" in found:
        modules = found["py_modules"]
        if isinstance(modules, (str, bytes)) or not isinstance(modules, Iterable):
            raise TypeError(f"runtime_env: py_modules={modules!r:.200} should be a list of modules and paths")
        found["py_modules"] = [_py_module(module) for module in modules]
    if "excludes" in found:
        patterns = found["excludes"]
        if not isinstance(patterns, (list, tuple)) or not all(isinstance(pattern, str) for pattern in patterns):
            raise TypeError(f"runtime_env: excludes={patterns!r:.200} should be a list of patterns")
        found["excludes"] = list(patterns)
    return found


def check_job(environment: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a job's, of which no node would say later what it cannot do."""
    found = check(environment)
    unknown = sorted(found.keys() - _FIELDS)
    if unknown:
        raise ValueError(
            f"init(): runtime_env has {', '.join(unknown)}, which moray does not set up: it knows "
            f"{', '.join(sorted(_FIELDS))}. Install packages in the environment that starts the program, on every host"
        )
    return found


def _mapping(name: str, environment: Mapping[str, Any]) -> Mapping[str, Any]:
    value = environment.get(name) or {}
    if not isinstance(value, Mapping):
        raise TypeError(f"runtime_env: {name}={value!r:.200} should be a dict")
    return value


def _path(field: str, given: Any) -> str:
    if not isinstance(given, (str, os.PathLike)):
        raise TypeError(f"runtime_env: {field}={given!r:.200} should be a path")
    path = os.fspath(given)
    if not isinstance(path, str):
        raise TypeError(f"runtime_env: {field}={given!r:.200} should be a path of type str")
    path = path.removeprefix("file://")
    if "://" in path:
        raise ValueError(
            f"runtime_env: {field}={path!r} is a URL; moray reads files of this machine: download it, and give its path"
        )
    return os.path.abspath(os.path.expanduser(path))


def _working_dir(given: Any) -> str:
    path = _path("working_dir", given)
    if not os.path.isdir(path) and not (packages.is_archive(path) and os.path.isfile(path)):
        raise ValueError(f"runtime_env: working_dir={path!r} is neither a directory nor a .zip file of this machine")
    return path


def _py_module(given: Any) -> str:
    if isinstance(given, ModuleType):
        top = sys.modules.get(given.__name__.partition(".")[0], given)
        folders = list(getattr(top, "__path__", ()))
        path = folders[0] if folders else getattr(top, "__file__", None)
        if path is None:
            raise ValueError(f"runtime_env: py_modules has {given!r}, which has no file that could be shipped")
        given = path
    path = _path("py_modules", given)
    if not os.path.isdir(path) and not (os.path.isfile(path) and path.endswith((".py", *packages.ARCHIVES))):
        raise ValueError(
            f"runtime_env: py_modules has {path!r}, which is neither the directory of a package nor a .py, .zip or "
            ".whl file of this machine"
        )
    return path


# --- a task's or actor's -------------------------------------------------------------------------------------


def environment_key(runtime: Runtime, environment: Mapping[str, Any]) -> str:
    """The canonical text of a task's or actor's runtime environment; "" for the job's own.

    Raises:
        TypeError, ValueError: see :func:`check`; or it holds other than plain data.
        PackageError: a directory is too large.
    """
    inherited = runtime.welcome.task_env
    if not environment:
        return inherited
    if runtime.kind == "local":
        return _dumps(dict(environment))
    own = check(environment)
    found: dict[str, Any] = dict(own)
    items = _packages(own)
    if items:
        _complete(runtime, items)
    if inherited:
        outer = json.loads(inherited)
        kinds = {item.kind for item in items}
        passed_on = [
            item for item in msgspec.convert(outer.pop(PACKAGES, []), list[m.Package]) if item.kind not in kinds
        ]
        items += passed_on
        found = outer | own
        if "env_vars" in outer and "env_vars" in own:
            found["env_vars"] = outer["env_vars"] | own["env_vars"]
    if items:
        found[PACKAGES] = msgspec.to_builtins(items)
    return _dumps(found)


def shown(text: str) -> str:
    """A runtime environment of the wire, as users see it."""
    if PACKAGES not in text:
        return text
    found = json.loads(text)
    found.pop(PACKAGES, None)
    return json.dumps(found, sort_keys=True)


def _dumps(environment: dict[str, Any]) -> str:
    try:
        return json.dumps(environment, sort_keys=True)
    except TypeError as error:
        raise TypeError(f"option runtime_env must hold plain data (strings, numbers, lists, dicts): {error}") from None


def _packages(environment: Mapping[str, Any]) -> list[m.Package]:
    """The packages of an environment, not packed yet."""
    paths = [("working_dir", path) for path in filter(None, [environment.get("working_dir")])]
    paths += [("py_module", path) for path in environment.get("py_modules", ())]
    excludes = list(environment.get("excludes", ()))
    limit = packages.max_bytes()
    return [m.Package(path, b"", kind, excludes=excludes, limit=limit) for kind, path in paths]


def _complete(runtime: Runtime, items: list[m.Package]) -> None:
    """Pack them if there may be other hosts, and have the node take them over."""
    welcome = runtime.welcome
    for item in items:
        item.node = tag_of(runtime.process)
    if not welcome.credentials:
        return
    for item in items:
        known_as = (welcome.session, welcome.job_id, item.path, tuple(item.excludes))
        files = _files(item)
        known = _known.get(known_as)
        if known is None or known[0] != files:
            made = _pack(welcome.session_dir, item)
            # The node first: an interrupt in between must not make it known to this process alone.
            runtime.node.send(m.MadePackages([(made.name, made.file)]))
            known = _known[known_as] = files, made.name
        item.name = known[1]


def _files(item: m.Package) -> list[packages.File]:
    """What tells whether a package would be another one by now."""
    if os.path.isdir(item.path):
        return packages.scan(item.path, item.excludes, item.limit)
    about = os.stat(item.path)
    return [packages.File("", item.path, about.st_size, about.st_mtime_ns, False)]


def _pack(session_dir: str, item: m.Package) -> packages.Made:
    is_package = item.kind == "py_module" and os.path.isdir(item.path)
    prefix = f"{os.path.basename(item.path)}/" if is_package else ""
    return packages.make(session_dir, item.path, item.excludes, prefix, item.limit)


# --- a job's -------------------------------------------------------------------------------------------------


def describe_job(job: m.JobConfig, environment: Mapping[str, Any]) -> None:
    """Add to a job what its workers on other hosts will want: what `environment`, a checked one, names, and the rest of
    what the driver's own imports and relative paths rest on."""
    job.snapshot = os.urandom(8).hex()
    job.packages = _packages(environment)
    job.own_paths = [path for path in job.sys_path if _is_interpreters(path)]
    own = set(job.own_paths)
    wanted = [path for path in (job.cwd, *job.sys_path) if path not in own and os.path.isdir(path)]
    if any(item.kind == "working_dir" for item in job.packages) and job.cwd not in job.sys_path:
        wanted = [path for path in wanted if path != job.cwd]
    roots: list[str] = []
    for path in sorted(set(wanted)):
        # A parent comes before what is in it.
        if not any(path.startswith(f"{root}/") for root in roots):
            reason = packages.why_not(path)
            if reason:
                job.unshipped.append((path, reason))
            else:
                roots.append(path)
    excludes, limit = list(environment.get("excludes", ())), packages.max_bytes()
    job.packages += [m.Package(path, b"", "path", excludes=excludes, limit=limit) for path in roots]


def complete_job(job: m.JobConfig, session_dir: str, tag: bytes) -> None:
    """The node is known: pack what the environment names, if it is in a cluster. Raises as :func:`environment_key`."""
    job.source = tag
    clustered = os.path.exists(f"{session_dir}/{CLUSTER_FILE}")
    for item in job.packages:
        item.node = tag
        if clustered and item.kind != "path":
            made = _pack(session_dir, item)
            item.name = made.name
            job.made.append((made.name, made.file))


def _is_interpreters(path: str) -> bool:
    """Whether an entry of sys.path belongs to the installation, which other hosts have themselves."""
    import site
    import sysconfig

    paths = sysconfig.get_paths()
    roots = {*(paths[name] for name in _INSTALLED), *site.getsitepackages(), site.getusersitepackages()}
    # moray's own: a worker has it before it has any path.
    roots.add(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    if os.path.basename(path) in ("site-packages", "dist-packages") or path.endswith(_ZIPPED_LIBRARY):
        return True
    return any(path == root or path.startswith(f"{root}/") for root in roots if root not in ("", "/"))


_INSTALLED: Final = ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
_ZIPPED_LIBRARY: Final = f"/python{sys.version_info[0]}{sys.version_info[1]}.zip"
