# SPDX-License-Identifier: Apache-2.0
"""What one scrape costs: the agent's metrics over the smallest page that the same client library can make.

On one core, in processor time, rounds interleaved:

* floor: a registry of its own with one family of as many samples, encoded as OpenMetrics;
* collect: what the agent reads and puts together;
* encode: that, as OpenMetrics text;
* scrape: all of it over HTTP, both ends in this process.

Usage: ``bench_scrape.py [--scrapes N] [--rounds N]``
"""

from __future__ import annotations

import argparse
import os
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest
from tests.monitoring.fleet import UNSIGNED, Node

from kmodgate.telemetry.http import TelemetryServer

ACCEPT = "application/openmetrics-text;version=1.0.0"


class Floor:
    """One family with so many samples, values ready."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The family."""
        family = GaugeMetricFamily("floor", "Samples.", labels=["number"])
        for number in range(self._samples):
            family.add_metric([str(number)], number)
        yield family


def encode(registry: CollectorRegistry) -> bytes:
    """As OpenMetrics."""
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]  # no types there
    return text


def spent(work: Callable[[], object], times: int) -> float:
    """Seconds of processor time that one takes, all threads of the process."""
    start = time.process_time()
    for _ in range(times):
        work()
    return (time.process_time() - start) / times


def main() -> None:
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description="Cost of a scrape.")
    parser.add_argument("--scrapes", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with Path(os.devnull).open("wb", buffering=0) as nowhere:
        node = Node("synthetic-gpu-000", "gpu", None, nowhere)
        for _ in range(1000):
            node.load(UNSIGNED, hold=5_000_000)
        page = encode(node.metrics.registry).decode()
        samples = sum(not line.startswith("#") for line in page.splitlines())
        floor = CollectorRegistry()
        floor.register(Floor(samples))
        with TelemetryServer("127.0.0.1", 0, registry=node.metrics.registry) as server:
            request = urllib.request.Request(  # loopback
                f"http://127.0.0.1:{server.port}/metrics", headers={"Accept": ACCEPT}
            )

            def scrape() -> None:
                with urllib.request.urlopen(request) as answer:  # noqa: S310  # the same
                    answer.read()

            contenders: dict[str, Callable[[], object]] = {
                "floor": lambda: encode(floor),
                "collect": lambda: list(node.metrics.registry.collect()),
                "encode": lambda: encode(node.metrics.registry),
                "scrape": scrape,
            }
            best = dict.fromkeys(contenders, float("inf"))
            for _ in range(options.rounds):
                for name, work in contenders.items():
                    best[name] = min(best[name], spent(work, options.scrapes))
        node.log.close()
    print(f"{samples} samples, {len(page)} bytes; processor time, best of {options.rounds} rounds")
    for name, seconds in best.items():
        print(f"{name:8} {seconds * 1e3:7.3f} ms  {seconds / best['floor']:6.2f} of floor")


if __name__ == "__main__":
    main()
