# SPDX-License-Identifier: Apache-2.0
"""kmodgate and real kernels judge the same twelve thousand module files each."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path

import pytest
from tests.need import need
from tests.vectors.conformance import page
from tests.vectors.conformance.compare import PROFILE_OF, Comparison, compare, compare_small
from tests.vm.boot import alive

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1500)]

# "small" is built from source for ML-DSA, and not asked for by default.
SUITES = os.environ.get("KMODGATE_CONFORMANCE_KERNELS", "bookworm trixie").split()
PAGE = Path(__file__).parents[2] / "docs/conformance.md"
SHOWN = 20


@cache
def compared(suite: str) -> Comparison:
    """One boot for each kernel."""
    need(shutil.which("qemu-system-x86_64"), "QEMU is missing; run: sudo make deps")
    with alive():
        return compare_small() if suite == "small" else compare(suite)


@pytest.fixture(params=SUITES)
def comparison(request: pytest.FixtureRequest) -> Comparison:
    return compared(request.param)


def test_the_suites_are_known() -> None:
    assert set(SUITES) <= {*PROFILE_OF, "small"}


def test_there_are_enough_cases_of_every_outcome(comparison: Comparison) -> None:
    assert len(comparison.named) >= 250
    assert len(comparison.damaged) >= 10_000
    answers = {outcome.kernel for outcome in comparison.outcomes.values()}
    assert {None, "EKEYREJECTED", "EBADMSG", "EINVAL", "EMSGSIZE", "ENOEXEC"} <= answers


def test_every_errno_is_the_kernels(comparison: Comparison) -> None:
    different = [
        f"{name}: the kernel says {outcome.kernel}, the model {outcome.predicted}"
        for name, outcome in comparison.differences().items()
    ]
    assert not different, "\n".join([f"{len(different)} differences", *different[:SHOWN]])
    assert comparison.keys == ()


def test_nothing_is_trusted_that_the_kernel_refuses(comparison: Comparison) -> None:
    # Load flags are not in the file: the caller of `report` knows them.
    wrong = [
        name
        for name, outcome in comparison.outcomes.items()
        if outcome.falsely_trusted and not name.startswith("MODULE_INIT_IGNORE")
    ]
    assert not wrong, wrong[:SHOWN]


def test_the_reported_errno_is_the_kernels(comparison: Comparison) -> None:
    """Where both refuse, `verify` prints what the kernel says."""
    wrong = [
        f"{name}: {outcome.report.errno}, not {outcome.kernel}"
        for name, outcome in comparison.outcomes.items()
        if outcome.kernel not in {None, "ENOEXEC"}
        and not name.startswith(("MODULE_INIT_IGNORE", "trailer: empty file"))
        and outcome.report.errno != outcome.kernel
    ]
    assert not wrong, "\n".join([f"{len(wrong)} wrong", *wrong[:SHOWN]])


def test_every_deviation_has_its_reason(comparison: Comparison) -> None:
    for outcome in comparison.outcomes.values():
        if outcome.stricter:
            page.why(outcome.report.detail)


def test_the_profile_has_what_the_kernel_has(comparison: Comparison) -> None:
    for algorithm in ("ecdsa-nist-p256", "ecdsa-nist-p521", "mldsa65"):
        assert (algorithm in comparison.profile.keys) == (algorithm in comparison.algorithms)
    for digest in ("sha1", "sha256", "sha512", "sm3"):
        assert (digest in comparison.profile.digests) == (digest in comparison.algorithms)


def test_the_page_lists_the_deviations(comparison: Comparison) -> None:
    if comparison.profile.name not in PROFILE_OF.values():
        pytest.skip("the page is about Debian's kernels")
    text = PAGE.read_text()
    for name, marks in page.deviations([comparison]):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| {name} |")]
        assert marks[0] in row
