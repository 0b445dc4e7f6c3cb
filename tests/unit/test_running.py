# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

from kmodgate.node import NodePaths
from kmodgate.running import profile_of, running_profile


def test_a_build_option_that_is_off_takes_its_algorithms_away() -> None:
    full = profile_of("6.12.3", None, None)
    assert {"sha512", "ecdsa-nist-p256"} <= full.digests | full.keys
    narrow = profile_of("6.12.3", frozenset({"rsa"}), {"CRYPTO_SHA256": "y", "CRYPTO_SHA512": "n"})
    assert "sha512" not in narrow.digests
    assert "sha256" in narrow.digests
    assert "rsa" in narrow.keys
    assert "ecdsa-nist-p256" not in narrow.keys


def test_the_running_kernel_and_one_of_which_nothing_is_known(tmp_path: Path) -> None:
    assert running_profile().name == os.uname().release
    nothing = NodePaths(proc=tmp_path, sys=tmp_path, boot=tmp_path)
    assert "rsa" in running_profile(nothing).keys
