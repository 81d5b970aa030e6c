"""Programs written for Ray, unchanged: after :func:`install`, ``import ray`` gives moray.

One set of objects: ``ray.ObjectRef is moray.ObjectRef``, ``ray.util.queue`` is ``moray.util.queue``. Nothing is copied
or wrapped: a finder in front of ``sys.meta_path`` (:mod:`moray.compat.finder`) answers for ``ray`` and everything
below it, when it is imported and not before. What moray has no module of its own for, but programs in the wild touch,
stands in :mod:`moray.compat.stand_ins`; what neither has is a ModuleNotFoundError that says so.

*Workers.* They must know ``ray`` before they unpickle the first function that names it. If it is installed before
``init()``, the job's template imports :mod:`moray.compat.in_worker`. If it comes after, the workers are there already:
they have a finder that looks, at an ``import ray`` and only then, for a file that the driver leaves in the
session's directory (:mod:`moray.compat.on_demand`). The file is there before any task that could need it is submitted.
The job of a detached actor is not its driver's: for detached actors that name ray, install before ``init()``.

*Other processes* that the program starts, such as multiprocessing's by *spawn*, know ``ray`` under ``moray run
--as-ray``, which puts the directory ``for_children`` before their PYTHONPATH; a program that calls :func:`install`
itself does so in each of them.
"""

from __future__ import annotations

import os
import sys
from _thread import allocate_lock
from types import ModuleType
from typing import Any, Final

from moray.compat.finder import RayFinder, is_stand_in
from moray.exceptions import tasks

__all__ = ["RAY_VERSION", "install", "is_installed"]

#: The version of Ray whose programs run: what ``ray.__version__`` and ``importlib.metadata.version("ray")`` say.
RAY_VERSION: Final = "2.60.0"

_FINDER: Final = RayFinder(lambda: True)
_lock = allocate_lock()


def install() -> None:
    """Make ``import ray`` and all that is below it resolve to moray, in this process and in the workers of its job.

    Call it before anything imports ray: a Ray that is installed is then not looked at. Calling it again does nothing.
    ``moray run --as-ray script.py`` calls it for you.

    Raises:
        RuntimeError: the real Ray has been imported already.

    Example:
        >>> import moray.compat
        >>> moray.compat.install()  # doctest: +SKIP
        >>> import ray  # doctest: +SKIP
        >>> ray.ObjectRef is moray.ObjectRef  # doctest: +SKIP
        True
    """
    with _lock:
        found = sys.modules.get("ray")
        if found is not None and not is_stand_in(found):
            if getattr(found, "__file__", None) is None:
                # No Ray: some directory "ray" on the path, which an `import ray` takes for a namespace package.
                del sys.modules["ray"]
            else:
                raise _too_late(found)
        if _FINDER not in sys.meta_path:
            sys.meta_path.insert(0, _FINDER)
            tasks.dual_prefix = "RayTaskError"
    # After the finder: a driver that connects at this moment looks for the finder after it has set its runtime.
    state = sys.modules.get("moray.runtime.state")
    runtime = state.runtime if state is not None else None
    if runtime is not None and runtime.kind == "driver" and runtime.ended is None and not runtime.forked:
        tell_workers(runtime)


def _too_late(found: ModuleType) -> RuntimeError:
    version, place = getattr(found, "__version__", "(unknown version)"), found.__file__
    return RuntimeError(
        f"moray.compat.install() comes too late: ray {version} from {place} has been imported already; call it at the "
        "start of the program, or run that by `moray run --as-ray`"
    )


def install_in_children() -> None:
    """Make ``import ray`` give moray in the Python processes that this one starts, too, by their PYTHONPATH.

    And by sys.path, which is what multiprocessing gives its processes.
    """
    folder = os.path.join(os.path.dirname(__file__), "for_children")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if folder not in paths:
        # An empty entry would be their working directory.
        os.environ["PYTHONPATH"] = os.pathsep.join([folder, *filter(None, paths)])
    if folder not in sys.path:
        sys.path.append(folder)


def is_installed() -> bool:
    """Whether ``import ray`` gives moray in this process."""
    return any(finder is _FINDER for finder in sys.meta_path)


def tell_workers(driver: Any) -> None:
    """Workers of the job that exist already, and those to come, shall find moray under the name ray."""
    from moray.compat.on_demand import mark_path

    try:
        with open(mark_path(driver.session_dir, driver.job), "wb"):
            pass
    except FileNotFoundError:
        pass  # The session has just ended, and its workers with it.
