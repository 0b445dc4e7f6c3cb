# SPDX-License-Identifier: Apache-2.0
"""Checks an event of a real agent against the schema that the package brings along."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

_PACKAGE = Path(__file__).parents[2] / "agent/kmodgate"


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((_PACKAGE / name).read_text()))


def check(record: dict[str, Any]) -> None:
    """AssertionError, with the event, when it is none."""
    _check("telemetry/event.schema.json", record)


def check_status(report: dict[str, Any]) -> None:
    """The same for what ``kmodgate status --output json`` prints."""
    _check("local/status.schema.json", report)
    for denial in report["denials"]:
        check(denial)


def _check(name: str, record: dict[str, Any]) -> None:
    error = jsonschema.exceptions.best_match(_validator(name).iter_errors(record))
    if error is not None:
        raise AssertionError(f"not of {name}: {error.message} at {error.json_path}: {json.dumps(record)}")
