# SPDX-License-Identifier: Apache-2.0
"""Writes the chart's README from the comments in values.yaml. ``make docs`` runs it.

A comment that begins with ``# --`` describes the key that follows. Every key has one, or holds keys
that have one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).parents[2] / "helm/kmodgate"
_KEY = re.compile(r"( *)([A-Za-z][A-Za-z0-9]*):(?: |$)")
_COMMENT = re.compile(r" *# (-- )?(.*)")

_HEAD = """\
# The kmodgate chart

Made from the comments in values.yaml by `make docs`. What the objects are and why, how to go from audit to
enforce, how to upgrade and how to take it off: [docs/kubernetes.md](../../docs/kubernetes.md).

```sh
helm install kmodgate helm/kmodgate --namespace kube-system --set image.repository=REGISTRY/kmodgate
```

As installed it watches: policy `ENFORCE_SIGNED_MODULES` in `mode: audit` denies nothing, and says what it
would deny. `helm uninstall` does not end enforcement on the nodes; `detach: true` does.

| key | default | |
|---|---|---|
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One described key."""

    key: str
    default: str
    text: str


def rows(text: str) -> Iterator[Row]:
    """The described keys of a values file, in its order.

    Raises:
        ValueError: a key that holds no described keys has no description.
    """
    values = yaml.safe_load(text)
    path: list[str] = []
    comment: list[str] = []
    described = None
    for line in text.splitlines():
        if described is not None and line.startswith(" " * (described + 1)):
            continue  # inside the default of a described key
        said = _COMMENT.fullmatch(line)
        key = _KEY.match(line)
        if said:
            comment = [said[2]] if said[1] else ([*comment, said[2]] if comment else [])
        elif key:
            del path[len(key[1]) // 2 :]
            path.append(key[2])
            described = len(key[1]) if comment else None
            value = _at(values, path)
            if comment:
                yield Row(".".join(path), _shown(value), " ".join(comment))
            elif not (isinstance(value, dict) and value):
                raise ValueError(f"{'.'.join(path)} has no description; write one after '# --'")
            comment = []
        elif not line.strip():
            comment = []


def _at(values: Any, path: list[str]) -> Any:
    for name in path:
        values = values[name]
    return values


def _shown(value: Any) -> str:
    return f"`{json.dumps(value)}`"


def page() -> str:
    """The README."""
    lines = [
        f"| `{row.key}` | {row.default} | {row.text} |" for row in rows((CHART / "values.yaml").read_text())
    ]
    return _HEAD + "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(page(), end="")
