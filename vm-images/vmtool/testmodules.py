# SPDX-License-Identifier: Apache-2.0
"""Test modules: our own and out-of-tree drivers of Debian, signed in every way that matters.

For each module NAME the folder holds ``NAME.VARIANT.ko``; ``variants`` below lists the variants.
"""

from __future__ import annotations

import gzip
import shutil
import struct
import tempfile
from pathlib import Path

from . import apt, cache, keys, toolchain
from .errors import VmToolError
from .host import IMAGES, need_root, run, say

SOURCES = IMAGES / "modules"
# vpoll stands alone (insmod is enough); v4l2loopback needs the in-tree videodev.
DKMS_PACKAGES = ("vpoll-dkms", "v4l2loopback-dkms")
MARKER = b"~Module signature appended~\n"
_HASH = "sha256"
# struct module_signature is 12 bytes; its last four are the big-endian sig_len.
_SIG_LEN = struct.Struct(">I")


def tampered(signed: bytes) -> bytes:
    """A signed module with one bit of its payload flipped, in a ``.modinfo`` text nothing reads.

    Raises:
        VmToolError: the module has no such text.
    """
    for key in (b"\0description=", b"\0author="):
        at = signed.find(key)
        if at >= 0:
            place = at + len(key)
            return signed[:place] + bytes([signed[place] ^ 0x01]) + signed[place + 1 :]
    raise VmToolError("the module has neither description nor author to tamper with")


def malformed(signed: bytes) -> bytes:
    """A signed module whose trailer claims a signature longer than the file (EBADMSG)."""
    if not signed.endswith(MARKER):
        raise VmToolError("not a signed module")
    end = len(signed) - len(MARKER)
    return signed[: end - _SIG_LEN.size] + _SIG_LEN.pack(0xFFFFFFFF) + MARKER


def _compile(root: Path, work: Path, release: str) -> list[Path]:
    """Build the modules of one source folder inside the toolchain's root; debug sections go."""
    inner = f"/{work.relative_to(root)}"
    toolchain.inside(root, ["make", "-C", f"/usr/src/linux-headers-{release}", f"M={inner}", "modules"])
    built = sorted(work.glob("*.ko"))
    if not built:
        raise VmToolError(f"the build in {work} made no module")
    for module in built:
        # The full name: newer compilers bring no plain `strip` with them.
        toolchain.inside(root, ["x86_64-linux-gnu-strip", "--strip-debug", f"{inner}/{module.name}"])
    return built


def _sources(resolved: apt.Resolved, folder: Path) -> list[Path]:
    """Source folders to compile, below ``folder``: ours, then one for each driver package."""
    own = folder / "kmodgate"
    shutil.copytree(SOURCES, own)
    found = [own]
    debian = apt.Apt(resolved.suite)
    for package in resolved.dkms:
        unpacked = folder / f"{package.name}.deb"
        debian.unpack(package, unpacked)
        config = next(iter(sorted(unpacked.glob("usr/src/*/dkms.conf"))), None)
        if config is None:
            raise VmToolError(f"{package.name} holds no usr/src/*/dkms.conf")
        found.append(config.parent)
    return found


def variants(root: Path, sign: str, certs: Path, module: Path, target: Path) -> None:
    """Write every variant of one unsigned module.

    | variant | what |
    |---|---|
    | unsigned | as built |
    | operator, operator-ec, stranger | signed by that key, signer named by issuer and serial |
    | operator-skid | signed by the operator, signer named by SubjectKeyIdentifier |
    | tampered | operator's signature, one bit of the payload flipped |
    | malformed | operator's signature, trailer with an impossible length |
    | operator.ko.xz, .gz, .zst | the operator's, compressed |
    """
    name = module.stem
    inner = f"/{module.parent.relative_to(root)}"
    shutil.copyfile(module, target / f"{name}.unsigned.ko")
    for variant, key, flags in (
        ("operator", "operator", []),
        ("operator-ec", "operator-ec", []),
        ("stranger", "stranger", []),
        ("operator-skid", "operator", ["-k"]),
    ):
        files = [f"{inner}/{key}.key", f"{inner}/{key}.pem", f"{inner}/{module.name}", f"{inner}/signed"]
        for end in (".key", ".pem"):
            shutil.copyfile(certs / f"{key}{end}", module.with_name(f"{key}{end}"))
        toolchain.inside(root, [sign, *flags, _HASH, *files])
        shutil.copyfile(module.with_name("signed"), target / f"{name}.{variant}.ko")
    plain = target / f"{name}.operator.ko"
    signed = plain.read_bytes()
    (target / f"{name}.tampered.ko").write_bytes(tampered(signed))
    (target / f"{name}.malformed.ko").write_bytes(malformed(signed))
    # The kernel's decoder knows no CRC64 and a dictionary of at most 2 MiB pays here.
    (target / f"{plain.name}.xz").write_bytes(run(["xz", "--check=crc32", "--lzma2=dict=2MiB", "-c", plain]))
    (target / f"{plain.name}.gz").write_bytes(gzip.compress(signed, mtime=0))
    run(["zstd", "-q", "-19", plain, "-o", target / f"{plain.name}.zst"])


def get(resolved: apt.Resolved) -> Path:
    """The folder of test modules for one kernel."""
    certs = keys.get()

    def build(target: Path) -> None:
        need_root("building the test modules")
        root = toolchain.get(resolved)
        say(f"building the test modules for {resolved.release}")
        target.mkdir()
        sign = toolchain.sign_file(root, resolved)
        folder = Path(tempfile.mkdtemp(prefix="modules-", dir=root / "tmp"))
        try:
            for source in _sources(resolved, folder):
                for module in _compile(root, source, resolved.release):
                    variants(root, sign, certs, module, target)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    versions = [f"{p.name}={p.version}" for p in (*resolved.headers, *resolved.dkms)]
    key = cache.digest([*versions, certs.name, SOURCES, Path(__file__)])
    return cache.entry(f"testmodules-{resolved.release}-{key}", build)
