# SPDX-License-Identifier: Apache-2.0
"""Holds the committed dashboards against Grafana's schema, with TypeScript's checker, and their LogQL
against the grammar of Grafana's own editor: no Loki is in Debian, PyPI or npm, so no query is run.

The JSON becomes literals in a TypeScript file that must satisfy ``Dashboard``, and each panel's options and
field options the types of its kind, all from ``@grafana/schema``. A key that the schema lacks is an error.

Usage: ``python -m tests.dashboards.check FOLDER``, with the packages of package.json installed in FOLDER.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from tools.dashboards.__main__ import FOLDER

# Where the schema keeps the options of each kind of panel, and the type of its field options.
KINDS = {
    "stat": ("StatPanelCfg", None),
    "bargauge": ("BarGaugePanelCfg", None),
    "table": ("TablePanelCfg", "FieldConfig"),
    "timeseries": ("TimeSeriesPanelCfg", "FieldConfig"),
    "heatmap": ("HeatmapPanelCfg", "FieldConfig"),
    "logs": ("LogsPanelCfg", None),
}
_HEAD = """\
import type { Dashboard } from '@grafana/schema';
// JSON has the values of enumerations, not their names.
type Plain<T> = T extends string ? `${T}` : T extends number | boolean | null | undefined ? T
  : T extends (infer U)[] ? Plain<U>[] : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
// What is left out of options takes its default.
type Deep<T> = T extends (infer U)[] ? Deep<U>[] : T extends object ? { [K in keyof T]?: Deep<T[K]> } : T;
"""


def source(dashboards: dict[str, Any]) -> str:
    """The file that must pass the checker."""
    lines = [_HEAD]
    for kind, (module, fields) in KINDS.items():
        path = f"@grafana/schema/dist/esm/raw/composable/{kind}/panelcfg/x/{module}_types.gen"
        names = [f"Options as {module}Options"] + ([f"{fields} as {module}Fields"] if fields else [])
        lines.append(f"import type {{ {', '.join(names)} }} from '{path}';")
    for number, (name, made) in enumerate(sorted(dashboards.items())):
        lines.append(f"// {name}\nexport const d{number} = {json.dumps(made)} satisfies Plain<Dashboard>;")
        for panel in made["panels"]:
            module, fields = KINDS[panel["type"]]
            label = f"d{number}p{panel['id']}"
            lines.append(f"// {name}: {panel['title']}")
            options = json.dumps(panel["options"])
            lines.append(f"export const {label} = {options} satisfies Deep<Plain<{module}Options>>;")
            if fields:
                custom = json.dumps(panel["fieldConfig"]["defaults"]["custom"])
                lines.append(f"export const {label}f = {custom} satisfies Deep<Plain<{module}Fields>>;")
    return "\n".join(lines) + "\n"


def check(folder: Path, dashboards: dict[str, Any]) -> str:
    """What the checker says; empty when it has nothing to say."""
    (folder / "check.ts").write_text(source(dashboards))
    done = subprocess.run(
        [
            *("node", "node_modules/typescript/lib/tsc.js", "--noEmit", "--strict", "--skipLibCheck"),
            *("--target", "es2022", "--module", "esnext", "--moduleResolution", "bundler", "check.ts"),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


_PARSER: Final = """\
import { parser } from '@grafana/lezer-logql';
const queries = JSON.parse(process.argv[1]);
console.log(JSON.stringify(queries.map((query) => {
  const wrong = [];
  parser.parse(query).iterate({ enter: (node) => { if (node.type.isError) wrong.push(node.from); } });
  return wrong;
})));
"""
# Each must be found wrong: a stage that does not exist, a brace too few, a value without quotes, no matcher.
SPOILT_QUERIES = (
    '{app="kmodgate"} | jsn | event="module_load"',
    '{app="kmodgate" | json',
    '{app="kmodgate"} | json | node=n1',
    '{app="kmodgate"} | json | line_format {{.verdict}}',
)


def log_queries(dashboards: dict[str, Any]) -> list[str]:
    """Every LogQL query, with its variables filled in."""
    return [
        target["expr"].replace("$node", "node-1")
        for made in dashboards.values()
        for panel in made["panels"]
        for target in panel["targets"]
        if target["datasource"]["type"] == "loki"
    ]


def misread(folder: Path, queries: list[str]) -> list[list[int]]:
    """Where the grammar of LogQL has no word for what stands in each query."""
    done = subprocess.run(
        ["node", "--input-type=module", "--eval", _PARSER, json.dumps(queries)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    found: list[list[int]] = json.loads(done.stdout)
    return found


def check_queries(folder: Path, dashboards: dict[str, Any]) -> int:
    """How many queries there are; all of them parse."""
    queries = log_queries(dashboards)
    for query, wrong in zip(queries, misread(folder, queries), strict=True):
        if wrong or "$" in query:
            sys.exit(f"no LogQL from character {wrong} on: {query}")
    for query, wrong in zip(SPOILT_QUERIES, misread(folder, list(SPOILT_QUERIES)), strict=True):
        if not wrong:
            sys.exit(f"the grammar takes {query}: it checks nothing")
    return len(queries)


def main() -> None:
    """Check what is committed; and that a mistake would have been found."""
    folder = Path(sys.argv[1])
    dashboards = {path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))}
    if problems := check(folder, dashboards):
        sys.exit(problems)
    first = next(iter(dashboards.values()))
    for spoil in (
        {"panels": [*first["panels"], first["panels"][0] | {"titel": "a key that no panel has"}]},
        {"panels": [first["panels"][0] | {"options": {"colorMode": "no such word"}}]},
        {"refresh": 30},
    ):
        if not check(folder, {"spoilt.json": first | spoil}):
            sys.exit(f"the checker passes {json.dumps(spoil)[-80:]}: it checks nothing")
    queries = check_queries(folder, dashboards)
    if not queries:
        sys.exit("no dashboard asks Loki: the check of LogQL has nothing to check")
    print(f"{queries} query of LogQL parses; {len(SPOILT_QUERIES)} spoilt ones do not")
    print(f"{len(dashboards)} dashboards are what Grafana's schema says; three spoilt ones are not")


if __name__ == "__main__":
    main()
