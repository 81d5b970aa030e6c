"""The head renews certificates of nodes that have shown one that is good (:mod:`moray.node.certificate`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moray.node.logs import log
from moray.protocol import messages as m


class Certificates:
    """`directory`: with the authority's key; "": connections have no certificates."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._authority: Any = None

    def renew(self, connection: Any) -> m.CertificateRenewed:
        """A new certificate for who is at the other end of a connection."""
        if not self._directory:
            return m.CertificateRenewed(b"", "this head works without certificates")
        from moray.security.authority import Authority

        if self._authority is None:
            try:
                self._authority = Authority.load(Path(self._directory))
            except OSError as error:
                # Whoever asks has a certificate that is still good: that is no reason for the head to end.
                log(f"certificates cannot be renewed: {error}")
                return m.CertificateRenewed(b"", f"the head cannot read the key of the cluster's authority: {error}")
        certificate, problem = self._authority.try_renew(connection.peer_certificate())
        if problem:
            log(f"a certificate was not renewed: {problem}")
        return m.CertificateRenewed(certificate, problem)
