# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes, for tests: its programs built from Debian's source package, and etcd; nothing installed.

Debian's last release with the server's source has 1.20. Newer ones are in no package.
Opt-in: it downloads some 130 MB and compiles for minutes. The compiler and etcd are unpacked
from Debian's packages into the cache; the source is changed in two places, both because its Go
is older than Debian's: the OpenAPI definitions are generated first, as upstream's build does,
and ``reflect2`` is Debian's version, because the vendored one crashes with Go 1.18 and later.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from . import apt, cache
from .host import find, run, say

SUITE = "bookworm"
SOURCE = "kubernetes"
_GO = ("golang-1.19-go", "golang-1.19-src")
_REFLECT = "golang-github-modern-go-reflect2-dev"
_ETCD = "etcd-server"
_REPOSITORY = Path("src/k8s.io/kubernetes")
_EXAMPLES = {"code-generator", "sample-apiserver"}
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet")
_RECIPE = "2"  # raised when the steps below change


def get() -> Path:
    """A folder with ``PROGRAMS`` and ``etcd``, from the cache or built now; all but etcd are static.

    Raises:
        VmToolError: a program or package is missing, or the build failed.
    """
    distribution = apt.Apt(SUITE)
    distribution.update()
    packages = [distribution.package(name) for name in (*_GO, _REFLECT, _ETCD)]
    version = _source_version(distribution)

    def build(target: Path) -> None:
        say(f"building Kubernetes {version} (a quarter of an hour on two shared processors)")
        with tempfile.TemporaryDirectory(prefix="kmodgate-kubernetes-", dir=cache.root()) as name:
            scratch = Path(name)
            for package in packages:
                distribution.unpack(package, scratch / "debs")
            _compile(scratch, _unpacked(distribution, scratch))
            (scratch / "programs").rename(target)
            shutil.copy2(scratch / "debs/usr/bin/etcd", target / "etcd")

    recipe = (_RECIPE, version, *(f"{package.name}={package.version}" for package in packages))
    return cache.entry(f"controlplane-{cache.digest(recipe)}", build)


def _sources(distribution: apt.Apt) -> list[str | Path]:
    """apt-get for source packages, with lists of its own beside the suite's."""
    folder = distribution.folder / "sources"
    (folder / "lists/partial").mkdir(parents=True, exist_ok=True)
    deb_src = folder / "debian.sources"
    cache.write_atomically(deb_src, apt.sources(SUITE).replace("Types: deb\n", "Types: deb-src\n").encode())
    return [
        "env",
        f"APT_CONFIG={distribution.folder / 'apt.conf'}",
        "apt-get",
        "-q",
        "-o",
        f"Dir::Etc::sourcelist={deb_src}",
        "-o",
        f"Dir::State::Lists={folder / 'lists'}",
    ]


def _source_version(distribution: apt.Apt) -> str:
    apt_get = _sources(distribution)
    run([*apt_get, "update"])
    lines = run([*apt_get, "source", "--print-uris", "--only-source", SOURCE]).decode().split()
    (name,) = (word for word in lines if word.endswith(".dsc"))
    return name.removeprefix(f"{SOURCE}_").removesuffix(".dsc")


def _unpacked(distribution: apt.Apt, scratch: Path) -> Path:
    """The source tree where Go of before modules expects it; Debian's patches are not needed."""
    folder = scratch / "source"
    folder.mkdir()
    run([*_sources(distribution), "source", "--download-only", "--only-source", SOURCE], cwd=folder)
    (archive,) = folder.glob("*.orig.tar.*")
    tree = scratch / "go" / _REPOSITORY
    tree.mkdir(parents=True)
    run(["tar", "-C", tree, "--strip-components=1", "-xf", archive])
    vendored = tree / "vendor/github.com/modern-go/reflect2"
    shutil.rmtree(vendored)
    shutil.copytree(scratch / "debs/usr/share/gocode/src/github.com/modern-go/reflect2", vendored)
    return tree


def _compile(scratch: Path, tree: Path) -> None:
    root = scratch / "debs/usr/lib/go-1.19"
    go: list[str | Path] = [find("nice"), "-n", "15", root / "bin/go"]
    env = {
        "GOROOT": str(root),
        "PATH": f"{root / 'bin'}:{os.environ['PATH']}",
        "GOPATH": str(scratch / "go"),
        "GOCACHE": str(scratch / "cache"),
        "GO111MODULE": "off",
        "GOFLAGS": "",
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
    }
    generator = scratch / "openapi-gen"
    run([*go, "build", "-o", generator, "./vendor/k8s.io/kube-openapi/cmd/openapi-gen"], cwd=tree, env=env)
    run(
        [
            generator,
            "--output-file-base=zz_generated.openapi",
            "--go-header-file=vendor/k8s.io/code-generator/hack/boilerplate.go.txt",
            f"--output-base={scratch / 'go/src'}",
            "--output-package=k8s.io/kubernetes/pkg/generated/openapi",
            f"--report-filename={os.devnull}",
            f"--input-dirs={','.join(_tagged(tree))}",
        ],
        cwd=tree,
        env=env,
    )
    output = scratch / "programs"
    output.mkdir()
    commands = [f"./cmd/{name}" for name in PROGRAMS]
    run([*go, "build", "-ldflags", "-s -w", "-o", f"{output}/", *commands], cwd=tree, env=env)


def _tagged(tree: Path) -> list[str]:
    """Packages whose types are in the API's description, as upstream's Makefile finds them."""
    found = set()
    for start, prefix in (("pkg", "pkg"), ("staging/src/k8s.io", "vendor/k8s.io")):
        for file in (tree / start).rglob("*.go"):
            below = file.parent.relative_to(tree / start)
            if below.parts[0] not in _EXAMPLES and b"// +k8s:openapi-gen=" in file.read_bytes():
                found.add(f"k8s.io/kubernetes/{prefix}/{below}")
    return sorted(found)
