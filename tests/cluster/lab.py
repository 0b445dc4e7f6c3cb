# SPDX-License-Identifier: Apache-2.0
"""The cluster as its administrator has it: helm, kubectl, watches with the time of each change, metrics."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.chart import helm
from tests.cluster.node import AGENT, Node
from tests.cluster.plane import WholePlane
from tests.monitoring.conftest import Prometheus

RELEASE: Final = "kmodgate"
NAMESPACE: Final = "kube-system"
LOADER: Final = "loader"
LABEL: Final = "app.kubernetes.io/name=kmodgate"
_HELM: Final = 3
Json = dict[str, Any]


def eventually(what: str, holds: Callable[[], Any], seconds: float = 240.0, pause: float = 0.1) -> Any:
    """The first value that is not empty; an API server that is away counts as empty."""
    end = time.monotonic() + seconds
    while True:
        with suppress(OSError):
            if value := holds():
                return value
        assert time.monotonic() < end, f"{what} did not come in {seconds:.0f} s"
        time.sleep(pause)


class Watch(threading.Thread):
    """Notes every change of a kind of object, with the moment at which it was heard.

    Attributes:
        seen: pairs of seconds of the host's clock and object.
    """

    def __init__(self, plane: WholePlane, path: str) -> None:
        super().__init__(name=path, daemon=True)
        self._plane, self._path = plane, path
        self.seen: list[tuple[float, Json]] = []

    def run(self) -> None:
        plane = self._plane
        while True:
            with suppress(OSError, ValueError):
                request = urllib.request.Request(  # our own server on loopback
                    f"https://127.0.0.1:{plane.port}{self._path}?watch=1",
                    headers={"Authorization": f"Bearer {plane.admin}"},
                )
                with urllib.request.urlopen(request, timeout=3600, context=plane._context) as stream:  # noqa: S310  # the same
                    for line in stream:
                        self.seen.append((time.time(), json.loads(line)["object"]))
            time.sleep(0.5)

    def first(self, holds: Callable[[Json], object], after: float = 0.0) -> float | None:
        """When an object was first heard of that is so."""
        return next((at for at, item in list(self.seen) if at >= after and holds(item)), None)


@dataclass(slots=True)
class Lab:
    """Everything that runs.

    Attributes:
        chart: a copy of the chart that installs on Kubernetes 1.20.
        values: the release's values so far.
        figures: what was measured, by its description.
    """

    plane: WholePlane
    node: Node
    folder: Path
    chart: Path
    values: Json
    events: Watch
    pods: Watch
    prometheus: Prometheus
    figures: dict[str, str] = field(default_factory=dict)
    installed: bool = False

    def _command(self, program: Path, *words: str, seconds: float = 400) -> str:
        env = {
            **os.environ,
            "KUBECONFIG": str(self.folder / "plane/admin.kubeconfig"),
            "HOME": str(self.folder),
        }
        done = subprocess.run(
            [program, *words], check=False, capture_output=True, text=True, timeout=seconds, env=env
        )
        assert done.returncode == 0, f"{program.name} {' '.join(words)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def kubectl(self, *words: str) -> str:
        """What kubectl prints; it must succeed."""
        return self._command(helm.kubectl(), *words)

    def get(self, *words: str) -> Json:
        """An object, or a list of them."""
        return dict(json.loads(self.kubectl("get", "-o", "json", *words)))

    def deploy(self, **values: Any) -> float:
        """``helm install``, later ``helm upgrade``, with these values over those so far; when it began.

        Kubernetes 1.20 does not know ``maxSurge`` of a DaemonSet (1.22), whose 0 is what it does anyway: Helm
        leaves the check of fields to ``make test-chart``, and the server drops it.
        """
        self.values |= values
        path = self.folder / "values.json"
        path.write_text(json.dumps(self.values))
        began = time.time()
        self._command(
            helm.binary(_HELM),
            *("upgrade" if self.installed else "install", RELEASE, str(self.chart), "--namespace", NAMESPACE),
            *("--values", str(path), "--disable-openapi-validation"),
        )
        self.installed = True
        return began

    def uninstall(self) -> None:
        """``helm uninstall``."""
        self._command(helm.binary(_HELM), "uninstall", RELEASE, "--namespace", NAMESPACE)

    def agent(self) -> Json:
        """The agent's pod; there must be one."""
        (pod,) = self.get("pods", "-n", NAMESPACE, "-l", LABEL)["items"]
        return dict(pod)

    def rolled_out(self) -> None:
        """Wait until the DaemonSet is as the release says."""
        self.kubectl("-n", NAMESPACE, "rollout", "status", f"daemonset/{RELEASE}", "--timeout=300s")

    def sync(self) -> None:
        """Have the kubelet look at the ConfigMap now, as docs/kubernetes.md says."""
        mark = f"kmodgate-sync={time.time_ns()}"
        self.kubectl("annotate", "pods", "-n", NAMESPACE, "-l", LABEL, mark, "--overwrite")

    def pid(self) -> int:
        """The agent's process in the guest."""
        (line,) = self.node.run("pgrep", "-f", "bin/kmodgate run ").split()
        return int(line)

    def load_in_pod(self, module: str) -> Json:
        """A load by the pod with CAP_SYS_MODULE: ``errno``, ``before`` and ``after`` by the guest's clock."""
        text = self.kubectl("exec", LOADER, "--", "/tool", "load", f"/modules/{module}")
        return dict(json.loads(text))

    def metrics(self, path: str = "/metrics") -> str:
        """The agent's page, through the forwarded port."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.node.metrics}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def denied(self) -> float:
        """Loads that were denied, of all kinds."""
        return sum(
            float(line.rpartition(" ")[2])
            for line in self.metrics().splitlines()
            if line.startswith("kmodgate_module_loads_total{") and 'verdict="deny"' in line
        )

    def record(self, what: str, text: str) -> None:
        """Note a figure."""
        self.figures[what] = text
        print(f"{what}: {text}", flush=True)

    @contextmanager
    def held(self, what: str) -> Iterator[None]:
        """The prober asks all the while; each of its loads must be refused."""
        self.node.ask(probe=True)
        before = self.node.ask()
        try:
            yield
            time.sleep(0.5)
        finally:
            after = self.node.ask(probe=False)
        begun = before["now"]
        spans = [span for span in after["runs"] if span["last"] >= begun]
        assert [span["result"] for span in spans] == ["EKEYREJECTED"], f"{what}: {spans}"
        (span,) = spans
        count = span["count"] - sum(old["count"] for old in before["runs"] if old["first"] == span["first"])
        assert count > 0
        longest = span["longest"]
        seconds = after["now"] - begun
        self.record(
            f"held: {what}",
            f"{count} loads in {seconds:.0f} s refused, none let through; gaps up to {longest:.2f} s",
        )


def chart_copy(target: Path) -> Path:
    """The chart without its lower bound of Kubernetes' version.

    The only server at hand is older, and says 0.0.0: its version is stamped by upstream's scripts alone.
    """
    shutil.copytree(helm.CHART, target)
    path = target / "Chart.yaml"
    text = path.read_text()
    assert 'kubeVersion: ">=1.25.0-0"' in text
    path.write_text(text.replace(">=1.25.0-0", ">=0.0.0-0"))
    return target


def values(certs: Path) -> Json:
    """The release's values: what a user would set, and what this node asks for."""
    files = {path.name: path.read_text() for path in (certs / "operator.pem", certs / "operator-ec.pem")}
    return {
        "image": {"repository": AGENT, "pullPolicy": "Never"},
        "hostNetwork": True,
        "files": files,
        "trust": {"certificates": sorted(files)},
        "mode": "enforce",
        # An emulated processor verifies a module in many times what a real one takes.
        "holdTimeout": "5s",
    }


def loader() -> Json:
    """A pod of some driver's vendor: it may load modules, and waits to be told."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": LOADER, "namespace": "default"},
        "spec": {
            "hostNetwork": True,
            "terminationGracePeriodSeconds": 2,
            "containers": [
                {
                    "name": "loader",
                    "image": "localhost/kmodgate-cluster-tool:1",
                    "imagePullPolicy": "Never",
                    "command": ["/tool", "pause"],
                    "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["SYS_MODULE"]}},
                    "volumeMounts": [{"name": "modules", "mountPath": "/modules", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "modules", "hostPath": {"path": "/run/modules", "type": "Directory"}}],
        },
    }
