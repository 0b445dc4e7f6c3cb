# SPDX-License-Identifier: Apache-2.0
"""The chart and the image in a real cluster of one node, which loads modules: ``make test-cluster``.

The tests are the chapters of one story on one machine, and run in this order. Every time is the host's or
the guest's clock; the two are compared when it matters, and what that leaves unsure is printed.
"""

from __future__ import annotations

import base64
import json
import re
import statistics
import time
import urllib.error
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from tests.cluster import lab
from tests.cluster.lab import LOADER, NAMESPACE, RELEASE, Lab, eventually
from tests.cluster.node import NEXT
from tests.cluster.plane import NAME

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

EKEYREJECTED = 129
UNSIGNED, SIGNED = "kmgtest.unsigned.ko", "kmgtest.operator.ko"
# The loader's own module: the prober has the other.
POD_UNSIGNED, POD_SIGNED = "vpoll.unsigned.ko", "vpoll.operator.ko"
FLIPS = 4  # there and back


def ready(pod: lab.Json) -> bool:
    return any(
        item["type"] == "Ready" and item["status"] == "True"
        for item in pod.get("status", {}).get("conditions", ())
    )


def ours(pod: lab.Json) -> bool:
    return bool(pod["metadata"].get("labels", {}).get("app.kubernetes.io/name") == "kmodgate")


def started(pod: lab.Json) -> bool:
    return any("running" in item["state"] for item in pod.get("status", {}).get("containerStatuses", ()))


def began(cluster: Lab, pid: int) -> float:
    """When a process of the guest began, by the guest's clock."""
    text = cluster.node.run("cat", f"/proc/{pid}/stat", "/proc/stat")
    ticks = int(text.partition(") ")[2].split()[19])
    boot = re.search(r"^btime (\d+)$", text, re.MULTILINE)
    assert boot is not None
    up, now = cluster.node.run("sh", "-c", "cut -d' ' -f1 /proc/uptime; date +%s.%N").split()
    return float(now) - float(up) + ticks / 100


def outcome_is(cluster: Lab, result: str) -> bool:
    """Whether the prober's last load came to this."""
    return bool(cluster.node.ask()["runs"][-1]["result"] == result)


def test_the_release_becomes_ready_and_enforces(cluster: Lab) -> None:
    assert cluster.node.load(UNSIGNED) == "ok"
    cluster.node.ask(probe=True)
    asked = cluster.deploy()
    cluster.rolled_out()
    pod = eventually("readiness", lambda: (found := cluster.agent()) and ready(found) and found)
    runs = cluster.node.ask(probe=False)["runs"]
    assert [span["result"] for span in runs] == ["ok", "EKEYREJECTED"], runs
    assert cluster.node.load(SIGNED) == "ok"

    offset, unsure = cluster.node.clock()
    name = pod["metadata"]["name"]

    def since(holds: Any) -> float:
        at = cluster.pods.first(lambda item: item["metadata"]["name"] == name and holds(item))
        assert at is not None
        return at - asked

    process = began(cluster, cluster.pid()) + offset - asked
    enforcing = runs[1]["first"] + offset - asked
    cluster.record(
        "pod start to enforcing",
        f"helm begins 0 s; pod made {since(lambda _: True):.1f}; bound to the node "
        f"{since(lambda item: item['spec'].get('nodeName')):.1f}; its process begins {process:.1f}; "
        f"first load refused {enforcing:.1f}; pod seen ready {since(ready):.1f}; "
        f"clocks unsure by {unsure:.2f} s",
    )
    cluster.record("agent's process to the first refusal", f"{enforcing - process:.1f} s")
    said = cluster.kubectl("logs", "-n", NAMESPACE, name)
    (line,) = [line for line in said.splitlines() if "start took" in line]
    cluster.record("the agent's own words", line)
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"]["privileged"] is False
    held = cluster.node.run("cat", f"/proc/{cluster.pid()}/status")
    assert "Seccomp:\t2" in held
    assert "NoNewPrivs:\t1" in held


