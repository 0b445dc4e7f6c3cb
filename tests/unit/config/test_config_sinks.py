# SPDX-License-Identifier: Apache-2.0
"""``kmodgate.eventSinks``: what it means, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from kmodgate.config import EventSinks, FileSinkConfig, OtlpSinkConfig, parse
from kmodgate.errors import ConfigError


def read(sinks: Any) -> EventSinks:
    text = json.dumps({"kmodgate": {"eventSinks": sinks}})
    return parse(text.encode(), source="node.yaml", directory=Path("/etc/kmodgate")).event_sinks


def test_none_by_default() -> None:
    assert parse(b"kmodgate: {}", source="x").event_sinks == EventSinks()
    assert read({}) == EventSinks()


def test_a_file() -> None:
    assert read({"file": {"path": "/var/log/e.jsonl"}}).file == FileSinkConfig(
        Path("/var/log/e.jsonl"), 16 << 20, 5
    )
    whole = {"path": "/e", "maxSize": "2MiB", "maxFiles": 1}
    assert read({"file": whole}).file == FileSinkConfig(Path("/e"), 2 << 20, 1)


@pytest.mark.parametrize(
    ("endpoint", "expected", "shown"),
    [
        ("http://127.0.0.1:4318/v1/logs", ("127.0.0.1", 4318, "/v1/logs", False), None),
        ("http://collector", ("collector", 80, "/v1/logs", False), "http://collector:80/v1/logs"),
        ("https://c.example/", ("c.example", 443, "/v1/logs", True), "https://c.example:443/v1/logs"),
        ("https://[::1]:4318/otlp/logs", ("::1", 4318, "/otlp/logs", True), None),
    ],
)
def test_a_collector(endpoint: str, expected: tuple[str, int, str, bool], shown: str | None) -> None:
    found = read({"otlp": {"endpoint": endpoint}}).otlp
    assert found == OtlpSinkConfig(*expected)
    assert found.endpoint == (shown or endpoint)


def test_a_collector_with_all_keys() -> None:
    keys = {
        "endpoint": "https://c",
        "caCertificate": "ca.pem",
        "clientCertificate": "client.pem",
        "clientKey": "/run/key.pem",
        "bearerTokenFile": "/run/t",
        "timeout": "1.5s",
    }
    found = read({"otlp": keys}).otlp
    assert found == OtlpSinkConfig(
        "c",
        443,
        "/v1/logs",
        True,
        Path("/etc/kmodgate/ca.pem"),
        Path("/run/t"),
        1.5,
        Path("/etc/kmodgate/client.pem"),
        Path("/run/key.pem"),
    )


def test_a_token_may_go_to_this_very_machine_in_clear_text() -> None:
    for host in ("localhost", "127.0.0.5", "[::1]"):
        assert read({"otlp": {"endpoint": f"http://{host}:1", "bearerTokenFile": "t"}}).otlp is not None


@pytest.mark.parametrize(
    ("sinks", "says"),
    [
        ({"syslog": {}}, "unknown key 'syslog'"),
        ({"file": {}}, "path"),
        ({"file": {"path": "events.jsonl"}}, "absolute path"),
        ({"file": {"path": "/"}}, "absolute path"),
        ({"file": {"path": "/var/.."}}, "absolute path"),
        ({"file": {"path": "/e", "maxSize": "1KiB"}}, "out of range 1MiB to 1GiB"),
        ({"file": {"path": "/e", "maxSize": "2GiB"}}, "out of range 1MiB to 1GiB"),
        ({"file": {"path": "/e", "maxFiles": 0}}, "from 1 to 100"),
        ({"file": {"path": "/e", "maxFiles": True}}, "from 1 to 100"),
        ({"file": {"path": "/e", "compress": True}}, "unknown key 'compress'"),
        ({"otlp": {}}, "endpoint"),
        ({"otlp": {"endpoint": 7}}, "must be a URL"),
        ({"otlp": {"endpoint": "127.0.0.1:4318"}}, "is no URL"),
        ({"otlp": {"endpoint": "ftp://c"}}, "is no URL"),
        ({"otlp": {"endpoint": "http://user:secret@c"}}, "is no URL"),
        ({"otlp": {"endpoint": "http://c/?token=secret"}}, "is no URL"),
        ({"otlp": {"endpoint": "http://c/\r\nX: y"}}, "is no URL"),
        ({"otlp": {"endpoint": "http://c:0"}}, "port 0"),
        ({"otlp": {"endpoint": "http://c:70000"}}, "above 65535"),
        ({"otlp": {"endpoint": "http://300.1.1.1"}}, "neither an address nor a host name"),
        ({"otlp": {"endpoint": "http://c", "timeout": "0"}}, "must not be 0"),
        ({"otlp": {"endpoint": "http://c", "timeout": "2m"}}, "too long: at most 60s"),
        ({"otlp": {"endpoint": "http://c", "timeout": 5}}, "must be a duration"),
        ({"otlp": {"endpoint": "http://c", "bearerTokenFile": "t"}}, "clear text; write https"),
        ({"otlp": {"endpoint": "http://127.0.0.1", "caCertificate": "c"}}, "checks nothing over http"),
        ({"otlp": {"endpoint": "https://c", "clientCertificate": "c"}}, "go together"),
        ({"otlp": {"endpoint": "https://c", "clientKey": "k"}}, "go together"),
        (
            {"otlp": {"endpoint": "http://127.0.0.1", "clientCertificate": "c", "clientKey": "k"}},
            "is shown to nobody over http",
        ),
    ],
)
def test_what_is_refused(sinks: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=r"^node\.yaml:1: ") as caught:
        read(sinks)
    assert says in str(caught.value)


def test_a_node_pool_has_no_sinks_of_its_own() -> None:
    pool = {"name": "a", "matchLabels": {"a": "b"}, "eventSinks": {}}
    with pytest.raises(ConfigError, match="unknown key 'eventSinks'"):
        parse(json.dumps({"kmodgate": {"nodePools": [pool]}}).encode(), source="node.yaml")
