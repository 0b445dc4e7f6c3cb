# SPDX-License-Identifier: Apache-2.0
"""Which rung is stood on under a policy, and when it is left: at start, at a reload, when it breaks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.vectors.generate import make_identity

from kmodgate.config import BackendChoice, CannotEnforce, NodeConfig
from kmodgate.errors import HookError, KmodgateError, NodeError
from kmodgate.hooks import bcc
from kmodgate.hooks.choice import Choice, Features
from kmodgate.model import Backend, EffectivePolicy, Mode, Policy
from kmodgate.node import NodeFacts, NodePaths, read_facts
from kmodgate.rungs import Terms
from kmodgate.settings import Settings
from kmodgate.signature import TrustStore, load_certificates
from kmodgate.standing import Standing

ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=False)
AUDIT = replace(ENFORCE, mode=Mode.AUDIT)
PINNED = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=True)
FREE = replace(PINNED, load_pin=False)
BY_KERNEL = Terms(by_kernel=True)
# A kernel without type information, with headers, BCC and trace events.
FEATURES = Features(
    frozenset(),
    lsm_programs=False,
    loop=False,
    task_storage=False,
    syscall_programs=False,
    no_programs="no type information",
    no_bcc=tuple,
    no_tracefs=tuple,
)
WHY = "no list of functions"


def settings(policy: EffectivePolicy, *certificates: bytes, observe: bool = False) -> Settings:
    config = NodeConfig(cannot_enforce=CannotEnforce.OBSERVE) if observe else NodeConfig()
    anchors = [anchor for pem in certificates for anchor in load_certificates(pem, "a.pem")]
    return Settings(config, policy, TrustStore(anchors), b"")


@pytest.fixture
def paths(tmp_path: Path) -> NodePaths:
    """A kernel with sig_enforce and without LoadPin."""
    paths = NodePaths(proc=tmp_path / "proc", sys=tmp_path / "sys")
    (paths.sys / "module/module/parameters").mkdir(parents=True)
    (paths.sys / "module/module/parameters/sig_enforce").write_text("N\n")
    return paths


@pytest.fixture
def facts(paths: NodePaths) -> NodeFacts:
    return read_facts(paths, mount_id_of=lambda _path: None)


@pytest.fixture(autouse=True)
def kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose kprobes may refuse nothing."""
    monkeypatch.setattr(Features, "look", classmethod(lambda _cls, **_what: FEATURES))
    monkeypatch.setattr(bcc, "cannot_refuse", lambda _paths: WHY)
    monkeypatch.setattr("os.geteuid", lambda: 0)


@pytest.fixture
def stand(facts: NodeFacts, paths: NodePaths) -> Standing:
    return Standing(facts, paths, BackendChoice.AUTO)


def unwanted(_settings: Settings, _error: KmodgateError) -> None:
    raise AssertionError


def begin(stand: Standing, wanted: Settings) -> tuple[Backend, Terms]:
    stand.choose(wanted)
    assert stand.step()
    stand.arrived(wanted)
    return stand.choice.backend, stand.terms


