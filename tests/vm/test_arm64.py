# SPDX-License-Identifier: Apache-2.0
"""The smoke test on arm64: Debian's kernel under emulation, with the objects built for it.

Not a part of `make test`: it needs QEMU for arm64 and another system's packages. `make test-arm64`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.need import need
from tests.objects import compile_for
from tests.vm.boot import alive
from vmtool import arm64lab

ROOT = Path(__file__).parents[2]
OBJECTS = ("kmodgate", "kmodgate_basic", "kmodgate_fmod_ret", "guard")
RUNGS = ("bpf-lsm", "bpf-lsm-basic")
APIS = ("finit_module", "init_module")
REFUSED = "EKEYREJECTED"

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

# File: result, verdict, reason, who decided.
EXPECTED = {
    "intree": ("ok", "allow", "trusted_signature", "kernel"),
    "unsigned": (REFUSED, "deny", "unsigned", "kmodgate"),
    "tampered": (REFUSED, "deny", "bad_signature", "kernel"),
    "stranger": (REFUSED, "deny", "untrusted_signer", "kmodgate"),
    "operator": ("ok", "allow", "trusted_signature", "kmodgate"),
}


def expected(rung: str, file: str) -> tuple[str, str, str, str]:
    """The basic rung knows no configured certificate."""
    return EXPECTED["stranger" if (rung, file) == ("bpf-lsm-basic", "operator") else file]


def _sign(folder: Path, name: str, unsigned: bytes) -> bytes:
    """The module, signed with a new key; its certificate stays beside it."""
    key, certificate, module = folder / f"{name}.key", folder / f"{name}.pem", folder / f"{name}.ko"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}", "-days", "30",
         "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    module.write_bytes(unsigned)
    subprocess.run(
        [ROOT / ".venv/bin/kmodgate", "sign", module, "--key", key, "--cert", certificate],
        check=True,
        capture_output=True,
    )
    return module.read_bytes()


def _objects(folder: Path) -> Path:
    for name in OBJECTS:
        compile_for("arm64", name, folder / f"{name}.bpf.o")
    return folder


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the guest said, one boot for all tests."""
    need(shutil.which(arm64lab.EMULATOR), "QEMU for arm64 is missing; run: apt-get install qemu-system-arm")
    need(os.geteuid() == 0, "unpacking the guest needs root; run: sudo make test-arm64")
    folder = tmp_path_factory.mktemp("arm64")
    (folder / "objects").mkdir()
    with alive():
        kernel = arm64lab.debian_kernel()
        modules = kernel.modules
        files = {
            "intree.ko": modules.good,
            "unsigned.ko": modules.unsigned,
            "tampered.ko": modules.bad,
            "operator.ko": _sign(folder, "operator", modules.unsigned),
            "stranger.ko": _sign(folder, "stranger", modules.unsigned),
        }
        files["operator.pem"] = (folder / "operator.pem").read_bytes()
        initrd = arm64lab.archive(["/src/tests/vm/arm64_guest.py"], files, _objects(folder / "objects"))
        console = arm64lab.boot(kernel.image, initrd, timeout=1500)
    lines = [line.partition("said ")[2] for line in console.splitlines() if "said {" in line]
    found = [json.loads(line) for line in lines]
    failed = [line for line in found if "failed" in line]
    assert not failed, failed[0]["failed"]
    assert "status 0" in console, console[-2000:]
    return found


def test_the_machine_is_an_arm64(said: list[dict[str, Any]]) -> None:
    assert said[0]["machine"] == "aarch64"


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("file", EXPECTED)
def test_each_file_meets_what_it_meets_on_x86(said: list[dict[str, Any]], rung: str, file: str) -> None:
    found = {line["api"]: line for line in said if line.get("rung") == rung and line.get("file") == file}
    assert set(found) == set(APIS)
    for line in found.values():
        assert (line["result"], line["verdict"], line["reason"], line["by"]) == expected(rung, file)


@pytest.mark.parametrize("rung", RUNGS)
def test_every_attempt_is_counted_once(said: list[dict[str, Any]], rung: str) -> None:
    (line,) = [line for line in said if line.get("rung") == rung and "attempts" in line]
    assert line["attempts"] == line["counted"] == len(EXPECTED) * len(APIS)
    assert (line["misses"], line["enforcing"]) == (0, 1)


@pytest.mark.parametrize("rung", RUNGS)
def test_enforcement_outlives_the_agent_and_ends_with_detach(said: list[dict[str, Any]], rung: str) -> None:
    words = {key: value for line in said if line.get("rung") == rung for key, value in line.items()}
    assert words["alone"] == REFUSED
    assert words["detached"] == "ok"
