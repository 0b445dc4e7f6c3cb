# SPDX-License-Identifier: Apache-2.0
"""``kmodgate status``, ``kmodgate events`` and the event sinks, around refusals that are real."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.vm import lab, schema

SOCKET = Path("/run/kmodgate/agent.sock")


def kmodgate(*arguments: str, user: int | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["kmodgate", *arguments], capture_output=True, text=True, check=False, user=user, timeout=120
    )


def status() -> dict[str, Any]:
    done = kmodgate("status", "--output", "json")
    assert done.returncode in {0, 1}, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    schema.check_status(report)
    return report


@contextmanager
def following(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        ["kmodgate", "events", "--follow", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def unsigned(work: Path, name: str) -> Path:
    """An unsigned module that nobody has seen before."""
    path = work / name
    path.write_bytes((work / "kmgtest.unsigned.ko").read_bytes() + os.urandom(16))
    return path


def test_status_tells_a_refusal(agent: lab.Agent, work: Path) -> None:
    before = status()
    assert lab.finit(unsigned(work, "told.ko")).result == "EKEYREJECTED"
    event = agent.next_event()
    report = status()
    assert report["as_asked"] is True
    assert report["problem"] is None
    assert report["agent"]["pid"] == agent.pid
    assert report["policy"]["policy"] == lab.ENFORCE
    assert report["source"]["config"] == str(agent.config_path)
    assert report["denials"][0] == event
    counted = [
        row for row in report["loads"] if row["verdict"] == "deny" and row["reason"] == event["reason"]
    ]
    earlier = [
        row for row in before["loads"] if row["verdict"] == "deny" and row["reason"] == event["reason"]
    ]
    assert sum(row["count"] for row in counted) == sum(row["count"] for row in earlier) + 1
    assert sum(report["loaded_modules"].values()) > 0
    done = kmodgate("status")
    assert done.returncode == 0, done.stderr
    assert f"enforcing {lab.ENFORCE} since " in done.stdout
    assert "LAST REFUSALS" in done.stdout
    assert "TRUST ANCHOR" in done.stdout or report["trust"]["count"] == 0


def test_events_are_followed_around_insmod(agent: lab.Agent, work: Path) -> None:
    """And how long it takes from the first hook to stdout and to a follower: told, not judged."""
    assert lab.finit(unsigned(work, "before.ko")).result == "EKEYREJECTED"
    agent.next_event()
    to_stdout, to_follower = list[float](), list[float]()
    with following("--last", "1", "--verdict", "deny") as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["path"] == str(work / "before.ko")
        for number in range(8):
            path = unsigned(work, f"followed-{number}.ko")
            seen = dict[str, float]()
            watching = threading.Thread(target=watch_stdout, args=(agent, path, seen))
            watching.start()
            code, says = lab.insmod(path)
            assert code == 1
            assert "Key was rejected by service" in says
            event = json.loads(child.stdout.readline())
            got = time.time()
            watching.join(60)
            schema.check(event)
            assert event == agent.next_event()
            assert event["path"] == str(path)
            happened = datetime.fromisoformat(event["time"]).timestamp()
            to_stdout.append(seen["at"] - happened)
            to_follower.append(got - happened)
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
    told = {
        "hook_to_stdout_ms": figures(to_stdout),
        "hook_to_follower_ms": figures(to_follower),
    }
    print(f"\nlatency of an event: {json.dumps(told)}", file=sys.stderr, flush=True)
    if Path("/share").is_dir():
        Path("/share/latency.json").write_text(json.dumps(told))
    assert max(to_follower) < 20


def watch_stdout(agent: lab.Agent, path: Path, seen: dict[str, float]) -> None:
    """When the agent's stdout had a line that names the file."""
    wanted, deadline = f'"{path}"'.encode(), time.monotonic() + 30
    with (agent.config_path.parent / "events.jsonl").open("rb") as log:
        log.seek(0, os.SEEK_END)
        while time.monotonic() < deadline:
            text = log.read()
            if wanted in text:
                seen["at"] = time.time()
                return
            time.sleep(0.001)


def figures(seconds: list[float]) -> dict[str, float]:
    inside = [value * 1e3 for value in seconds]
    return {"median": round(statistics.median(inside), 1), "worst": round(max(inside), 1)}


def test_clients_that_read_nothing_hold_up_no_load(agent: lab.Agent, work: Path) -> None:
    with ExitStack() as stack:
        for _ in range(8):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.connect(str(SOCKET))
            client.sendall(b'{"kmodgate":1,"ask":"events","follow":true}\n')
        for number in range(5):
            assert lab.finit(unsigned(work, f"stuck-{number}.ko")).result == "EKEYREJECTED"
        done = kmodgate("status")
        assert done.returncode == 0, done.stderr
        refused = kmodgate("events", "--follow")
        assert refused.returncode == 3
        assert "too many clients" in refused.stderr
    agent.mark()


