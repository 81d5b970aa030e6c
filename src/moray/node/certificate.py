"""This node's certificate, renewed by the head when half of its days are over.

The head signs anew for the key that was shown on the node's connection to it. So a daemon needs neither the token nor
a library for certificates. The file is replaced in one step; whoever makes a connection looks whether it is another one
by now (:mod:`moray.security.contexts`): this node, its workers, its drivers, and at the head's machine the head. What
stands goes on.

When a head cannot be reached, or gives a certificate that others would not believe (its clock is wrong), the question
is asked again, until the old certificate has ended: then nobody believes this node any more, and it must be started
anew, with the token. The end of the cluster's authority is told long before.
"""

from __future__ import annotations

import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moray.node.logs import log
from moray.protocol import messages as m
from moray.security.identity import BACKDATED_S, Identity, client_context, validity

if TYPE_CHECKING:
    from moray.node.head_link import HeadLink
    from moray.protocol.reactor import Reactor

#: The clock may be set, and machines sleep: it is looked at so often at least.
_LOOK_S: Final = 3600.0
#: A question without an answer is asked again after this share of what a certificate lasts, and this time at most.
_AGAIN_SHARE: Final = 0.02
_AGAIN_S: Final = 600.0
#: The authority's end is told so long before.
AUTHORITY_ENDS_S: Final = 180 * 86400.0
#: A new certificate that ends so much before the old one was made by a clock that was set back.
_SET_BACK_S: Final = 60.0
_DAY_S: Final = 86400.0


class Certificate:
    """Owned by the node's loop."""

    def __init__(self, directory: Path, reactor: Reactor, head: HeadLink) -> None:
        self._directory = directory
        self._reactor = reactor
        self._head = head
        head.on_certificate = self._renewed
        identity = Identity.load(directory)
        self._begins, self._ends = validity(identity.certificate)
        #: When the authority's own ends, in seconds of the epoch.
        self.authority_ends = validity(identity.authority)[1]
        #: By a clock that is far ahead, every certificate should be renewed: not before this time (monotonic).
        self._not_before = 0.0
        self._told_end = False
        self._told_authority = -_DAY_S
        self._look()

    @property
    def _lasts_s(self) -> float:
        return max(1.0, self._ends - self._begins - BACKDATED_S)

    def _look(self) -> None:
        now = time.time()
        due_s = max(self._ends - self._lasts_s / 2 - now, self._not_before - time.monotonic())
        if due_s <= 0:
            self._ask(now)
            due_s = min(_AGAIN_SHARE * self._lasts_s, _AGAIN_S)
        if self.authority_ends - now < AUTHORITY_ENDS_S and time.monotonic() - self._told_authority >= _DAY_S:
            self._told_authority = time.monotonic()
            log(authority_warning(self.authority_ends))
        self._reactor.call_later(min(due_s, _LOOK_S), self._look)

    def _ask(self, now: float) -> None:
        if now >= self._ends and not self._told_end:
            self._told_end = True
            log(
                f"the certificate of this node has ended at {_show(self._ends)} and could not be renewed: no new "
                "connection is possible with it. Stop this node and start it anew, with the token"
            )
        self._head.ask_certificate()

    def _renewed(self, answer: m.CertificateRenewed) -> None:
        if not answer.certificate:
            log(f"the head does not renew this node's certificate, which ends at {_show(self._ends)}: {answer.reason}")
            return
        try:
            problem = self._take(ssl.DER_cert_to_PEM_cert(answer.certificate).encode())
        except OSError as error:  # A full disk must not end the node: the old one is good for long.
            problem = str(error)
        if problem:
            log(f"this node's certificate could not be renewed, and ends at {_show(self._ends)}: {problem}")

    def _take(self, pem: bytes) -> str:
        """Replace the certificate; why not, if others would not believe the new one."""
        identity = Identity.load(self._directory)._replace(certificate=pem)
        client_context(identity)  # SSLError (an OSError): it is none, or for another key.
        begins, ends = validity(pem)
        now = time.time()
        if begins > now and now < self._ends:
            return f"the head's new one is good from {_show(begins)} on, and now is {_show(now)}: do the clocks agree?"
        if ends < self._ends - _SET_BACK_S:
            return f"the head's new one ends sooner, at {_show(ends)}: do the clocks agree?"
        if ends <= self._ends:
            return ""  # The answer to a question that was asked twice.
        identity.save(self._directory)
        self._begins, self._ends, self._told_end = begins, ends, False
        self._not_before = time.monotonic() + self._lasts_s / 4
        log(f"this node's certificate was renewed: it is good until {_show(ends)}")
        return ""


def authority_warning(ends: float) -> str:
    """What is to be done about the authority's end."""
    left_s = ends - time.time()
    when = f"ends in {left_s / _DAY_S:.1f} days" if left_s > 0 else "has ended"
    return (
        f"the cluster's authority {when} ({_show(ends)}), and all certificates with it: "
        "start the cluster anew before, which makes a new one (docs/security.md, Rotation)"
    )


def _show(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(moment))
