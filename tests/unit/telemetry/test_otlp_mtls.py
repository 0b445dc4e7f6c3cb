# SPDX-License-Identifier: Apache-2.0
"""OTLP to a receiver that demands a client's certificate: a real TLS server on loopback."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from tests.unit.telemetry.test_otlp_sink import PATIENCE, Receiver, line, quick, receiving, tls  # noqa: F401
from tests.vectors.generate import Identity, make_identity, make_key

from kmodgate.telemetry.otlpsink import OtlpEndpoint

Server = tuple[Path, ssl.SSLContext]


@dataclass(frozen=True)
class Files:
    """What an agent shows."""

    certificate: Path
    key: Path

    def at(self, endpoint: OtlpEndpoint) -> OtlpEndpoint:
        return replace(endpoint, tls=True, client_certificate=self.certificate, client_key=self.key)


@pytest.fixture(scope="module")
def authority() -> Identity:
    """A certificate that may issue others."""
    key, name = make_key("p256"), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "fleet")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Identity(key, builder.sign(key, hashes.SHA256()))


@pytest.fixture(params=[ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["1.2", "1.3"])
def demanding(tls: Server, authority: Identity, request: pytest.FixtureRequest) -> Server:  # noqa: F811
    """The server's certificate, and a context that lets in only clients of ``authority``."""
    path, _ = tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, path.with_name("key.pem"))
    context.load_verify_locations(cadata=authority.pem.decode())
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = request.param
    return path, context


def client(directory: Path, identity: Identity) -> Files:
    files = Files(directory / "client.pem", directory / "client.key")
    files.certificate.write_bytes(identity.pem)
    files.key.write_bytes(identity.key_pem)
    return files


def test_the_certificate_is_shown_and_renewed_in_place(
    line: bytes,  # noqa: F811
    demanding: Server,
    authority: Identity,
    tmp_path: Path,
) -> None:
    receiver = Receiver()
    serials = []
    with receiving(receiver, demanding[1]) as endpoint:
        for name in ("node-a", "node-b"):
            identity = make_identity(name, issuer=authority)
            secure = client(tmp_path, identity).at(replace(endpoint, ca_certificate=demanding[0]))
            target = quick(secure, max_age=10.0)
            assert target.deliver([line], PATIENCE).count == 1
            connection = list(receiver.connections.values())[-1]
            assert isinstance(connection, ssl.SSLSocket)
            shown = connection.getpeercert()
            assert shown is not None
            serials.append((int(str(shown["serialNumber"]), 16), identity.certificate.serial_number))
            target.close()
    assert len(receiver.requests) == 2
    assert all(shown == meant for shown, meant in serials)
    assert serials[0] != serials[1]


@pytest.mark.parametrize("whose", ["nobody", "stranger"])
def test_nothing_is_taken_from_others(
    line: bytes,  # noqa: F811
    demanding: Server,
    tmp_path: Path,
    whose: str,
) -> None:
    receiver = Receiver()
    with receiving(receiver, demanding[1]) as endpoint:
        secure = replace(endpoint, tls=True, ca_certificate=demanding[0])
        if whose == "stranger":
            secure = client(tmp_path, make_identity("fleet")).at(secure)
        done = quick(secure, max_age=0.1).deliver([line], PATIENCE)
    assert done.count == 0
    assert done.problem is not None
    assert receiver.requests == []


def test_files_that_cannot_be_used(line: bytes, tmp_path: Path) -> None:  # noqa: F811
    """The message names the files; a FIFO and an encrypted key hold nobody up."""
    files = client(tmp_path, make_identity("node-a"))
    other = make_identity("node-b").key_pem
    sealed = make_identity("node-c").key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for content, says in (
        (other, "key values mismatch"),
        (sealed, "cannot be used as certificate and key"),
        (b"nothing", "cannot be used as certificate and key"),
        (b"", "cannot be used as certificate and key"),
    ):
        files.key.write_bytes(content)
        problem = problem_of(line, files)
        assert says in problem
        assert f"{files.certificate}, {files.key}: " in problem
    assert f"{fifo}: is a FIFO" in problem_of(line, replace(files, key=fifo))
    gone = tmp_path / "gone"
    assert f"{gone}: no such file" in problem_of(line, replace(files, certificate=gone))


def problem_of(line: bytes, files: Files) -> str:  # noqa: F811
    done = quick(files.at(OtlpEndpoint("127.0.0.1", 9)), max_age=0.02).deliver([line], PATIENCE)
    assert done.count == 0
    return str(done.problem)
