# SPDX-License-Identifier: Apache-2.0
"""What a fleet's agents ask of a real kube-apiserver: requests, open watches, CPU; synthetic.

The clients are the agent's own (``kmodgate.cluster``: watches, events), one for each node, all in this
process; nodes and pods are objects without a kubelet, and denials are told, not enforced. Requests are
counted by the server itself (``apiserver_request_total``), CPU is that of its process and of etcd's, less
what they take alone. The server is 1.20 (tests/apiserver).

Usage: ``python tests/bench/bench_fleet.py --nodes 100`` with ``PYTHONPATH=.:vm-images``.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import ssl
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.apiserver.control_plane import ControlPlane
from tests.apiserver.test_real_apiserver import SETTINGS, create, denial, pod_of_a_driver
from vmtool import controlplane

from kmodgate.cluster import Cluster
from kmodgate.kube import reflector
from kmodgate.kube.api import Place
from kmodgate.workload import Pod

FLEET: Final = 5000
OURS: Final = {"nodes", "pods", "events"}
_TICK: Final = os.sysconf("SC_CLK_TCK")
_SAMPLE: Final = re.compile(r"(\w+)\{(.*)\} ([0-9.e+-]+)")
_LABEL: Final = re.compile(r'(\w+)="([^"]*)"')
_SHORT: Final = (10.0, 20.0)  # of a watch, where renewals are measured; else 300 to 600 s


@dataclass(frozen=True, slots=True)
class Look:
    """The server at one moment.

    Attributes:
        time: monotonic seconds.
        requests: ended ones, by verb and resource; a watch ends late.
        refused: answers of 400 and above.
        watches: open ones.
        cpu: seconds, of the API server and of etcd.
    """

    time: float
    requests: Counter[str]
    refused: int
    watches: int
    cpu: tuple[float, float]


def look(plane: ControlPlane) -> Look:
    """Ask the server for its metrics, and /proc for its processes."""
    requests: Counter[str] = Counter()
    refused = watches = 0
    for name, labels, value in samples(plane):
        if labels.get("resource") not in OURS:
            continue
        if name == "apiserver_request_total":
            requests[f"{labels['verb']} {labels['resource']}"] += int(value)
            refused += int(value) if int(labels["code"]) >= 400 else 0
        elif name == "apiserver_longrunning_gauge":  # nobody runs or logs here; that of one node is a GET
            watches += int(value)
    assert plane._server is not None
    server, etcd = plane._server.pid, plane._etcd.pid
    return Look(time.monotonic(), requests, refused, watches, (cpu(server), cpu(etcd)))


def metrics(plane: ControlPlane) -> str:
    """What the server's administrator reads at ``/metrics``."""
    request = urllib.request.Request(  # our own server on loopback
        f"https://127.0.0.1:{plane.port}/metrics", headers={"Authorization": f"Bearer {plane.admin}"}
    )
    context = ssl.create_default_context(cafile=plane.folder / "ca.crt")
    with urllib.request.urlopen(request, timeout=60, context=context) as answer:  # noqa: S310  # the same
        return str(answer.read().decode())


def samples(plane: ControlPlane) -> Iterator[tuple[str, dict[str, str], float]]:
    """The server's own metrics."""
    for line in metrics(plane).splitlines():
        match = _SAMPLE.fullmatch(line)
        if match:
            yield match[1], dict(_LABEL.findall(match[2])), float(match[3])


