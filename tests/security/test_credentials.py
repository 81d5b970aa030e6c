"""Tokens, authorities, certificates, and where they may lie."""

from __future__ import annotations

import datetime as dt
import os
import socket
import ssl
import stat
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from moray.exceptions import AuthenticationError
from moray.head.certificates import Certificates
from moray.security import token as tokens
from moray.security.authority import Authority, Request, check_issued, renew_at, show_skew
from moray.security.files import SecretFileError
from moray.security.identity import Identity, client_context, server_context, validity
from tests.security.harness import HOST
from tests.support.procs import run_driver

DAY_S = 86_400


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


# --- the token ----------------------------------------------------------------------------------------------


def test_a_token_survives_its_spelling(authority: Authority) -> None:
    token = tokens.make(authority.public_key)
    assert tokens.parse(f" {token}\n") == token
    assert token.names(authority.public_key)
    assert not token.names(Authority.create().public_key)
    assert tokens.make(authority.public_key) != token


def test_a_token_is_not_printed_by_accident(authority: Authority) -> None:
    token = tokens.make(authority.public_key)
    assert str(token).rpartition(".")[2] not in f"{token!r} {[token]}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "it has 0 characters in 1 parts"),
        (lambda text: text[:-1], "it has 114 characters in 3 parts"),
        (lambda text: text.upper(), "is no token"),
        (lambda text: text.replace("moray1", "moray2"), "version 2, and this moray knows version 1"),
        (lambda text: text.rpartition(".")[0], "in 2 parts"),
        (lambda text: text + "é", "it has 116 characters"),
    ],
)
def test_what_is_no_token_is_not_repeated(authority: Authority, change: object, message: str) -> None:
    text = str(tokens.make(authority.public_key))
    assert callable(change)
    with pytest.raises(AuthenticationError, match=message) as caught:
        tokens.parse(change(text), "MORAY_TOKEN")
    assert text[80:110] not in str(caught.value)
    assert "MORAY_TOKEN" in str(caught.value)


def test_every_change_of_a_token_makes_it_another_or_none(authority: Authority) -> None:
    text = str(tokens.make(authority.public_key))
    for position in range(len(text)):
        changed = text[:position] + ("A" if text[position] != "A" else "B") + text[position + 1 :]
        try:
            assert str(tokens.parse(changed)) == changed
        except AuthenticationError:
            continue


def test_a_token_is_found(authority: Authority, tmp_path: Path) -> None:
    one, two, three = (tokens.make(authority.public_key) for _ in range(3))
    tokens.save(one, tmp_path / "one")
    tokens.save(two, tmp_path / "deep" / "two")
    environment = {"MORAY_TOKEN_FILE": str(tmp_path / "deep" / "two")}
    assert tokens.load(environ=environment) == two
    assert tokens.load(environ=environment | {"MORAY_TOKEN": str(three)}) == three
    assert tokens.load(tmp_path / "one", environment | {"MORAY_TOKEN": str(three)}) == one
    assert stat.S_IMODE((tmp_path / "one").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o700
    tokens.save(two, tmp_path / "one")
    assert tokens.load(tmp_path / "one") == two
    assert os.listdir(tmp_path / "deep") == ["two"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o644, 0o660])
def test_a_file_that_others_may_read_is_refused(authority: Authority, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "token"
    tokens.save(tokens.make(authority.public_key), path)
    path.chmod(mode)
    with pytest.raises(AuthenticationError, match=rf"\(mode {mode:04o}\): make it yours alone by `chmod 600 "):
        tokens.load(path)


def test_files_of_others_and_things_that_are_no_files_are_refused(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="should be a file with"):
        tokens.load("/dev/null")
    if os.geteuid():
        pytest.skip("only root can give a file away")
    path = tmp_path / "token"
    tokens.save(tokens.make(authority.public_key), path)
    os.chown(path, 12345, 12345)
    with pytest.raises(AuthenticationError, match="belongs to user 12345"):
        tokens.load(path)


# --- certificates ---------------------------------------------------------------------------------------------


def test_an_authority_survives_its_file(authority: Authority, tmp_path: Path) -> None:
    authority.save(tmp_path)
    again = Authority.load(tmp_path)
    assert again.public_key == authority.public_key
    assert again.certificate_pem == authority.certificate_pem
    assert [stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()] == [0o600]
    check_issued(again.sign(Request("node").der), authority.certificate_der)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"-----END CERTIFICATE-----\n", b"\0" * 100])
