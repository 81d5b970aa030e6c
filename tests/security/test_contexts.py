"""TLS settings that are made once: kept as long as nothing changes, and checked anew when something does."""

from __future__ import annotations

import os
import resource
import socket
import ssl
import threading
from pathlib import Path

import pytest

from moray.protocol.reactor import Reactor
from moray.protocol.tcp import TcpServer, preface
from moray.security.authority import Authority
from moray.security.contexts import contexts_of, rehearse
from moray.security.identity import CERTIFICATE_FILE, Identity

TIMEOUT_S = 10


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create()


@pytest.fixture(name="directory")
def _directory(authority: Authority, tmp_path: Path) -> Path:
    authority.issue("somebody").save(tmp_path)
    return tmp_path


def shown_by_server(client: ssl.SSLContext, server: ssl.SSLContext) -> str:
    """Who the server of a connection between the two says that it is."""
    ours, theirs = socket.socketpair()
    ours.settimeout(TIMEOUT_S)
    theirs.settimeout(TIMEOUT_S)

    def serve() -> None:
        with server.wrap_socket(theirs, server_side=True) as side:
            side.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(ours) as side:
            side.send(b"!")
            certificate = side.getpeercert()
    finally:
        thread.join()
    assert certificate is not None
    return str(certificate["subject"])


def test_they_are_made_once(directory: Path) -> None:
    made = contexts_of(directory)
    assert contexts_of(directory) is made
    assert shown_by_server(made.client, made.server) == str(((("commonName", "somebody"),),))


def test_a_new_certificate_counts_at_once(directory: Path, authority: Authority) -> None:
    made = contexts_of(directory)
    authority.issue("somebody new").save(directory)
    again = contexts_of(directory)
    assert again is not made
    assert shown_by_server(made.client, again.server) == str(((("commonName", "somebody new"),),))


def test_what_others_may_read_is_refused_however_often_it_was_read(directory: Path) -> None:
    contexts_of(directory)
    file = directory / CERTIFICATE_FILE
    file.chmod(0o644)
    with pytest.raises(PermissionError, match="others may read or change it"):
        contexts_of(directory)
    file.chmod(0o600)
    contexts_of(directory)
    file.write_bytes(b"nonsense")
    with pytest.raises(OSError, match="should hold a certificate"):
        contexts_of(directory)


def test_what_was_read_outlasts_its_file(directory: Path, authority: Authority) -> None:
    """The directory is below /tmp, which is tidied up on some machines. A new file counts again."""
    made = contexts_of(directory)
    file = directory / CERTIFICATE_FILE
    file.unlink()
    assert contexts_of(directory) is made
    with pytest.raises(FileNotFoundError):
        contexts_of(directory / "elsewhere")
    authority.issue("somebody").save(directory)
    assert contexts_of(directory) is not made


def test_a_renewed_certificate_waits_for_descriptors(directory: Path, authority: Authority) -> None:
    made = contexts_of(directory)
    authority.issue("somebody").save(directory)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        assert contexts_of(directory) is made
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert contexts_of(directory) is not made


def test_a_stranger_does_not_end_a_process_whose_certificate_cannot_be_read(directory: Path) -> None:
    """Its connection is closed, and the log says why."""
    contexts_of(directory)
    (directory / CERTIFICATE_FILE).chmod(0o644)
    reactor, told = Reactor(), list[str]()
    server = TcpServer(reactor, "127.0.0.1", 0, lambda *_: contexts_of(directory), log=told.append)  # type: ignore[arg-type]
    try:
        with socket.create_connection(server.address, TIMEOUT_S) as stranger:
            stranger.sendall(preface())
            while not told:
                with reactor.lead:
                    reactor.turn(0.1)
            assert "others may read or change it" in told[0]
            assert stranger.recv(1) == b""
    finally:
        server.close()
        reactor.close()


def test_a_rehearsal_is_done_once_for_each_certificate(directory: Path, authority: Authority) -> None:
    assert rehearse(directory)
    assert not rehearse(directory)
    authority.issue("somebody new").save(directory)
    assert rehearse(directory)


def test_a_rehearsal_fails_with_what_no_peer_would_accept(directory: Path) -> None:
    """Key and certificate are of each other, but not of the authority beside them."""
    mine = Authority.create().issue("a stranger")
    theirs = Identity.load(directory)
    mine._replace(authority=theirs.authority).save(directory)
    with pytest.raises(ssl.SSLCertVerificationError):
        rehearse(directory)


def test_forked_processes_share_them_and_not_their_secrets(directory: Path) -> None:
    """What two children of one template say in their handshakes is random for each."""
    made = contexts_of(directory)
    rehearse(directory)
    said = []
    for _ in range(2):
        ours, theirs = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                outgoing = ssl.MemoryBIO()
                side = made.client.wrap_bio(ssl.MemoryBIO(), outgoing)
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    os.write(theirs, outgoing.read())
            finally:
                os._exit(0)
        os.close(theirs)
        assert os.waitpid(pid, 0)[1] == 0
        said.append(os.read(ours, 1 << 16))
        os.close(ours)
    # A ClientHello: header of 5, type and length of 4, version of 2, then 32 random bytes.
    assert len(said[0]) > 43
    assert said[0][11:43] != said[1][11:43]
