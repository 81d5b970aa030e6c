"""Connecting to a cluster by the functions that Ray's client had: thin ways to :func:`moray.init`."""

from __future__ import annotations

import platform
from typing import Any

import moray

__all__ = ["connect", "disconnect"]


def connect(
    conn_str: str,
    secure: bool = False,
    metadata: list[tuple[str, str]] | None = None,
    connection_retries: int = 3,
    job_config: Any = None,
    namespace: str | None = None,
    *,
    ignore_version: bool = False,
    _credentials: Any = None,
    ray_init_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Become a driver of the cluster whose head is at `conn_str`.

    The same as ``moray.init("moray://HOST:PORT")``, with the cluster's token in MORAY_TOKEN.

    Args:
        conn_str: "HOST:PORT" of the head.
        secure: without meaning: connections are always encrypted and authenticated.
        metadata: without meaning.
        connection_retries: without meaning: a head that does not answer is an error at once.
        job_config: see :func:`moray.init`.
        namespace: of this job's actors.
        ignore_version: without meaning: unequal protocols are refused.
        ray_init_kwargs: further arguments of :func:`moray.init`.

    Returns:
        What is known of the connection: "num_clients" (1), "python_version", "ray_version", "ray_commit",
        "protocol_version".

    Raises:
        RuntimeError: this process is connected already.
        NodeStartError: the head cannot be reached.
        AuthenticationError: there is no token, or it is not this cluster's.
    """
    del secure, metadata, connection_retries, ignore_version, _credentials
    arguments = {"namespace": namespace, "job_config": job_config, **(ray_init_kwargs or {})}
    address = conn_str if "://" in conn_str else f"moray://{conn_str}"
    context = moray.init(address, **arguments)
    return {
        "num_clients": 1,
        "python_version": platform.python_version(),
        "ray_version": context.ray_version,
        "ray_commit": context.ray_commit,
        "protocol_version": context.protocol_version,
    }


def disconnect() -> None:
    """End the connection, and this job with it."""
    moray.shutdown()
