# SPDX-License-Identifier: Apache-2.0
"""``kmodgate fleet report`` against a real Prometheus on loopback, and against servers that are none."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from kmodgate.errors import InputError
from kmodgate.fleet.prometheus import Prometheus, PrometheusError

NOW = 1_772_960_400  # 2026-03-08T09:00:00Z
HOURS = 6
ENFORCE = "ENFORCE_SIGNED_MODULES"


def series(name: str, instance: str, labels: str, values: list[float | None]) -> list[str]:
    """One sample a minute, the last one at NOW."""
    start = NOW - 60 * (len(values) - 1)
    text = f'{{job="kmodgate",instance="{instance}"{"," if labels else ""}{labels}}}'
    return [
        f"{name}{text} {value:g} {start + 60 * index}"
        for index, value in enumerate(values)
        if value is not None
    ]


def loads(verdict: str, reason: str) -> str:
    return f'verdict="{verdict}",reason="{reason}",api="finit_module",by="kmodgate"'


def fleet() -> str:
    """Four nodes of three pools, over six hours."""
    minutes = HOURS * 60
    ones: list[float | None] = [1.0] * minutes
    families: dict[str, list[str]] = {
        name: []
        for name in (
            "kmodgate_node_pool_info",
            "kmodgate_policy_info",
            "kmodgate_module_loads_total",
            "kmodgate_loaded_modules",
            "kmodgate_events_suppressed_total",
        )
    }

    def add(name: str, instance: str, labels: str, values: list[float | None]) -> None:
        families[name] += series(name, instance, labels, values)

    for instance, node, pool, mode in (
        ("10.0.0.1:9464", "gpu-1", "gpu", "audit"),
        ("10.0.0.2:9464", "gpu-2", "gpu", "audit"),
        ("10.0.0.3:9464", "cpu-1", "", "audit"),
        ("10.0.0.4:9464", "old-1", "old", "enforce"),
    ):
        add("kmodgate_node_pool_info", instance, f'pool="{pool}",node="{node}"', ones)
        add("kmodgate_policy_info", instance, f'policy="{ENFORCE}",mode="{mode}"', ones)
        add("kmodgate_loaded_modules", instance, 'signature="trusted_signature"', [90.0] * minutes)
    rising: list[float | None] = [float(5 * (minute > 200)) for minute in range(minutes)]
    zeros: list[float | None] = [0.0] * minutes
    add("kmodgate_module_loads_total", "10.0.0.1:9464", loads("would_deny", "unsigned"), rising)
    add("kmodgate_module_loads_total", "10.0.0.1:9464", loads("allow", "trusted_signature"), rising)
    add("kmodgate_module_loads_total", "10.0.0.2:9464", loads("would_deny", "unsigned"), zeros)
    add("kmodgate_module_loads_total", "10.0.0.3:9464", loads("would_deny", "no_file"), rising)
    add("kmodgate_module_loads_total", "10.0.0.3:9464", loads("would_deny", "unsigned"), zeros)
    add("kmodgate_module_loads_total", "10.0.0.4:9464", loads("deny", "untrusted_signer"), rising)
    add("kmodgate_events_suppressed_total", "10.0.0.1:9464", 'verdict="would_deny",reason="unsigned"', rising)
    text = []
    for name, lines in families.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        text += [f"# TYPE {name.removesuffix('_total')} {kind}", *lines]
    return "\n".join([*text, "# EOF", ""])


def _need(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed; run: sudo make deps")
        pytest.skip(f"{program} is not installed; run: sudo make deps")
    return path


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("prometheus")
    program, tool = _need("prometheus"), _need("promtool")
    (folder / "fleet.om").write_text(fleet())
    (folder / "prometheus.yml").write_text("{}\n")
    (folder / "data").mkdir()
    made = subprocess.run(
        [tool, "tsdb", "create-blocks-from", "openmetrics", folder / "fleet.om", folder / "data"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert made.returncode == 0, made.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                "--storage.tsdb.retention.time=100y",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        deadline = time.monotonic() + 120
        while not _ready(url):
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def _ready(url: str) -> bool:
    try:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
        connection.request("GET", "/-/ready")
        return connection.getresponse().status == 200
    except OSError:
        return False


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kmodgate", "fleet", "report", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


AT = ("--at", "2026-03-08T09:00:00Z", "--window", "5h")
EVENT = {
    "event": "module_load",
    "schema": 1,
    "sequence": 1,
    "time": "2026-03-08T07:00:00.000000Z",
    "node": "gpu-1",
    "pool": "gpu",
    "verdict": "would_deny",
    "reason": "unsigned",
    "module": "vendor",
    "signer": {"subject": "CN=Vendor"},
    "sha256": "ab" * 32,
    "pod": {"uid": "u", "namespace": "drivers", "name": "loader-0", "owner": None},
}


def test_a_fleet_by_a_real_prometheus(prometheus: str) -> None:
    done = run("--prometheus", prometheus, *AT, "--events", "-", "--output", "json", stdin=json.dumps(EVENT))
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    pools = {pool["pool"]: pool for pool in document["pools"]}
    assert {name: pool["answer"] for name, pool in pools.items()} == {
        "": "go",
        "gpu": "no_go",
        "old": "enforced",
    }
    assert [node["node"] for node in pools["gpu"]["nodes"]] == ["gpu-1", "gpu-2"]
    assert all(node["coverage"] > 0.98 for pool in pools.values() for node in pool["nodes"])
    (counted,) = pools["gpu"]["counted"]
    assert (counted["reason"], counted["count"]) == ("unsigned", 5)
    told, untold = pools["gpu"]["refusals"]
    assert (told["module"], told["signer"], told["pods"]) == ("vendor", "CN=Vendor", ["drivers/Pod/loader-0"])
    assert untold["counted_only"]
    assert (told["count"], untold["count"]) == (1, 4)
    assert [line["reason"] for line in pools["old"]["refusals"]] == ["untrusted_signer"]
    assert "left out of the logs" in document["warnings"][0]


def test_the_page_for_people(prometheus: str) -> None:
    done = run("--prometheus", prometheus, *AT, "--events", "-", stdin=json.dumps(EVENT))
    assert done.returncode == 1
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["old", "enforced", "1"] in [row[:3] for row in rows]
    assert ["gpu", "no-go", "2"] in [row[:3] for row in rows]
    assert "vendor" in done.stdout
    assert "drivers/Pod/loader-0" in done.stdout


def test_a_selector_and_a_short_window(prometheus: str) -> None:
    chosen = ("--selector", 'instance=~"10.0.0.(3|4):9464"')
    done = run("--prometheus", prometheus, *AT, *chosen, "--output", "csv")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[1].startswith(",go,1,")
    late = run("--prometheus", prometheus, "--at", "2026-03-08T09:00:00Z", "--window", "2w")
    assert late.returncode == 1
    assert "less than 90% of the time" in late.stdout


def test_nothing_seen_is_no_go(prometheus: str) -> None:
    done = run("--prometheus", prometheus, "--at", "2020-01-01T00:00:00Z")
    assert done.returncode == 1
    assert "has seen no node" in done.stdout


def test_a_node_that_went_away(prometheus: str) -> None:
    done = run(
        "--prometheus", prometheus, "--at", "2026-03-08T09:30:00Z", "--window", "1h", "--output", "json"
    )
    (first, *_) = json.loads(done.stdout)["pools"]
    assert "were seen and are not now" in first["why"][0]
    assert first["nodes"][0]["node"] == "cpu-1"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--prometheus", "ftp://x"), "no URL"),
        (("--prometheus", "http://x:99999"), "no URL"),
        (("--prometheus", "http://127.0.0.1", "--window", "7"), "no window"),
        (("--prometheus", "http://127.0.0.1", "--window", "2000w"), "no window"),
        (("--prometheus", "http://127.0.0.1", "--at", "yesterday"), "no time"),
        (("--prometheus", "http://127.0.0.1", "--at", "2026-01-01T00:00:00"), "no time"),
        ((), "--prometheus"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], says: str) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_log_that_is_not_there(prometheus: str, tmp_path: Path) -> None:
    done = run("--prometheus", prometheus, "--events", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "no such file" in done.stderr


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = run("--prometheus", f"http://127.0.0.1:{unused.getsockname()[1]}")
    assert done.returncode == 3
    assert "cannot be asked" in done.stderr


VECTOR = b'{"status":"success","data":{"resultType":"vector","result":%s}}'


def answering(status: int, body: bytes) -> Iterator[str]:
    class Mock(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Mock)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>"),
        (200, b"[]"),
        (200, b"[" * 100_000),
        (200, b'{"status":"success"}'),
        (200, b'{"status":"success","data":{"resultType":"matrix","result":[]}}'),
        (
            200,
            b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{"a":1},"value":[1,"1"]}]}}',
        ),
        (
            200,
            b'{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"value":[1,"x"]}]}}',
        ),
        (200, b'{"status":"success","data":{"resultType":"vector","result":7}}'),
        (400, b'{"status":"error","error":"bad \\u001b[2J query"}'),
        (302, b""),
    ],
)
def test_a_server_that_is_no_prometheus(status: int, body: bytes) -> None:
    for url in answering(status, body):
        with pytest.raises(PrometheusError) as caught:
            Prometheus(url).query("up", 0)
        assert str(caught.value).isprintable()


def test_numbers_that_are_none_are_left_out() -> None:
    result: list[Any] = [{"metric": {"a": "b"}, "value": [1, text]} for text in ("NaN", "+Inf", "2")]
    body = json.dumps({"status": "success", "data": {"resultType": "vector", "result": result}}).encode()
    for url in answering(200, body):
        assert [sample.value for sample in Prometheus(url).query("up", 0)] == [float("inf"), 2.0]


def test_a_token_is_never_sent_in_the_clear(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret\n")
    with pytest.raises(InputError, match="https"):
        Prometheus("http://prometheus.example", token=token)
    Prometheus("https://prometheus.example", token=token)
    token.write_text("two words")
    with pytest.raises(InputError, match="no token"):
        Prometheus("https://prometheus.example", token=token)
