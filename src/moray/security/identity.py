"""A process's certificate with its key, and the TLS settings that follow from it.

Whoever connects and whoever accepts shows a certificate of the cluster's authority, which is the only one that
counts: the system's authorities do not, names of hosts do not either, because machines are known by number and
certificates are not for machines but for belonging. TLS 1.3 only, and no tickets: every connection is authenticated
from the beginning, and nothing that was recorded can be played again.

Only `ssl` is needed here, so that workers do not load `cryptography`.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
from pathlib import Path
from typing import Final, NamedTuple

from moray.platform.memory_files import create_memory_file
from moray.security.files import SecretFileError, read_secret, write_secret

#: Within a directory of credentials.
CERTIFICATE_FILE: Final = "certificate.pem"
_END: Final = b"-----END CERTIFICATE-----\n"


#: A certificate begins so many seconds before its issue, because clocks differ.
BACKDATED_S: Final = 86400.0


class Identity(NamedTuple):
    """What shows that a process belongs to the cluster. All of it PEM."""

    key: bytes
    certificate: bytes
    #: The authority's certificate.
    authority: bytes

    def save(self, directory: Path) -> None:
        """Write it to `directory`, in one file, so that key and certificate always belong together."""
        write_secret(directory / CERTIFICATE_FILE, self.certificate + self.authority + self.key)

    @staticmethod
    def load(directory: Path) -> Identity:
        """What `save` wrote; FileNotFoundError, SecretFileError."""
        path = directory / CERTIFICATE_FILE
        parts = read_secret(path, "a certificate and its key").split(_END)
        if len(parts) != len(Identity._fields):
            raise SecretFileError(f"{path} should hold a certificate, its authority's, and its key, and does not")
        certificate, authority, key = parts
        return Identity(key, certificate + _END, authority + _END)

    def __repr__(self) -> str:
        """Without the key: it would end up in logs."""
        return "Identity(…)"


def validity(certificate_pem: bytes) -> tuple[float, float]:
    """From when to when a certificate of ours is good, in seconds of the epoch. It is not checked."""
    der = ssl.PEM_cert_to_DER_cert(certificate_pem.decode())
    # Certificate, and in it what is signed: version, number, algorithm, issuer, and then the two times (RFC 5280).
    fields = _fields(_fields(_fields(der)[0])[0])
    return tuple(map(_seconds, _fields(fields[4])))  # type: ignore[return-value]  # They are two.


def _fields(der: bytes) -> list[bytes]:
    """The contents of the elements of DER that follow each other."""
    contents, at = [], 0
    while at < len(der):
        size, at = der[at + 1], at + 2
        if size & 0x80:
            count = size & 0x7F
            size, at = int.from_bytes(der[at : at + count], "big"), at + count
        contents.append(der[at : at + size])
        at += size
    return contents


def _seconds(time: bytes) -> float:
    """UTCTime (two digits of the year, from 1950 on) or GeneralizedTime, in seconds of the epoch."""
    text = time.decode()
    if len(text) < len("YYYYMMDDhhmmssZ"):
        text = ("19" if text >= "5" else "20") + text
    return dt.datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=dt.UTC).timestamp()


def server_context(identity: Identity) -> ssl.SSLContext:
    """For accepting peers, which must show a certificate of the same authority."""
    return _mutual(ssl.PROTOCOL_TLS_SERVER, identity)


def client_context(identity: Identity) -> ssl.SSLContext:
    """For connecting to peers, which must show a certificate of the same authority."""
    return _mutual(ssl.PROTOCOL_TLS_CLIENT, identity)


def join_server_context(identity: Identity) -> ssl.SSLContext:
    """For accepting those who have no certificate yet (:mod:`moray.security.join`)."""
    context = _base(ssl.PROTOCOL_TLS_SERVER)
    _load(context, identity)
    return context


def join_client_context() -> ssl.SSLContext:
    """For joining: nothing is checked by TLS; the token says afterwards whether the server's certificate is right."""
    context = _base(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_NONE
    return context


def _mutual(side: int, identity: Identity) -> ssl.SSLContext:
    context = _base(side)
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.load_verify_locations(cadata=identity.authority.decode())
    _load(context, identity)
    return context


def _base(side: int) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    context.check_hostname = False
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def _load(context: ssl.SSLContext, identity: Identity) -> None:
    """`ssl` takes keys from files only: one without a name, which is gone at once."""
    fd = create_memory_file("moray-identity", identity.certificate + identity.key)
    try:
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
