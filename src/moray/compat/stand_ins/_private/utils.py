"""``ray._private.utils``: the machine, and ids as text."""

from __future__ import annotations

import tempfile

from moray.platform import machine

__all__ = [
    "binary_to_hex", "get_num_cpus", "get_ray_temp_dir", "get_system_memory", "get_used_memory", "get_user_temp_dir",
    "hex_to_binary",
]  # fmt: skip


def get_num_cpus() -> int:
    """CPUs that this process may use."""
    return machine.cpu_count()


def get_system_memory() -> int:
    """Bytes of memory that this process may use."""
    return machine.memory_total()


def get_used_memory() -> int:
    """Bytes of it that are in use."""
    return machine.memory_used()


def get_user_temp_dir() -> str:
    """The system's directory for temporary files."""
    return tempfile.gettempdir()


def get_ray_temp_dir() -> str:
    """The directory of this user's sessions."""
    from moray.launch.session_directory import root_directory

    return root_directory()


def binary_to_hex(identifier: bytes) -> str:
    """An id's bytes as text."""
    return identifier.hex()


def hex_to_binary(hex_identifier: str) -> bytes:
    """An id's text as bytes."""
    return bytes.fromhex(hex_identifier)
