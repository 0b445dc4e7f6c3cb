# SPDX-License-Identifier: Apache-2.0
"""Every input of the fuzz corpus, once broken or not, keeps every promise of its target."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.fuzz.mutators import CORPUS
from tests.fuzz.targets import TARGETS

INPUTS = sorted(path for path in CORPUS.rglob("*") if path.is_file())
MAX_CORPUS = 1 << 20


def test_every_target_has_seeds_and_all_of_them_are_small() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    assert all(list((CORPUS / name).glob("seed-*")) for name in TARGETS)
    assert sum(path.stat().st_size for path in INPUTS) < MAX_CORPUS


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_keeps_the_promises(name: str) -> None:
    for path in INPUTS:
        if path.parent.name == name:
            check(name, path)


def check(name: str, path: Path) -> None:
    start = time.thread_time()
    try:
        TARGETS[name].check(path.read_bytes())
    except Exception as error:
        raise AssertionError(f"{path.relative_to(CORPUS)}: {error}") from error
    assert time.thread_time() - start < 1
