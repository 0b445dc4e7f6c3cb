# SPDX-License-Identifier: Apache-2.0
"""The guard's life inside the agent, with a guard that loads nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from kmodgate.config import NodeConfig
from kmodgate.errors import HookError
from kmodgate.hooks.guard import Denial
from kmodgate.hooks.guardabi import Switch
from kmodgate.node import NodeFacts, NodePaths, read_facts
from kmodgate.safeguard import hardening
from kmodgate.safeguard.hardening import Hardening
from kmodgate.safeguard.unlock import Answer, Request
from kmodgate.telemetry.collector import AgentMetrics
from kmodgate.telemetry.metrics import GuardedSwitch
from kmodgate.telemetry.status import AgentStatus

TOKEN = b"token"
HASH = hashlib.sha256(TOKEN).digest()
HARDENED = replace(NodeConfig(), hardened=True, hardened_token=HASH)


class FakeBackend:
    """What is protected."""

    def program_fds(self) -> list[int]:
        return [3, 4]

    def link_fds(self) -> list[int]:
        return [5]


class FakeGuard:
    """What ``Guard`` does, noted."""

    def __init__(self, *_: object) -> None:
        self.done: list[str] = []
        self.former = False
        self.lets_in: str | None = None
        self.used_token = bytes(32)
        self.lifted = False
        self.counts = dict.fromkeys(Switch, 0)
        self.missing: list[str] = []

    def register_with_former(self) -> bool:
        self.done.append("register")
        return self.former

    def attach(self, programs: list[int], links: list[int]) -> None:
        self.done.append(f"attach {programs} {links}")

    def denies_others(self) -> str | None:
        self.counts[Switch.FTRACE] += 1
        self.counts[Switch.PINS] += 1
        return self.lets_in

    def denied(self) -> dict[Switch, Denial]:
        return {switch: Denial(count, 7, 0, "evil\n") for switch, count in self.counts.items()}

    def pin_missing(self) -> list[str]:
        return self.missing

    def burn(self, digest: bytes) -> None:
        self.used_token = digest

    def lift(self, seconds: float) -> None:
        self.lifted = bool(seconds)
        self.done.append(f"lift {seconds}")

    def remove(self) -> None:
        self.done.append("remove")

    def remove_former(self) -> None:
        self.done.append("remove former")

    def close(self) -> None:
        self.done.append("close")


class Case:
    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guard = FakeGuard()
        monkeypatch.setattr(hardening, "Guard", lambda *_: self.guard)
        self.registry = CollectorRegistry()
        self.metrics = AgentMetrics(AgentStatus(), registry=self.registry, process=False)
        paths = NodePaths(proc=tmp_path, sys=tmp_path, boot=tmp_path)
        self.facts: NodeFacts = replace(read_facts(paths), lsms=("capability", "bpf"))
        self.hardening = Hardening(
            self.metrics, directory=tmp_path / "pins", paths=paths, unlock=tmp_path / "run/unlock.sock"
        )

    def start(self, config: NodeConfig = HARDENED) -> None:
        self.hardening.register()
        self.hardening.start(config, self.facts, FakeBackend())

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    case = Case(tmp_path, monkeypatch)
    yield case
    case.hardening.stop(keep=False)


def test_without_the_key_nothing_is_attached(case: Case) -> None:
    case.start(NodeConfig())
    assert case.guard.done == ["register"]
    assert case.hardening.sources == ()
    assert case.sample("kmodgate_hardened") == 0
    case.hardening.look(enforce=True)


def test_an_earlier_guard_goes_when_the_config_no_longer_asks_for_one(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    case.guard.former = True
    case.start(NodeConfig())
    assert case.guard.done == ["register", "remove former"]
    assert "the guard is gone" in caplog.text


def test_it_is_attached_tried_and_said(case: Case) -> None:
    case.start()
    assert case.guard.done == ["register", "attach [3, 4] [5]"]
    assert case.sample("kmodgate_hardened") == 1
    # Its own trial does not count.
    assert all(
        case.sample("kmodgate_off_switch_denials_total", switch=switch) == 0 for switch in GuardedSwitch
    )


def test_a_guard_that_lets_others_in_is_an_error_and_is_taken_away(case: Case) -> None:
    case.guard.lets_in = "creating a pin"
    with pytest.raises(HookError, match="creating a pin"):
        case.start()
    assert case.guard.done[-1] == "remove"
    assert case.sample("kmodgate_hardened") == 0


def test_where_bpf_is_no_security_module_the_node_cannot_be_hardened(case: Case) -> None:
    case.facts = replace(case.facts, lsms=("capability",))
    with pytest.raises(HookError, match="lsm="):
        case.start()
    assert case.guard.done == ["register"]


def test_denials_are_counted_and_told_with_who_was_last(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.start()
    case.guard.counts[Switch.UNMOUNT] += 2
    case.hardening.look(enforce=True)
    assert case.sample("kmodgate_off_switch_denials_total", switch="bpffs") == 2
    assert "2 time(s); last by process 7 ('evil\\n'), user 0" in caplog.text
    caplog.clear()
    case.hardening.look(enforce=True)
    assert "denied:" not in caplog.text


def test_the_token_lifts_once_and_the_gauge_follows(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    case.start()
    assert case.hardening._judge(Request(TOKEN, 30)) is Answer.LIFTED
    assert case.guard.done[-1] == "lift 30"
    assert case.guard.used_token == HASH
    assert case.sample("kmodgate_hardened") == 0
    case.guard.lifted = False  # the time is over
    case.hardening.look(enforce=True)
    assert case.sample("kmodgate_hardened") == 1
    assert "the guard denies again" in caplog.text
    assert case.hardening._judge(Request(TOKEN, 30)) is Answer.USED
    assert case.guard.lifted is False


def test_a_token_that_was_used_under_an_earlier_agent_stays_used(case: Case) -> None:
    case.guard.used_token = HASH
    case.start()
    assert case.hardening._judge(Request(TOKEN, 30)) is Answer.USED


@pytest.mark.parametrize(
    "other", [NodeConfig(), replace(HARDENED, hardened_token=bytes(32)), replace(HARDENED, hardened=False)]
)
def test_an_edit_changes_nothing_until_the_next_start(
    case: Case, caplog: pytest.LogCaptureFixture, other: NodeConfig
) -> None:
    case.start()
    case.hardening.reconfigured(other)
    assert "takes effect at the next start" in caplog.text
    assert case.hardening._judge(Request(TOKEN, 1)) is Answer.LIFTED


@pytest.mark.parametrize(
    ("looked", "former", "keep", "removed"),
    [
        (True, False, False, True),
        (True, False, True, False),  # a crash leaves it in force
        (False, False, True, True),  # a start that failed leaves nothing
        (False, True, True, False),  # … but what was there before
    ],
)
def test_what_stays_at_the_end(case: Case, looked: bool, former: bool, keep: bool, removed: bool) -> None:
    case.guard.former = former
    case.start()
    if looked:
        case.hardening.look(enforce=True)
    case.hardening.stop(keep=keep)
    assert ("remove" in case.guard.done) is removed
    assert case.hardening.sources == ()
    assert case.sample("kmodgate_hardened") == 0
    case.hardening.stop(keep=True)  # a second time does no harm


@pytest.mark.parametrize("config", [NodeConfig(), HARDENED])
def test_pins_of_the_programs_are_watched_hardened_or_not(
    case: Case, caplog: pytest.LogCaptureFixture, config: NodeConfig
) -> None:
    case.hardening.register()
    case.hardening.start(config, case.facts, FakeBackend(), lambda: ["kmg_locked_down"])
    case.guard.missing = ["control"]
    case.hardening.look(enforce=True)
    assert case.sample("kmodgate_off_switch_events_total", switch="pins") == 1
    assert ("kmg_locked_down, control" if config.hardened else "(kmg_locked_down)") in caplog.text