def test_an_authority_whose_file_is_broken_is_as_one_that_cannot_be_read(
    authority: Authority, tmp_path: Path, content: bytes
) -> None:
    """The head goes on without it."""
    authority.save(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    with pytest.raises(SecretFileError, match="should hold the cluster's authority and its key"):
        Authority.load(tmp_path)
    renewed = Certificates(str(tmp_path)).renew(None)
    assert not renewed.certificate
    assert "cannot read the key" in renewed.reason


def test_an_identity_survives_its_file(authority: Authority, tmp_path: Path) -> None:
    identity = authority.issue("node")
    identity.save(tmp_path)
    assert Identity.load(tmp_path) == identity
    assert b"PRIVATE" not in repr(identity).encode()
    next(tmp_path.iterdir()).chmod(0o644)
    with pytest.raises(AuthenticationError, match="a certificate and its key"):
        Identity.load(tmp_path)


def test_a_certificate_is_good_for_thirty_days_and_renewed_at_half(authority: Authority) -> None:
    identity = authority.issue("node")
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    now = dt.datetime.now(dt.UTC)
    assert abs((now - certificate.not_valid_before_utc).total_seconds() - DAY_S) < 60
    assert abs((certificate.not_valid_after_utc - now).total_seconds() - 30 * DAY_S) < 60
    assert abs(renew_at(identity.certificate) - time.time() - 15 * DAY_S) < 60


def test_a_renewed_certificate_is_for_the_same_key(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the old one, shown on a connection that stands, has ended meanwhile; not of another authority."""
    old = authority.issue("node", days=-0.5)
    renewed = x509.load_der_x509_certificate(authority.renew(ssl.PEM_cert_to_DER_cert(old.certificate.decode())))
    before = x509.load_pem_x509_certificate(old.certificate)
    assert (renewed.public_key(), renewed.subject) == (before.public_key(), before.subject)
    assert renewed.serial_number != before.serial_number
    ours = old._replace(certificate=ssl.DER_cert_to_PEM_cert(renewed.public_bytes(Encoding.DER)).encode())
    shake(server_context(ours), client_context(ours))
    stranger = Authority.create().issue("node")
    with pytest.raises(AuthenticationError, match="has not issued"):
        authority.renew(ssl.PEM_cert_to_DER_cert(stranger.certificate.decode()))
    with pytest.raises(AuthenticationError):
        authority.renew(b"")
    monkeypatch.setenv("MORAY_CERTIFICATE_LIFETIME_S", "100")
    assert abs(validity(authority.issue("short").certificate)[1] - time.time() - 100) < 5


def test_no_certificate_outlasts_its_authority(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORAY_AUTHORITY_LIFETIME_S", "1000")
    brief = Authority.create()
    identity = brief.issue("node")
    assert validity(identity.certificate)[1] <= validity(identity.authority)[1] < time.time() + 1001


@pytest.mark.parametrize("days", [-1, 0.5, 30, 30_000])
def test_the_times_of_a_certificate_are_read_without_its_library(authority: Authority, days: float) -> None:
    """Both forms of a time: the year 2050 is where they change."""
    identity = authority.issue("n" * 64, days=days)
    certificate = x509.load_pem_x509_certificate(identity.certificate)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    assert validity(identity.certificate) == (begins.timestamp(), ends.timestamp())


def test_a_skewed_clock_is_told_in_words() -> None:
    assert show_skew(-3 * DAY_S) == "this machine's clock is 3.0 days behind the head's"
    assert show_skew(100) == "this machine's clock is 100.0 seconds ahead of the head's"
    assert show_skew(7_300) == "this machine's clock is 2.0 hours ahead of the head's"


def test_a_certificate_signs_no_other(authority: Authority) -> None:
    """Even if somebody with a certificate acts as an authority."""
    ours = authority.issue("node")
    certificate = x509.load_pem_x509_certificate(ours.certificate)
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(ours.key, None)
    forged = Authority(key, certificate).issue("forged")  # type: ignore[arg-type]
    chain = Identity(forged.key, forged.certificate + ours.certificate, ours.authority)
    with pytest.raises(ssl.SSLError):
        shake(server_context(ours), client_context(chain))


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """A handshake, and a byte each way; what fails on the server's side, or else on the client's, is raised."""
    errors: list[Exception] = []
    with socket.create_server((HOST, 0)) as listener:

        def serve() -> None:
            try:
                with server.wrap_socket(listener.accept()[0], server_side=True) as tls:
                    tls.sendall(tls.recv(1))
            except OSError as error:
                errors.append(error)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            with client.wrap_socket(socket.create_connection(listener.getsockname())) as tls:
                tls.sendall(b"x")
                assert tls.recv(1) == b"x"
        except (OSError, AssertionError) as error:
            errors.append(error)
        thread.join()
    if errors:
        raise errors[0]


def test_who_may_talk_to_whom(authority: Authority) -> None:
    ours, stranger = authority.issue("node"), Authority.create().issue("node")
    shake(server_context(ours), client_context(authority.issue("other")))
    for server, client in ((ours, stranger), (stranger, ours)):
        with pytest.raises(ssl.SSLError):
            shake(server_context(server), client_context(client))
    late = authority.issue("late", days=-1)
    for server, client in ((ours, late), (late, ours)):
        with pytest.raises(ssl.SSLError, match="expired"):
            shake(server_context(server), client_context(client))


def test_older_tls_is_refused(authority: Authority) -> None:
    ours = authority.issue("node")
    old = client_context(ours)
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match=r"UNSUPPORTED_PROTOCOL|PROTOCOL_VERSION"):
        shake(server_context(ours), old)


def test_requests_that_are_not_ours_are_not_signed(authority: Authority) -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    with pytest.raises(AuthenticationError, match="not a request for a certificate"):
        authority.sign(b"\x30\x03abc")
    other = ec.generate_private_key(ec.SECP384R1())
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(other, hashes.SHA256())
    with pytest.raises(AuthenticationError, match="P-256"):
        authority.sign(request.public_bytes(serialization.Encoding.DER))
    der = bytearray(Request("node").der)
    der[-1] ^= 1
    with pytest.raises(AuthenticationError):
        authority.sign(bytes(der))


def test_a_request_asks_for_no_rights(authority: Authority) -> None:
    """Only its key and name count: what it would like to be is not read."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    wish = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    issued = check_issued(authority.sign(wish.public_bytes(serialization.Encoding.DER)), authority.certificate_der)
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_a_certificate_for_another_key_is_not_taken(authority: Authority) -> None:
    mine, other = Request("mine"), Request("other")
    with pytest.raises(AuthenticationError, match="for another key"):
        mine.answered(authority.sign(other.der), authority.certificate_der)
    foreign = Authority.create()
    with pytest.raises(AuthenticationError, match="has not issued"):
        mine.answered(foreign.sign(mine.der), authority.certificate_der)


# --- what a session on one machine does not pay for ----------------------------------------------------------


@pytest.mark.slow
def test_a_local_session_loads_no_tls() -> None:
    """In the driver, in a worker, and, by its mappings, in any process of the session."""
    output = run_driver(
        """
        import os, sys
        import moray

        moray.init(num_cpus=1)

        @moray.remote
        def loaded():
            import sys
            return [name for name in ("ssl", "_ssl", "cryptography", "moray.security") if name in sys.modules]

        print(moray.get(loaded.remote()))
        found = []
        for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
            try:
                environ = open(f"/proc/{pid}/environ", "rb").read()
                if os.environ["MORAY_TEST_DRIVER"].encode() in environ:
                    found.append("libssl" in open(f"/proc/{pid}/maps").read())
            except OSError:
                pass
        print(len(found) >= 3, any(found))
        print([name for name in ("ssl", "_ssl", "cryptography", "moray.security") if name in sys.modules])
        """
    ).stdout
    assert output.split("\n")[:3] == ["[]", "True False", "[]"]
