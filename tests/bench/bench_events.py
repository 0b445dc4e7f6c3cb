# SPDX-License-Identifier: Apache-2.0
"""What a sink more costs the thread that tells an event, and how many events a second arrive.

The event log with stdout alone (to a file) is the baseline; then with a file sink; then with a
file sink, a collector on the loopback that takes everything, and a follower of the socket. The
flood limit, which lets 20 events a second through, is off. Rounds alternate; the least of each counts.
The collector and the follower run in processes of their own; the sinks' threads share the
interpreter with the thread that is measured, as they do in the agent.

Usage: ``bench_events.py [--events N] [--rounds N]``
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from kmodgate.config import EventSinks, FileSinkConfig, OtlpSinkConfig
from kmodgate.local.place import Listening
from kmodgate.model import Api, By, LoadEvent, Mode, Origin, Policy, Reason, Signer, Verdict
from kmodgate.outlets import Outlets

BURST = 100
EVENT = LoadEvent(
    time=datetime.now(UTC),
    verdict=Verdict.DENY,
    reason=Reason.UNTRUSTED_SIGNER,
    by=By.KMODGATE,
    mode=Mode.ENFORCE,
    policy=Policy.ENFORCE,
    api=Api.FINIT_MODULE,
    origin=Origin.OTHER_FILESYSTEM,
    errno=129,
    result=-129,
    path="/run/driver/vendor_driver.ko",
    file_system="tmpfs",
    device=(0, 42),
    inode=1187,
    size=123456,
    sha256="ab" * 32,
    module="vendor_driver",
    signer=Signer(issuer="CN=Vendor Build Key", serial="4f1c"),
    pid=4711,
    comm="insmod",
    exe="/usr/bin/kmod",
    uid=0,
)
RECEIVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


@dataclass
class Cost:
    """Of one event: seconds of the telling thread's CPU, of its time, and until all sinks had it."""

    cpu: float = float("inf")
    wall: float = float("inf")
    whole: float = float("inf")

    def least(self, other: Cost) -> None:
        """Keep the smaller ones."""
        self.cpu, self.wall = min(self.cpu, other.cpu), min(self.wall, other.wall)
        self.whole = min(self.whole, other.whole)


@contextmanager
def process(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A helper that ends with the block."""
    child = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def measure(sinks: int, events: int, folder: Path) -> Cost:
    """One round with that many sinks beside stdout."""
    with ExitStack() as stack:
        stream = stack.enter_context((folder / "stdout").open("wb"))
        outlets = stack.enter_context(Outlets(stream))
        outlets.log._flood.allow = lambda *_: True  # type: ignore[method-assign]  # what is measured lies behind it
        file = FileSinkConfig(folder / "events.jsonl") if sinks else None
        otlp, follower = None, None
        if sinks > 1:
            receiver = stack.enter_context(process("-c", RECEIVER))
            assert receiver.stdout is not None
            otlp = OtlpSinkConfig("127.0.0.1", int(receiver.stdout.readline()), "/v1/logs", tls=False)
            socket = folder / "run/agent.sock"
            outlets.serve(dict, lambda: Listening(socket))
            follow = ("-m", "kmodgate", "events", "--follow", "--socket", str(socket))
            follower = stack.enter_context(process(*follow))
        outlets.configure(EventSinks(file, otlp))
        outlets.log.write(EVENT)  # everything is imported, opened and connected
        settle(outlets, 1)
        if follower is not None:
            assert follower.stdout is not None
            follower.stdout.readline()
        cpu = wall = 0.0
        begin = time.perf_counter()
        for done in range(0, events, BURST):
            start, used = time.perf_counter(), time.thread_time()
            for _ in range(BURST):
                outlets.log.write(EVENT)
            cpu += time.thread_time() - used
            wall += time.perf_counter() - start
            settle(outlets, 1 + done + BURST)
            if follower is not None:
                assert follower.stdout is not None
                for _ in range(BURST):
                    follower.stdout.readline()
        whole = time.perf_counter() - begin
        for name, counts in outlets.counts().items():
            if any(counts.dropped.values()):
                sys.exit(f"{name} dropped events: {counts}")
    return Cost(cpu / events, wall / events, whole / events)


def settle(outlets: Outlets, expected: int) -> None:
    """Until every sink has had them all."""
    while any(counts.sent < expected for counts in outlets.counts().values()):
        time.sleep(0.0005)


def main() -> None:
    """Measure, print a table."""
    parser = argparse.ArgumentParser(description="Cost of event sinks.")
    parser.add_argument("--events", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    costs = {sinks: Cost() for sinks in (0, 1, 3)}
    for _ in range(options.rounds):
        for sinks, cost in costs.items():
            with tempfile.TemporaryDirectory(prefix="kmodgate-bench-") as name:
                Path(name).chmod(0o700)
                cost.least(measure(sinks, options.events // BURST * BURST, Path(name)))
    base = costs[0]
    print(
        "| sinks beside stdout | CPU of the telling thread, µs | ÷ none | its time, µs | ÷ none | events/s |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    names = {0: "none", 1: "file", 3: "file, collector, follower"}
    for sinks, cost in costs.items():
        print(
            f"| {names[sinks]} | {cost.cpu * 1e6:.1f} | {cost.cpu / base.cpu:.2f} "
            f"| {cost.wall * 1e6:.1f} | {cost.wall / base.wall:.2f} | {1 / cost.whole:,.0f} |"
        )


if __name__ == "__main__":
    main()