@pytest.mark.parametrize(
    ("policy", "backend", "terms"),
    [
        (ENFORCE, Backend.TRACEFS, BY_KERNEL),  # the kernel's switch does what a watcher cannot
        (AUDIT, Backend.BCC, Terms()),
        (replace(PINNED, mode=Mode.AUDIT), Backend.BCC, Terms()),
        (FREE, Backend.BCC, Terms()),  # nothing is to be refused
    ],
)
def test_the_best_rung_that_can_carry_the_policy_out_is_stood_on(
    stand: Standing, policy: EffectivePolicy, backend: Backend, terms: Terms, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert begin(stand, settings(policy)) == (backend, terms)
    assert "not on backend bpf-lsm: no type information" in caplog.text
    assert f"backend {backend}: the best that works here and can carry the policy out" in caplog.text
    assert ("not on backend bcc: backend bcc" in caplog.text) == (backend is Backend.TRACEFS)


def test_where_a_kprobe_may_refuse_load_pin_is_its(
    stand: Standing, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bcc, "cannot_refuse", lambda _paths: "")
    assert begin(stand, settings(PINNED))[0] is Backend.BCC
    # The kernel's keyrings speak too late for it, and sig_enforce asks them.
    assert begin(stand, settings(ENFORCE)) == (Backend.TRACEFS, BY_KERNEL)
    assert "decides before the kernel looks at the signature" in caplog.text
    pem = make_identity("a").pem
    certified = settings(replace(ENFORCE, kernel_keyrings=False), pem)
    assert begin(stand, certified)[0] is Backend.BCC


def test_a_policy_that_no_rung_can_enforce_ends_the_start_with_every_reason(stand: Standing) -> None:
    with pytest.raises(NodeError, match=r"nothing on this kernel: no list.*pinnedRootExempt") as caught:
        stand.choose(settings(replace(ENFORCE, kernel_keyrings=False, pinned_root_exempt=True)))
    assert "cannotEnforce: observe" in str(caught.value)
    with pytest.raises(NodeError, match=r"no LoadPin of its own .*; write cannotEnforce: observe"):
        stand.choose(settings(PINNED))


@pytest.mark.parametrize("policy", [PINNED, replace(ENFORCE, pinned_root_exempt=True)])
def test_what_is_put_up_with_is_only_watched(
    stand: Standing, policy: EffectivePolicy, caplog: pytest.LogCaptureFixture
) -> None:
    found = begin(stand, settings(policy, observe=True))
    assert found == (Backend.TRACEFS, Terms(may_observe=True))
    assert "not enforced, only observed: backend tracefs leaves it to the kernel" in caplog.text


def test_the_word_is_about_rungs_that_watch(facts: NodeFacts, paths: NodePaths) -> None:
    """One that refuses wrongly is an error all the same."""
    basic = Standing(facts, paths, BackendChoice.BPF_LSM_BASIC)
    able = replace(
        FEATURES,
        no_programs="",
        lsm_programs=True,
        lsm_active=True,
        functions=frozenset(
            {
                *(f"bpf_lsm_{hook}" for hook in ("kernel_read_file", "kernel_load_data", "locked_down")),
                "mod_verify_sig",
            }
        ),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Features, "look", classmethod(lambda _cls, **_what: able))
        with pytest.raises(NodeError, match="takes no digest"):
            basic.choose(settings(ENFORCE, make_identity("a").pem, observe=True))
        assert begin(basic, settings(ENFORCE))[0] is Backend.BPF_LSM_BASIC


def test_a_rung_that_is_asked_for_is_not_gone_around(facts: NodeFacts, paths: NodePaths) -> None:
    asked = Standing(facts, paths, BackendChoice.BCC)
    with pytest.raises(NodeError, match="backend bcc can refuse nothing on this kernel"):
        asked.choose(settings(PINNED))
    assert begin(asked, settings(AUDIT))[0] is Backend.BCC
    with pytest.raises(NodeError, match="backend bcc can refuse nothing on this kernel"):
        asked.reconsider(settings(AUDIT), settings(PINNED))
    assert asked.next is None


def test_without_root_there_is_no_rung(stand: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HookError, match="needs root"):
        stand.choose(settings(ENFORCE))


# --- a changed config ----------------------------------------------------------------------


def test_a_config_that_the_rung_can_carry_out_changes_no_rung(stand: Standing) -> None:
    begin(stand, settings(AUDIT))
    assert not stand.reconsider(settings(AUDIT), settings(FREE))
    assert stand.next is None
    begin(stand, settings(ENFORCE))
    # bcc could watch too; but nothing is wrong with the rung that is there.
    assert not stand.reconsider(settings(ENFORCE), settings(AUDIT))
    assert (stand.choice.backend, stand.terms) == (Backend.TRACEFS, BY_KERNEL)


def test_a_config_that_needs_another_rung_gets_it(stand: Standing, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    old, new = settings(AUDIT), settings(ENFORCE)
    begin(stand, old)
    assert stand.reconsider(old, new)
    assert "leaving backend bcc for tracefs: backend bcc decides before" in caplog.text
    assert not stand.broken
    with stand.going_back(unwanted):
        assert stand.step()
        stand.arrived(new)
    assert (stand.choice.backend, stand.terms, stand.step()) == (Backend.TRACEFS, BY_KERNEL, False)
    assert "config reloaded: ENFORCE_SIGNED_MODULES" in caplog.text


def test_a_rung_that_cannot_be_stood_on_after_all_leads_back(stand: Standing) -> None:
    old, new = settings(AUDIT), settings(ENFORCE)
    begin(stand, old)
    assert stand.reconsider(old, new)
    assert stand.step()
    told: list[tuple[Settings, KmodgateError]] = []
    error = HookError("sig_enforce cannot be set")
    with stand.going_back(lambda settings, error: told.append((settings, error))):
        raise error
    assert told == [(old, error)]
    assert stand.step()
    assert (stand.choice.backend, stand.terms) == (Backend.BCC, Terms())
    with pytest.raises(HookError), stand.going_back(unwanted):
        raise error  # there is no second way back


def test_a_config_that_no_rung_can_carry_out_is_refused(stand: Standing) -> None:
    begin(stand, settings(AUDIT))
    with pytest.raises(NodeError, match="no LoadPin of its own"):
        stand.reconsider(settings(AUDIT), settings(PINNED))
    assert (stand.next, stand.choice.backend) == (None, Backend.BCC)


# --- a rung that breaks --------------------------------------------------------------------


def on(stand: Standing, backend: Backend) -> Standing:
    """Standing there, as far as ``lower`` asks."""
    stand.choice, stand.terms = Choice(backend, ()), Terms()
    return stand


def test_a_rung_is_left_after_many_failures_and_not_before(
    stand: Standing, caplog: pytest.LogCaptureFixture
) -> None:
    on(stand, Backend.BPF_LSM)
    assert not stand.lower(settings(ENFORCE), 14)
    assert stand.lower(settings(ENFORCE), 15)
    assert stand.broken
    assert stand.step()
    # Not to bcc, which could only watch here.
    assert (stand.choice.backend, stand.broken) == (Backend.TRACEFS, False)
    assert "backend bpf-lsm has broken" in caplog.text
    assert on(stand, Backend.BPF_LSM).lower(settings(AUDIT), 15)
    assert stand.step()
    assert stand.choice.backend is Backend.BCC


def test_a_changed_config_does_not_lead_back_to_what_broke(
    stand: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(stand, Backend.BCC)
    assert stand.lower(settings(AUDIT), 15)
    assert stand.step()
    monkeypatch.setattr(bcc, "cannot_refuse", lambda _paths: "")
    with pytest.raises(NodeError, match="no LoadPin of its own"):
        stand.reconsider(settings(AUDIT), settings(PINNED))


def test_where_there_is_nothing_below_it_stays_and_says_so_once(
    stand: Standing, caplog: pytest.LogCaptureFixture
) -> None:
    on(stand, Backend.TRACEFS)
    for failures in (15, 16, 17):
        assert not stand.lower(settings(ENFORCE), failures)
    assert caplog.text.count("no other to go down to") == 1
    assert not stand.lower(settings(ENFORCE), 0)  # it worked again
    assert not stand.lower(settings(ENFORCE), 15)
    assert caplog.text.count("no other to go down to") == 2


def test_it_does_not_go_down_to_a_rung_that_cannot_enforce(stand: Standing) -> None:
    exempt = settings(replace(ENFORCE, pinned_root_exempt=True))
    assert not on(stand, Backend.BPF_LSM).lower(exempt, 15)


def test_a_rung_that_was_asked_for_is_not_left(facts: NodeFacts, paths: NodePaths) -> None:
    asked = on(Standing(facts, paths, BackendChoice.BPF_LSM), Backend.BPF_LSM)
    assert not asked.lower(settings(ENFORCE), 99)
