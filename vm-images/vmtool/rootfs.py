# SPDX-License-Identifier: Apache-2.0
"""The guest's disk: a Debian base, a kernel's modules, kmodgate's dependencies; ext4.

Two cache entries: the base (a tarball, the same for every kernel) and one disk image
for each kernel. The project itself is not in the image: it is shared at run time.
"""

from __future__ import annotations

import json
import shutil
import sys
import tomllib
from pathlib import Path

from . import apt, bootstrap, cache
from .errors import VmToolError
from .host import IMAGES, PROJECT, need_root, run, say
from .kernel import Kernel

# The guest's packages on top of Debian's minbase, each with its reason.
GUEST_PACKAGES = (
    "python3",  # kmodgate, pytest
    "kmod",  # insmod, modprobe, depmod
    "libbpf1",  # kmodgate's BPF loader
    "iproute2",  # loopback
    "mount",
    "util-linux",
    "procps",
    "openssl",  # tests make keys
    "e2fsprogs",  # tests make file systems
    "squashfs-tools",  # a read-only superblock for pinned-root tests
    "bpftool",  # tests attack kmodgate's BPF objects with it
    "strace",
    "xz-utils",
    "zstd",
)
# What a guest needs on top where BCC compiles in it: LLVM is heavy, so the others do without.
BCC_PACKAGES = ("python3-bpfcc",)
# A guest that boots as a node does.
SYSTEMD_PACKAGES = ("systemd", "udev")
# For tests that run inside the guest; kmodgate's own come from pyproject.toml.
TEST_REQUIREMENTS = ("jsonschema>=4.21", "pytest>=8.2", "pytest-timeout>=2.3")
PYTHON = (3, 11)  # of the base suite: wheels and byte code are made for it
SITE = "usr/local/lib/python3.11/dist-packages"
GUEST_INIT = IMAGES / "guest" / "init"
PIP_ENV = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_ROOT_USER_ACTION": "ignore"}
_HEADROOM = 512 << 20  # bytes free on the root disk


def requirements() -> tuple[str, ...]:
    """What pip installs for the guest: kmodgate's run-time dependencies, pytest and jsonschema."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return (*project["dependencies"], *TEST_REQUIREMENTS)


def base(*, refresh: bool = False, packages: tuple[str, ...] = GUEST_PACKAGES) -> Path:
    """The tarball of the base system.

    Args:
        packages: on top of Debian's minbase.
        refresh: ask the mirror for the packages' versions; a new version gives a new base.
    """
    versions = cache.root() / "resolved-base.txt"
    if refresh or not versions.exists():
        source = apt.Apt(apt.BASE_SUITE)
        source.update()
        lines = [
            f"{name}={source.show(name)['Version']}" for name in ("base-files", "libc6", *GUEST_PACKAGES)
        ]
        cache.write_atomically(versions, ("\n".join(lines) + "\n").encode())

    def build(target: Path) -> None:
        say("building the base system with mmdebstrap (about 30 s)")
        tarball = target.with_suffix(".tar")
        bootstrap.make(apt.BASE_SUITE, packages, tarball)
        tarball.rename(target)

    key = cache.digest([versions.read_bytes(), *packages, *bootstrap.RECIPE])
    return cache.entry(f"base-{key}.tar", build)


def python_for_guest() -> str:
    """A host Python of the guest's version, for wheels and byte code.

    Raises:
        VmToolError: none is installed.
    """
    if sys.version_info[:2] == PYTHON:
        return sys.executable
    name = "python{}.{}".format(*PYTHON)
    path = shutil.which(name)
    if path is None:
        raise VmToolError(f"the guest's byte code needs {name} on the host. Type: apt-get install {name}")
    return path


def dependencies(*, refresh: bool = False) -> list[str]:
    """``name==version`` of what the guest's Python needs."""
    return _versions(requirements(), refresh=refresh)


def wheels(*, refresh: bool = False) -> Path:
    """The folder of installed Python dependencies, byte-compiled."""
    versions = dependencies(refresh=refresh)

    def build(target: Path) -> None:
        say("installing kmodgate's Python dependencies for the guest")
        python = python_for_guest()
        run(
            [python, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--no-compile",
             "--no-deps", "--target", target, *versions], env=PIP_ENV
        )  # fmt: skip
        shutil.rmtree(target / "bin", ignore_errors=True)
        # unchecked-hash: under emulation each stat() saved counts, and nothing edits these files.
        run(
            [python, "-m", "compileall", "-q", "-j2", "--invalidation-mode=unchecked-hash",
             "-s", target, "-p", f"/{SITE}", target]
        )  # fmt: skip

    return cache.entry(f"wheels-{cache.digest(versions)}", build)


