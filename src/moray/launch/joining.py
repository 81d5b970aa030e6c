"""A certificate for a node that joins, of a head that may be away for a moment, as when it is started anew."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from moray import config
from moray.protocol.tcp import format_address

if TYPE_CHECKING:
    from moray.security.identity import Identity
    from moray.security.token import Token

#: For how long a head that nobody answers for is tried again (MORAY_JOIN_WAIT_S). One that was killed is back within
#: a second or two; its machine's restart is not waited for.
JOIN_WAIT_S: Final = 10.0
_PAUSE_S: Final = 0.2


def say(text: str) -> None:
    """A line for whoever starts a node."""
    sys.stderr.write(f"moray: {text}\n")


def join_patiently(host: str, port: int, token: Token, name: str, tell: Callable[[str], None] = say) -> Identity:
    """As :func:`moray.security.join.join`; a head that refuses connections is tried again for a while, and `tell` hears
    of that, once, and of clocks that differ."""
    from moray.security.join import join

    wait_s = config.env_float("JOIN_WAIT_S", JOIN_WAIT_S)
    deadline = time.monotonic() + wait_s
    told = False
    while True:
        try:
            return join(host, port, token, name, warn=tell)
        except (ConnectionRefusedError, ConnectionResetError) as error:
            if time.monotonic() + _PAUSE_S > deadline:
                kind, tried = type(error), f"; it was tried for {wait_s:g} s (MORAY_JOIN_WAIT_S)" if told else ""
                raise kind(error.errno, f"{error.strerror}{tried}") from None
            if not told:
                told = True
                where = format_address(host, port)
                tell(f"the head at {where} does not answer ({error.strerror}): trying for up to {wait_s:g} s")
            time.sleep(_PAUSE_S)
