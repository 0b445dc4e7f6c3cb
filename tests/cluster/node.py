# SPDX-License-Identifier: Apache-2.0
"""The node from outside: what its guest is given, its boot, and questions to it."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.cluster.plane import HOST, NAME, SERVICE, WholePlane
from tests.image import builder
from vmtool import VmDied, VmToolError, apt, artifacts
from vmtool.runner import Options, run, to_descriptor

SUITE: Final = "bookworm"
TOOL: Final = "localhost/kmodgate-cluster-tool:1"
AGENT: Final = "localhost/kmodgate"
NEXT: Final = "next"
METRICS: Final = 9464
MEMORY: Final = 4096
# What the guest's Debian lacks of a node: the runtime, and what stands for kube-proxy, with their libraries.
_PACKAGES: Final = (
    *("containerd", "runc", "libseccomp2"),
    *("nftables", "libnftables1", "libnftnl11", "libmnl0", "libxtables12", "libjansson4"),
    *("libedit2", "libbsd0", "libmd0", "libgmp10"),
)
_BOOT: Final = 900.0
_ANSWER: Final = 120.0
_CONTAINERD: Final = f"""version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{TOOL}"
"""
# No pod has a network of its own here; the runtime only asks that there be a configuration.
_CNI: Final = {"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "none"}]}


def _kubelet(port: int) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "port": port,
        "cgroupDriver": "cgroupfs",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": "/etc/kubernetes/ca.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "makeIPTablesUtilChains": False,
        "evictionHard": {"memory.available": "64Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }


def _images(folder: Path) -> dict[str, str]:
    """The agent's image and the test's own as archives; more names that they are given."""
    folder.mkdir()
    name = builder.build()
    builder.buildah("push", "--quiet", name, f"oci-archive:{folder / 'agent.tar'}:{name}")
    source = Path(__file__).with_name("tool.c")
    program = folder.parent / "tool"
    subprocess.run(["cc", "-static", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    with builder.container("scratch") as made:
        builder.buildah("add", "--quiet", made, program, "/tool")
        builder.buildah("config", "--entrypoint", '["/tool"]', "--cmd", "pause", made)
        builder.buildah("commit", "--quiet", made, TOOL)
    builder.buildah("push", "--quiet", TOOL, f"oci-archive:{folder / 'tool.tar'}:{TOOL}")
    return {name: f"{AGENT}:{NEXT}"}


def lay_out(share: Path, plane: WholePlane, programs: Path, kubelet: int) -> None:
    """Everything that the guest finds in /share."""
    root, kubernetes = share / "root", share / "root/etc/kubernetes"
    for path in (
        kubernetes,
        root / "etc/containerd",
        root / "etc/cni/net.d",
        share / "ask",
        share / "answer",
    ):
        path.mkdir(parents=True)
    distribution = apt.Apt(SUITE)
    distribution.update()
    for name in _PACKAGES:
        distribution.unpack(distribution.package(name), share / "debs")
    # Debian's folders of programs and libraries are one in the guest; links must not be written over.
    for below in ("usr/bin", "usr/sbin", "usr/lib", "sbin", "lib"):
        if (share / "debs" / below).is_dir():
            target = root / (below if below.startswith("usr/") else f"usr/{below}")
            shutil.copytree(share / "debs" / below, target, symlinks=True, dirs_exist_ok=True)
    shutil.copy(programs / "kubelet", root / "usr/bin")
    (root / "etc/containerd/config.toml").write_text(_CONTAINERD)
    (root / "etc/cni/net.d/10-none.conflist").write_text(json.dumps(_CNI))
    (kubernetes / "kubelet.json").write_text(json.dumps(_kubelet(kubelet)))
    place = Path("/etc/kubernetes")
    shutil.copy(plane.kubeconfig("node", server=HOST, at=place), kubernetes)
    for name in ("ca.crt", "node.crt", "node.key"):
        shutil.copy(plane.folder / name, kubernetes)
    (kubernetes / "service.nft").write_text(
        "table ip nat {\n chain output {\n  type nat hook output priority -100;\n"
        f"  ip daddr {SERVICE} tcp dport 443 dnat to {HOST}:{plane.port}\n }}\n}}\n"
    )
    arguments = [
        f"--hostname-override={NAME}",
        "--container-runtime=remote",
        "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
        "--cloud-provider=external",
        "--v=2",
    ]
    (share / "kubelet-arguments.json").write_text(json.dumps(arguments))
    (share / "tags.json").write_text(json.dumps(_images(share / "images")))


@dataclass(slots=True)
class Node:
    """A booted node.

    Attributes:
        share: the folder that guest and host both see.
        metrics: port of loopback that leads to the agent's.
    """

    share: Path
    metrics: int
    problems: list[str] = field(default_factory=list)
    _count: int = 0

    def ask(self, **question: Any) -> dict[str, Any]:
        """A question to the guest's script, and its answer."""
        self._count += 1
        name = str(self._count)
        fresh = self.share / f"question-{name}"
        fresh.write_text(json.dumps(question))
        fresh.rename(self.share / "ask" / name)
        path = self.share / "answer" / name
        end = time.monotonic() + _ANSWER
        while not path.exists():
            assert not self.problems, self.problems
            assert time.monotonic() < end, f"the guest does not answer: {question}"
            time.sleep(0.01)
        return dict(json.loads(path.read_text()))

    def run(self, *command: str) -> str:
        """Run a command in the guest; its output. It must succeed."""
        done = self.ask(run=command)
        assert done["status"] == 0, done
        return str(done["out"])

    def load(self, module: str) -> str:
        """What comes of a load by a process of the node: an errno's name, or ``ok``."""
        return str(self.ask(load=module)["result"])

    def clock(self) -> tuple[float, float]:
        """The host's clock less the guest's, and how far off that may be, in seconds."""
        best = (0.0, 1e9)
        for _ in range(10):
            before = time.time()
            there = self.ask()["now"]
            after = time.time()
            if after - before < 2 * best[1]:
                best = ((before + after) / 2 - there, (after - before) / 2)
        return best


@contextmanager
def booted(share: Path, *, kubelet: int, metrics: int) -> Iterator[Node]:
    """The machine, until the block ends; its script's failure is one of the test."""
    node = Node(share, metrics)

    def boot() -> None:
        options = Options(
            suite=SUITE,
            share=share,
            memory=MEMORY,
            network=True,
            forward={kubelet: kubelet, metrics: METRICS},
            timeout=3600,
        )
        env = {"KMODGATE_TEST_CERTS": "/certs", "KMODGATE_TEST_MODULES": "/testmodules"}
        script = ["python3", "/src/tests/cluster/node_guest.py"]
        try:
            done = run(script, options, stdout=to_descriptor(1), stderr=to_descriptor(2), env=env)
            if not (share / "end").exists():
                node.problems.append(f"the guest's script ended with {done.status}")
        except (VmDied, VmToolError) as error:
            node.problems.append(str(error))

    artifacts.parts(SUITE)
    machine = threading.Thread(target=boot, name="node")
    machine.start()
    try:
        end = time.monotonic() + _BOOT
        while not (share / "up").exists():
            assert not node.problems, node.problems
            assert time.monotonic() < end, "the node did not come up"
            time.sleep(0.2)
        yield node
    finally:
        (share / "end").touch()
        machine.join()
    assert not node.problems, node.problems
