# SPDX-License-Identifier: Apache-2.0
"""Files opened before it is known what is trusted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.unit.scan.conftest import NEW, OLD, Lab
from tests.unit.signature.test_mldsa import PAYLOAD, Signer
from tests.vectors.generate import append, signed_data

from kmodgate.cli import terminal
from kmodgate.model import EffectivePolicy, Mode, Policy
from kmodgate.scan import opening, scanner
from kmodgate.scan.kernels import KernelImage, read_image
from kmodgate.scan.opening import Opened, Work, open_ahead
from kmodgate.scan.plan import Plan, make_plan
from kmodgate.scan.records import Report, ScannedFile
from kmodgate.scan.root import Root
from kmodgate.scan.session import Inputs, run
from kmodgate.signature import LATEST

PROFILES = {OLD: LATEST, NEW: LATEST, None: LATEST}


def fill(lab: Lab) -> Path:
    for number in range(9):
        lab.add(OLD, f"kernel/d{number % 3}/m{number}.ko", lab.keys[OLD] if number else None)
    for number in range(9, 100):
        same = lab.modules(OLD) / f"kernel/d{number % 9 % 3}/m{number % 9}.ko"
        (lab.modules(OLD) / f"kernel/d{number % 3}/m{number}.ko").write_bytes(same.read_bytes())
    broken = lab.add(NEW, "kernel/broken.ko.xz", lab.keys[NEW])
    broken.write_bytes(broken.read_bytes()[:50])
    return lab.root


def ahead(root: Root, until: Callable[[], bool]) -> tuple[Plan, tuple[Work, ...]]:
    plan = make_plan(root, kernel="all", paths=(), running=None)
    return plan, open_ahead(root, plan.chunks, PROFILES, 1 << 20, until)


def paths(work: tuple[Work, ...]) -> list[str]:
    """Every file, opened or not."""
    opened = [one.path for each in work for one in each.opened]
    closed = [f"{part.folder}/{name}" for each in work for part in each.parts for name in part.names]
    return sorted((*opened, *closed))


@pytest.mark.parametrize("chunks", [0, 1, 3, 1000])
def test_every_file_is_there_once_however_far_it_came(lab: Lab, chunks: int) -> None:
    fill(lab)
    asked = 0

    def until() -> bool:
        nonlocal asked
        asked += 1
        return asked > chunks

    with Root(lab.root) as root:
        plan, work = ahead(root, until)
    expected = [f"{part.folder}/{name}" for chunk in plan.chunks for part in chunk for name in part.names]
    assert paths(work) == sorted(expected)
    opened = [one for each in work for one in each.opened]
    assert len(opened) == sum(len(part.names) for chunk in plan.chunks[:chunks] for part in chunk)
    assert all(isinstance(one, ScannedFile) == ("broken" in one.path) for one in opened)


def test_nothing_but_messages_and_digests_is_held(lab: Lab) -> None:
    fill(lab)
    with Root(lab.root) as root:
        _, work = ahead(root, lambda: False)
    files = [one.module.file for each in work for one in each.opened if isinstance(one, Opened)]
    signed = [file for file in files if file.size]
    assert (len(signed), len(files)) == (92, 104)
    for file in signed:
        assert file.size == len(file.cms())
        with pytest.raises(RuntimeError, match="let go"):
            file.payload()


def test_a_module_whose_payload_is_needed_is_opened_again(lab: Lab) -> None:
    data = append(PAYLOAD, signed_data(Signer("mldsa44").info(), digests=("sha512",)))
    (lab.modules(OLD) / "kernel/fs/post-quantum.ko").write_bytes(data)
    with Root(lab.root) as root:
        plan, work = ahead(root, lambda: False)
    closed = [part for each in work for part in each.parts]
    assert [part.names for part in closed] == [("post-quantum.ko",)]
    assert (closed[0].release, closed[0].place) == (OLD, "kernel")
    assert len(paths(work)) == plan.files


def test_what_is_held_is_bounded(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lab)
    monkeypatch.setattr(opening, "_HELD", 0)
    with Root(lab.root) as root:
        plan, work = ahead(root, lambda: False)
    assert len(plan.chunks) > 2
    assert len([each for each in work if each.parts]) == len(plan.chunks) - 1


class Images:
    """Kernel images that take their time."""

    def __init__(self, images: list[KernelImage], *, late: int) -> None:
        self.images, self.late = images, late

    @property
    def ready(self) -> bool:
        self.late -= 1
        return self.late < 0

    def __iter__(self) -> Iterator[KernelImage]:
        return iter(self.images)


def scan(root: Root, *, late: int, jobs: int) -> Report:
    plan = make_plan(root, kernel="all", paths=(), running=None)
    images = Images([read_image(root, release) for release in plan.releases], late=late)
    inputs = Inputs(
        policy=EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=False),
        certificates=(),
        revoked=(),
        revoked_certificates=(),
        kernel_keyrings=True,
        require_validity=False,
        max_size=1 << 20,
        profile=None,
        loaded=False,
        jobs=jobs,
        now=datetime.now(UTC),
    )
    progress = lambda total: terminal.progress("verifying", total)  # noqa: E731
    return run(root, plan, images, None, inputs, progress)


@pytest.mark.parametrize("jobs", [1, 2])
def test_how_long_the_images_take_changes_no_verdict(lab: Lab, jobs: int) -> None:
    fill(lab)
    with Root(lab.root) as root:
        reports = [scan(root, late=late, jobs=jobs) for late in (0, 2, 1000)]
    assert reports[0].counts() == {
        ("accepted", "trusted_signature"): 92,
        ("refused", "unsigned"): 12,
        ("unreadable", "unreadable"): 1,
    }
    assert reports[0] == reports[1] == reports[2]


def test_the_size_of_a_batch_changes_no_verdict(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(lab)
    with Root(lab.root) as root:
        expected = scan(root, late=0, jobs=1)
        for size in (1, 5000):
            monkeypatch.setattr(scanner, "_BATCH", size)
            assert scan(root, late=0, jobs=1) == expected


def test_a_folder_that_went_away_is_told(lab: Lab) -> None:
    folder = fill(lab) / "usr/lib/modules" / OLD / "kernel/d1"
    with Root(lab.root) as root:
        plan = make_plan(root, kernel="all", paths=(), running=None)
        folder.rename(folder.with_name("moved"))
        found = [one for chunk in plan.chunks for one in opening.open_files(root, chunk, 1 << 20)]
    gone = [one for one in found if isinstance(one, ScannedFile) and "/d1/" in one.path]
    assert len(found) == plan.files
    assert len(gone) == 33
    assert {(one.outcome, one.errno) for one in gone} == {("unreadable", "ENOENT")}
