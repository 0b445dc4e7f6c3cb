# SPDX-License-Identifier: Apache-2.0
"""The whole control plane on loopback: etcd, API server, controller-manager and scheduler.

The node is a guest of QEMU's user network and finds them at 10.0.2.2. What a cloud's controller
would do is done here: the node object is made with the address under which the API server
reaches the kubelet, a port of loopback that leads into the guest.
"""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import ClassVar, Final

from tests.apiserver.control_plane import ControlPlane, Json, free_ports, openssl

NAME: Final = "node-a"
HOST: Final = "10.0.2.2"
SERVICE: Final = "10.96.0.1"
"""The API server's address for pods; the node translates it, as kube-proxy would."""


class WholePlane(ControlPlane):
    """The processes.

    Args:
        programs: what ``vmtool.controlplane.get`` gives.
        folder: for data, certificates and logs.
    """

    names: ClassVar[tuple[str, ...]] = ("IP:127.0.0.1", f"IP:{HOST}", f"IP:{SERVICE}")

    def __init__(self, programs: Path, folder: Path) -> None:
        super().__init__(programs, folder)
        self._managers: list[subprocess.Popen[bytes]] = []
        self.certificate("kubelet-client", "/O=system:masters/CN=kube-apiserver")
        self.certificate("node", f"/O=system:nodes/CN=system:node:{NAME}")
        self.certificate("manager", "/CN=system:kube-controller-manager")
        self.certificate("scheduler", "/CN=system:kube-scheduler")
        self.certificate("admin", "/O=system:masters/CN=admin")

    def certificate(self, name: str, subject: str) -> None:
        """A client's key and certificate, ``NAME.key`` and ``NAME.crt``."""
        at = self.folder
        openssl(
            *("req", "-newkey", "rsa:2048", "-nodes", "-subj", subject),
            *("-keyout", at / f"{name}.key", "-out", at / f"{name}.csr"),
        )
        openssl(
            *("x509", "-req", "-days", "2", "-in", at / f"{name}.csr", "-CA", at / "ca.crt"),
            *("-CAkey", at / "ca.key", "-CAcreateserial", "-out", at / f"{name}.crt"),
        )

    def kubeconfig(self, name: str, *, server: str = "127.0.0.1", at: Path | None = None) -> Path:
        """A kubeconfig for a client's certificate.

        Args:
            name: of the certificate; the file is ``NAME.kubeconfig`` in the plane's folder.
            server: the API server's address for that client.
            at: where certificates and authority lie for that client; None for where they are.
        """
        at = at or self.folder
        user = {"client-certificate": f"{at / name}.crt", "client-key": f"{at / name}.key"}
        cluster = {"server": f"https://{server}:{self.port}", "certificate-authority": str(at / "ca.crt")}
        path = self.folder / f"{name}.kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": name, "user": user}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": name}}],
                    "current-context": "test",
                }
            )
        )
        path.chmod(0o600)
        return path

    def options(self) -> list[str]:
        at = self.folder
        return [
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            f"--client-ca-file={at / 'ca.crt'}",
            f"--service-cluster-ip-range={SERVICE.rpartition('.')[0]}.0/24",
            f"--kubelet-client-certificate={at / 'kubelet-client.crt'}",
            f"--kubelet-client-key={at / 'kubelet-client.key'}",
            "--kubelet-preferred-address-types=InternalIP",
        ]

    def start_managers(self) -> None:
        """Start controller-manager and scheduler."""
        at = self.folder
        (first, second) = free_ports(2)
        common = ("--leader-elect=false", "--bind-address=127.0.0.1", "--port=0")
        self._managers = [
            self._spawn(
                "kube-controller-manager",
                f"--kubeconfig={self.kubeconfig('manager')}",
                f"--service-account-private-key-file={at / 'account.key'}",
                f"--root-ca-file={at / 'ca.crt'}",
                "--use-service-account-credentials=true",
                f"--cert-dir={at / 'generated'}",
                f"--secure-port={first}",
                *common,
            ),
            self._spawn(
                "kube-scheduler",
                f"--kubeconfig={self.kubeconfig('scheduler')}",
                f"--cert-dir={at / 'generated'}",
                f"--secure-port={second}",
                *common,
            ),
        ]

    def add_node(self, kubelet: int) -> None:
        """Make the node's object.

        Args:
            kubelet: port of loopback that leads to the kubelet.
        """
        self.call(
            "POST",
            "/api/v1/nodes",
            {
                "metadata": {"name": NAME, "labels": {"kubernetes.io/os": "linux", "pool": "lab"}},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": "127.0.0.1"},
                        {"type": "Hostname", "address": NAME},
                    ],
                    # The kubelet writes into these maps, and breaks where there are none.
                    "capacity": {"pods": "110"},
                    "allocatable": {"pods": "110"},
                    "daemonEndpoints": {"kubeletEndpoint": {"Port": kubelet}},
                },
            },
        )

    def node_ready(self) -> bool:
        """Whether the kubelet says so."""
        found: Json = self.call("GET", f"/api/v1/nodes/{NAME}")
        conditions = found["status"].get("conditions", [])
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def status_for(self, token: str, method: str, path: str, body: Json | None) -> int:
        """HTTP status that a bearer of a token gets."""
        kind = "application/strategic-merge-patch+json" if method == "PATCH" else "application/json"
        request = urllib.request.Request(  # our own server on loopback
            f"https://127.0.0.1:{self.port}{path}",
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {token}", "Content-Type": kind},
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._context) as answer:  # noqa: S310  # the same
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def close(self) -> None:
        for process in self._managers:
            process.kill()
            process.wait(60)
        super().close()