def cpu(pid: int) -> float:
    """User and system seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


@dataclass(frozen=True, slots=True)
class Phase:
    """What happened between two looks; watches count when they begin."""

    seconds: float
    requests: Counter[str]
    refused: int
    watches: int
    server: float
    etcd: float

    @property
    def total(self) -> int:
        """Requests."""
        return self.requests.total()

    def above(self, alone: Phase) -> float:
        """CPU seconds of server and etcd, without those that they take with nobody there."""
        idle = (alone.server + alone.etcd) / alone.seconds
        return self.server + self.etcd - idle * self.seconds


def between(before: Look, after: Look) -> Phase:
    """The difference."""
    requests = after.requests - before.requests
    # A watch is counted when it ends.
    begun = sum(count for name, count in requests.items() if name.startswith("WATCH"))
    begun += after.watches - before.watches
    for name in [name for name in requests if name.startswith("WATCH")]:
        del requests[name]
    requests["WATCH"] = begun
    return Phase(
        after.time - before.time,
        requests,
        after.refused - before.refused,
        after.watches,
        after.cpu[0] - before.cpu[0],
        after.cpu[1] - before.cpu[1],
    )


def during(plane: ControlPlane, act: Callable[[], None]) -> Phase:
    """The phase of one act."""
    before = look(plane)
    act()
    return between(before, look(plane))


def populate(plane: ControlPlane, nodes: int, pods: int) -> list[Pod]:
    """Nodes and their pods; one pod of each node."""
    plane.call("POST", "/api/v1/namespaces", {"metadata": {"name": "drivers"}})
    chosen = []
    for number in range(nodes):
        plane.call("POST", "/api/v1/nodes", {"metadata": {"name": f"node-{number}", "labels": {"pool": "a"}}})
        for index in range(pods):
            name = f"loader-{number}-{index}"
            uid = create(plane, pod_of_a_driver(name, f"{number * pods + index + 1:064x}", f"node-{number}"))
        chosen.append(Pod(uid, "drivers", name, "loader"))
    return chosen


@contextmanager
def fleet(place: Place, nodes: int, state: Path) -> Iterator[list[Cluster]]:
    """The clients of that many nodes, all watches standing."""
    with ExitStack() as stack:
        made = []
        for number in range(nodes):
            folder = state / str(number)
            folder.mkdir(exist_ok=True)
            environment = {"NODE_NAME": f"node-{number}"}
            made.append(stack.enter_context(Cluster(environment=environment, state=folder, place=place)))
        deadline = time.monotonic() + 300
        while not all(all(cluster.watches().values()) for cluster in made):
            if time.monotonic() > deadline:
                raise SystemExit("not every watch stands after five minutes")
            time.sleep(0.1)
        for cluster in made:
            cluster.labels()
            cluster.in_force(SETTINGS)
        yield made


def refuse(clusters: list[Cluster], pods: list[Pod], seconds: float, every: float) -> None:
    """One refusal on each node each ``every`` seconds; the nodes take turns."""
    began = time.monotonic()
    for turn in range(round(seconds / every)):
        for number, (cluster, pod) in enumerate(zip(clusters, pods, strict=True)):
            due = began + (turn + number / len(clusters)) * every
            time.sleep(max(0.0, due - time.monotonic()))
            cluster.tell(denial(pod.uid, pod=pod))


def run(plane: ControlPlane, place: Place, folder: Path, options: argparse.Namespace) -> dict[str, Phase]:
    """Every phase."""
    nodes, seconds = options.nodes, options.seconds
    pods = populate(plane, nodes, options.pods)
    time.sleep(10)
    found = {"alone": during(plane, lambda: time.sleep(seconds))}
    with ExitStack() as stack:
        clusters: list[Cluster] = []

        def start() -> None:
            clusters.extend(stack.enter_context(fleet(place, nodes, folder)))

        found["start"] = during(plane, start)
        found["idle"] = during(plane, lambda: time.sleep(seconds))
        found["refusals"] = during(plane, lambda: refuse(clusters, pods, seconds, options.every))
        told: Counter[str] = Counter()
        for cluster in clusters:
            told.update(cluster.notices())
        if told["dropped"] or told["refused"]:
            raise SystemExit(f"not every event was taken: {told}")
    reflector._LIFETIME = _SHORT  # type: ignore[misc]  # said in the table
    with fleet(place, nodes, folder):
        time.sleep(_SHORT[1])
        found["renewals"] = during(plane, lambda: time.sleep(seconds))
    return found


def report(found: dict[str, Phase], options: argparse.Namespace) -> None:
    """Tables for docs/cluster.md, and what 5,000 agents would make of it."""
    nodes, alone = options.nodes, found["alone"]
    print(
        f"{nodes} nodes, {options.pods} pods each, CPython {platform.python_version()}, {os.cpu_count()} CPUs"
    )
    print("| phase | seconds | requests | of which | a second | open watches | CPU s of the server, etcd |")
    print("|---|---|---|---|---|---|---|")
    for name, phase in found.items():
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(phase.requests.items()) if count)
        rate = phase.total / phase.seconds
        print(
            f"| {name} | {phase.seconds:.0f} | {phase.total} | {kinds or '-'} | {rate:.2f} | {phase.watches} "
            f"| {phase.server:.2f}, {phase.etcd:.2f} |"
        )
        if phase.refused:
            print(f"  {phase.refused} of them were refused")
    start, refusals = found["start"], found["refusals"]
    told = round(options.seconds / options.every) * nodes
    each = {name: found[name].above(alone) / max(1, found[name].total) for name in found}
    print(f"a start: {start.total / nodes:.2f} requests, {start.above(alone) / nodes * 1e3:.1f} ms of CPU")
    print(f"a renewal: {each['renewals'] * 1e3:.2f} ms of CPU")
    print(
        f"a refusal: {refusals.total / told:.2f} requests, {each['refusals'] * 1e3:.2f} ms of CPU a request"
    )
    scale = FLEET / nodes
    quiet = 2 * FLEET / 450
    noisy = refusals.total / refusals.seconds * scale
    print(f"{FLEET} agents, extrapolated in proportion:")
    print(f"  all start: {start.total * scale:.0f} requests, {start.above(alone) * scale:.0f} s of CPU")
    busy = quiet * each["renewals"] * 100
    print(f"  quiet: {quiet:.1f} requests a second, {busy:.1f} % of a CPU, {2 * FLEET} open watches")
    print(
        f"  a refusal on every node each {options.every:g} s: {noisy:.0f} requests a second, "
        f"{noisy * each['refusals']:.2f} CPUs"
    )


def main() -> None:
    """Build or find the server, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--pods", type=int, default=5, help="of each node")
    parser.add_argument("--seconds", type=float, default=60, help="of each phase")
    parser.add_argument("--every", type=float, default=5, help="seconds between two refusals on one node")
    parser.add_argument("--programs", type=Path, help="folder with kube-apiserver and etcd; else built")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("plane", "account", "state"):
            (folder / part).mkdir()
        plane = ControlPlane(options.programs or controlplane.get(), folder / "plane")
        try:
            plane.start()
            place = plane.account(folder / "account")
            report(run(plane, place, folder / "state", options), options)
        finally:
            plane.close()


if __name__ == "__main__":
    main()