def test_a_pod_that_may_load_modules_is_refused_an_unsigned_one(cluster: Lab) -> None:
    path = cluster.folder / "loader.json"
    path.write_text(json.dumps(lab.loader()))
    cluster.kubectl("apply", "-f", str(path))
    cluster.kubectl("wait", f"pod/{LOADER}", "--for=condition=Ready", "--timeout=240s")
    counted = cluster.denied()
    query = 'sum(kmodgate_module_loads_total{instance="node-a",verdict="deny"})'

    def scraped() -> float:
        found = cluster.prometheus.query(query)
        return float(found[0]["value"][1]) if found else 0.0

    eventually("a scrape", lambda: scraped() == counted)
    result = cluster.load_in_pod(POD_UNSIGNED)
    assert result["errno"] == EKEYREJECTED
    on_page = eventually("the metric", lambda: cluster.denied() > counted and time.time(), pause=0.02)
    in_prometheus = eventually("the scrape", lambda: scraped() > counted and time.time(), pause=0.05)

    def told(item: lab.Json) -> bool:
        return bool(item.get("reason") == "KernelModuleDenied" and item["involvedObject"]["name"] == LOADER)

    heard = eventually("the event", lambda: cluster.events.first(told))
    offset, unsure = cluster.node.clock()
    refused = result["after"] + offset
    cluster.record(
        "from a refusal in a pod",
        f"finit_module took {(result['after'] - result['before']) * 1000:.0f} ms; "
        f"Event heard after {heard - refused:.2f} s; "
        f"counter seen on /metrics after at most {on_page - refused:.2f} s; "
        f"in Prometheus (scrapes every 5 s) after {in_prometheus - refused:.1f} s; "
        f"clocks unsure by {unsure:.2f} s",
    )
    (event,) = [item for _, item in cluster.events.seen if told(item)][-1:]
    pod = cluster.get("pod", LOADER)
    assert event["involvedObject"]["uid"] == pod["metadata"]["uid"]
    assert "vpoll" in event["message"]
    assert "unsigned" in event["message"]
    lines = cluster.kubectl("logs", "-n", NAMESPACE, cluster.agent()["metadata"]["name"]).splitlines()
    records = [json.loads(line) for line in lines if '"module_load"' in line]
    (record,) = [item for item in records if item.get("module") == "vpoll"]
    assert (record["verdict"], record["reason"], record["node"]) == ("deny", "unsigned", NAME)
    assert record["workload"] == "pod"
    assert record["pod"]["name"] == LOADER

    assert cluster.load_in_pod(POD_SIGNED)["errno"] == 0
    cluster.node.run("rmmod", "vpoll")


def changed(cluster: Lab, config: str, mode: str, result: str) -> tuple[float, float, float]:
    """Flip the mode by ``helm upgrade``.

    Returns:
        seconds from Helm's start to the kubelet's file, from that to the agent's line in its log, and from
        the file to the first load with the new outcome; loads are asked for all the time.
    """
    cluster.node.ask(probe=True)
    deployed = cluster.deploy(mode=mode)
    cluster.sync()
    eventually(mode, partial(outcome_is, cluster, result))
    span = cluster.node.ask()["runs"][-1]
    cluster.node.ask(probe=False)
    written = float(cluster.node.run("stat", "-c", "%.9Y", config))
    offset, _ = cluster.node.clock()
    name = cluster.agent()["metadata"]["name"]
    lines = cluster.kubectl("logs", "-n", NAMESPACE, "--timestamps", "--tail=400", name).splitlines()
    (told,) = [line for line in lines if "config reloaded" in line][-1:]
    at = datetime.fromisoformat(told.split()[0]).timestamp()
    assert f"mode {mode}" in told
    return written + offset - deployed, at - written, span["first"] - written


def test_a_policy_takes_effect_without_a_restart(cluster: Lab) -> None:
    pid, pod = cluster.pid(), cluster.agent()["metadata"]["uid"]
    config = f"/var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~configmap/config/..data"
    took = []
    for mode, result in (("audit", "ok"), ("enforce", "EKEYREJECTED")) * FLIPS:
        to_file, to_log, to_effect = changed(cluster, config, mode, result)
        took.append(to_effect)
        cluster.record(
            f"policy changed to {mode} ({len(took)})",
            f"helm upgrade to the kubelet's file {to_file:.1f} s; file to the agent's word {to_log:.2f} s; "
            f"file to effect {to_effect:.2f} s",
        )
    assert (cluster.pid(), cluster.agent()["metadata"]["uid"]) == (pid, pod)
    cluster.record(
        "config change to effect",
        f"median of {len(took)} {statistics.median(took):.2f} s, from {min(took):.2f} to {max(took):.2f} s",
    )
    assert all(0 < seconds <= 2.0 for seconds in took), took


def test_what_the_agent_may_not_do_is_refused(cluster: Lab) -> None:
    account = cluster.get("serviceaccount", RELEASE, "-n", NAMESPACE)
    secret = cluster.get("secret", account["secrets"][0]["name"], "-n", NAMESPACE)
    plane, event = cluster.plane, {"metadata": {"name": "x", "namespace": "default"}, "involvedObject": {}}
    spec = lab.loader()["spec"]
    label = {"metadata": {"labels": {"pool": "other"}}}
    allowed: list[tuple[str, str, lab.Json | None]] = [
        ("GET", f"/api/v1/nodes/{NAME}", None),
        ("GET", f"/api/v1/pods?fieldSelector=spec.nodeName={NAME}", None),
        ("POST", "/api/v1/namespaces/default/events", event),
    ]
    refused: list[tuple[str, str, lab.Json | None]] = [
        ("GET", "/api/v1/nodes", None),
        ("GET", "/api/v1/secrets", None),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/secrets", None),
        ("GET", f"/api/v1/namespaces/{NAMESPACE}/configmaps/{RELEASE}", None),
        ("GET", "/api/v1/events", None),
        ("PATCH", f"/api/v1/nodes/{NAME}", label),
        ("PATCH", f"/api/v1/nodes/{NAME}/status", label),
        ("DELETE", f"/api/v1/nodes/{NAME}", None),
        ("DELETE", f"/api/v1/namespaces/default/pods/{LOADER}", None),
        ("PATCH", f"/api/v1/namespaces/default/pods/{LOADER}", label),
        ("POST", f"/api/v1/namespaces/default/pods/{LOADER}/eviction", {"metadata": {"name": LOADER}}),
        (
            "POST",
            "/api/v1/namespaces/default/pods",
            {"metadata": {"name": "y"}, "spec": spec},
        ),
        ("PATCH", f"/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/{RELEASE}", label),
        ("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles", None),
    ]
    token = base64.b64decode(secret["data"]["token"]).decode()
    for method, path, body in allowed:
        assert plane.status_for(token, method, path, body) in {200, 201}, (method, path)
    for method, path, body in refused:
        assert plane.status_for(token, method, path, body) == 403, (method, path)
    cluster.record(
        "RBAC", f"{len(allowed)} requests of the agent's account allowed, {len(refused)} others refused (403)"
    )


