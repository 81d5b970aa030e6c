"""Finds ``ray`` and what is below it: in moray where moray has it, in the stand-ins where not.

``ray`` itself is the module :mod:`moray.compat.facade`. ``ray.a.b`` is ``moray.a.b`` if Ray documents ``a`` and moray
has it; otherwise ``moray.compat.stand_ins.a.b``. Either way ``sys.modules["ray.a.b"]`` becomes that very module.

A library that is missing gets two different answers. ``importlib.util.find_spec("ray.tune")`` is None, as programs
ask so whether something is there; an ``import`` raises an error that says which module is missing and why.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import LazyLoader, find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, cast

if TYPE_CHECKING:
    from importlib.abc import Loader
    from importlib.metadata import Distribution

FACADE: Final = "moray.compat.facade"
_STAND_INS: Final = "moray.compat.stand_ins"

#: What Ray documents below ``ray``, and what moray calls it. moray's other modules are not for users.
_PUBLIC: Final = {
    **{name: name for name in (
        "actor", "autoscaler", "cluster_utils", "dag", "dashboard", "data", "exceptions", "experimental", "job_config",
        "job_submission", "remote_function", "runtime_context", "runtime_env", "serve", "train", "tune", "util",
    )},
    "rllib": "rl",
}  # fmt: skip


def find_target(name: str) -> str | None:
    """The module that ``name`` (``ray`` or ``ray.…``) stands for; None if there is none."""
    rest = name.removeprefix("ray").removeprefix(".")
    if not rest:
        return FACADE
    top, _, below = rest.partition(".")
    if top == "cloudpickle":
        return rest if _exists(rest) else None
    if top in _PUBLIC:
        own = f"moray.{_PUBLIC[top]}.{below}".rstrip(".")
        if _exists(own):
            return own
    stand_in = f"{_STAND_INS}.{rest}"
    return stand_in if _exists(stand_in) else None


def _exists(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError as error:
        # A package on the way is missing, or is no package. What a package of ours fails to import is another matter.
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return False
        raise


class RayFinder:
    """The entry of ``sys.meta_path``. It is silent while `active` says False."""

    def __init__(self, active: Callable[[], bool]) -> None:
        self._active = active

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - the finder protocol's
        target: ModuleType | None = None,  # noqa: ARG002 - the same
    ) -> ModuleSpec | None:
        """Called by every import that is not in ``sys.modules`` yet."""
        if not name.startswith("ray") or (name != "ray" and name[3] != ".") or not self._active():
            return None
        real = find_target(name)
        if real is not None:
            return _spec(name, real)
        if _asked_by_import():
            raise _missing(name)
        return None

    def find_distributions(self, context: Any = None) -> Iterable[Distribution]:
        """Called by importlib.metadata: the distribution "ray" is there, in the version whose programs run."""
        wanted = getattr(context, "name", None)
        if (wanted is None or wanted.lower() == "ray") and self._active():
            yield from _distributions()


def _distributions() -> Iterator[Distribution]:
    from moray.compat.distribution import RayDistribution

    yield RayDistribution()


def _spec(name: str, real: str) -> ModuleSpec:
    found = find_spec(real)
    assert found is not None
    spec = ModuleSpec(name, cast("Loader", _AliasLoader(real)), origin=found.origin)
    spec.submodule_search_locations = [] if real == FACADE else found.submodule_search_locations
    return spec


class _AliasLoader:
    """Puts the module `real` into ``sys.modules`` under the other name too."""

    def __init__(self, real: str) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:  # noqa: ARG002 - the loader protocol's
        """A module for the time of the import; the protocol allows exec_module to replace it."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        real = import_module(self._real)
        spec = module.__spec__
        if spec is None or spec.loader_state is None:
            sys.modules[module.__name__] = real
            return
        # By importlib.util.LazyLoader, at the first use of a module that others hold already, and that it insists to
        # find in sys.modules: it gets the names of the real one, which are the same objects, and stays itself.
        own = ("__name__", "__loader__", "__package__", "__spec__", "__path__")
        module.__dict__.update({name: value for name, value in vars(real).items() if name not in own})


def is_stand_in(module: ModuleType) -> bool:
    """Whether `module`, found in ``sys.modules`` as ``ray``, is moray: the facade, or what a lazy import made of it."""
    spec = module.__dict__.get("__spec__")
    return module is sys.modules.get(FACADE) or isinstance(_innermost(getattr(spec, "loader", None)), _AliasLoader)


def _innermost(loader: Any) -> Any:
    """What a LazyLoader will load by."""
    return getattr(loader, "loader", None) if isinstance(loader, LazyLoader) else loader


def _asked_by_import() -> bool:
    """Whether an ``import`` is behind the call of find_spec, rather than importlib.util.find_spec.

    Only the frames tell: 0 this, 1 RayFinder.find_spec, 2 importlib's loop over the finders, 3 who wants to know.
    """
    return sys._getframe(3).f_code.co_name == "_find_and_load_unlocked"


def _missing(name: str) -> ModuleNotFoundError:
    from moray import __version__

    # The name is moray's on purpose: with the one that was asked for, `from ray import tune` would hide this message
    # behind "cannot import name".
    return ModuleNotFoundError(
        f"No module named {name!r}: `import ray` gives moray {__version__} here (moray.compat), "
        "which has no counterpart of it",
        name=name.replace("ray", "moray", 1),
    )
