# SPDX-License-Identifier: Apache-2.0
"""Event lines as an OTLP ``ExportLogsServiceRequest`` in JSON. Pure.

opentelemetry-proto, ``collector/logs/v1`` and ``logs/v1``; JSON as in the OTLP specification:
names in lowerCamelCase, enums as numbers, 64-bit integers as strings. The body of a record is
the line itself, so what reads the log from a file reads it from here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from kmodgate import __version__

# SeverityNumber of logs.proto.
_INFO, _WARN, _ERROR = 9, 13, 17
_SEVERITY: Final = {_INFO: "INFO", _WARN: "WARN", _ERROR: "ERROR"}
_BY_VERDICT: Final = {"allow": _INFO, "would_deny": _WARN, "deny": _ERROR}

# What backends index; everything else is in the body. Names of the semantic conventions where
# these have one.
_ATTRIBUTES: Final = (
    ("kmodgate.verdict", ("verdict",)),
    ("kmodgate.reason", ("reason",)),
    ("kmodgate.mode", ("mode",)),
    ("kmodgate.by", ("by",)),
    ("kmodgate.module", ("module",)),
    ("kmodgate.sequence", ("sequence",)),
    ("file.path", ("path",)),
    ("process.pid", ("pid",)),
    ("process.executable.path", ("exe",)),
    ("container.id", ("container_id",)),
    ("k8s.pod.uid", ("pod", "uid")),
    ("k8s.pod.name", ("pod", "name")),
    ("k8s.namespace.name", ("pod", "namespace")),
)


def export_request(lines: Sequence[bytes], *, observed_ns: int, node: str | None = None) -> bytes:
    """The body of one request.

    Args:
        lines: of the event log.
        observed_ns: Unix time in nanoseconds at which they are sent.
        node: Kubernetes name of the node.
    """
    resource = [_attribute("service.name", "kmodgate"), _attribute("service.version", __version__)]
    if node is not None:
        resource.append(_attribute("k8s.node.name", node))
    document = {
        "resourceLogs": [
            {
                "resource": {"attributes": resource},
                "scopeLogs": [
                    {
                        "scope": {"name": "kmodgate.events", "version": __version__},
                        "logRecords": [_record(line, observed_ns) for line in lines],
                    }
                ],
            }
        ]
    }
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def rejected(answer: bytes) -> tuple[int, str]:
    """How many records the receiver took and threw away, and why (``partial_success``).

    An answer that says nothing of it, in whatever form, rejected none.
    """
    try:
        partial = json.loads(answer or b"{}").get("partialSuccess") or {}
        return max(0, int(partial.get("rejectedLogRecords") or 0)), str(partial.get("errorMessage") or "")
    except (ValueError, AttributeError, TypeError, RecursionError):
        return 0, ""


def _record(line: bytes, observed_ns: int) -> dict[str, Any]:
    event: Mapping[str, Any] = json.loads(line)
    severity = _BY_VERDICT.get(event.get("verdict", ""), _WARN)
    name = f"kmodgate.{event['event']}"
    attributes = [_attribute("event.name", name)]
    for key, path in _ATTRIBUTES:
        value: Any = event
        for part in path:
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            attributes.append(_attribute(key, value))
    return {
        "timeUnixNano": str(_nanoseconds(event["time"])),
        "observedTimeUnixNano": str(observed_ns),
        "severityNumber": severity,
        "severityText": _SEVERITY[severity],
        "eventName": name,
        "body": {"stringValue": line.decode("ascii").rstrip("\n")},
        "attributes": attributes,
    }


def _attribute(key: str, value: str | int) -> dict[str, object]:
    typed = {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}
    return {"key": key, "value": typed}


def _nanoseconds(moment: str) -> int:
    """Of ``events.time_value``, without the rounding of a float."""
    parsed = datetime.fromisoformat(moment)
    return int(parsed.replace(microsecond=0).timestamp()) * 1_000_000_000 + parsed.microsecond * 1000
