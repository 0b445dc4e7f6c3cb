# SPDX-License-Identifier: Apache-2.0
"""The layers of docs/architecture.md, and who may import what."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "agent/kmodgate"

# A part may import parts of a lower number, and itself.
LAYERS = {
    "workload": -1,
    "model": 0,
    "errors": 1,
    "fsutil": 2,
    "policy": 2,
    "modfile": 2,
    "signature": 2,
    "node": 2,
    "inspection": 3,
    "tokens": 3,
    "truststore": 3,
    "gap": 3,
    "running": 3,
    "rungs": 3,
    "whatif": 4,
    "config": 4,
    "hooks": 4,
    "kube": 4,
    "telemetry": 4,
    "answers": 5,
    "attribution": 5,
    "safeguard": 5,
    "scan": 5,
    "notify": 5,
    "observe": 6,
    "cluster": 7,
    "pinning": 5,
    "readiness": 6,
    "selfprobe": 5,
    "settings": 5,
    "webaccess": 5,
    "standing": 6,
    "doctor": 6,
    "fleet": 6,
    "inventory": 6,
    "preverify": 6,
    "loop": 2,
    "local": 5,
    "outlets": 6,
    "report": 7,
    "lookout": 7,
    "agent": 8,
    "cli": 9,
    "__main__": 10,
    "__init__": -1,
}
PURE = ("policy", "signature", "modfile", "inspection", "whatif")
FORBIDDEN_WHERE_PURE = {"os", "time", "logging", "pathlib", "socket", "subprocess"}
ONLY_IN = {
    "bcrypt": ("telemetry",),
    "cryptography": ("signature",),
    "elftools": ("modfile",),
    "prometheus_client": ("telemetry",),
    "ctypes": ("hooks",),
    "rich": ("cli",),
    "yaml": ("config", "cli"),
    "pkcs11": ("tokens",),
    "docker": (),
}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Absolute names of all that a file imports, late imports included."""
    package = ["kmodgate", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            if name == "kmodgate":
                yield from ((f"kmodgate.{alias.name}", node.lineno) for alias in node.names)
            else:
                yield name, node.lineno


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = LAYERS[part(path)]
    for name, line in imports(path):
        if name.startswith("kmodgate.") and not name.startswith("kmodgate.__"):
            target = name.split(".")[1]
            if target == part(path):
                continue
            assert LAYERS[target] < own, f"{path}:{line} imports {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_libraries_stay_where_they_belong(path: Path) -> None:
    for name, line in imports(path):
        top = name.split(".")[0]
        if top in ONLY_IN:
            assert part(path) in ONLY_IN[top], f"{path}:{line} imports {name}"
        if part(path) in PURE:
            assert top not in FORBIDDEN_WHERE_PURE, f"{path}:{line} imports {name}"


@pytest.mark.parametrize(
    "path",
    [
        path
        for pattern in ("*.py", "*.c", "*.h", "*.sh", "*.yaml", "*.toml", "Makefile")
        for folder in ("agent", "bpf", "tests", "vm-images")
        for path in sorted((ROOT / folder).rglob(pattern))
        if ".egg-info" not in str(path)
    ],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_source_names_its_licence(path: Path) -> None:
    head = path.read_text().splitlines()[:2]
    assert any("SPDX-License-Identifier: " in line for line in head)


def test_files_stay_readable() -> None:
    long = {
        str(path.relative_to(ROOT)): count
        for path in sources()
        if (count := len(path.read_text().splitlines())) > 450
    }
    assert not long
