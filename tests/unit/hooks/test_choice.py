# SPDX-License-Identifier: Apache-2.0
"""The choice among backends: by features alone, and what keeps a better one away is said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kmodgate.config import BackendChoice
from kmodgate.errors import HookError
from kmodgate.hooks import choice
from kmodgate.hooks.basic import BasicBackend
from kmodgate.hooks.bpf import BpfBackend
from kmodgate.hooks.choice import Features, choose
from kmodgate.hooks.fmod_ret import FmodRetBackend
from kmodgate.model import Backend

HOOKS = {"bpf_lsm_kernel_read_file", "bpf_lsm_kernel_load_data", "bpf_lsm_locked_down"}
HELPERS = {"bpf_copy_from_user_task", "bpf_d_path"}
NEW = Features(
    functions=frozenset({*HOOKS, *HELPERS, "module_sig_check", "mod_verify_sig"}),
    lsm_programs=True,
    loop=True,
    task_storage=True,
    syscall_programs=True,
    lsm_active=True,
)
# What Debian's 5.10 shows.
OLD = Features(
    functions=frozenset({*HOOKS, "mod_verify_sig"}),
    lsm_programs=True,
    loop=False,
    task_storage=False,
    syscall_programs=False,
    lsm_active=True,
)


def test_the_best_rung_is_taken() -> None:
    found = choose(NEW)
    assert (found.backend, found.passed_over) == (Backend.BPF_LSM, ())
    assert choice.BACKENDS[found.backend] is BpfBackend


def test_an_old_kernel_gets_the_basic_rung_and_hears_why() -> None:
    found = choose(OLD)
    assert found.backend is Backend.BPF_LSM_BASIC
    assert choice.BACKENDS[found.backend] is BasicBackend
    passed_over = dict(found.passed_over)
    assert list(passed_over) == [Backend.BPF_LSM, Backend.BPF_FMOD_RET]
    assert "no bpf_loop()" in passed_over[Backend.BPF_FMOD_RET]
    assert set(passed_over[Backend.BPF_LSM]) == {
        "no function module_sig_check() to attach to",
        "no bpf_loop()",
        "no task storage",
        "no programs of type syscall",
        "no bpf_copy_from_user_task()",
        "no bpf_d_path()",
    }


@pytest.mark.parametrize(
    ("without", "lacks"),
    [
        ({"loop": False}, "no bpf_loop()"),
        ({"task_storage": False}, "no task storage"),
        ({"syscall_programs": False}, "no programs of type syscall"),
        ({"functions": NEW.functions - {"bpf_d_path"}}, "no bpf_d_path()"),
        ({"functions": NEW.functions - {"module_sig_check"}}, "no function module_sig_check() to attach to"),
    ],
)
def test_each_feature_counts(without: dict[str, object], lacks: str) -> None:
    features = replace(NEW, **without)  # type: ignore[arg-type]  # each value has its field's type
    assert choose(features).passed_over[0] == (Backend.BPF_LSM, (lacks,))
    with pytest.raises(HookError, match=r"backend bpf-lsm cannot work on this kernel: no "):
        choose(features, Backend.BPF_LSM)


@pytest.mark.parametrize(
    ("without", "words"),
    [
        ({"lsm_active": False}, "bpf is not among the active security modules"),
        ({"lsm_programs": False}, "CONFIG_BPF_LSM"),
        ({"functions": NEW.functions - {"bpf_lsm_locked_down"}}, "CONFIG_BPF_LSM"),
        ({"functions": frozenset({*HOOKS, *HELPERS})}, "no function mod_verify_sig()"),
    ],
)
def test_where_no_rung_is_left_all_reasons_are_given(without: dict[str, object], words: str) -> None:
    features = replace(NEW, **without)  # type: ignore[arg-type]  # each value has its field's type
    with pytest.raises(HookError) as caught:
        choose(features)
    said = str(caught.value)
    assert said.startswith("no backend can work on this kernel: bpf-lsm: ")
    assert "| bpf-lsm-basic: " in said
    assert words in said


def test_a_list_of_security_modules_out_of_sight_is_no_refusal() -> None:
    assert choose(replace(NEW, lsm_active=None)).backend is Backend.BPF_LSM


def test_a_worse_rung_can_be_asked_for() -> None:
    found = choose(NEW, Backend.BPF_LSM_BASIC)
    assert (found.backend, found.passed_over[0]) == (
        Backend.BPF_LSM_BASIC,
        (Backend.BPF_LSM, ("bpf-lsm-basic was asked for",)),
    )


SECURITY = {
    f"security_{name}"
    for name in (
        "kernel_read_file",
        "kernel_load_data",
        "kernel_post_read_file",
        "kernel_post_load_data",
        "locked_down",
        "sb_free",
    )
}


def test_without_bpf_among_the_security_modules_the_gates_are_next() -> None:
    features = replace(NEW, functions=NEW.functions | SECURITY, lsm_active=False)
    found = choose(features)
    assert found.backend is Backend.BPF_FMOD_RET
    assert choice.BACKENDS[found.backend] is FmodRetBackend
    assert "bpf is not among the active security modules" in found.passed_over[0][1][0]
    for name in SECURITY:
        lacking = replace(features, functions=features.functions - {name})
        with pytest.raises(HookError, match=f"no function {name}"):
            choose(lacking, Backend.BPF_FMOD_RET)


def test_what_is_not_there_is_not_replaced_by_something_else() -> None:
    with pytest.raises(HookError, match="backend bcc cannot work on this kernel: BCC was not looked for"):
        choose(NEW, Backend.BCC)


def test_every_word_of_the_config_names_a_rung() -> None:
    assert BackendChoice.AUTO.rung is None
    assert {word.rung for word in BackendChoice if word is not BackendChoice.AUTO} == set(Backend) - {
        Backend.NONE
    }


def test_without_programs_trace_events_are_what_is_left() -> None:
    features = replace(NEW, no_programs="no type information", no_tracefs=tuple)
    found = choose(features)
    assert found.backend is Backend.TRACEFS
    assert found.passed_over == (
        *((backend, ("no type information",)) for backend in choice.BACKENDS),
        (Backend.BCC, ("BCC was not looked for",)),
    )
    with pytest.raises(HookError, match="backend bpf-lsm cannot work on this kernel: no type information"):
        choose(features, Backend.BPF_LSM)
    with pytest.raises(HookError, match="tracefs: trace events were not looked for"):
        choose(replace(NEW, no_programs="no type information"))


WATCHES = "backend bcc can refuse nothing on this kernel"
BARE = replace(NEW, no_programs="no type information", no_bcc=tuple, no_tracefs=tuple)
"""A kernel without type information, with headers, BCC and trace events."""


def test_a_rung_that_can_carry_the_policy_out_wins_over_a_higher_one_that_cannot() -> None:
    def cannot(backend: Backend) -> tuple[str, ...]:
        return (WATCHES,) if backend is Backend.BCC else ()

    found = choose(BARE, cannot=cannot)
    assert (found.backend, found.cannot) == (Backend.TRACEFS, ())
    assert found.passed_over[-1] == (Backend.BCC, (WATCHES,))
    assert choose(BARE).backend is Backend.BCC  # a policy that every rung can carry out
    assert choose(BARE, Backend.BCC, cannot=cannot).cannot == (WATCHES,)  # nobody goes around a word
    assert choose(BARE, below=Backend.BPF_LSM, cannot=cannot).backend is Backend.TRACEFS


def test_where_no_rung_can_carry_the_policy_out_each_says_why() -> None:
    found = choose(BARE, cannot=lambda backend: (f"not {backend}",))
    assert (found.backend, found.cannot) == (Backend.BCC, ("not bcc", "not tracefs"))


def test_lower_rungs_are_not_looked_at_where_a_better_one_will_do() -> None:
    def never() -> tuple[str, ...]:
        raise AssertionError

    features = replace(NEW, no_bcc=never, no_tracefs=never)
    assert choose(features).backend is Backend.BPF_LSM
    assert choose(features, Backend.BPF_LSM_BASIC).backend is Backend.BPF_LSM_BASIC


def test_under_a_rung_that_broke_only_lower_ones_are_taken() -> None:
    features = replace(NEW, no_tracefs=tuple)
    for programs in choice.BACKENDS:  # what silences one of them silences all
        assert choose(features, below=programs).backend is Backend.TRACEFS
    with pytest.raises(HookError, match="no backend"):
        choose(features, below=Backend.TRACEFS)
