# SPDX-License-Identifier: Apache-2.0
"""``kmodgate scan`` of the machine that runs: what it says is what then happens."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.vm import lab

RELEASE = platform.release()
MODULES = Path("/lib/modules") / RELEASE
EXTRA = MODULES / "extra/kmodgate"
IMAGE = Path("/boot") / f"vmlinuz-{RELEASE}"
# These need no other module.
IN_TREE = ("dummy", "ifb", "nlmon", "tun")


@pytest.fixture(scope="module")
def mixture(work: Path) -> Iterator[Path]:
    """Modules of every kind, installed where modprobe would find them, and the kernel's image."""
    EXTRA.mkdir(parents=True, exist_ok=True)
    for module in work.glob("kmgtest.*.ko"):
        shutil.copy(module, EXTRA)
    (EXTRA / "dummy-tampered.ko").write_bytes(lab.flip_payload_byte(lab.in_tree("dummy").read_bytes()))
    shutil.copy("/share/vmlinuz", IMAGE)
    yield EXTRA
    shutil.rmtree(MODULES / "extra")
    IMAGE.unlink(missing_ok=True)


def scan(*options: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Exit status, the document, and its files by path."""
    done = subprocess.run(
        ["kmodgate", "scan", "--output", "json", *options], check=False, capture_output=True, text=True
    )
    assert done.stderr == ""
    document = json.loads(done.stdout)
    return done.returncode, document, {file["file"]: file for file in document["files"]}


def test_what_it_says_of_a_module_is_what_the_loader_sees(agent: lab.Agent, mixture: Path) -> None:
    status, document, files = scan("--config", str(agent.config_path))
    assert status == 1
    (kernel,) = document["kernels"]
    assert (kernel["release"], kernel["running"], kernel["image"]) == (RELEASE, True, str(IMAGE))
    in_tree = [file for file in files.values() if file["in_tree"]]
    assert len(in_tree) > 1000 or RELEASE.startswith("5.10")
    assert {file["outcome"] for file in in_tree} == {"accepted"}
    assert {file["trusted_by"] for file in in_tree} == {f"kernel:{RELEASE}"}
    said, seen = {}, {}
    paths = sorted(mixture.iterdir())
    for name in IN_TREE:
        paths += MODULES.rglob(f"kernel/**/{name}.ko*")
    for path in paths:
        file = files[str(path)]
        said[path.name] = "ok" if file["outcome"] == "accepted" else file["errno"]
        plain = lab.in_tree(path.name.partition(".")[0]) if file["in_tree"] else path
        seen[path.name] = lab.finit(plain).result
        lab.unload(file["module"])
    assert said == seen
    assert set(said.values()) >= {"ok", "EKEYREJECTED", "EBADMSG"}
    agent.mark()


@pytest.mark.needs("digests")
def test_loaded_modules_are_paired_with_their_files(agent: lab.Agent, mixture: Path) -> None:
    assert lab.finit(mixture / "kmgtest.operator.ko").ok
    agent.mark()
    paths = (str(mixture), str(MODULES / "kernel/fs"))
    _, document, files = scan("--config", str(agent.config_path), "--loaded", *paths)
    listed = [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]
    loaded = {module["module"]: module for module in document["loaded"]}
    assert list(loaded) == listed
    assert loaded["ext4"]["trusted_at_load"] is True
    assert loaded["ext4"]["outcome"] == "accepted"
    assert files[loaded["ext4"]["file"]]["loaded"] is True
    assert loaded["ext4"]["file"].startswith(f"/lib/modules/{RELEASE}/kernel/fs/ext4/ext4.ko")
    # The kernel itself does not trust the operator, and marked it.
    assert loaded["kmgtest"]["trusted_at_load"] is False
    assert loaded["kmgtest"]["file"].startswith(str(mixture))
    assert False not in {module["same_as_file"] for module in document["loaded"]}


def test_without_the_image_the_kernels_own_modules_are_unknown_and_not_trusted(mixture: Path) -> None:
    images = [path for path in (IMAGE, MODULES / "vmlinuz") if path.exists()]  # Debian's 7.2 has both
    for path in images:
        path.rename(path.with_name("away"))
    try:
        folder = next((MODULES / "kernel/drivers/net").glob("dummy.ko*"))
        status, document, files = scan("--loaded", str(folder), str(mixture / "kmgtest.unsigned.ko"))
        assert status == 1
        assert (document["kernels"][0]["certificates"], document["kernels"][0]["image"]) == (None, None)
        assert (files[str(folder)]["outcome"], files[str(folder)]["reason"]) == (
            "unknown",
            "kernel_keyring_unverified",
        )
        assert files[str(mixture / "kmgtest.unsigned.ko")]["outcome"] == "refused"
        status, _, files = scan("--trust", str(lab.CERTS / "kernel.pem"), str(folder))
        assert (status, files[str(folder)]["outcome"]) == (0, "accepted")
    finally:
        for path in images:
            path.with_name("away").rename(path)
