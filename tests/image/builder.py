# SPDX-License-Identifier: Apache-2.0
"""Builds the container image with buildah, without a registry.

``python -m tests.image.builder [agent|bcc]`` builds one target of the Dockerfile and prints its
size. The base is made here with mmdebstrap and tagged with the name that FROM gives, and kept;
``KMODGATE_IMAGE_BASE=pull`` lets buildah pull the real one instead.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from vmtool import bootstrap, cache
from vmtool.errors import VmToolError

from kmodgate import __version__

PROJECT: Final = Path(__file__).parents[2]
BASE: Final = "docker.io/library/debian:bookworm-slim"
SUITE: Final = "bookworm"
# Debian's own slim image has it, mmdebstrap's minbase has not. Nothing else: what the base brings does
# not count for the size of the image.
_INCLUDE: Final = ("tzdata",)
_LABEL: Final = "org.opencontainers.image"
_HOST_CA: Final = Path("/etc/ssl/certs/ca-certificates.crt")
# chroot: needs no container runtime, and no cgroup to put it in.
_ISOLATION: Final = ("--isolation", "chroot")


class ImageError(Exception):
    """The image cannot be built or looked at here; the message says what to do."""


def need_builder() -> None:
    """Raises ImageError with what to type when there is no builder here."""
    if shutil.which("buildah") is None:
        raise ImageError("buildah is missing; run: sudo make deps")
    if os.geteuid() != 0:
        raise ImageError("building an image keeps file owners and needs root; run: sudo make image")


def buildah(*arguments: str | Path, capture: bool = True) -> str:
    """Run buildah on a store of our own; its standard output.

    Raises:
        ImageError: it failed; with its last words.
    """
    done = subprocess.run(
        [*_buildah(), *arguments],
        check=False,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise ImageError(f"buildah {arguments[0]} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return (done.stdout or "").strip()


def _buildah() -> list[str | Path]:
    store = cache.root().parent / "image"
    store.mkdir(exist_ok=True)
    return ["buildah", "--root", store / "storage", "--runroot", store / "run"]


def name_of(target: str) -> str:
    """The tag of a target's image."""
    return f"localhost/kmodgate:{__version__}" + ("" if target == "agent" else f"-{target}")


def _have(name: str) -> bool:
    return bool(buildah("images", "--quiet", "--filter", f"reference={name}"))


def make_base(*, refresh: bool = False) -> None:
    """Debian's minbase under the name of the real image, unless it is there already."""
    if os.environ.get("KMODGATE_IMAGE_BASE") == "pull":
        return
    with cache.locked("image-base"):
        if not refresh and _have(BASE):
            return
        with tempfile.TemporaryDirectory(dir=cache.root()) as folder:
            tarball = Path(folder) / "base.tar"
            bootstrap.make(SUITE, _INCLUDE, tarball)
            with container("scratch") as made:
                buildah("add", "--quiet", made, tarball, "/")
                buildah("config", "--cmd", "bash", made)
                buildah("commit", "--quiet", "--format", "docker", made, BASE)


def build(target: str = "agent") -> str:
    """Build a target of the Dockerfile; the image's name.

    Raises:
        ImageError: see above.
        VmToolError: the base cannot be made.
    """
    need_builder()
    make_base()
    name = name_of(target)
    pull = "--pull" if os.environ.get("KMODGATE_IMAGE_BASE") == "pull" else "--pull-never"
    labels = {"version": __version__, "revision": revision("%H"), "created": revision("%cI")}
    with cache.locked("image-build"):
        buildah(
            *("bud", pull, *_ISOLATION, "--network", "host", "--layers"),
            # HEALTHCHECK is part of Docker's image format alone.
            *("--format", "docker", "--target", target, "--tag", name),
            *("--build-arg", f"BASE={BASE}"),
            *(("--secret", f"id=ca,src={_HOST_CA}") if _HOST_CA.exists() else ()),
            PROJECT,
            capture=False,
        )
        # Not as build arguments: buildah takes a step from its cache though its argument is another one.
        with container(name) as made:
            words = (word for key, text in labels.items() for word in ("--label", f"{_LABEL}.{key}={text}"))
            buildah("config", *words, made)
            buildah("commit", "--quiet", "--format", "docker", made, name)
    return name


def revision(form: str) -> str:
    """What git says of the commit that is checked out, in a ``--format`` of ``git log``."""
    done = subprocess.run(
        ["git", "-C", PROJECT, "log", "-1", f"--format={form}"], check=False, capture_output=True, text=True
    )
    return done.stdout.strip() or "unknown"


def layers(name: str) -> list[int]:
    """Sizes of an image's layers in bytes, uncompressed, the base's first."""
    with tempfile.TemporaryDirectory(dir=cache.root()) as folder:
        # Other transports compress whatever one says.
        buildah("push", "--quiet", "--disable-compression", name, f"dir:{folder}")
        manifest = json.loads((Path(folder) / "manifest.json").read_text())
        return [int(layer["size"]) for layer in manifest["layers"]]


def config(name: str) -> dict[str, Any]:
    """An image's config in Docker's words: ``User``, ``Env``, ``Entrypoint``, ``Labels``, …."""
    found = json.loads(buildah("inspect", "--type", "image", name))
    held: dict[str, Any] = found["Docker"]["config"]
    return held


@contextlib.contextmanager
def container(name: str) -> Iterator[str]:
    """A working container of an image, for the time of the block."""
    made = buildah("from", "--pull-never", name)
    try:
        yield made
    finally:
        buildah("rm", made)


@contextlib.contextmanager
def mounted(name: str) -> Iterator[Path]:
    """An image's files, for the time of the block. Not to be written to."""
    with container(name) as made:
        yield Path(buildah("mount", made))


def disk(name: str, target: Path) -> None:
    """An image's files as an ext4 file system, to be mounted read-only."""
    with mounted(name) as root:
        words = ("-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=0")
        subprocess.run(["mkfs.ext4", *words, "-d", root, target, "400M"], check=True)


def execute(
    made: str, *command: str, volumes: Mapping[Path, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command in a working container as the image's own user."""
    mounts = [word for path, at in (volumes or {}).items() for word in ("--volume", f"{path}:{at}:ro")]
    return subprocess.run(
        [*_buildah(), "run", *_ISOLATION, *mounts, made, "--", *command],
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )


def main() -> int:
    """Build and say how large it became."""
    target = sys.argv[1] if len(sys.argv) > 1 else "agent"
    try:
        name = build(target)
        base = sum(layers(BASE))
        whole = sum(layers(name))
    except (ImageError, VmToolError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 3
    print(f"{name}: {whole / 1e6:.1f} MB uncompressed, {(whole - base) / 1e6:.1f} MB beyond the base")
    return 0


if __name__ == "__main__":
    sys.exit(main())
