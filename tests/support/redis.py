"""A real Redis server for tests, from Debian's package: with a password, with TLS, killed and started again.

``redis-server`` is looked for on the path. Where this user may install packages (root, with apt-get), it is installed;
otherwise the tests that need it are skipped, and say so at the end of the run.
"""

from __future__ import annotations

import datetime as dt
import os
import shutil
import signal
import socket
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest

from tests.support.packages import install

DEADLINE_S = 20.0


@cache
def find_server() -> str:
    """The program; skips the test if there is none and none can be had."""
    if (found := shutil.which("redis-server")) is not None:
        return found
    install(["redis-server"])
    return shutil.which("redis-server") or pytest.skip("Debian's package redis-server brought no redis-server")


class RedisServer:
    """One server with its own directory and password; `tls`: it speaks nothing but TLS."""

    password = "a pass:word@"  # With what must be quoted in a URL.

    def __init__(self, directory: Path, *, tls: bool = False, append_only: bool = True) -> None:
        self.directory = directory
        self._tls = tls
        self._append_only = append_only
        # An address of this process's own: while the server is down, no other one of a test beside this takes its port.
        self.host = f"127.{os.getpid() >> 16 & 255 | 1}.{os.getpid() >> 8 & 255}.{os.getpid() & 255 or 256 - 1}"
        with socket.create_server((self.host, 0)) as free:
            self.port = free.getsockname()[1]
        if tls:
            _make_certificates(directory, self.host)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        if not self._tls:
            return f"redis://:a%20pass%3Aword%40@{self.host}:{self.port}/0"
        return f"rediss://:a%20pass%3Aword%40@{self.host}:{self.port}/0?ssl_ca_certs={self.directory}/ca.pem"

    def start(self) -> None:
        """Start it, with what is on its disk; return when it answers."""
        ports = ["--port", str(self.port)]
        if self._tls:
            where = str(self.directory)
            ports = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            ports += ["--tls-cert-file", f"{where}/cert.pem", "--tls-key-file", f"{where}/key.pem"]
            ports += ["--tls-ca-cert-file", f"{where}/ca.pem"]
        with open(self.directory / "redis.log", "ab") as log:
            self._process = subprocess.Popen(
                [
                    find_server(), *ports, "--bind", self.host, "--dir", str(self.directory), "--save", "",
                    "--appendonly", "yes" if self._append_only else "no", "--requirepass", self.password,
                ],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + DEADLINE_S
        while True:
            with socket.socket() as attempt:
                if attempt.connect_ex((self.host, self.port)) == 0:
                    return
            text = (self.directory / "redis.log").read_text(encoding="utf-8")
            assert self._process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None


def _make_certificates(directory: Path, host: str) -> None:
    """An authority, and a certificate for this address."""
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = dt.datetime.now(dt.UTC)

    def build(name: str, issuer: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )

    authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    authority_builder = build("test authority", "test authority", authority.public_key())
    authority_builder = authority_builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    server_builder = build(host, "test authority", server.public_key()).add_extension(names, critical=False)
    pem = serialization.Encoding.PEM
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "ca.pem").write_bytes(authority_builder.sign(authority, hashes.SHA256()).public_bytes(pem))
    (directory / "cert.pem").write_bytes(server_builder.sign(authority, hashes.SHA256()).public_bytes(pem))
    (directory / "key.pem").write_bytes(server.private_bytes(pem, *plain))
