"""The cluster's certificate authority: a key that the head keeps, and what it signs.

Keys are of the curve P-256. A certificate is good for 30 days, and is renewed when half of them are over, so that a
head may be away for two weeks; it begins a day early, because clocks differ. It is renewed by the head for the key that
it is for, over a connection on which it was shown (:mod:`moray.node.certificate`). The authority's own is good for ten
years, and no certificate outlasts it: a cluster that lives longer is given a new one by rotation (docs/security.md).
There are no lists of withdrawn certificates: whoever must be kept out is kept out by a new authority.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from moray import config
from moray.exceptions import AuthenticationError
from moray.security.files import SecretFileError, read_secret, write_secret
from moray.security.identity import BACKDATED_S, Identity, validity

#: Days that a certificate is good for, from its issue, and the authority's own.
CERTIFICATE_DAYS: Final = 30
AUTHORITY_DAYS: Final = 3650
_DAY_S: Final = 86400.0

#: A certificate begins so much before its issue.
BACKDATED: Final = dt.timedelta(seconds=BACKDATED_S)

#: What `cryptography` raises for bytes that are not what they should be.
MALFORMED: Final = (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion)

_AUTHORITY_FILE: Final = "authority.pem"
_END: Final = b"-----END CERTIFICATE-----\n"
_NAME_LENGTH: Final = 64


class Authority:
    """The key that signs, and its certificate."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
        self._key = key
        self._certificate = certificate
        #: The public key, as DER, which the token names by its hash.
        self.public_key = public_bytes(key.public_key())

    @classmethod
    def create(cls) -> Authority:
        """A new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("moray cluster " + hashlib.sha256(public_bytes(key.public_key())).hexdigest()[:16])
        usage = _key_usage(signs=True)
        days = config.env_float("AUTHORITY_LIFETIME_S", AUTHORITY_DAYS * _DAY_S) / _DAY_S
        builder = _builder(name, name, key.public_key(), key.public_key(), days)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        return cls(key, builder.add_extension(usage, critical=True).sign(key, hashes.SHA256()))

    @classmethod
    def load(cls, directory: Path) -> Authority:
        """What `save` wrote; FileNotFoundError, SecretFileError."""
        content = read_secret(directory / _AUTHORITY_FILE, "the key of the cluster's authority")
        try:
            certificate, key_pem = content.split(_END)
            key = serialization.load_pem_private_key(key_pem, None)
            found = x509.load_pem_x509_certificate(certificate + _END)
        except MALFORMED as error:
            raise SecretFileError(
                f"{directory / _AUTHORITY_FILE} should hold the cluster's authority and its key, and does not: {error}"
            ) from None
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # It is our file, and nobody else may write it.
        return cls(key, found)

    def save(self, directory: Path) -> None:
        """Write key and certificate to `directory`, readable by this user only."""
        write_secret(directory / _AUTHORITY_FILE, self.certificate_pem + _private_pem(self._key))

    @property
    def certificate_pem(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def certificate_der(self) -> bytes:
        return self._certificate.public_bytes(serialization.Encoding.DER)

    def issue(self, name: str, days: float | None = None) -> Identity:
        """A new key with its certificate, for the authority's own process; `days`: how long it is good."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(key.public_key(), name, days).public_bytes(serialization.Encoding.PEM)
        return Identity(_private_pem(key), certificate, self.certificate_pem)

    def sign(self, request_der: bytes) -> bytes:
        """The certificate, as DER that a request asks for; AuthenticationError if it is not as ours are."""
        try:
            request = x509.load_der_x509_csr(request_der)
            key, valid = request.public_key(), request.is_signature_valid
            names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        except MALFORMED as error:
            raise AuthenticationError(f"not a request for a certificate: {error}") from None
        if not valid or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise AuthenticationError("a request for a certificate must be signed by its own key, of the curve P-256")
        certificate = self._sign(key, str(names[0].value) if names else "")
        return certificate.public_bytes(serialization.Encoding.DER)

    def renew(self, certificate_der: bytes) -> bytes:
        """A certificate, as DER, that is good from now on, for the key and the name of another one, which its holder
        has shown when it was good; AuthenticationError if this authority has not issued that."""
        certificate = _issued(certificate_der, self.certificate_der)
        key, names = certificate.public_key(), certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert isinstance(key, ec.EllipticCurvePublicKey)  # We have issued it.
        renewed = self._sign(key, str(names[0].value) if names else "")
        return renewed.public_bytes(serialization.Encoding.DER)

    def try_renew(self, certificate_der: bytes) -> tuple[bytes, str]:
        """The same: the certificate, or b"" and why there is none."""
        try:
            return self.renew(certificate_der), ""
        except AuthenticationError as error:
            return b"", str(error)

    def _sign(self, key: ec.EllipticCurvePublicKey, name: str, days: float | None = None) -> x509.Certificate:
        if days is None:
            days = config.env_float("CERTIFICATE_LIFETIME_S", CERTIFICATE_DAYS * _DAY_S) / _DAY_S
            left = self._certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)
            days = max(0.0, min(days, left / dt.timedelta(days=1)))
        builder = _builder(_name(name or "moray"), self._certificate.subject, key, self._key.public_key(), days)
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        return (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs=False), critical=True)
            .add_extension(both, critical=False)
            .sign(self._key, hashes.SHA256())
        )


