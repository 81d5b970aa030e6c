"""``ray.client_builder``: ``ray.client(…).connect()``, which Ray has deprecated in favour of ``ray.init("ray://…")``."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any, Final, Self

from moray.api import init

__all__ = ["ClientBuilder", "client"]

_RAY: Final = "ray"


class ClientBuilder:
    """A connection that is about to be made through a cluster's head (``moray://``)."""

    def __init__(self, address: str | None) -> None:
        self.address = address
        self._options: dict[str, Any] = {}
        self._deprecation_warn_enabled = True

    def env(self, env: dict[str, Any]) -> Self:
        """Set the job's runtime environment."""
        self._options["runtime_env"] = env
        return self

    def namespace(self, namespace: str | None) -> Self:
        """Set the job's namespace."""
        self._options["namespace"] = namespace
        return self

    def connect(self) -> Any:
        """Become a driver; what :func:`moray.init` returns.

        Raises:
            what :func:`moray.init` does.
        """
        address = self._whole_address()
        if self._deprecation_warn_enabled:
            given = [repr(address)] if address else []
            given += [f"{name}=…" for name, value in self._options.items() if value is not None]
            warnings.warn(
                f"ray.client() is deprecated: write ray.init({', '.join(given)})", DeprecationWarning, stacklevel=2
            )
        return init(address, **self._options)

    def _whole_address(self) -> str | None:
        return f"ray://{self.address}"


class _LocalClientBuilder(ClientBuilder):
    """The same for ``init()`` without an address, or with "local"."""

    def _whole_address(self) -> str | None:
        return self.address


def _split_address(address: str) -> tuple[str, str]:
    """The module whose ClientBuilder is wanted, and what that is given."""
    module, sign, inner = address.partition("://")
    return (module, inner) if sign else (_RAY, address)


def client(address: str | None = None, _deprecation_warn_enabled: bool = True) -> ClientBuilder:
    """A connection to "HOST:PORT", to a session of its own ("local"), or as a module says ("module://…"; "moray://" is "ray://").

    Raises:
        RuntimeError: there is no such module, or it has no ClientBuilder.
        ValueError: it is the address of a web server.
    """
    address = address or os.environ.get("RAY_ADDRESS") or address
    builder: ClientBuilder
    if address is None or address == "local":
        builder = _LocalClientBuilder(address)
    elif address.startswith(("http://", "https://")):
        raise ValueError(
            f"{address!r} is no address of a cluster's head (Ray calls it the GCS address): "
            "write HOST:PORT, here or in RAY_ADDRESS"
        )
    else:
        name, inner = _split_address(address)
        builder = ClientBuilder(inner) if name in (_RAY, "moray") else _builder_of(name)(inner)
    builder._deprecation_warn_enabled = _deprecation_warn_enabled
    return builder


def _builder_of(name: str) -> Any:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise RuntimeError(f"the module {name!r}, which the address names, does not exist") from error
    try:
        return module.ClientBuilder
    except AttributeError:
        raise RuntimeError(f"the module {name!r}, which the address names, does not have ClientBuilder") from None
