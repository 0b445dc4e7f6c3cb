# SPDX-License-Identifier: Apache-2.0
"""A distribution's own modules under its own certificate.

``KMODGATE_TEST_MODULES`` names a folder of signed modules, ``KMODGATE_TEST_KERNEL_CERT``
the PEM certificate that the kernel carries.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from kmodgate.inspection import inspect
from kmodgate.model import SignatureStatus
from kmodgate.signature import TrustStore, load_certificates

AT_MOST = int(os.environ.get("KMODGATE_TEST_MODULES_LIMIT", "300"))


def _required(variable: str) -> Path:
    value = os.environ.get(variable)
    if value and Path(value).exists():
        return Path(value)
    reason = f"{variable} must name real signed modules and their certificate: NOTHING REAL WAS VERIFIED"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.mark.modules
@pytest.mark.timeout(900)
def test_all_verify_and_no_tampered_one_does() -> None:
    folder = _required("KMODGATE_TEST_MODULES")
    certificate = _required("KMODGATE_TEST_KERNEL_CERT")
    trust = TrustStore(load_certificates(certificate.read_bytes(), "kernel"))
    files = sorted(path for path in folder.rglob("*.ko*") if path.is_file())
    assert files, f"no module below {folder}"
    dice = random.Random(2024)  # a repeatable choice
    for path in files[:: max(1, len(files) // AT_MOST)]:
        raw = path.read_bytes()
        report = inspect(raw, trust)
        assert report.status is SignatureStatus.TRUSTED_SIGNATURE, (path, report.detail)
        assert report.module is not None, path
        assert report.module.name == path.name.partition(".")[0].replace("-", "_")
        if path.suffix == ".ko":
            changed = bytearray(raw)
            changed[dice.randrange(len(raw) // 2)] ^= 1 << dice.randrange(8)
            assert inspect(changed, trust).status is SignatureStatus.BAD_SIGNATURE, path
