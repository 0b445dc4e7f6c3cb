# SPDX-License-Identifier: Apache-2.0
"""The image as the chart runs it: unpacked, and started by runc with the pod's own confinement."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.vm import lab, ocibundle

if os.uname().nodename != "kmodgate-vm":  # loads modules: nowhere but in the guest
    collect_ignore_glob = ["test_*.py"]

SHARE = Path("/share")
ROOT = Path("/tmp/container")


@dataclass(slots=True)
class Runtime:
    """Runs containers of one rendered pod.

    Attributes:
        pods: the pod's ``spec`` by the name of the values that it was rendered with.
        image: the image's config.
        profile: a container runtime's default seccomp profile.
        config: directory that stands for the mounted ConfigMap.
    """

    pods: dict[str, Any]
    image: dict[str, Any]
    profile: dict[str, Any]
    config: Path
    count: int = field(default=0)

    def spec(
        self,
        values: str,
        *,
        init: bool = False,
        without: str | None = None,
        bpf_by_capability: bool = True,
        localhost: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """The runtime spec of the agent, or of the pod's init container.

        Args:
            values: which rendered pod.
            init: its init container.
            without: a capability that is taken away.
            bpf_by_capability: whether the runtime's default profile knows CAP_BPF.
            localhost: a profile of the kubelet's, which a runtime applies as it stands, in place of that one.
        """
        pod = self.pods[values]
        (container,) = pod["initContainers" if init else "containers"]
        given = [f"CAP_{name}" for name in container["securityContext"]["capabilities"]["add"]]
        assert container["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        profile = {**self.profile, "syscalls": list(self.profile["syscalls"])}
        if bpf_by_capability:
            # As containerd 1.7 and Docker 23 have it; the profile at hand is older.
            allowed = {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}}
            profile["syscalls"] = [
                {**rule, "names": [name for name in rule["names"] if name != "bpf"]}
                if rule["action"] == "SCMP_ACT_ERRNO"
                else rule
                for rule in profile["syscalls"]
            ] + [allowed]
        return ocibundle.bundle(
            pod,
            container,
            self.image,
            volumes={"config": str(self.config)},
            seccomp=localhost or ocibundle.seccomp_of(profile, given, platform.machine()),
            without=without,
        )

    @contextmanager
    def started(self, spec: dict[str, Any], name: str) -> Iterator[lab.Agent]:
        """The container runs; ended by SIGTERM if it still does."""
        self.count += 1
        container, folder = f"c{self.count}", ROOT / f"c{self.count}"
        folder.mkdir()
        (folder / "rootfs").symlink_to(ROOT / "rootfs")
        spec["root"]["path"] = str(ROOT / "rootfs")
        spec["linux"]["cgroupsPath"] = f"/{container}"
        (folder / "config.json").write_text(json.dumps(spec))
        agent = lab.Agent(folder)
        out, err = SHARE / f"{name}.jsonl", SHARE / f"{name}.log"
        agent._out, agent._err = out, err
        with out.open("wb") as events, err.open("wb") as log:
            agent.process = subprocess.Popen(
                [SHARE / "runc", "--root", "/run/runc", "run", "--bundle", folder, container],
                env={**os.environ, "LD_LIBRARY_PATH": str(SHARE)},
                stdout=events,
                stderr=log,
            )
        try:
            yield agent
        finally:
            if agent.process.poll() is None:
                self.signal(container, "TERM")
                agent.process.wait(120)

    def signal(self, container: str, name: str) -> None:
        """Send a signal to the container's process."""
        subprocess.run(
            [SHARE / "runc", "--root", "/run/runc", "kill", container, name],
            env={**os.environ, "LD_LIBRARY_PATH": str(SHARE)},
            check=True,
        )

    def last(self) -> str:
        """Name of the container that was started last."""
        return f"c{self.count}"


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    (ROOT / "rootfs").mkdir(parents=True)
    subprocess.run(["modprobe", "loop"], check=True)
    subprocess.run(["mount", "-o", "loop,ro", SHARE / "rootfs.ext4", ROOT / "rootfs"], check=True)
    given = json.loads((SHARE / "pods.json").read_text())
    # As the kubelet lays a ConfigMap: files through ..data.
    config = ROOT / "config"
    lay(config, given["files"], "first")
    Path("/run/kmodgate").mkdir(exist_ok=True)
    return Runtime(given["pods"], given["image"], given["seccomp"], config)


def lay(directory: Path, files: dict[str, str], generation: str) -> None:
    """Put files into a ConfigMap volume in one step, as the kubelet does."""
    directory.mkdir(exist_ok=True)
    held = directory / f"..{generation}"
    held.mkdir()
    for name, text in files.items():
        (held / name).write_text(text)
    fresh = directory / "..data_tmp"
    fresh.symlink_to(held.name)
    fresh.rename(directory / "..data")
    for name in files:
        link = directory / name
        if not link.is_symlink():
            link.symlink_to(f"..data/{name}")


@pytest.fixture(scope="session")
def work() -> Path:
    """A directory on tmpfs: not the pinned root."""
    path = Path("/tmp/lab")
    path.mkdir(exist_ok=True)
    for module in lab.MODULES.glob("kmgtest.*.ko"):
        shutil.copy(module, path)
    return path


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    lab.unload("kmgtest")
    subprocess.run(["kmodgate", "detach"], check=True, capture_output=True)
    deadline = time.monotonic() + 30
    while lab.get("/healthz")[0]:
        assert time.monotonic() < deadline, "an agent still answers"
        time.sleep(0.1)
