# SPDX-License-Identifier: Apache-2.0
"""A real Prometheus scrapes through TLS with a client certificate and a password."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import bcrypt
import pytest
from tests.monitoring.conftest import prometheus, wait_for
from tests.monitoring.fleet import Node
from tests.rules.parts import debian_program

from kmodgate.config import ListenAddress
from kmodgate.webaccess import open_server

RIGHT, WRONG = "open sesame", "open barley"
CONFIG = """\
scrape_configs:
  - job_name: {job}
    scheme: https
    scrape_interval: 1s
    tls_config: {{ca_file: {folder}/ca.pem, server_name: localhost{client}}}
    basic_auth: {{username: prometheus, password: {secret}}}
    static_configs: [{{targets: ['127.0.0.1:{port}']}}]
"""


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A CA, a server's certificate and a client's."""
    ca: list[str | Path] = ["-CA", tmp_path / "ca.pem", "-CAkey", tmp_path / "ca.key"]
    key: list[str | Path] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(
        *("req", "-x509", *key, "-keyout", tmp_path / "ca.key", "-out", tmp_path / "ca.pem"),
        *("-subj", "/CN=a test's CA", "-days", "2"),
    )
    for name in ("server", "client"):
        openssl(
            *(
                "req",
                "-x509",
                *key,
                *ca,
                "-keyout",
                tmp_path / f"{name}.key",
                "-out",
                tmp_path / f"{name}.crt",
            ),
            *("-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost", "-days", "1"),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
        )
    hashed = bcrypt.hashpw(RIGHT.encode(), bcrypt.gensalt(10)).decode()
    (tmp_path / "web.yml").write_text(
        "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
        "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.pem\n"
        f"basic_auth_users:\n  prometheus: {hashed}\n"
    )
    return tmp_path


def test_prometheus_scrapes_behind_tls_and_a_password(folder: Path) -> None:
    with Path(os.devnull).open("wb", buffering=0) as nowhere:
        node = Node("synthetic-gpu-000", "gpu", None, nowhere)
        with open_server(
            ListenAddress("127.0.0.1", 0),
            folder / "web.yml",
            metrics=node.metrics,
            healthy=lambda: None,
            ready=lambda: None,
        ) as server:
            with_key = f", cert_file: {folder}/client.crt, key_file: {folder}/client.key"
            who = {"kmodgate": (RIGHT, with_key), "guesses": (WRONG, with_key), "stranger": (RIGHT, "")}
            jobs = [
                CONFIG.format(job=job, folder=folder, client=certificate, port=server.port, secret=word)
                for job, (word, certificate) in who.items()
            ]
            config = jobs[0] + "".join(job.removeprefix("scrape_configs:\n") for job in jobs[1:])
            with prometheus(folder, config) as running:
                wait_for("a scrape", lambda: running.query('up{job="kmodgate"} == 1'))
                wait_for("a guess", lambda: running.query('up{job="guesses"} == 0'))
                wait_for("a stranger", lambda: running.query('up{job="stranger"} == 0'))
                assert running.query('kmodgate_build_info{job="kmodgate"}')
                reasons = {
                    t["labels"]["job"]: t["lastError"] for t in running.get("targets")["activeTargets"]
                }
                assert "401" in reasons["guesses"]
        node.log.close()


def test_promtool_takes_the_same_file(folder: Path) -> None:
    done = subprocess.run(
        [debian_program("promtool"), "check", "web-config", folder / "web.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
