# SPDX-License-Identifier: Apache-2.0
"""Write every dashboard, each into a file of its uid."""

from __future__ import annotations

import json
from pathlib import Path

from .fleet import fleet
from .node import node
from .parts import Json

FOLDER = Path(__file__).resolve().parents[2] / "helm/kmodgate/dashboards"


def dashboards() -> dict[str, Json]:
    """Each dashboard by the name of its file."""
    return {f"{made['uid']}.json": made for made in (fleet(), node())}


def text(made: Json) -> str:
    """As it stands in the file."""
    return json.dumps(made, indent=2) + "\n"


def main() -> None:
    """Write them all."""
    for name, made in dashboards().items():
        (FOLDER / name).write_text(text(made))


if __name__ == "__main__":
    main()
