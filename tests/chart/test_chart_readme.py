# SPDX-License-Identifier: Apache-2.0
"""The chart's README, its values and its schema speak of the same keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.helm import CHART, PROJECT, Helm
from tests.chart.readme import page, rows


def test_the_readme_is_the_generated_one() -> None:
    assert (CHART / "README.md").read_text() == page(), "run: make docs"


def test_a_key_without_a_description_is_noticed() -> None:
    with pytest.raises(ValueError, match=r"a\.c has no description"):
        list(rows("a:\n  # -- is described\n  b: 1\n  c: 2\n"))


def test_a_described_key_may_hold_anything() -> None:
    text = "# -- first line\n# second line\na:\n  b:\n    - c: 1\nd:\n  # -- inner\n  e: []\n"
    assert [(row.key, row.text) for row in rows(text)] == [("a", "first line second line"), ("d.e", "inner")]


def keys(schema: dict[str, Any], root: dict[str, Any], at: str = "") -> Iterator[str]:
    """Every key that the schema names; what is open or a list is an end."""
    if "$ref" in schema:
        schema = root["definitions"][schema["$ref"].rpartition("/")[2]]
    for name, inner in schema.get("properties", {}).items():
        found = list(keys(inner, root, f"{at}{name}."))
        yield from found or [f"{at}{name}"]


def ends(values: Any, known: set[str], at: str = "") -> Iterator[str]:
    for name, inner in values.items():
        if isinstance(inner, dict) and inner and f"{at}{name}" not in known:
            yield from ends(inner, known, f"{at}{name}.")
        else:
            yield f"{at}{name}"


# What is empty by default, and has keys of its own where it is not.
OPEN = ("affinity.", "seLinuxOptions.", "eventSinks.")


def test_values_and_schema_have_the_same_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    known = set(keys(schema, schema)) - {"global"}
    known -= {key for key in known if key.startswith(OPEN)}
    known |= {name.rstrip(".") for name in OPEN}
    resources = {key for key in ends(values, known) if key.startswith("resources.")}
    assert set(ends(values, known)) - resources == known - {"resources.requests", "resources.limits"}


def objects_in(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if schema.get("type") == "object" and "properties" in schema:
            yield schema
        for inner in schema.values():
            yield from objects_in(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from objects_in(inner)


def test_the_schema_leaves_no_room_for_misspelt_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    found = list(objects_in(schema))
    assert len(found) > 20
    assert all(item["additionalProperties"] is False for item in found)


def test_the_values_on_the_page_are_ones_that_the_chart_takes(newest: Helm, tmp_path: Path) -> None:
    text = (PROJECT / "docs/kubernetes.md").read_text()
    blocks = [block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "nodePools:" in block]
    assert blocks
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.yaml"
        path.write_text(block)
        names = set(re.findall(r"[a-z-]+\.pem", block))
        files = json.dumps(dict.fromkeys(names, "a certificate"))
        assert "nodePools:" in newest.render(path, sets=[f"files={files}"])
    for command in re.findall(r"--set (?:')?([A-Za-z.]+)=", text):
        assert command.split(".")[0] in yaml.safe_load((CHART / "values.yaml").read_text())
