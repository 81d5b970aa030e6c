"""A process's TLS settings, made from its certificate once and kept.

To read a certificate and its key, and OpenSSL's first use of each algorithm, take longer than all else that a worker
does before its first task. So the templates do both, and workers are forked with the result. A certificate that was
replaced since, or whose file's owner or mode was changed, is read again, with all checks. One whose file is gone is
still what others believe.
"""

from __future__ import annotations

import errno
import os
import ssl
from pathlib import Path
from typing import NamedTuple

from moray.security.files import SecretFileError
from moray.security.identity import CERTIFICATE_FILE, Identity, client_context, server_context


class Contexts(NamedTuple):
    """For both sides of a connection within the cluster."""

    client: ssl.SSLContext
    server: ssl.SSLContext


#: What was read last: which file in which state, and what came of it.
_kept: tuple[tuple[object, ...], Contexts] | None = None


def contexts_of(directory: Path) -> Contexts:
    """The settings for the certificate in `directory`; OSError, whatever is wrong with it: connections end with that,
    and nothing else does."""
    global _kept
    try:
        status = os.stat(directory / CERTIFICATE_FILE)
        state = (str(directory), status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
        if _kept is None or _kept[0] != state:
            identity = Identity.load(directory)
            _kept = state, Contexts(client_context(identity), server_context(identity))
    except SecretFileError as error:
        raise PermissionError(errno.EACCES, str(error)) from error
    except OSError:
        # Somebody has tidied up, or there are no descriptors: what was read before is good as long as it was.
        if _kept is None or _kept[0][0] != str(directory):
            raise
    return _kept[1]


#: The state in which it was rehearsed.
_rehearsed: tuple[object, ...] | None = None


def rehearse(directory: Path) -> bool:
    """Do a whole handshake with oneself: what OpenSSL loads for it is there for all who are forked from here.

    Whether there was anything to do. OSError (ssl.SSLError is one) if the handshake, or the certificate, is refused.
    """
    global _rehearsed
    contexts = contexts_of(directory)
    assert _kept is not None
    if _rehearsed == _kept[0]:
        return False
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = contexts.client.wrap_bio(to_client, to_server, server_side=False)
    server = contexts.server.wrap_bio(to_server, to_client, server_side=True)
    waiting = [client, server]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)
    _rehearsed = _kept[0]
    return True
