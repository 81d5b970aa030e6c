"""A node's certificate is renewed while it runs: what can go wrong with that must not cost the node more than that.

The head is one of this process, with an authority of its own; its answers are handed over as they would arrive.
"""

from __future__ import annotations

import datetime as dt
import os
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from moray.head.certificates import Certificates
from moray.node.certificate import Certificate
from moray.protocol import messages as m
from moray.protocol.reactor import Reactor
from moray.security import authority
from moray.security.authority import Authority
from moray.security.identity import CERTIFICATE_FILE, Identity, validity

DAY_S = 86400.0


class Head:
    """What a node's certificate needs of its link to the head."""

    def __init__(self) -> None:
        self.asked = 0
        self.on_certificate: Callable[[m.CertificateRenewed], None] = lambda _message: None

    def ask_certificate(self) -> None:
        self.asked += 1


class Renewal:
    """A node's certificate, and the head that renews it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority.create()
        # A little more than half of it is over.
        self.authority.issue("node", days=14).save(directory)
        self.head = Head()
        self.reactor = Reactor()
        self.certificate = Certificate(directory, self.reactor, self.head)  # type: ignore[arg-type]

    @property
    def file(self) -> Path:
        return self.directory / CERTIFICATE_FILE

    def renewed(self, days: float | None = 30) -> bytes:
        """For the key of this node; as DER."""
        mine = x509.load_pem_x509_certificate(Identity.load(self.directory).certificate)
        signed = self.authority._sign(mine.public_key(), "node", days)  # type: ignore[arg-type]
        return signed.public_bytes(Encoding.DER)

    def answer(self, certificate: bytes, reason: str = "") -> None:
        self.head.on_certificate(m.CertificateRenewed(certificate, reason))


@pytest.fixture
def renewal(tmp_path: Path) -> Any:
    made = Renewal(tmp_path)
    yield made
    made.reactor.close()


def test_a_renewed_certificate_takes_the_place_of_the_old_one(renewal: Renewal) -> None:
    before = Identity.load(renewal.directory)
    renewed = renewal.renewed()
    renewal.answer(renewed)
    now = Identity.load(renewal.directory)
    assert now == before._replace(certificate=ssl.DER_cert_to_PEM_cert(renewed).encode())
    assert renewal.file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(renewal.directory) == [CERTIFICATE_FILE]


@pytest.mark.parametrize("what", ["mode", "gone", "nonsense"])
def test_a_file_that_cannot_be_renewed_does_not_end_the_node(
    renewal: Renewal, what: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is told, and the next answer may find it mended."""
    renewed, content = renewal.renewed(), renewal.file.read_bytes()
    if what == "mode":
        renewal.file.chmod(0o644)
    elif what == "gone":
        renewal.file.unlink()
    else:
        renewal.file.write_bytes(b"nonsense")
    renewal.answer(renewed)
    assert "this node's certificate could not be renewed" in capfd.readouterr().err
    renewal.file.touch(0o600)
    renewal.file.chmod(0o600)
    renewal.file.write_bytes(content)
    renewal.answer(renewed)
    assert Identity.load(renewal.directory).certificate == ssl.DER_cert_to_PEM_cert(renewed).encode()


def test_what_the_head_may_not_have_meant_is_not_taken(renewal: Renewal, capfd: pytest.CaptureFixture[str]) -> None:
    """A certificate for another key, and bytes that are none: new connections would be refused with them."""
    before = renewal.file.read_bytes()
    other = Authority.create().issue("other", days=30)
    for answer in (ssl.PEM_cert_to_DER_cert(other.certificate.decode()), b"nonsense"):
        renewal.answer(answer)
        assert renewal.file.read_bytes() == before
        assert "this node's certificate could not be renewed" in capfd.readouterr().err


def test_a_certificate_that_is_not_good_yet_does_not_replace_one_that_is(
    renewal: Renewal, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's clock was set ahead: everybody else would refuse this node."""
    before = renewal.file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(authority, "BACKDATED", dt.timedelta(days=-2))
        early = renewal.renewed()
    assert validity(ssl.DER_cert_to_PEM_cert(early).encode())[0] > time.time() + DAY_S
    renewal.answer(early)
    assert renewal.file.read_bytes() == before
    assert "do the clocks agree?" in capfd.readouterr().err


def test_a_head_whose_clock_is_behind_is_told(renewal: Renewal, capfd: pytest.CaptureFixture[str]) -> None:
    """Its certificates end before the one that is to be renewed."""
    before = renewal.file.read_bytes()
    renewal.answer(renewal.renewed(5))
    assert renewal.file.read_bytes() == before
    assert "do the clocks agree?" in capfd.readouterr().err


# --- the head's side --------------------------------------------------------------------------------------------


class Member:
    """A connection on which a node has shown its certificate."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def peer_certificate(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self._identity.certificate.decode())


def test_a_head_that_cannot_read_its_key_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody gets a certificate until that is mended."""
    made = Authority.create()
    member = Member(made.issue("node"))
    certificates = Certificates(str(tmp_path))
    assert "cannot read the key of the cluster's authority" in certificates.renew(member).reason
    made.save(tmp_path)
    file = tmp_path / "authority.pem"
    file.chmod(0o644)
    assert "others may read or change it" in certificates.renew(member).reason
    assert "certificates cannot be renewed" in capfd.readouterr().err
    file.chmod(0o600)
    assert certificates.renew(member).certificate
