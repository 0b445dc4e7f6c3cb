# SPDX-License-Identifier: Apache-2.0
"""Drivers verified before they are loaded: no question, no wait, and no trust that came from it."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vm import lab

pytestmark = pytest.mark.needs("digests")

UPDATES = Path("/lib/modules") / platform.release() / "updates"
STAGING = Path("/tmp/staging")


def number(outcome: str) -> float:
    return lab.metrics()[f'kmodgate_preverified_modules{{outcome="{outcome}"}}']


def questions() -> float:
    return sum(value for name, value in lab.metrics().items() if name.startswith("kmodgate_questions_total{"))


@pytest.fixture
def watched(agent: lab.Agent) -> Iterator[lab.Agent]:
    STAGING.mkdir(exist_ok=True)
    agent.configure(lab.config(lab.ENFORCE, preverify=["/lib/modules/*/updates", "/tmp/staging"]))
    agent.wait_for(lambda: number("trusted") == number("not_trusted") == 0, "empty directories", 60)
    agent.mark()
    yield agent
    shutil.rmtree(UPDATES, ignore_errors=True)
    shutil.rmtree(STAGING, ignore_errors=True)


@pytest.mark.parametrize("directory", [UPDATES / "dkms", STAGING], ids=["pinned root", "tmpfs"])
def test_a_driver_copied_into_a_watched_directory_is_loaded_without_a_question(
    watched: lab.Agent, work: Path, directory: Path
) -> None:
    data = (work / "kmgtest.operator.ko").read_bytes()
    directory.mkdir(parents=True, exist_ok=True)
    before = number("trusted")
    (directory / "kmgtest.ko").write_bytes(data)
    watched.wait_for(lambda: number("trusted") == before + 1, "verified file", 60)
    asked = questions()
    assert lab.finit(directory / "kmgtest.ko").ok
    event = watched.next_event()
    assert (event["reason"], event["by"], event["hold_us"]) == ("trusted_signature", "kmodgate", 0)
    assert event["trusted_by"].endswith("operator.pem")
    assert questions() == asked


def test_a_module_that_is_not_trusted_stays_so(watched: lab.Agent, work: Path) -> None:
    before = number("not_trusted")
    (STAGING / "bad.ko").write_bytes((work / "kmgtest.stranger.ko").read_bytes())
    watched.wait_for(lambda: number("not_trusted") == before + 1, "verified file", 60)
    assert lab.finit(STAGING / "bad.ko").result == "EKEYREJECTED"
    event = watched.next_event()
    assert (event["reason"], event["hold_us"]) == ("untrusted_signer", 0)


def test_what_is_put_in_a_verified_files_place_is_decided_by_itself(watched: lab.Agent, work: Path) -> None:
    """Same inode, same size, other bytes, and the watcher held up: the digest decides, not the file."""
    path = STAGING / "swapped.ko"
    good = (work / "kmgtest.operator.ko").read_bytes()
    before = number("trusted")
    path.write_bytes(good)
    watched.wait_for(lambda: number("trusted") == before + 1, "verified file", 60)
    inode = path.stat().st_ino
    with path.open("r+b") as file:
        file.write(lab.flip_payload_byte(good))
    assert path.stat().st_ino == inode
    assert lab.finit(path).result == "EKEYREJECTED"
    assert watched.next_event()["verdict"] == "deny"
    assert not lab.is_loaded("kmgtest")


def test_other_certificates_void_what_was_verified_before(watched: lab.Agent, work: Path) -> None:
    path = STAGING / "kmgtest.ko"
    path.write_bytes((work / "kmgtest.operator.ko").read_bytes())
    watched.wait_for(lambda: number("trusted") == 1, "verified file", 60)
    watched.configure(
        lab.config(
            lab.ENFORCE,
            preverify=["/tmp/staging"],
            trust={"certificates": [str(lab.CERTS / "operator-ec.pem")]},
        )
    )
    watched.wait_for(lambda: (number("trusted"), number("not_trusted")) == (0, 1), "second look", 60)
    assert lab.finit(path).result == "EKEYREJECTED"
    assert watched.next_event()["reason"] == "untrusted_signer"
