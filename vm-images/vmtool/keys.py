# SPDX-License-Identifier: Apache-2.0
"""Test keys (made once for each cache) and the certificates of each kernel."""

from __future__ import annotations

import shutil
from pathlib import Path

from . import cache, vmlinux
from .errors import VmToolError
from .host import run, say
from .kernel import Kernel

# name -> (common name, openssl's -newkey arguments)
KEYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "operator": ("kmodgate test operator", ("-newkey", "rsa:2048")),
    "operator-ec": ("kmodgate test operator EC", ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")),
    "stranger": ("kmodgate test stranger", ("-newkey", "rsa:2048")),
}
_EXTENSIONS = (
    "basicConstraints=critical,CA:FALSE",
    "keyUsage=critical,digitalSignature",
    "subjectKeyIdentifier=hash",
)
_DAYS = "36500"


def get() -> Path:
    """The folder with ``NAME.key`` and ``NAME.pem`` for each of ``KEYS``."""

    def build(target: Path) -> None:
        say("making the test keys")
        target.mkdir()
        # No default extensions of the host's openssl.cnf: ours alone.
        config = target.with_suffix(".cnf")
        config.write_text("[req]\ndistinguished_name=dn\n[dn]\n")
        for name, (common_name, new_key) in KEYS.items():
            extensions = [word for extension in _EXTENSIONS for word in ("-addext", extension)]
            run(
                ["openssl", "req", "-config", config, "-x509", "-new", *new_key, "-sha256", "-nodes",
                 "-days", _DAYS, "-subj", f"/O=kmodgate/CN={common_name}", *extensions,
                 "-keyout", target / f"{name}.key", "-out", target / f"{name}.pem"]
            )  # fmt: skip

    recipe = [word for name, (common, new_key) in KEYS.items() for word in (name, common, *new_key)]
    return cache.entry(f"keys-{cache.digest([*recipe, *_EXTENSIONS, _DAYS])}", build)


def certificates(kernel: Kernel) -> Path:
    """The keys' folder plus ``kernel.pem`` (the build-time key) and ``kernel-all.pem`` (every one found)."""

    def build(target: Path) -> None:
        built, every = vmlinux.certificates(kernel.vmlinux.read_bytes())
        if not built:
            raise VmToolError(
                f"none of the {len(every)} certificates in {kernel.vmlinux} is {vmlinux.KERNEL_KEY_SUBJECT!r}"
            )
        shutil.copytree(get(), target)
        (target / "kernel.pem").write_bytes(b"".join(map(vmlinux.to_pem, built)))
        (target / "kernel-all.pem").write_bytes(b"".join(map(vmlinux.to_pem, every)))

    key = cache.digest([get().name, kernel.folder.name, Path(__file__)])
    return cache.entry(f"certs-{kernel.release}-{key}", build)
