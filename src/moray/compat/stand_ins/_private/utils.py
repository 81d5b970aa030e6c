"""``ray._private.utils``: the machine, and ids as text."""

from __future__ import annotations

import contextlib
import signal
import tempfile
import threading
from types import FrameType, TracebackType
from typing import Any, Final, Self

from moray.platform import machine

__all__ = [
    "DeferSigint", "binary_to_hex", "decode", "get_num_cpus", "get_ray_temp_dir", "get_system_memory",
    "get_used_memory", "get_user_temp_dir", "hex_to_binary", "reset_ray_address",
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


def reset_ray_address(temp_dir: str | None = None) -> None:
    """Without effect: a session that has ended leaves no address behind."""


def binary_to_hex(identifier: bytes) -> str:
    """An id's bytes as text."""
    return identifier.hex()


def hex_to_binary(hex_identifier: str) -> bytes:
    """An id's text as bytes."""
    return bytes.fromhex(hex_identifier)


_set_handler: Final = signal.signal


class DeferSigint(contextlib.AbstractContextManager["DeferSigint"]):
    """A block whose Ctrl-C comes at its end. In the main thread; handlers of SIGINT cannot be set in it."""

    def __init__(self) -> None:
        self._outer: Any = None
        self._came: tuple[int, FrameType | None] | None = None

    @classmethod
    def create_if_main_thread(cls) -> contextlib.AbstractContextManager[Any]:
        """One of them; in other threads, which get no signals, a block that does nothing."""
        return cls() if threading.current_thread() is threading.main_thread() else contextlib.nullcontext()

    def __enter__(self) -> Self:
        self._outer = signal.getsignal(signal.SIGINT)
        _set_handler(signal.SIGINT, self._note)
        setattr(signal, "signal", self._refuse)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        setattr(signal, "signal", _set_handler)
        _set_handler(signal.SIGINT, self._outer)
        if self._came is not None and callable(self._outer):
            self._outer(*self._came)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came = (number, frame)

    def _refuse(self, number: int, handler: Any) -> Any:
        if number == signal.SIGINT:
            raise ValueError("signal.signal(SIGINT, …) inside of DeferSigint, which would undo it at its end")
        return _set_handler(number, handler)


def decode(byte_str: bytes | None, allow_none: bool = False, encode_type: str = "utf-8") -> str:
    """Bytes as text.

    Args:
        byte_str: the bytes.
        allow_none: give "" for None.
        encode_type: their encoding.
    """
    if byte_str is None:
        if allow_none:
            return ""
        raise ValueError("decode() got None; allow_none=True makes of it an empty text")
    return byte_str.decode(encode_type)
