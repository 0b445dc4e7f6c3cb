# SPDX-License-Identifier: Apache-2.0
"""Inventory and pre-verification wired together, on a node made of files."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.vectors.generate import MODINFO, append, make_elf, make_identity, openssl_cms

from kmodgate.answers import Answerer, Trust
from kmodgate.config import NodeConfig
from kmodgate.lookout import Lookout
from kmodgate.model import EffectivePolicy, Mode, Policy, Verification
from kmodgate.node import NodePaths, read_facts
from kmodgate.settings import Settings
from kmodgate.signature import TrustStore, load_certificates
from kmodgate.telemetry.events import EventLog
from kmodgate.telemetry.metrics import LoadedSignature, PreverifyOutcome
from kmodgate.telemetry.status import AgentStatus


class Sink:
    """The verification of each digest that was answered, and how many files were answered for."""

    def __init__(self) -> None:
        self.answers: list[Verification] = []
        self.files = 0

    def answer(
        self,
        digest: bytes,
        verification: Verification,
        trust_generation: int,
        contents: Verification = Verification.NOT_YET,
    ) -> None:
        del digest, trust_generation, contents
        self.answers.append(verification)

    def done(self, question: int) -> None:
        raise AssertionError(question)

    def answered_for(self, device: tuple[int, int], inode: int, size: int, trust_generation: int) -> None:
        del device, inode, size, trust_generation
        self.files += 1


@pytest.fixture
def paths(tmp_path: Path) -> NodePaths:
    root = tmp_path / "root"
    proc = tmp_path / "proc"
    for directory in (root / "lib/modules/6.1.0-test/updates", proc / "1", proc / "sys/kernel"):
        directory.mkdir(parents=True)
    (proc / "1/root").symlink_to(root)
    (proc / "sys/kernel/osrelease").write_text("6.1.0-test\n")
    (proc / "modules").write_text("ext4 1 0 - Live 0x0\nplain 1 0 - Live 0x1 (OE)\n")
    enforce = tmp_path / "sys/module/module/parameters/sig_enforce"
    enforce.parent.mkdir(parents=True)
    enforce.write_text("N\n")
    return NodePaths(proc, tmp_path / "sys", tmp_path / "boot")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_drivers_are_answered_for_and_what_is_loaded_is_counted(
    tmp_path: Path, paths: NodePaths, caplog: pytest.LogCaptureFixture
) -> None:
    operator = make_identity("operator")
    elf = make_elf(MODINFO)
    driver = tmp_path / "root/lib/modules/6.1.0-test/updates/driver.ko"
    driver.write_bytes(append(elf, openssl_cms(elf, operator)))
    store = TrustStore(load_certificates(operator.pem, "operator.pem"))
    policy = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=False)
    status, sink = AgentStatus(), Sink()
    answerer = Answerer(sink, Trust(store, 1), 1 << 20)
    with (
        Path(os.devnull).open("wb") as null,
        Lookout(read_facts(paths), paths, status, EventLog(null), answerer) as lookout,
    ):
        lookout.judge_by(Settings(NodeConfig(), policy, store, b"one"))
        until(lambda: status.snapshot().preverified.get(PreverifyOutcome.TRUSTED) == 1)
        assert (sink.answers, sink.files) == ([Verification.TRUSTED], 1)
        lookout.look()
        counts = status.snapshot().loaded_modules
        assert counts[LoadedSignature.TRUSTED_SIGNATURE] == 1
        assert counts[LoadedSignature.NOT_VERIFIED] == 1
        until(lambda: "were not verified" in caplog.text)  # this root runs no kernel

        answerer.set_trust(Trust(TrustStore([]), 2))
        lookout.trust_changed()
        lookout.judge_by(Settings(NodeConfig(), policy, TrustStore([]), b"two"))
        until(lambda: status.snapshot().preverified.get(PreverifyOutcome.NOT_TRUSTED) == 1)
        assert sink.answers[-1] is Verification.UNTRUSTED_SIGNER
    answerer.close()
