# SPDX-License-Identifier: Apache-2.0
"""The one table of what each rung can do: complete, in the words of events, and the one in the docs."""

from __future__ import annotations

import json
from pathlib import Path

from kmodgate.hooks.capabilities import CAPABILITIES, page
from kmodgate.hooks.choice import _NEEDS
from kmodgate.rungs import NO_DIGEST, ONLY_WATCHES

ROOT = Path(__file__).parents[3]


def test_every_rung_that_can_be_stood_on_is_there() -> None:
    assert set(CAPABILITIES) == set(_NEEDS)


def test_it_agrees_with_what_is_refused_at_start() -> None:
    for backend, able in CAPABILITIES.items():
        assert able.refuses is (backend not in ONLY_WATCHES)
        assert able.certificates is able.revocations is (backend not in ONLY_WATCHES | NO_DIGEST)


def test_its_fields_are_those_of_events_that_may_be_null() -> None:
    schema = json.loads((ROOT / "agent/kmodgate/telemetry/event.schema.json").read_text())
    properties = schema["$defs"]["module_load"]["properties"]

    def may_be_null(field: str) -> bool:
        shape = json.dumps(properties[field])
        return "null" in shape

    for able in CAPABILITIES.values():
        for field in (*able.unknown, *able.fleeting):
            assert may_be_null(field), field


def test_the_page_is_the_table() -> None:
    assert (ROOT / "docs/capabilities.md").read_text() == page(), "run: make docs"