def test_enforcement_holds_while_the_node_is_drained(cluster: Lab) -> None:
    pid = cluster.pid()
    with cluster.held("the node is drained"):
        cluster.kubectl("drain", NAME, "--ignore-daemonsets", "--force", "--timeout=200s")
        assert cluster.get("pods")["items"] == []
    assert cluster.pid() == pid
    cluster.kubectl("uncordon", NAME)


def test_enforcement_holds_while_the_agent_is_killed(cluster: Lab) -> None:
    pid, restarts = cluster.pid(), cluster.agent()["status"]["containerStatuses"][0]["restartCount"]
    with cluster.held("the agent is killed, and started by the kubelet"):
        cluster.node.run("kill", "-9", str(pid))
        eventually(
            "the agent's restart",
            lambda: (
                (pod := cluster.agent())["status"]["containerStatuses"][0]["restartCount"] > restarts
                and ready(pod)
            ),
        )
    assert cluster.node.load(SIGNED) == "ok"


def test_enforcement_holds_while_the_api_server_is_away(cluster: Lab) -> None:
    path = cluster.folder / "loader.json"
    cluster.kubectl("apply", "-f", str(path))
    cluster.kubectl("wait", f"pod/{LOADER}", "--for=condition=Ready", "--timeout=240s")
    with cluster.held("the API server is stopped, and the agent killed meanwhile"):
        cluster.plane.stop()
        with pytest.raises((OSError, urllib.error.URLError)):
            cluster.plane.call("GET", "/readyz")
        assert cluster.node.load(SIGNED) == "ok"
        pid = cluster.pid()
        cluster.node.run("kill", "-9", str(pid))
        eventually("the agent without the API server", lambda: "kmodgate_enforcing 1" in cluster.metrics())
        assert cluster.pid() != pid
        assert cluster.node.load(SIGNED) == "ok"
        time.sleep(5)
    cluster.plane.start()
    since = time.time()

    def told(item: lab.Json) -> bool:
        return bool(item.get("reason") == "KernelModuleDenied" and item["involvedObject"]["name"] == LOADER)

    assert eventually("a refusal", lambda: cluster.load_in_pod(POD_UNSIGNED)["errno"] == EKEYREJECTED)
    heard = eventually("the event after that", lambda: cluster.events.first(told, since))
    cluster.record("API server back to the next refusal's Event", f"{heard - since:.1f} s")


def test_a_rolling_update_leaves_no_gap(cluster: Lab) -> None:
    old = cluster.agent()["metadata"]["uid"]
    with cluster.held("rolling update to another image"):
        cluster.deploy(image={**cluster.values["image"], "tag": NEXT})
        cluster.rolled_out()
        pod = cluster.agent()
    assert pod["metadata"]["uid"] != old
    assert pod["spec"]["containers"][0]["image"].endswith(f":{NEXT}")
    said = cluster.kubectl("logs", "-n", NAMESPACE, pod["metadata"]["name"])
    assert "no gap" in said
    assert cluster.node.load(SIGNED) == "ok"


def test_what_the_agent_takes(cluster: Lab) -> None:
    text = cluster.node.run("cat", f"/proc/{cluster.pid()}/status", f"/proc/{cluster.pid()}/smaps_rollup")
    found = {
        key: int(value) / 1024
        for key, value in re.findall(r"^(VmRSS|VmHWM|Pss):\s+(\d+) kB", text, re.MULTILINE)
    }
    cluster.record(
        "agent's memory",
        f"resident {found['VmRSS']:.1f} MiB, at most {found['VmHWM']:.1f} MiB, "
        f"its share (PSS) {found['Pss']:.1f} MiB",
    )


def test_the_way_off_as_documented(cluster: Lab) -> None:
    assert cluster.node.load(UNSIGNED) == "EKEYREJECTED"
    cluster.deploy(detach=True)
    cluster.rolled_out()
    assert cluster.node.load(UNSIGNED) == "ok"
    cluster.uninstall()
    eventually("the pods' end", lambda: not cluster.get("pods", "-n", NAMESPACE, "-l", lab.LABEL)["items"])