def _versions(wanted: tuple[str, ...], *, refresh: bool) -> list[str]:
    """``name==version`` of all that pip installs for ``wanted``; asked once, then remembered."""
    path = cache.root() / f"resolved-wheels-{cache.digest(wanted)}.json"
    if refresh or not path.exists():
        with cache.locked("resolve-wheels"):
            report = run(
                [python_for_guest(), "-m", "pip", "install", "--quiet", "--only-binary=:all:", "--dry-run",
                 "--ignore-installed", "--report", "-", *wanted], env=PIP_ENV
            )  # fmt: skip
            found = (item["metadata"] for item in json.loads(report)["install"])
            versions = sorted(f"{data['name']}=={data['version']}" for data in found)
            cache.write_atomically(path, json.dumps(versions, indent=1).encode())
    return [str(version) for version in json.loads(path.read_text())]


def _configure(tree: Path) -> None:
    """What our guest adds to Debian's files."""
    own = tree / "usr/local/lib/kmodgate-vm"
    own.mkdir(parents=True)
    shutil.copy(GUEST_INIT, own / "init")
    (tree / SITE / "kmodgate.pth").write_text("/opt/kmodgate/src\n")
    script = tree / "usr/local/bin/kmodgate"
    script.write_text("#!/usr/bin/python3\nfrom kmodgate.cli import main\n\nmain()\n")
    script.chmod(0o755)
    for name in ("opt/kmodgate/src", "src", "share", "testmodules", "certs"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    (tree / "etc/hostname").write_text("kmodgate-vm\n")
    (tree / "etc/hosts").write_text("127.0.0.1 localhost kmodgate-vm\n::1 localhost\n")
    mtab = tree / "etc/mtab"
    mtab.unlink(missing_ok=True)
    mtab.symlink_to("/proc/self/mounts")


def get(
    kernel: Kernel,
    *,
    refresh: bool = False,
    headers: tuple[Path, ...] | None = None,
    more: tuple[str, ...] = (),
) -> Path:
    """The root disk for ``kernel``: an ext4 image, never written to by a run.

    Args:
        kernel: whose modules are on it.
        refresh: ask the mirror for newer packages.
        headers: not None for a disk with BCC: folders of the kernel's headers to put below
            ``/usr/src``, of which the first is the build's and the last the source's; none where
            they lie among the modules.
        more: packages for this disk alone.
    """
    packages = (*GUEST_PACKAGES, *(() if headers is None else BCC_PACKAGES), *more)
    tarball = base(refresh=refresh, packages=packages)
    site = wheels(refresh=refresh)

    def build(target: Path) -> None:
        need_root("building the root disk")
        say(f"building the root disk for {kernel.release}")
        tree = target.with_name("tree")
        tree.mkdir()
        run(["tar", "-C", tree, "-xf", tarball, "--numeric-owner", "--exclude=./dev/*"])
        (tree / SITE).mkdir(parents=True, exist_ok=True)
        run(["cp", "-a", "--reflink=auto", f"{site}/.", tree / SITE])
        (tree / "lib/modules").mkdir(exist_ok=True)
        run(["cp", "-a", "--reflink=auto", kernel.modules, tree / "lib/modules" / kernel.release])
        for link, folder in zip(("build", "source"), headers or (), strict=False):
            run(["cp", "-a", "--reflink=auto", folder, tree / "usr/src"])
            (tree / "lib/modules" / kernel.release / link).unlink(missing_ok=True)
            (tree / "lib/modules" / kernel.release / link).symlink_to(f"/usr/src/{folder.name}")
        _configure(tree)
        # Debian compiles its library when python3 is configured; what it left out is compiled here.
        run(
            [
                python_for_guest(),
                "-m",
                "compileall",
                "-q",
                "-j2",
                "-s",
                tree,
                "-p",
                "/",
                tree / "usr/lib/python3.11",
            ]
        )
        used = int(run(["du", "-s", "--block-size=1", tree]).split()[0])
        image = target.with_suffix(".ext4")
        with image.open("wb") as handle:
            handle.truncate((used + used // 10 + _HEADROOM) // 4096 * 4096)
        run(
            [
                "mkfs.ext4",
                "-q",
                "-F",
                "-L",
                "kmodgate",
                "-m",
                "0",
                "-E",
                "lazy_itable_init=0",
                "-d",
                tree,
                image,
            ]
        )
        image.rename(target)

    own = [str(folder) for folder in headers or ()]
    key = cache.digest([tarball.name, site.name, kernel.folder.name, GUEST_INIT, Path(__file__), *own])
    return cache.entry(f"rootfs-{kernel.release}-{key}.ext4", build)
