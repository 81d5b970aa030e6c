"""``ray._common.network_utils``: addresses as text."""

from __future__ import annotations

import socket

from moray.protocol.tcp import format_address

__all__ = ["build_address", "find_free_port", "parse_address"]


def build_address(host: str, port: int | str) -> str:
    """``host:port``; an IPv6 address in brackets."""
    return format_address(host, int(port))


def parse_address(address: str) -> tuple[str, str] | None:
    """(host, port) of such a text; None if it has no port."""
    host, colon, port = address.rpartition(":")
    if not colon or (":" in host and not host.startswith("[")):
        return None
    return host.strip("[]"), port


def find_free_port(family: int = socket.AF_INET) -> int:
    """A port that nobody listens at just now."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
    return port
