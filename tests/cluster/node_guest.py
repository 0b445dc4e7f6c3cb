# SPDX-License-Identifier: Apache-2.0
"""Runs inside the guest, started by ``node.py``: makes a Kubernetes node of it, then does as it is asked.

A question is a file ``ask/N`` of JSON in /share, its answer the file ``answer/N``: ``{"run": [...]}`` runs
a command, ``{"load": FILE}`` asks the kernel to load a module and unloads it again, ``{"probe": true}``
has the prober go on or pause, ``{}`` asks for nothing else than what every such answer has: the guest's clock
and what the prober saw. The prober asks for an unsigned module
over and over, and notes each change of what comes of it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.vm import lab

SHARE = Path("/share")
MODULES = Path("/run/modules")
INTERVAL = 0.05
Run = dict[str, Any]


class Prober(threading.Thread):
    """Asks for one unsigned module every 50 ms, from a process of the node.

    Attributes:
        runs: spans of equal outcomes: ``result``, ``first``, ``last`` (seconds of its clock), ``count``,
            ``longest``: the longest time between two askings since it went on, in seconds.
    """

    def __init__(self, module: Path) -> None:
        super().__init__(name="prober", daemon=True)
        self.module = module
        self.runs: list[Run] = []
        self.lock = threading.Lock()
        self.asking = threading.Event()

    def run(self) -> None:
        previous = 0.0
        while True:
            if not self.asking.is_set():
                self.asking.wait()
                previous = time.time()
                if self.runs:
                    self.runs[-1]["longest"] = 0.0
            with self.lock:
                outcome = lab.finit(self.module)
                if outcome.ok:
                    lab.unload("kmgtest")
            now = time.time()
            if not self.runs or self.runs[-1]["result"] != outcome.result:
                self.runs.append(
                    {"result": outcome.result, "first": now, "last": now, "count": 0, "longest": 0.0}
                )
            span = self.runs[-1]
            span["count"] += 1
            span["longest"] = max(span["longest"], now - previous) if span["count"] > 1 else 0.0
            span["last"] = previous = now
            time.sleep(INTERVAL)


def set_up() -> None:
    """Programs, mounts and network of the node."""
    for name in ("/var/lib/containerd", "/var/lib/kubelet", "/run/modules"):
        Path(name).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500m", "tmpfs", name], check=True)
    subprocess.run(["cp", "-a", "--no-preserve=ownership", f"{SHARE}/root/.", "/"], check=True)
    subprocess.run(["ldconfig"], check=True)
    subprocess.run(["mount", "--make-rshared", "/"], check=True)
    Path("/etc/resolv.conf").touch()
    for name in ("kmgtest", "vpoll"):
        for path in lab.MODULES.glob(f"{name}.*.ko"):
            shutil.copy(path, MODULES)
    # The part of kube-proxy that pods need here.
    subprocess.run(["nft", "-f", "/etc/kubernetes/service.nft"], check=True)


def spawn(name: str, *command: str) -> subprocess.Popen[bytes]:
    with (SHARE / f"{name}.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def start() -> list[subprocess.Popen[bytes]]:
    """Start containerd, bring the images in, start the kubelet; tell the seconds of each."""
    began = time.monotonic()
    processes = [spawn("containerd", "/usr/bin/containerd")]
    while not Path("/run/containerd/containerd.sock").exists():
        time.sleep(0.1)
    for image in sorted((SHARE / "images").glob("*.tar")):
        done = subprocess.run(
            ["ctr", "-n", "k8s.io", "images", "import", image], check=False, capture_output=True
        )
        print(
            image.name, done.returncode, done.stderr.decode(), f"{time.monotonic() - began:.1f} s", flush=True
        )
    for old, new in json.loads((SHARE / "tags.json").read_text()).items():
        subprocess.run(
            ["ctr", "-n", "k8s.io", "images", "tag", old, new], check=True, stdout=subprocess.DEVNULL
        )
    processes.append(
        spawn(
            "kubelet",
            "/usr/bin/kubelet",
            "--config=/etc/kubernetes/kubelet.json",
            "--kubeconfig=/etc/kubernetes/node.kubeconfig",
            *json.loads((SHARE / "kubelet-arguments.json").read_text()),
        )
    )
    return processes


def answer(question: Run, prober: Prober) -> Run:
    """Do what is asked."""
    if "run" in question:
        done = subprocess.run(question["run"], check=False, capture_output=True, text=True)
        return {"status": done.returncode, "out": done.stdout, "err": done.stderr}
    if "load" in question:
        with prober.lock:
            outcome = lab.finit(MODULES / question["load"])
            if outcome.ok:
                lab.unload("kmgtest")
        return {"result": outcome.result}
    if question.get("probe"):
        prober.asking.set()
    elif "probe" in question:
        prober.asking.clear()
    return {"now": time.time(), "runs": prober.runs}


def main() -> None:
    """The node, until the file ``end`` is there."""
    set_up()
    processes = start()
    prober = Prober(MODULES / "kmgtest.unsigned.ko")
    prober.start()
    (SHARE / "up").touch()
    ask, reply = SHARE / "ask", SHARE / "answer"
    while not (SHARE / "end").exists():
        for process in processes:
            assert process.poll() is None, process.args
        for path in sorted(ask.iterdir(), key=lambda path: int(path.name)):
            text = json.dumps(answer(json.loads(path.read_text()), prober))
            path.unlink()
            (reply / f"{path.name}.new").write_text(text)
            (reply / f"{path.name}.new").rename(reply / path.name)
        time.sleep(0.01)
    os.sync()


if __name__ == "__main__":
    main()
