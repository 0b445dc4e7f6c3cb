# SPDX-License-Identifier: Apache-2.0
"""From one refused load to a webhook, scraped each 15 s: a synthetic node, all else real."""

from __future__ import annotations

import os
import queue
import time
from pathlib import Path

import pytest
from tests.monitoring.conftest import Webhook, alertmanager, free_port, prometheus, wait_for
from tests.monitoring.fleet import UNSIGNED, Node, Target, scrape_config
from tests.rules.parts import ROOT

from kmodgate.telemetry.http import TelemetryServer

LIMIT = 35.0


def test_the_first_refusal_is_an_alert_in_time(tmp_path: Path) -> None:
    with Path(os.devnull).open("wb", buffering=0) as nowhere, Webhook().serving() as webhook:
        node = Node("synthetic-gpu-000", "gpu", None, nowhere)
        with (
            TelemetryServer("127.0.0.1", 0, registry=node.metrics.registry) as server,
            alertmanager(tmp_path, webhook.port) as receiver,
        ):
            config = scrape_config(
                [Target(node.name, node.pool, server.port)],
                free_port(),  # there is no cluster beside this node
                interval="15s",
                rules=str(ROOT / "helm/kmodgate/rules/*.yaml"),
                alertmanager=receiver,
            )
            with prometheus(tmp_path, config) as running:
                twice = "count_over_time(kmodgate_enforcing[5m]) >= 2"
                wait_for("two scrapes", lambda: running.query(twice))
                start = time.monotonic()
                node.load(UNSIGNED, hold=4_000_000)
                while True:
                    try:
                        came, alert = webhook.came.get(timeout=max(0.1, start + LIMIT - time.monotonic()))
                    except queue.Empty:
                        pytest.fail(f"no alert within {LIMIT:.0f} s")
                    if alert["labels"]["alertname"] == "KmodgateUntrustedModule":
                        break
        node.log.close()
    print(f"from the refusal to the webhook: {came - start:.1f} s")
    assert alert["labels"]["instance"] == node.name
