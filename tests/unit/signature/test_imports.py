# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ast
from pathlib import Path

import pytest

import kmodgate

ROOT = Path(kmodgate.__file__).parent
FORBIDDEN = {"os", "time", "logging", "io", "pathlib", "socket", "subprocess"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            if node.module == "io" and {alias.name for alias in node.names} == {"BytesIO"}:
                continue  # bytes in memory
            names.add(node.module.partition(".")[0])
    return names


@pytest.mark.parametrize("package", ["signature", "modfile"])
def test_the_pure_packages_do_no_io(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN, path
        other = {"signature": "elftools", "modfile": "cryptography"}[package]
        assert other not in imported(path), path
