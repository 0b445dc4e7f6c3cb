# SPDX-License-Identifier: Apache-2.0
"""TLS, client certificates and passwords over real connections, with certificates made here."""

from __future__ import annotations

import base64
import http.client
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import bcrypt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from kmodgate.config import ListenAddress
from kmodgate.errors import ConfigError, InputError, KmodgateError
from kmodgate.telemetry.access import Passwords
from kmodgate.telemetry.collector import AgentMetrics
from kmodgate.telemetry.http import TelemetryServer
from kmodgate.telemetry.status import AgentStatus
from kmodgate.webaccess import WebAccess, open_server

HASH = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(4)).decode()
RIGHT = "Basic " + base64.b64encode(b"prometheus:open sesame").decode()
WRONG = "Basic " + base64.b64encode(b"prometheus:open barley").decode()


@dataclass(frozen=True)
class Authority:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def issue(self, name: str, folder: Path) -> None:
        """Write NAME.crt and NAME.key."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(name, key, self.certificate.subject, self.key, ca=False)
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    signer: ec.EllipticCurvePrivateKey,
    *,
    ca: bool,
) -> x509.Certificate:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(signer, hashes.SHA256())
    )


def authority(name: str) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return Authority(key, _certificate(name, key, subject, key, ca=True))


@pytest.fixture(scope="module")
def ours() -> Authority:
    return authority("ours")


@pytest.fixture
def folder(tmp_path: Path, ours: Authority) -> Path:
    (tmp_path / "ca.pem").write_bytes(ours.certificate.public_bytes(serialization.Encoding.PEM))
    for name in ("server", "client"):
        ours.issue(name, tmp_path)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    authority("theirs").issue("client", foreign)
    return tmp_path


TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
MUTUAL = f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
USERS = f"basic_auth_users:\n  prometheus: {HASH}\n"


@contextmanager
def serving(folder: Path, text: str, *, problem: str | None = None) -> Iterator[TelemetryServer]:
    (folder / "web.yml").write_text(text)
    with open_server(
        ListenAddress("127.0.0.1", 0),
        folder / "web.yml",
        metrics=AgentMetrics(AgentStatus(), process=False),
        healthy=lambda: None,
        ready=lambda: problem,
    ) as server:
        yield server


def client(folder: Path, certificate: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    if certificate is not None:
        context.load_cert_chain(certificate / "client.crt", certificate / "client.key")
    return context


def get(
    port: int, path: str, *, tls: ssl.SSLContext | None = None, authorization: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    with ExitStack() as stack:
        plain = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
        stream = (
            plain if tls is None else stack.enter_context(tls.wrap_socket(plain, server_hostname="localhost"))
        )
        header = "" if authorization is None else f"Authorization: {authorization}\r\n"
        stream.sendall(f"GET {path} HTTP/1.0\r\n{header}\r\n".encode())
        answer = http.client.HTTPResponse(stream)
        answer.begin()
        return answer.status, dict(answer.headers), answer.read()


def test_tls(folder: Path) -> None:
    with serving(folder, TLS) as server:
        status, _, body = get(server.port, "/metrics", tls=client(folder))
        assert (status, b"kmodgate_enforcing" in body) == (200, True)
        with pytest.raises((OSError, http.client.HTTPException)):
            get(server.port, "/metrics")
        old = client(folder)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert get(server.port, "/metrics", tls=old)[0] == 200
    with serving(folder, f"{TLS}  min_version: TLS13\n") as server, pytest.raises(ssl.SSLError):
        get(server.port, "/metrics", tls=old)


def test_client_certificates(folder: Path) -> None:
    with serving(folder, MUTUAL) as server:
        assert get(server.port, "/metrics", tls=client(folder, folder))[0] == 200
        for stranger in (client(folder), client(folder, folder / "foreign")):
            with pytest.raises((OSError, http.client.HTTPException)):
                get(server.port, "/metrics", tls=stranger)
    optional = MUTUAL.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")
    with serving(folder, optional) as server:
        assert get(server.port, "/metrics", tls=client(folder))[0] == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            get(server.port, "/metrics", tls=client(folder, folder / "foreign"))


def test_passwords(folder: Path) -> None:
    with serving(folder, USERS, problem="a detail of the node") as server:
        for authorization in (None, WRONG, "Bearer x", "Basic", "Basic !!!", "Basic " + "A" * 2000):
            status, headers, body = get(server.port, "/metrics", authorization=authorization)
            assert (status, b"kmodgate_" in body) == (401, False)
            assert headers["WWW-Authenticate"] == 'Basic realm="kmodgate"'
        assert get(server.port, "/", authorization=WRONG)[0] == 401
        assert get(server.port, "/metrics", authorization=RIGHT)[0] == 200
        # Whoever starts pods has no password: the answer is its status, and tells no detail.
        assert get(server.port, "/healthz")[0] == 200
        status, _, body = get(server.port, "/readyz")
        assert (status, body) == (503, b"not well\n")
        assert get(server.port, "/readyz", authorization=RIGHT)[2] == b"a detail of the node\n"


def test_a_known_password_is_checked_once_and_waits_for_no_guesser() -> None:
    slow = bcrypt.hashpw(b"open sesame", bcrypt.gensalt(10)).decode()
    passwords = Passwords({"prometheus": slow}, pause=0.5)
    assert passwords.admits(RIGHT)
    guessing = threading.Thread(target=passwords.admits, args=(WRONG,))
    guessing.start()
    start = time.process_time()
    for _ in range(100):
        assert passwords.admits(RIGHT)
    took = time.process_time() - start
    assert guessing.is_alive()
    guessing.join()
    assert took < 100 * 0.005


@pytest.mark.parametrize(
    "given", ["prometheus:", "prometheus:" + "x" * 73, "prometheus:a\0b", ":open sesame", "x"]
)
def test_odd_credentials_are_no_credentials(given: str) -> None:
    passwords = Passwords({"prometheus": HASH}, pause=0)
    assert not passwords.admits("Basic " + base64.b64encode(given.encode()).decode())


def test_an_unknown_user_with_a_known_password_stays_out() -> None:
    passwords = Passwords({"prometheus": HASH}, pause=0)
    assert not passwords.admits("Basic " + base64.b64encode(b"somebody:open sesame").decode())


def test_renewed_certificates_are_taken_up(
    folder: Path, ours: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "web.yml").write_text(TLS)
    time_now = [0.0]
    access = WebAccess(folder / "web.yml", now=lambda: time_now[0])
    first = access.context()
    assert access.context() is first
    ours.issue("server", folder)
    assert access.context() is first  # it has looked just now
    time_now[0] += 2
    second = access.context()
    assert second is not first
    (folder / "server.key").write_text("nothing")
    time_now[0] += 2
    assert access.context() is second
    assert "web config not reloaded, the last good one stays" in caplog.text
    ours.issue("server", folder)
    (folder / "web.yml").write_text(TLS + USERS)
    time_now[0] += 2
    assert access.context() not in {first, second}
    assert not access.admits(None)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (TLS.replace("server.key", "client.key"), InputError, "key values mismatch"),
        (TLS.replace("server.crt", "missing.crt"), InputError, "missing.crt"),
        (MUTUAL.replace("ca.pem", "server.key"), InputError, "no certificates to verify clients with"),
        ("tls_server_config: {}", ConfigError, "has no cert_file"),
    ],
)
def test_what_cannot_be_used_is_an_error_at_start(
    folder: Path, text: str, error: type[KmodgateError], message: str
) -> None:
    (folder / "web.yml").write_text(text)
    with pytest.raises(error) as caught:
        WebAccess(folder / "web.yml")
    assert message in str(caught.value)
    with pytest.raises(KmodgateError):
        WebAccess(folder / "not there.yml")


def test_a_client_that_never_shakes_hands_keeps_nobody_out(folder: Path) -> None:
    with serving(folder, TLS) as server, ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert get(server.port, "/metrics", tls=client(folder))[0] == 200


def test_descriptors_do_not_leak(folder: Path) -> None:
    with serving(folder, MUTUAL) as server:
        get(server.port, "/metrics", tls=client(folder, folder))
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # a count
        for _ in range(20):
            with pytest.raises((OSError, http.client.HTTPException)):
                get(server.port, "/metrics", tls=client(folder))
        time.sleep(0.2)
        assert len(os.listdir("/proc/self/fd")) <= before + 3  # noqa: PTH208  # the same
