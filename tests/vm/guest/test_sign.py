# SPDX-License-Identifier: Apache-2.0
"""What ``kmodgate sign`` signs is loaded where its certificate is configured, and nowhere else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.vm import lab

KEYS = {
    "rsa": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    "p384": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"],
}


def run(*words: str | Path, code: int = 0) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


def event_of(agent: lab.Agent, module: Path) -> dict[str, Any]:
    """The next event of this file: for a SHA-512 signature the kernel may load its digest module first."""
    while True:
        event = agent.next_event()
        if event["path"] == str(module):
            return event


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sign")
    for name, options in KEYS.items():
        key, pem = folder / f"{name}.key", folder / f"{name}.pem"
        run("openssl", "genpkey", "-quiet", *options, "-out", key)
        run(
            "openssl",
            "req",
            "-x509",
            "-new",
            "-key",
            key,
            "-subj",
            f"/CN=sign {name}",
            "-days",
            "9",
            "-out",
            pem,
        )
    return folder


@pytest.mark.needs("digests")
@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("option", [[], ["--keyid"], ["--hash", "sha512"]], ids=["plain", "keyid", "sha512"])
def test_a_signed_module_loads_where_its_certificate_is_trusted(
    agent: lab.Agent, work: Path, certificates: Path, name: str, option: list[str]
) -> None:
    module = work / "signed-here.ko"
    unsigned = work / "kmgtest.unsigned.ko"
    key, pem = certificates / f"{name}.key", certificates / f"{name}.pem"
    run("kmodgate", "sign", unsigned, "--out", module, "--key", key, "--cert", pem, *option)
    assert lab.finit(module).result == "EKEYREJECTED"
    refused = event_of(agent, module)
    assert (refused["verdict"], refused["reason"]) == ("deny", "untrusted_signer"), refused
    agent.configure(lab.config(lab.ENFORCE, trust={"certificates": [str(pem)]}))
    assert lab.finit(module).ok
    event = event_of(agent, module)
    assert (event["verdict"], event["reason"], event["by"]) == ("allow", "trusted_signature", "kmodgate"), (
        event
    )
    lab.unload("kmgtest")
    module.write_bytes(lab.flip_payload_byte(module.read_bytes()))
    assert lab.finit(module).result == "EKEYREJECTED"
    assert not lab.is_loaded("kmgtest")


def test_the_kernels_own_certificates_are_the_ones_it_lists() -> None:
    """Found in the image outside the guest, listed by the kernel that booted from it."""
    listed = json.loads(run("kmodgate", "trust", "list", "--output", "json"))["kernel"]
    assert listed["keyrings_visible"]
    pem = (lab.CERTS / "kernel.pem").read_text()
    skid = run("openssl", "x509", "-in", lab.CERTS / "kernel.pem", "-noout", "-ext", "subjectKeyIdentifier")
    assert pem.startswith("-----BEGIN CERTIFICATE-----")
    wanted = skid.split()[-1].replace(":", "").lower()
    assert wanted in {key["skid"] for key in listed["keys"]}
