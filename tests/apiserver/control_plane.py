# SPDX-License-Identifier: Apache-2.0
"""A real API server with etcd on loopback, with TLS and RBAC, and no kubelet.

``tests/cluster`` puts the rest of a cluster around it.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any, ClassVar

from kmodgate.kube.api import Place

Json = dict[str, Any]
# The rights of the chart's ClusterRole, with the node condition.
RULES: list[Json] = [
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "watch"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
]
_START = 180.0


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(made.getsockname()[1]) for made in sockets]
    for made in sockets:
        made.close()
    return ports


def openssl(*arguments: str | Path) -> None:
    """Run openssl; it must succeed."""
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


class ControlPlane:
    """The two processes.

    Args:
        programs: folder with ``kube-apiserver`` and ``etcd``.
        folder: for data, certificates and logs.
    """

    names: ClassVar[tuple[str, ...]] = ("IP:127.0.0.1",)
    """What the server's certificate is for."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self.programs, self.folder = programs, folder
        self.port, self._client, self._peer = free_ports(3)
        self.admin = secrets.token_hex(16)
        self._server: subprocess.Popen[bytes] | None = None
        self._certificates()
        (folder / "tokens.csv").write_text(f"{self.admin},admin,admin,system:masters\n")
        self._context = ssl.create_default_context(cafile=folder / "ca.crt")
        self._etcd = self._spawn(
            "etcd",
            f"--data-dir={folder / 'etcd'}",
            f"--listen-client-urls=http://127.0.0.1:{self._client}",
            f"--advertise-client-urls=http://127.0.0.1:{self._client}",
            f"--listen-peer-urls=http://127.0.0.1:{self._peer}",
            f"--initial-advertise-peer-urls=http://127.0.0.1:{self._peer}",
            f"--initial-cluster=default=http://127.0.0.1:{self._peer}",
            "--unsafe-no-fsync",
        )

    def _certificates(self) -> None:
        at = self.folder
        (at / "san").write_text(f"subjectAltName={','.join(self.names)}\n")
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test authority"),
            *("-keyout", at / "ca.key", "-out", at / "ca.crt"),
        )
        openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=apiserver"),
            *("-keyout", at / "server.key", "-out", at / "server.csr"),
        )
        openssl(
            *("x509", "-req", "-days", "2", "-in", at / "server.csr", "-CA", at / "ca.crt"),
            *("-CAkey", at / "ca.key", "-CAcreateserial", "-extfile", at / "san", "-out", at / "server.crt"),
        )
        openssl("genrsa", "-out", at / "account.key", "2048")

    def _spawn(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{program}.log").open("ab")
        with log:
            return subprocess.Popen([self.programs / program, *arguments], stdout=log, stderr=log)

    def options(self) -> list[str]:
        """The API server's arguments where a cluster may differ."""
        return [
            "--authorization-mode=RBAC",
            "--disable-admission-plugins=ServiceAccount",
            "--service-cluster-ip-range=10.0.0.0/24",
        ]

    def start(self) -> None:
        """Start the API server and wait until it is ready."""
        at = self.folder
        self._server = self._spawn(
            "kube-apiserver",
            f"--etcd-servers=http://127.0.0.1:{self._client}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self.port}",
            f"--cert-dir={at / 'generated'}",
            f"--tls-cert-file={at / 'server.crt'}",
            f"--tls-private-key-file={at / 'server.key'}",
            f"--token-auth-file={at / 'tokens.csv'}",
            *self.options(),
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={at / 'account.key'}",
            f"--service-account-signing-key-file={at / 'account.key'}",
            "--endpoint-reconciler-type=none",
        )
        deadline = time.monotonic() + _START
        while not self._ready():
            assert self._server.poll() is None, (at / "kube-apiserver.log").read_text()[-4000:]
            assert time.monotonic() < deadline, (at / "kube-apiserver.log").read_text()[-4000:]
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            return self.call("GET", "/readyz") == {}
        except OSError:
            return False

    def stop(self) -> None:
        """End the API server at once; etcd and all objects stay."""
        if self._server is not None:
            self._server.kill()
            self._server.wait(60)

    def close(self) -> None:
        self.stop()
        self._etcd.kill()
        self._etcd.wait(60)

    def call(self, method: str, path: str, body: Json | None = None, kind: str = "application/json") -> Json:
        """A request of the cluster's administrator."""
        request = urllib.request.Request(  # our own server on loopback
            f"https://127.0.0.1:{self.port}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.admin}", "Content-Type": kind},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:  # noqa: S310  # the same
            data = answer.read()
        return {} if data == b"ok" else dict(json.loads(data))

    def patch(self, path: str, body: Json) -> Json:
        return self.call("PATCH", path, body, "application/strategic-merge-patch+json")

    def account(self, folder: Path) -> Place:
        """The agent's service account with the chart's rights, as a pod finds it."""
        meta = {"name": "kmodgate", "namespace": "kmodgate"}
        self.call("POST", "/api/v1/namespaces", {"metadata": {"name": "kmodgate"}})
        self.call("POST", "/api/v1/namespaces/kmodgate/serviceaccounts", {"metadata": meta})
        rbac = "/apis/rbac.authorization.k8s.io/v1"
        self.call("POST", f"{rbac}/clusterroles", {"metadata": {"name": "kmodgate"}, "rules": RULES})
        self.call(
            "POST",
            f"{rbac}/clusterrolebindings",
            {
                "metadata": {"name": "kmodgate"},
                "roleRef": {
                    "apiGroup": "rbac.authorization.k8s.io",
                    "kind": "ClusterRole",
                    "name": "kmodgate",
                },
                "subjects": [{"kind": "ServiceAccount", **meta}],
            },
        )
        token = self.call(
            "POST",
            "/api/v1/namespaces/kmodgate/serviceaccounts/kmodgate/token",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
        )
        (folder / "token").write_text(token["status"]["token"])
        return Place("127.0.0.1", self.port, folder / "token", self.folder / "ca.crt")
