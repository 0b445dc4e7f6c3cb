# SPDX-License-Identifier: Apache-2.0
"""The agent with a mock of the API server: pools by label, live; events of pods; a server that goes away.

The mock speaks TLS on loopback. A real server has ``make test-apiserver``; here the kernel is real.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.unit.kube.mock_apiserver import MockApiServer
from tests.vm import lab

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
NODES, PODS = "/api/v1/nodes", "/api/v1/pods"
UID = "0d3b1c52-95a1-4d0e-8f5e-0123456789ab"
ID = "8f2b6f0b8f3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f708192a3b4c5d6"
CGROUP = Path(f"/sys/fs/cgroup/kubepods/burstable/pod{UID}/{ID}")
POOLS = [{"name": "gpu", "nodeSelector": {"pool": "gpu"}, "policy": lab.ENFORCE}]
CONFIG = lab.config(lab.DO_NOT_ENFORCE, loadPin="off", nodePools=POOLS, kubernetes={"nodeCondition": True})


def certificate() -> ssl.SSLContext:
    """A server's context; the service account's ``ca.crt`` is its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mock")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (ACCOUNT / "ca.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private = ACCOUNT / "key.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(ACCOUNT / "ca.crt", private)
    return context


@pytest.fixture(scope="module")
def server() -> Iterator[MockApiServer]:
    ACCOUNT.mkdir(parents=True, exist_ok=True)
    made = MockApiServer(ACCOUNT, certificate())
    label(made, "cpu")
    os.environ |= {
        "NODE_NAME": "node-a",
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(made.place.port),
    }
    yield made
    made.close()
    for name in ("NODE_NAME", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        del os.environ[name]


@pytest.fixture(scope="module")
def member(server: MockApiServer) -> Iterator[lab.Agent]:
    assert server.place.port
    directory = Path("/tmp/member")
    directory.mkdir(exist_ok=True)
    with lab.running(directory, CONFIG) as agent:
        yield agent


def label(server: MockApiServer, pool: str) -> None:
    server.put(NODES, {"metadata": {"name": "node-a", "uid": "n", "labels": {"pool": pool}}})


def in_pool(pool: str) -> bool:
    return lab.metrics().get(f'kmodgate_node_pool_info{{node="node-a",pool="{pool}"}}') == 1


def unseen(work: Path) -> Path:
    path = work / "unseen.ko"
    path.write_bytes((work / "kmgtest.unsigned.ko").read_bytes() + os.urandom(16))
    return path


def posted(server: MockApiServer) -> list[dict[str, Any]]:
    return [body for _, _, body in server.asked("POST") if body is not None]


def conditions(server: MockApiServer) -> list[tuple[str, str]]:
    bodies = [body for path, _, body in server.asked("PATCH") if path.endswith("/status") and body]
    return [(c["status"], c["reason"]) for body in bodies for c in body["status"]["conditions"]]


def test_a_relabelled_node_changes_its_policy(server: MockApiServer, member: lab.Agent, work: Path) -> None:
    assert in_pool("")
    assert lab.finit(unseen(work)).ok
    lab.unload("kmgtest")
    began = time.monotonic()
    label(server, "gpu")
    path = unseen(work)
    while lab.finit(path).ok:
        lab.unload("kmgtest")
        assert time.monotonic() - began < 60
    print(f"relabel to refusal: {time.monotonic() - began:.2f} s")
    member.wait_for(lambda: in_pool("gpu"), "pool")
    assert conditions(server)[-1] == ("True", "Enforcing")
    member.mark()
    assert not lab.finit(unseen(work)).ok
    event = member.next_event()
    assert (event["pool"], event["node"], event["policy"]) == ("gpu", "node-a", lab.ENFORCE)


def test_a_denial_in_a_pod_becomes_its_event(server: MockApiServer, member: lab.Agent, work: Path) -> None:
    label(server, "gpu")
    member.wait_for(lambda: in_pool("gpu"), "pool")
    server.put(
        PODS,
        {
            "metadata": {"uid": UID, "namespace": "drivers", "name": "loader-0"},
            "spec": {"containers": [{"name": "loader", "image": "registry.example/loader:1"}]},
            "status": {"containerStatuses": [{"name": "loader", "containerID": f"containerd://{ID}"}]},
        },
    )
    CGROUP.mkdir(parents=True, exist_ok=True)
    member.mark()
    script = 'echo $$ > "$1/cgroup.procs" && exec insmod "$2"'
    began = time.monotonic()
    done = subprocess.run(
        ["sh", "-c", script, "sh", CGROUP, unseen(work)], check=False, capture_output=True, text=True
    )
    assert "Key was rejected" in done.stderr
    member.wait_for(lambda: bool(posted(server)), "event")
    print(f"insmod to event: {time.monotonic() - began:.2f} s")
    body = posted(server)[-1]
    assert body["reason"] == "KernelModuleDenied"
    assert (body["involvedObject"]["name"], body["involvedObject"]["uid"]) == ("loader-0", UID)
    pod = member.next_event()["pod"]
    assert (pod["name"], pod["container"], pod["image"]) == (
        "loader-0",
        "loader",
        "registry.example/loader:1",
    )


def test_a_server_that_is_away_changes_nothing(server: MockApiServer, member: lab.Agent, work: Path) -> None:
    label(server, "gpu")
    member.wait_for(lambda: in_pool("gpu"), "pool")
    server.close()
    watch = 'kmodgate_kubernetes_watch_current{resource="node"}'
    member.wait_for(lambda: lab.metrics().get(watch) == 0, "lost watch", 60)
    assert not lab.finit(unseen(work)).ok
    member.kill()
    assert not lab.finit(unseen(work)).ok
    member.start(CONFIG)
    assert in_pool("gpu")
    assert not lab.finit(unseen(work)).ok
