# SPDX-License-Identifier: Apache-2.0
"""How much ``kmodgate verify`` costs over the work that cannot be saved.

Compares, on one core, with the files in the page cache and the rounds interleaved:

* floor: read, ``hashlib.sha256`` and one RSA verification per file;
* verify: ``signature.verify`` per file, read included;
* report: what the command does per file, JSON included, without and with ``.modinfo``;
* openssl: ``openssl cms -verify`` per file, on a sample, trailer already cut off.

Usage: ``bench_verify.py DIRECTORY CERTIFICATE.pem [--files N] [--rounds N]``
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils

from kmodgate.cli.verify import as_json
from kmodgate.fsutil import read_regular_file
from kmodgate.inspection import DEFAULT_MAX_SIZE, inspect
from kmodgate.signature import LATEST, TrustStore, load_certificates, verify
from kmodgate.signature.kernel.message import parse_message
from kmodgate.signature.trailer import split

MAX_SIZE = DEFAULT_MAX_SIZE
Work = Callable[[list[str]], None]


def floor(certificate: Path, files: list[str]) -> Work:
    """Read, hash, one RSA operation; the signatures are cut out beforehand."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    if not isinstance(key, rsa.RSAPublicKey):
        raise SystemExit("the floor is measured with an RSA certificate")
    scheme, digest = padding.PKCS1v15(), utils.Prehashed(hashes.SHA256())
    cut: dict[str, tuple[int, bytes]] = {}
    for name in files:
        parts = split(Path(name).read_bytes())
        cut[name] = len(parts.payload), parse_message(parts.cms, LATEST).signers[0].signature.value

    def work(names: list[str]) -> None:
        for name in names:
            size, signature = cut[name]
            with open(name, "rb", buffering=0) as file:  # noqa: PTH123  # the cheapest way to read
                data = file.read()
            key.verify(signature, hashlib.sha256(memoryview(data)[:size]).digest(), scheme, digest)

    return work


def library(trust: TrustStore) -> Work:
    """``signature.verify`` and the bounded reader."""

    def work(names: list[str]) -> None:
        for name in names:
            verify(read_regular_file(name, MAX_SIZE), trust)

    return work


def command(trust: TrustStore, *, with_module: bool) -> Work:
    """What ``kmodgate verify --output json`` does for each file."""
    now = datetime.now(UTC)

    def work(names: list[str]) -> None:
        with open(os.devnull, "w", encoding="ascii") as sink:  # noqa: PTH123
            for name in names:
                raw = read_regular_file(name, MAX_SIZE)
                report = inspect(raw, trust, max_size=MAX_SIZE, now=now, with_module=with_module)
                sink.write(as_json(name, report) + "\n")

    return work


def openssl(certificate: Path, folder: Path) -> Work:
    """One process per file; payload and message are cut out beforehand."""

    def work(names: list[str]) -> None:
        for index, _ in enumerate(names):
            subprocess.run(
                [
                    *("openssl", "cms", "-verify", "-binary", "-inform", "DER", "-noverify", "-nointern"),
                    *("-in", folder / f"{index}.p7s", "-content", folder / f"{index}.bin"),
                    *("-certfile", certificate, "-out", os.devnull),
                ],
                check=True,
                capture_output=True,
            )

    return work


def per_file(work: Work, names: list[str]) -> float:
    """Seconds per file of one pass."""
    start = time.perf_counter()
    work(names)
    return (time.perf_counter() - start) / len(names)


def main() -> None:
    """Print times and ratios."""
    parser = argparse.ArgumentParser(description="Cost of kmodgate verify over its floor.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("certificate", type=Path)
    parser.add_argument("--files", type=int, default=0, help="0 means all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--openssl", type=int, default=40, help="files of the openssl sample")
    options = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    files = sorted(str(path) for path in options.directory.rglob("*.ko"))
    files = files[:: max(1, len(files) // options.files)] if options.files else files
    if not files:
        sys.exit(f"no .ko file below {options.directory}")
    trust = TrustStore(load_certificates(options.certificate.read_bytes(), options.certificate.name))
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sample = files[:: max(1, len(files) // options.openssl)]
        for index, name in enumerate(sample):
            parts = split(Path(name).read_bytes())
            (folder / f"{index}.p7s").write_bytes(parts.cms)
            (folder / f"{index}.bin").write_bytes(parts.payload)
        contenders: dict[str, tuple[Work, list[str]]] = {
            "floor": (floor(options.certificate, files), files),
            "verify": (library(trust), files),
            "report without modinfo": (command(trust, with_module=False), files),
            "report with modinfo": (command(trust, with_module=True), files),
            "openssl cms -verify": (openssl(options.certificate, folder), sample),
        }
        best = dict.fromkeys(contenders, float("inf"))
        for _ in range(options.rounds + 1):  # the first round warms the page cache
            for name, (work, names) in contenders.items():
                best[name] = min(best[name], per_file(work, names))
    size = sum(os.path.getsize(name) for name in files) / len(files)  # noqa: PTH202
    print(f"{len(files)} files of {size / 1024:.0f} KiB on average; best of {options.rounds} rounds")
    for name, seconds in best.items():
        print(
            f"{name:24} {seconds * 1e6:9.1f} us/file {1 / seconds:8.0f} files/s  "
            f"{best['floor'] / seconds:6.3f} of floor  {best['openssl cms -verify'] / seconds:7.1f} x openssl"
        )


if __name__ == "__main__":
    main()
