# SPDX-License-Identifier: Apache-2.0
"""Boots a VM and runs the image in it as the chart says: the pod's capabilities, seccomp, read-only root.

There is no Kubernetes in it: runc is given what containerd would make of the rendered pod.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.chart.helm import CHART, Helm, objects, only
from tests.image import builder
from tests.need import need
from tests.vm.boot import alive, need_qemu
from vmtool import artifacts
from vmtool.runner import run, to_descriptor

pytestmark = [pytest.mark.vm, pytest.mark.timeout(2400)]

SUITE = os.environ.get("KMODGATE_TEST_KERNEL", "bookworm")
GUEST = "/src/tests/vm/guest_container"
INSIDE = [
    "python3",
    "-m",
    "pytest",
    "-q",
    "-s",
    "-p",
    "no:cacheprovider",
    "-c",
    "/dev/null",
    "--rootdir",
    GUEST,
]
ONLY = os.environ.get("KMODGATE_TEST_ONLY")
PROFILE = Path("/usr/share/containers/seccomp.json")


def pods(certs: Path) -> dict[str, Any]:
    """Pods and config as the chart renders them."""
    helm = Helm(4)
    files = {path.name: path.read_text() for path in (certs / "operator.pem", certs / "operator-ec.pem")}
    sets = [
        f"files={json.dumps(files)}",
        f"trust.certificates={json.dumps(sorted(files))}",
        'mode="enforce"',
        'holdTimeout="2s"',
    ]
    agent = objects(helm.render(sets=sets))
    hardened = objects(helm.render(sets=[*sets, "hardened=true"]))
    (config,) = [item["data"] for item in agent if "config.yaml" in item.get("data", {})]
    (hard,) = [item["data"] for item in hardened if "config.yaml" in item.get("data", {})]
    detach = objects(helm.render(CHART / "ci/detach-values.yaml"))
    hardened_detach = objects(helm.render(CHART / "ci/detach-values.yaml", sets=["hardened=true"]))
    spec = {
        name: only(found, "DaemonSet")["spec"]["template"]["spec"]
        for name, found in (
            ("agent", agent),
            ("hardened", hardened),
            ("detach", detach),
            ("hardened-detach", hardened_detach),
        )
    }
    return {"pods": spec, "files": config, "hardened": hard}


def test_everything_in_a_container_passed(tmp_path: Path) -> None:
    need_qemu("test-container")
    need(
        shutil.which("runc") and PROFILE.exists(),
        "runc or its seccomp profile is missing; run: sudo make deps",
    )
    name = builder.build()
    config = builder.config(name)
    builder.disk(name, tmp_path / "rootfs.ext4")
    certs = artifacts.path("certs", SUITE)
    given = {
        **pods(certs),
        "image": {"Entrypoint": config["Entrypoint"], "Env": config["Env"]},
        "seccomp": json.loads(PROFILE.read_text()),
    }
    (tmp_path / "pods.json").write_text(json.dumps(given))
    runc = shutil.which("runc")
    assert runc is not None
    shutil.copy(runc, tmp_path / "runc")
    for line in subprocess.run(["ldd", runc], check=True, capture_output=True, text=True).stdout.splitlines():
        if "libseccomp" in line:
            shutil.copy(line.split()[2], tmp_path / "libseccomp.so.2")
    shutil.copytree(artifacts.path("testmodules", SUITE), tmp_path / "modules")
    chosen = ["-k", ONLY] if ONLY else []
    with alive():
        status = run(
            [*INSIDE, "--durations", "5", *chosen, GUEST],
            suite=SUITE,
            share=tmp_path,
            memory=2048,
            timeout=2000,
            stdout=to_descriptor(1),
            stderr=to_descriptor(2),
        ).status
    results = Path(__file__).parents[2] / "build/vm"
    results.mkdir(parents=True, exist_ok=True)
    for path in (*tmp_path.glob("*.log"), *tmp_path.glob("status.txt")):
        shutil.copy(path, results / f"container-{path.name}")
    assert status == 0
