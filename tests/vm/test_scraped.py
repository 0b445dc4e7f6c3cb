# SPDX-License-Identifier: Apache-2.0
"""From a refused insmod in the VM to a webhook: real Prometheus, scrapes each 15 s, real Alertmanager."""

from __future__ import annotations

import json
import os
import queue
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.monitoring.conftest import Webhook, alertmanager, free_port, prometheus, wait_for
from tests.monitoring.fleet import Target, scrape_config
from tests.rules.parts import ROOT
from tests.vm.boot import need_qemu
from vmtool import VmDied, VmToolError, artifacts
from vmtool.runner import Options, run, to_descriptor

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

SUITE = os.environ.get("KMODGATE_TEST_KERNEL", "bookworm")
LIMIT = 35.0
BOOT = 900.0
PORT = 9464


@contextmanager
def guest(share: Path, port: int) -> Iterator[None]:
    """The machine with its script, on a thread of its own; the script's failure is one of the test."""
    problems: list[str] = []

    def boot() -> None:
        options = Options(suite=SUITE, share=share, network=True, forward={port: PORT}, timeout=1200)
        env = {"KMODGATE_TEST_CERTS": "/share/certs", "KMODGATE_TEST_MODULES": "/testmodules"}
        out, err = to_descriptor(1), to_descriptor(2)
        try:
            done = run(
                ["python3", "/src/tests/vm/scraped_guest.py"], options, stdout=out, stderr=err, env=env
            )
            if done.status:
                problems.append(f"the guest's script ended with {done.status}")
        except (VmDied, VmToolError) as error:
            problems.append(str(error))
        # Nobody waits for what a dead machine would have written.
        for name in ("ready", "denied"):
            (share / name).touch()

    machine = threading.Thread(target=boot, name="guest")
    machine.start()
    try:
        yield
    finally:
        (share / "end").touch()
        machine.join()
    assert not problems


def test_from_a_refusal_to_the_webhook(tmp_path: Path) -> None:
    need_qemu("test-vm")
    share, port = tmp_path / "share", free_port()
    shutil.copytree(artifacts.path("certs", SUITE), share / "certs", ignore=shutil.ignore_patterns("*.key"))
    with Webhook().serving() as webhook, alertmanager(tmp_path, webhook.port) as receiver, guest(share, port):
        wait_for("the agent in the guest", (share / "ready").exists, BOOT)
        config = scrape_config(
            [Target("guest", "vm", port)],
            free_port(),  # there is no cluster beside this node
            interval="15s",
            rules=str(ROOT / "helm/kmodgate/rules/*.yaml"),
            alertmanager=receiver,
        )
        with prometheus(tmp_path, config) as server:
            enforcing = 'count_over_time(kmodgate_enforcing{instance="guest"}[5m]) >= 2'
            wait_for("two scrapes", lambda: server.query(enforcing))
            (share / "go").touch()
            wait_for("the refusal", (share / "denied").exists, 120)
            start = time.monotonic()
            result = json.loads((share / "denied").read_text())
            assert result["status"] != 0
            assert (result["verdict"], result["reason"]) == ("deny", "unsigned")
            while True:
                try:
                    came, alert = webhook.came.get(timeout=LIMIT - (time.monotonic() - start) + 1)
                except queue.Empty:
                    pytest.fail(f"no alert within {LIMIT:.0f} s")
                if alert["labels"]["alertname"] == "KmodgateUntrustedModule":
                    break
    print(
        f"insmod's end to the event on stdout: {result['told_seconds']:.3f} s; "
        f"to the alert at the webhook: {came - start:.1f} s"
    )
    assert alert["labels"]["instance"] == "guest"
    assert alert["labels"]["reason"] == "unsigned"
    assert came - start <= LIMIT