class Request:
    """A new key, and the request for its certificate."""

    def __init__(self, name: str) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.public_key = public_bytes(self._key.public_key())
        request = x509.CertificateSigningRequestBuilder().subject_name(_name(name)).sign(self._key, hashes.SHA256())
        self.der = request.public_bytes(serialization.Encoding.DER)

    def answered(self, certificate_der: bytes, authority_der: bytes, skew: str = "") -> Identity:
        """The identity, of the certificate that came back; AuthenticationError if that is for another key. `skew`: how
        the clocks differ, if that is known."""
        certificate = check_issued(certificate_der, authority_der, skew)
        if public_bytes(certificate.public_key()) != self.public_key:
            raise AuthenticationError("the certificate that came back is for another key")
        pem = serialization.Encoding.PEM
        authority = x509.load_der_x509_certificate(authority_der).public_bytes(pem)
        return Identity(_private_pem(self._key), certificate.public_bytes(pem), authority)


def check_issued(certificate_der: bytes, authority_der: bytes, skew: str = "") -> x509.Certificate:
    """The certificate, if the authority has issued it and it is good now; AuthenticationError otherwise. `skew`: how
    the clocks differ, if that is known."""
    certificate = _issued(certificate_der, authority_der)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    now = dt.datetime.now(dt.UTC)
    if not begins <= now <= ends:
        raise AuthenticationError(
            f"a certificate that is good from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, "
            f"and now is {now:%Y-%m-%d %H:%M} UTC: {skew or _least_skew(begins, now)}"
        )
    return certificate


def _issued(certificate_der: bytes, authority_der: bytes) -> x509.Certificate:
    """The certificate, if the authority has issued it, whenever that was; AuthenticationError otherwise."""
    try:
        certificate = x509.load_der_x509_certificate(certificate_der)
        certificate.verify_directly_issued_by(x509.load_der_x509_certificate(authority_der))
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc  # They may be malformed.
    except MALFORMED as error:
        raise AuthenticationError(f"a certificate that its authority has not issued: {error!r}") from None
    return certificate


def show_skew(seconds: float) -> str:
    """How far this machine's clock is ahead of the head's (negative: behind), for people."""
    size, unit = abs(seconds), "seconds"
    for longer, length in (("minutes", 60.0), ("hours", 60.0), ("days", 24.0)):
        if size < 2 * length:
            break
        size, unit = size / length, longer
    return f"this machine's clock is {size:.1f} {unit} {'ahead of' if seconds > 0 else 'behind'} the head's"


def _least_skew(begins: dt.datetime, now: dt.datetime) -> str:
    """How much the clocks differ, as far as a certificate that is not good now shows it."""
    if now > begins:
        return "do the clocks agree?"
    # It was issued a day after it begins, by a clock that has gone on since.
    behind = begins + BACKDATED - now
    return f"this machine's clock is at least {behind / dt.timedelta(hours=1):.1f} hours behind that of the issuer"


def authority_key(authority_der: bytes) -> bytes:
    """The public key, as DER of an authority's certificate; AuthenticationError if it is none."""
    try:
        return public_bytes(x509.load_der_x509_certificate(authority_der).public_key())
    except MALFORMED as error:
        raise AuthenticationError(f"not an authority's certificate: {error}") from None


def renew_at(certificate_pem: bytes) -> float:
    """When a certificate should be renewed (seconds of the epoch): when half of its days are over."""
    begins, ends = validity(certificate_pem)
    return (begins + BACKDATED_S + ends) / 2


def public_bytes(key: object) -> bytes:
    """A public key as DER (SubjectPublicKeyInfo)."""
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    der: bytes = key.public_bytes(serialization.Encoding.DER, form)  # type: ignore[attr-defined]
    return der


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, form, plain)


def _name(text: str) -> x509.Name:
    clean = "".join(letter for letter in text if letter.isprintable())[:_NAME_LENGTH]
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, clean or "moray")])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    days: float,
) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC).replace(microsecond=0)
    return (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + dt.timedelta(days=days)) - BACKDATED)
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _key_usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
