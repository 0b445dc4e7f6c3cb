# SPDX-License-Identifier: Apache-2.0
"""One boot for all scenarios."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest
from tests.apiserver.control_plane import free_ports
from tests.chart.helm import HelmError
from tests.cluster import lab, node
from tests.cluster.plane import NAME, WholePlane
from tests.image.builder import ImageError
from tests.monitoring.conftest import free_port, prometheus
from tests.monitoring.fleet import Target, scrape_config
from tests.rules.parts import ROOT
from tests.vm.boot import need_qemu
from vmtool import VmToolError, artifacts, controlplane

RESULTS = ROOT / "build/cluster"
SCRAPE = "5s"


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[lab.Lab]:
    """Control plane, node and Prometheus; nothing of kmodgate is installed yet."""
    need_qemu("test-cluster")
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "plane").mkdir()
    try:
        programs = controlplane.get()
        certs = artifacts.path("certs", node.SUITE)
        plane = WholePlane(programs, folder / "plane")
    except (VmToolError, ImageError, HelmError) as error:
        pytest.fail(str(error))
    try:
        plane.start()
        plane.start_managers()
        plane.kubeconfig("admin")
        kubelet, metrics = free_ports(2)
        plane.add_node(kubelet)
        share = folder / "share"
        node.lay_out(share, plane, programs, kubelet)
        events, pods = lab.Watch(plane, "/api/v1/events"), lab.Watch(plane, "/api/v1/pods")
        events.start()
        pods.start()
        config = scrape_config(
            [Target(NAME, "lab", metrics)],
            free_port(),  # there is no kube-state-metrics
            interval=SCRAPE,
            rules=str(ROOT / "helm/kmodgate/rules/*.yaml"),
            alertmanager=None,
        )
        with (
            node.booted(share, kubelet=kubelet, metrics=metrics) as guest,
            prometheus(folder, config) as server,
        ):
            made = lab.Lab(
                plane=plane,
                node=guest,
                folder=folder,
                chart=lab.chart_copy(folder / "chart"),
                values=lab.values(certs),
                events=events,
                pods=pods,
                prometheus=server,
            )
            lab.eventually("the node", plane.node_ready)
            yield made
            RESULTS.mkdir(parents=True, exist_ok=True)
            (RESULTS / "figures.json").write_text(json.dumps(made.figures, indent=1) + "\n")
    finally:
        plane.close()
        RESULTS.mkdir(parents=True, exist_ok=True)
        for path in (*(folder / "share").glob("*.log"), *(folder / "plane").glob("kube-*.log")):
            shutil.copy(path, RESULTS)
