# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus and a real Alertmanager on loopback, over the synthetic fleet."""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.monitoring import fleet
from tests.rules.parts import ROOT, debian_program

SCRAPE = 5
WEEK_HOURS = 8 * 24


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, found: Callable[[], Any], seconds: float = 240) -> Any:
    """The first thing found that is not empty."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, urllib.error.URLError):
            if value := found():
                return value
        assert time.monotonic() < end, f"{what} did not come in {seconds:.0f} s"
        time.sleep(0.5)


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    port: int

    def get(self, path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:  # loopback
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[Any]:
        result = self.get("query", query=expression)["result"]
        assert isinstance(result, list)
        return result


class Webhook:
    """Takes what Alertmanager sends, with the moment it came."""

    def __init__(self) -> None:
        came: queue.Queue[tuple[float, dict[str, Any]]] = queue.Queue()
        self.came = came

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                for alert in body["alerts"]:
                    came.put((time.monotonic(), alert))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class's name
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever)

    @contextlib.contextmanager
    def serving(self) -> Iterator[Webhook]:
        self.thread.start()
        try:
            yield self
        finally:
            self.server.shutdown()
            self.thread.join()
            self.server.server_close()


@contextlib.contextmanager
def daemon(*command: str | Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.terminate()


def write_week(folder: Path) -> Path:
    """A week of what Prometheus would have recorded of the pool ``batch``; synthetic, like the pool."""
    now = int(datetime.now(UTC).timestamp()) // 3600 * 3600
    moments = [now - 3600 * hour for hour in range(WEEK_HOURS, 0, -1)]
    text = []
    for name, value in (("pool:kmodgate_nodes_audit:count", 10), ("pool:kmodgate_would_deny:increase1h", 0)):
        text += [f"# TYPE {name} gauge", *(f'{name}{{pool="batch"}} {value} {moment}' for moment in moments)]
    source = folder / "week.txt"
    source.write_text("\n".join([*text, "# EOF"]) + "\n")
    return source


@contextlib.contextmanager
def prometheus(folder: Path, config: str, *options: str, week: bool = False) -> Iterator[Prometheus]:
    """A Prometheus with this config, ready."""
    data, port = folder / "data", free_port()
    if week:
        command: list[str | Path] = [
            debian_program("promtool"),
            "tsdb",
            "create-blocks-from",
            "openmetrics",
            write_week(folder),
            data,
        ]
        subprocess.run(command, check=True, capture_output=True)
    (folder / "prometheus.yml").write_text(config)
    arguments = [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={data}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
        *options,
    ]
    log = folder / "prometheus.log"
    with daemon(debian_program("prometheus"), *arguments, log=log) as process:
        running = Prometheus(port)

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/-/ready", timeout=5) as answer:  # the same
                return bool(answer.status == 200)

        wait_for("Prometheus", ready)
        yield running


@contextlib.contextmanager
def alertmanager(folder: Path, webhook: int) -> Iterator[int]:
    """An Alertmanager that sends everything to a webhook; its port."""
    port = free_port()
    (folder / "alertmanager.yml").write_text(
        "route: {receiver: hook, group_by: [alertname, instance], group_wait: 1s, group_interval: 5s}\n"
        f"receivers: [{{name: hook, webhook_configs: [{{url: 'http://127.0.0.1:{webhook}/'}}]}}]\n"
    )
    arguments = [
        f"--config.file={folder / 'alertmanager.yml'}",
        f"--storage.path={folder / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--cluster.listen-address=",
    ]
    with daemon(debian_program("prometheus-alertmanager"), *arguments, log=folder / "alertmanager.log"):
        yield port


@dataclass(frozen=True)
class Monitored:
    """The fleet with everything around it."""

    prometheus: Prometheus
    webhook: Webhook


@pytest.fixture(scope="session")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    folder = tmp_path_factory.mktemp("monitored")
    with contextlib.ExitStack() as stack:
        webhook = stack.enter_context(Webhook().serving())
        receiver = stack.enter_context(alertmanager(folder, webhook.port))
        targets, kube = stack.enter_context(fleet.running(folder / "events.json"))
        config = fleet.scrape_config(
            targets,
            kube,
            interval=f"{SCRAPE}s",
            rules=str(ROOT / "helm/kmodgate/rules/*.yaml"),
            alertmanager=receiver,
        )
        server = stack.enter_context(prometheus(folder, config, week=True))
        yield Monitored(server, webhook)
