# SPDX-License-Identifier: Apache-2.0
"""Debian packages of any suite through a private apt configuration.

The machine's own package lists, sources and status are read for one thing only: where
its Debian mirror is. What a suite holds today is resolved once, by ``vm build``, and
written to ``resolved-SUITE.json``; later runs use that file and stay off the network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from . import cache
from .errors import VmToolError
from .host import run, say

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SUITES = ("bullseye", "bookworm", "trixie", "sid")
# The guest's user space and the module tools come from here, whatever kernel boots.
BASE_SUITE = "bookworm"
MACHINE = "amd64"
_NO_SECURITY = frozenset({"sid"})


@dataclass(frozen=True, slots=True)
class Package:
    """One exact package: what ``apt-get download NAME=VERSION`` needs."""

    name: str
    version: str


def mirrors() -> tuple[str, str]:
    """URIs of the Debian archive and the security archive, as this machine is set up.

    ``KMODGATE_VM_MIRROR`` and ``KMODGATE_VM_SECURITY_MIRROR`` override them.

    Raises:
        VmToolError: apt knows no Debian mirror.
    """
    site = "$(ORIGIN)|$(RELEASE)|$(REPO_URI)"
    lines = run(["apt-get", "indextargets", "--format", site, "Created-By: Packages"]).decode().splitlines()
    archive = os.environ.get("KMODGATE_VM_MIRROR", "")
    security = os.environ.get("KMODGATE_VM_SECURITY_MIRROR", "")
    for origin, release, uri in (line.split("|", 2) for line in lines):
        if not origin.startswith("Debian"):
            continue
        if release.endswith("-security"):
            security = security or uri
        elif re.fullmatch(r"[a-z]+", release):
            archive = archive or uri
    if not archive:
        raise VmToolError(
            "apt on this machine knows no Debian mirror. Type: apt-get update; on a machine that is not"
            " Debian set KMODGATE_VM_MIRROR (and KMODGATE_VM_SECURITY_MIRROR) to a mirror's URI"
        )
    return archive, security


def sources(suite: str) -> str:
    """The deb822 source list of one suite, its security archive included."""
    archive, security = mirrors()
    stanza = "Types: deb\nURIs: {}\nSuites: {}\nComponents: main\nSigned-By: {}\n"
    text = stanza.format(archive, suite, KEYRING)
    if security and suite not in _NO_SECURITY:
        text += "\n" + stanza.format(security, f"{suite}-security", KEYRING)
    return text


class Apt:
    """apt with folders of its own, for one suite.

    Args:
        suite: a Debian code name.
        machine: Debian's name of the processor that the packages are for.
    """

    def __init__(self, suite: str, machine: str = MACHINE) -> None:
        if suite not in SUITES:
            raise VmToolError(f"unknown suite {suite!r}; known: {', '.join(SUITES)}")
        self.suite = suite
        self.machine = machine
        self.folder = cache.root() / "apt" / (suite if machine == MACHINE else f"{suite}-{machine}")
        self._env = {"APT_CONFIG": str(self.folder / "apt.conf"), "LC_ALL": "C.UTF-8"}

    def update(self) -> None:
        """Write the configuration and fetch the suite's package lists."""
        folder = self.folder
        for name in ("lists/partial", "cache/archives/partial", "empty"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        cache.write_atomically(folder / "debian.sources", sources(self.suite).encode())
        settings = {
            "Dir::Etc::sourcelist": folder / "debian.sources",
            "Dir::Etc::sourceparts": folder / "empty",
            "Dir::Etc::preferencesparts": folder / "empty",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::status": folder / "status",
            "Dir::Cache": folder / "cache",
            "APT::Sandbox::User": "root",
            "APT::Architecture": self.machine,
            "APT::Architectures": self.machine,
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        text = "".join(f'{key} "{value}";\n' for key, value in settings.items())
        cache.write_atomically(folder / "apt.conf", text.encode())
        say(f"reading the package lists of {self.suite}")
        run(["apt-get", "update", "-q"], env=self._env)

    def show(self, name: str) -> Mapping[str, str]:
        """The newest candidate's metadata fields.

        Raises:
            VmToolError: the suite has no such package.
        """
        try:
            text = run(["apt-cache", "show", "--no-all-versions", name], env=self._env).decode()
        except VmToolError as error:
            raise VmToolError(f"{self.suite} has no package {name!r}") from error
        pairs = (re.match(r"([A-Za-z0-9-]+): (.*)", line) for line in text.split("\n\n")[0].splitlines())
        return {match[1]: match[2] for match in pairs if match}

    def package(self, name: str) -> Package:
        """Name and candidate version of a package."""
        return Package(name, self.show(name)["Version"])

    def depends(self, name: str) -> list[str]:
        """Names in a package's ``Depends`` field, first alternatives, versions left out."""
        return parse_depends(self.show(name).get("Depends", ""))

    def download(self, package: Package) -> Path:
        """The package's ``.deb``, from the cache or the mirror."""
        folder = cache.root() / "debs"
        folder.mkdir(exist_ok=True)
        safe = package.version.replace(":", "%3a")

        def present() -> Path | None:
            files = (folder / f"{package.name}_{safe}_{end}.deb" for end in (self.machine, "all"))
            return next((path for path in files if path.exists()), None)

        found = present()
        if found is None:
            say(f"downloading {package.name} {package.version}")
            with cache.locked(f"deb-{package.name}"):
                try:
                    run(
                        ["apt-get", "download", "-q", f"{package.name}={package.version}"],
                        cwd=folder,
                        env=self._env,
                    )
                except VmToolError as error:
                    raise VmToolError(
                        f"{error}\nThe mirror may have moved on. Type: vm-images/vm build --refresh"
                    ) from error
            found = present()
        if found is None:
            raise VmToolError(f"apt downloaded no {package.name}_{safe}_*.deb into {folder}")
        return found

    def unpack(self, package: Package, target: Path) -> None:
        """Unpack a package's files below ``target``; nothing of it is run."""
        target.mkdir(parents=True, exist_ok=True)
        run(["dpkg-deb", "-x", self.download(package), target])


def parse_depends(field: str) -> list[str]:
    """Package names of a ``Depends`` field: the first of each alternative, no versions."""
    names = (re.match(r"\s*([a-z0-9][a-z0-9+.-]*)", clause) for clause in field.split(","))
    return [match[1] for match in names if match]


@dataclass(frozen=True, slots=True)
class Resolved:
    """What one suite's kernel consists of, by exact version.

    Attributes:
        release: the kernel release, as ``uname -r`` prints it.
        image: packages whose files together hold kernel image and modules.
        headers: packages to compile modules against that kernel.
        dkms: the out-of-tree drivers' source packages.
    """

    suite: str
    release: str
    image: tuple[Package, ...]
    headers: tuple[Package, ...]
    dkms: tuple[Package, ...]

    def to_json(self) -> str:
        """Stable text, also used as a cache key's part."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @staticmethod
    def from_json(text: str) -> Resolved:
        """The inverse of ``to_json``."""
        raw = json.loads(text)
        lists = {key: tuple(Package(**item) for item in raw[key]) for key in ("image", "headers", "dkms")}
        return Resolved(suite=raw["suite"], release=raw["release"], **lists)


def _closure(apt: Apt, start: str, wanted: re.Pattern[str]) -> list[str]:
    """``start``'s dependencies, and theirs, whose names match ``wanted``; in order."""
    found: list[str] = []
    queue = [start]
    while queue:
        for name in apt.depends(queue.pop(0)):
            if wanted.fullmatch(name) and name not in found:
                found.append(name)
                queue.append(name)
    return found


def resolve(suite: str, dkms: tuple[str, ...], *, refresh: bool = False) -> Resolved:
    """What ``suite`` holds: from ``resolved-SUITE.json``, else from the mirror.

    Args:
        suite: a Debian code name.
        dkms: names of out-of-tree driver packages.
        refresh: ask the mirror even if the file is there.
    """
    path = cache.root() / f"resolved-{suite}.json"
    if path.exists() and not refresh:
        return Resolved.from_json(path.read_text())
    with cache.locked(f"resolve-{suite}"):
        if path.exists() and not refresh:
            return Resolved.from_json(path.read_text())
        apt = Apt(suite)
        apt.update()
        # Since 7.x the image is split: it needs linux-binary-*, linux-modules-*, linux-base-*.
        pattern = re.compile(r"linux-(image|binary|modules|base)-[0-9].*")
        image = _closure(apt, "linux-image-amd64", pattern)
        release = next((n.removeprefix("linux-image-") for n in image if n.startswith("linux-image-")), "")
        if not release:
            raise VmToolError(
                f"linux-image-amd64 of {suite} names no kernel: {apt.depends('linux-image-amd64')}"
            )
        headers = _closure(apt, "linux-headers-amd64", re.compile(r"linux-(headers|kbuild|base)-[0-9].*"))
        resolved = Resolved(
            suite=suite,
            release=release,
            image=tuple(apt.package(name) for name in image),
            headers=tuple(apt.package(name) for name in headers),
            dkms=tuple(apt.package(name) for name in dkms),
        )
        cache.write_atomically(path, resolved.to_json().encode())
    return resolved
