"""The token: ``moray1.<sha256 of the authority's public key, in hex>.<secret>`` (TOKEN).

With the first part whoever joins knows the cluster; by the second the cluster knows who may join. It is passed by
the variable ``MORAY_TOKEN`` or by a file that only its user can read, and is never sent.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from moray.exceptions import AuthenticationError
from moray.security.files import read_secret, write_secret

#: Nodes, workers, and what they start do not get it: whoever starts them takes it out
#: (:func:`moray.launch.config.session_environ`).
VARIABLE: Final = "MORAY_TOKEN"
#: Names the file.
FILE_VARIABLE: Final = "MORAY_TOKEN_FILE"
#: Where it is looked for last.
DEFAULT_FILE: Final = Path("~/.moray/token")

_SECRET_BYTES: Final = 32
_FORM: Final = re.compile(r"moray(\d+)\.([0-9a-f]{64})\.([A-Za-z0-9_-]{43})")
_HELP: Final = "it is the line that `moray start --head` printed: moray1.<64 hex digits>.<43 characters>"


class Token(NamedTuple):
    """A cluster's token, taken apart."""

    #: SHA-256 of the authority's public key, as DER.
    authority: bytes
    secret: bytes

    def __str__(self) -> str:
        return f"moray1.{self.authority.hex()}.{base64.urlsafe_b64encode(self.secret).rstrip(b'=').decode()}"

    def __repr__(self) -> str:
        """Without the secret: it would end up in logs."""
        return f"Token({self.authority.hex()[:16]}…)"

    def names(self, public_key: bytes) -> bool:
        """Whether this is the authority's public key, as DER."""
        return hmac.compare_digest(hashlib.sha256(public_key).digest(), self.authority)


def make(public_key: bytes) -> Token:
    """A new token for the authority with this public key, as DER."""
    return Token(hashlib.sha256(public_key).digest(), secrets.token_bytes(_SECRET_BYTES))


def parse(text: str, where: str = "the token") -> Token:
    """The token that `text` spells; AuthenticationError, which does not repeat it, if it is none."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        shape = f"{len(text.strip())} characters in {text.strip().count('.') + 1} parts"
        raise AuthenticationError(f"{where} is no token: it has {shape}; {_HELP}")
    if match[1] != "1":
        raise AuthenticationError(f"{where} is of version {match[1]}, and this moray knows version 1")
    # 43 characters have two bits too many: those must be zero, so that one token has one spelling.
    token = Token(bytes.fromhex(match[2]), base64.urlsafe_b64decode(match[3] + "="))
    if str(token) != text.strip():
        raise AuthenticationError(f"{where} is no token: its last character was changed; {_HELP}")
    return token


def load(path: str | Path | None = None, environ: Mapping[str, str] = os.environ) -> Token:
    """The token from `path`, or else from MORAY_TOKEN, the file that MORAY_TOKEN_FILE names, or ~/.moray/token.

    Raises:
        AuthenticationError: there is none, it is no token, or others may read the file.
    """
    if path is None and environ.get(VARIABLE):
        return parse(environ[VARIABLE], VARIABLE)
    file = Path(path or environ.get(FILE_VARIABLE) or DEFAULT_FILE).expanduser()
    try:
        content = read_secret(file, "the cluster's token")
    except FileNotFoundError:
        raise AuthenticationError(
            f"no token: {VARIABLE} is not set, and there is no file {file}. {_HELP[0].upper()}{_HELP[1:]}"
        ) from None
    return parse(content.decode(errors="replace"), str(file))


def save(token: Token, path: str | Path = DEFAULT_FILE) -> None:
    """Write it to a file that only this user can read."""
    write_secret(Path(path).expanduser(), f"{token}\n".encode())