def test_only_root_may_ask(agent: lab.Agent) -> None:
    assert SOCKET.stat().st_mode & 0o777 == 0o600
    assert SOCKET.parent.stat().st_mode & 0o022 == 0
    done = kmodgate("status", user=65534)
    assert done.returncode == 3
    assert "only root may ask the agent" in done.stderr
    assert agent.process is not None


def test_audit_is_as_asked_and_a_bad_edit_is_told(agent: lab.Agent) -> None:
    agent.configure(lab.config(lab.ENFORCE, mode="audit"))
    done = kmodgate("status")
    assert done.returncode == 0
    assert f"auditing {lab.ENFORCE} since " in done.stdout
    agent.rewrite("kmodgate: {mod: audit}\n")
    agent.wait_for(lambda: status()["config"]["error"] is not None, "report of the bad edit")
    report = status()
    assert "unknown key 'mod'" in report["config"]["error"]
    assert report["policy"]["mode"] == "audit"
    assert report["as_asked"] is True


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP and remembers the bodies of the records."""

    protocol_version = "HTTP/1.1"
    lines: list[str]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for resource in body["resourceLogs"]:
            for scope in resource["scopeLogs"]:
                self.lines += [record["body"]["stringValue"] for record in scope["logRecords"]]
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
        pass


@pytest.fixture
def collector() -> Iterator[tuple[int, list[str]]]:
    lines: list[str] = []
    handler = type("Here", (Collector,), {"lines": lines})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], lines
        server.shutdown()
        thread.join()


def test_file_and_collector_get_what_stdout_gets(
    agent: lab.Agent, work: Path, tmp_path: Path, collector: tuple[int, list[str]]
) -> None:
    port, lines = collector
    file = tmp_path / "events.jsonl"
    sinks = {"file": {"path": str(file)}, "otlp": {"endpoint": f"http://127.0.0.1:{port}"}}
    agent.configure(lab.config(lab.ENFORCE, eventSinks=sinks))
    agent.mark()
    assert lab.finit(unsigned(work, "sunk.ko")).result == "EKEYREJECTED"
    event = agent.next_event()
    agent.wait_for(lambda: file.exists() and file.read_bytes().endswith(b"\n"), "line in the file")
    agent.wait_for(lambda: bool(lines), "record at the collector", 60)
    assert [json.loads(line) for line in file.read_text().splitlines()] == [event]
    assert [json.loads(line) for line in lines] == [event]

    moved = file.rename(tmp_path / "moved")
    assert agent.process is not None
    agent.process.send_signal(signal.SIGHUP)
    assert lab.finit(unsigned(work, "sunk-again.ko")).result == "EKEYREJECTED"
    event = agent.next_event()
    agent.wait_for(lambda: file.exists() and file.read_bytes().endswith(b"\n"), "line in the new file")
    assert json.loads(file.read_text()) == event
    assert len(moved.read_text().splitlines()) == 1
    agent.wait_for(lambda: len(lines) == 2, "second record at the collector", 60)

    found = {sink["sink"]: sink for sink in status()["events"]["sinks"]}
    assert (found["file"]["sent"], found["otlp"]["sent"]) == (2, 2)
    samples = lab.metrics()
    for name in ("file", "otlp"):
        assert samples[f'kmodgate_event_sink_sent_total{{sink="{name}"}}'] == 2
        assert samples[f'kmodgate_event_sink_dropped_total{{cause="queue_full",sink="{name}"}}'] == 0


def test_a_killed_agent_and_its_successor(agent: lab.Agent, work: Path) -> None:
    with following("--last", "0") as child:
        agent.wait_for(lambda: followers() > 0, "follower")
        agent.kill()
        _, says = child.communicate(timeout=60)
        assert child.returncode == 3
        assert "the agent ended before it had answered" in says
    assert SOCKET.exists()  # left behind
    done = kmodgate("status")
    assert done.returncode == 3
    assert "the agent that made this socket runs no more" in done.stderr
    assert lab.finit(unsigned(work, "orphan.ko")).result == "EKEYREJECTED"  # enforced all the same
    agent.start(lab.config(lab.ENFORCE))
    agent.wait_for(lambda: kmodgate("status").returncode == 0, "status of the new agent")
    assert status()["agent"]["pid"] == agent.pid


def followers() -> int:
    """Connections at the agent's end: 03 is SS_CONNECTED (linux/net.h), the name that of bind(2)."""
    lines = Path("/proc/net/unix").read_text().splitlines()
    return sum(f".{SOCKET.name}.new" in line for line in lines if " 03 " in line)
