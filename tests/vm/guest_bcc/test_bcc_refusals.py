# SPDX-License-Identifier: Apache-2.0
"""What the bcc rung will not claim: configs that it cannot carry out end the start, with a remedy."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from tests.vm import bcclab, lab

MAY_REFUSE = Path("/sys/kernel/debug/error_injection/list").exists()


def start(directory: Path, text: str) -> tuple[int, str]:
    config = directory / "node.yaml"
    config.write_text(text)
    done = subprocess.run(
        ["kmodgate", "run", "--config", config], check=False, capture_output=True, text=True, timeout=1200
    )
    return done.returncode, done.stderr


def test_the_kernels_keyrings_cannot_be_asked(tmp_path: Path) -> None:
    status, said = start(tmp_path, bcclab.config(lab.ENFORCE))
    assert status != 0
    assert "decides before the kernel looks at the signature" in said
    assert "trust extract" in said
    assert bcclab.left_behind() == bcclab.NOTHING


@pytest.mark.skipif(MAY_REFUSE, reason="this kernel lets programs refuse")
def test_nothing_is_enforced_where_nothing_can_be_refused(tmp_path: Path) -> None:
    status, said = start(tmp_path, bcclab.config(lab.DO_NOT_ENFORCE, loadPin="on"))
    assert status == 3
    assert "backend bcc can refuse nothing on this kernel" in said
    assert "mode: audit" in said
    assert bcclab.left_behind() == bcclab.NOTHING


def test_without_headers_the_remedy_is_named(tmp_path: Path) -> None:
    build = Path("/lib/modules") / os.uname().release / "build"
    aside = build.with_name("aside")
    build.rename(aside)
    try:
        status, said = start(tmp_path, bcclab.config(lab.ENFORCE, mode="audit"))
    finally:
        aside.rename(build)
    assert status == 3
    assert f"linux-headers-{os.uname().release}" in said
