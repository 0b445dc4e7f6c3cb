# SPDX-License-Identifier: Apache-2.0
"""The agent's list of loaded modules: what it says at once, what it asks, how often, and what it tells."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from kmodgate.errors import NodeError
from kmodgate.inventory import EndedError, Inventory, Process, Question
from kmodgate.node import NodePaths
from kmodgate.telemetry.inventory import InventoryOutcome, LoadedModuleReport
from kmodgate.telemetry.metrics import LoadedSignature


def item(name: str, signature: str = "unsigned", outcome: str = "refused", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "taints": "OE",
        "signature": signature,
        "outcome": outcome,
        "errno": None,
        "trusted_at_load": False,
        "path": None,
        "sha256": None,
        "same_source": None,
        "detail": None,
        "signer": None,
        **changes,
    }


class Node:
    """A ``/proc`` and ``/sys`` of its own, a clock, and whoever answers."""

    def __init__(self, directory: Path) -> None:
        self.paths = NodePaths(directory / "proc", directory / "sys", directory / "boot")
        self.time = 0.0
        self.asked: list[dict[str, Any]] = []
        self.answer: list[dict[str, Any]] = []
        self.error: NodeError | None = None
        self.told: list[LoadedModuleReport] = []
        self.counts: list[dict[LoadedSignature, int]] = []
        self.inventory = Inventory(
            self.paths, publish=self.publish, tell=self.told.append, ask=self.ask, now=lambda: self.time
        )

    def publish(self, counts: Mapping[LoadedSignature, int]) -> None:
        self.counts.append({key: count for key, count in counts.items() if count})

    def ask(self, request: bytes) -> bytes:
        self.asked.append(json.loads(request))
        if self.error is not None:
            raise self.error
        return json.dumps({"modules": self.answer}).encode()

    def load(self, **modules: str) -> None:
        """Name to taints."""
        self.paths.proc.mkdir(parents=True, exist_ok=True)
        for name, taints in modules.items():
            taint = self.paths.sys / "module" / name / "taint"
            taint.parent.mkdir(parents=True, exist_ok=True)
            taint.write_text(f"{taints}\n")
        lines = (
            f"{name} 100 0 - Live 0x{index:016x}" + (f" ({taints})" if taints else "")
            for index, (name, taints) in enumerate(modules.items())
        )
        (self.paths.proc / "modules").write_text("".join(f"{line}\n" for line in lines))

    def look(self, seconds: float = 0.0) -> dict[LoadedSignature, int]:
        self.time += seconds
        self.inventory.look()
        self.inventory.wait(10)
        return self.counts[-1]


QUESTION = Question(b'{"root": "/proc/1/root"}', b"digest", vouches=True)
TRUSTED, UNSIGNED = LoadedSignature.TRUSTED_SIGNATURE, LoadedSignature.UNSIGNED


@pytest.fixture
def node(tmp_path: Path) -> Node:
    node = Node(tmp_path)
    node.load(ext4="", plain="OE")
    node.answer = [item("ext4", "trusted_signature", "accepted", taints=""), item("plain")]
    node.inventory.judge_by(QUESTION)
    return node


def test_the_kernels_word_is_there_at_once_and_the_rest_when_it_is_verified(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.load(ext4="", plain="OE")
    node.answer = [item("ext4", "trusted_signature", "accepted", taints=""), item("plain")]
    release = threading.Event()
    ask = node.ask
    node.inventory._ask = lambda request: (release.wait(10), ask(request))[1]
    node.inventory.judge_by(QUESTION)
    node.inventory.look()
    assert node.counts[-1] == {TRUSTED: 1, LoadedSignature.NOT_VERIFIED: 1}
    release.set()
    node.inventory.wait(10)
    assert node.counts[-1] == {TRUSTED: 1, UNSIGNED: 1}


def test_each_module_that_would_be_refused_is_told_once(node: Node) -> None:
    node.look()
    node.load(ext4="", plain="OE", other="")
    node.look(100)
    assert [(module.name, module.outcome) for module in node.told] == [("plain", InventoryOutcome.REFUSED)]


def test_the_log_has_the_numbers_in_one_line(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "kmodgate")
    node.look()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("2 modules are loaded: 1 trusted_signature, 1 unsigned;")
    assert "would have refused 1; of 0 it cannot be known" in line


def test_nothing_is_asked_while_nothing_changes(node: Node) -> None:
    node.look()
    for _ in range(100):
        node.look(60)
    assert len(node.asked) == 1


def test_unloading_is_seen_and_costs_no_question(node: Node) -> None:
    node.look()
    node.load(ext4="")
    assert node.look(60) == {TRUSTED: 1}
    assert len(node.asked) == 1


def test_what_the_kernel_vouches_for_is_never_asked_about(node: Node) -> None:
    node.look()
    node.load(ext4="", plain="OE", **{f"driver{number}": "" for number in range(50)})
    assert node.look(60) == {TRUSTED: 51, UNSIGNED: 1}
    assert len(node.asked) == 1


def test_a_module_that_comes_later_is_verified_but_not_more_often_than_every_half_minute(node: Node) -> None:
    node.look()
    for number in range(20):
        name = f"late{number}"
        node.answer.append(item(name))
        node.load(ext4="", **{name: "OE"})
        node.look(1)
    assert len(node.asked) == 1
    node.look(30)
    assert len(node.asked) == 2
    assert node.counts[-1] == {TRUSTED: 1, UNSIGNED: 1}


def test_the_same_name_loaded_again_is_another_module(node: Node) -> None:
    node.look()
    text = (node.paths.proc / "modules").read_text()
    (node.paths.proc / "modules").write_text(text.replace("0x0000000000000001", "0x00000000000000ff"))
    node.look(60)
    assert len(node.asked) == 2
    assert len(node.told) == 2


def test_what_changed_under_the_process_is_not_believed(node: Node) -> None:
    node.answer = [item("plain", "trusted_signature", "accepted", taints="O")]
    assert node.look()[LoadedSignature.NOT_VERIFIED] == 1


def test_a_process_that_fails_is_tried_again_ever_more_rarely(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    node.error = NodeError("killed")
    for _ in range(2000):
        node.look(5)
    assert 5 < len(node.asked) < 12
    assert "killed" in caplog.text
    assert node.counts[-1] == {TRUSTED: 1, LoadedSignature.NOT_VERIFIED: 1}
    node.error = None
    node.look(3600)
    assert node.counts[-1] == {TRUSTED: 1, UNSIGNED: 1}


def test_rubbish_is_no_answer(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.answer = [{"name": "plain"}]
    assert node.look() == {TRUSTED: 1, LoadedSignature.NOT_VERIFIED: 1}
    assert caplog.records


def test_other_certificates_have_everything_found_again(node: Node) -> None:
    node.look()
    node.inventory.judge_by(QUESTION)
    node.look(60)
    assert len(node.asked) == 1
    node.inventory.judge_by(Question(QUESTION.request, b"another", vouches=True))
    node.look()
    assert len(node.asked) == 2
    node.inventory.redo()
    node.look()
    assert len(node.asked) == 3


def test_an_answer_for_certificates_of_before_is_dropped(node: Node) -> None:
    release = threading.Event()
    ask = node.ask
    node.inventory._ask = lambda request: (release.wait(10), ask(request))[1]
    node.inventory.look()
    node.inventory.redo()
    release.set()
    node.inventory.wait(10)
    assert not node.told


def test_where_nothing_vouches_every_module_waits_for_its_file(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.load(ext4="", plain="OE")
    node.inventory.judge_by(Question(b"{}", b"", vouches=False))
    assert node.look() == {LoadedSignature.NOT_VERIFIED: 2}


def test_a_log_of_a_thousand_modules_is_cut(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    names = [f"m{number}" for number in range(1000)]
    node.load(**dict.fromkeys(names, "OE"))
    node.answer = [item(name) for name in names]
    node.look()
    assert len(node.told) == 200
    assert "800 more" in caplog.text


def test_the_real_process_answers_or_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(NodeError, match="has no proc and sys of its own"):
        Process()(json.dumps({"root": str(tmp_path / "empty")}).encode())


def test_the_process_can_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kmodgate.inventory._COMMAND", ("sleep", "100"))
    process = Process()
    errors: list[NodeError] = []

    def run() -> None:
        try:
            process(b"")
        except NodeError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        process.kill()
        thread.join(0.05)
    assert isinstance(errors[0], EndedError)


def test_an_agent_that_ends_has_nothing_to_complain_of(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    node.error = EndedError("the agent ends")
    node.look()
    assert not caplog.records
