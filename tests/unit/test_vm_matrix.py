# SPDX-License-Identifier: Apache-2.0
"""The table of results: nothing that failed, is missing or was left out on the quiet looks right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.vm import kernels, matrix

CASES = {
    "test_a": "",
    "test_b": '<skipped type="pytest.skip" message="this kernel lacks digests">x</skipped>',
}


def junit(cases: dict[str, str]) -> str:
    inner = "".join(
        f'<testcase classname="test_file" name="{name}" time="0.1">{body}</testcase>'
        for name, body in cases.items()
    )
    return f'<testsuites><testsuite name="pytest">{inner}</testsuite></testsuites>'


def results(directory: Path, **suites: dict[str, str]) -> Path:
    for suite, cases in suites.items():
        (directory / f"{suite}.xml").write_text(junit(cases))
        kernel = kernels.of_suite(suite)
        about = matrix.describe(kernel, f"release of {suite}", kernel.rung)
        (directory / f"{suite}.json").write_text(json.dumps(about))
    return directory


def test_a_right_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = results(tmp_path, bullseye=CASES, bookworm=dict.fromkeys(CASES, ""))
    assert matrix.main(directory) == 0
    text = capsys.readouterr().out
    assert text == (directory / "matrix.txt").read_text()
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["bullseye", "bookworm"]
    assert ["rung", "bpf-lsm-basic", "bpf-lsm"] in lines
    assert ["test_file::test_a", "pass", "pass"] in lines
    assert ["test_file::test_b", "lacks", "digests", "pass"] in lines
    assert "1 pass, 1 left out, 0 not right" in text


@pytest.mark.parametrize(
    "body",
    [
        '<failure message="assert 1 == 2&#10;more">trace</failure>',
        '<error message="failed on setup">trace</error>',
        '<skipped message="no time today">x</skipped>',
        None,
    ],
    ids=["failure", "error", "left out without the table", "missing"],
)
def test_a_wrong_one(tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str | None) -> None:
    wrong = {"test_a": ""} if body is None else {**CASES, "test_b": body}
    directory = results(tmp_path, bookworm=wrong, trixie=dict.fromkeys(CASES, ""))
    assert matrix.main(directory) == 1
    text = capsys.readouterr().out
    assert "1 pass, 0 left out, 1 not right" in text
    assert body is None or "bookworm: test_file::test_b: " in text


def test_no_results_are_no_success(tmp_path: Path) -> None:
    assert matrix.main(tmp_path) == 2


def test_an_error_while_cleaning_up_does_not_hide_behind_a_pass() -> None:
    twice = (
        '<testcase classname="f" name="t"/><testcase classname="f" name="t"><error message="m"/></testcase>'
    )
    found = matrix.by_name(matrix.read_cases(f"<testsuite>{twice}</testsuite>"))
    assert found["f::t"].result == "FAIL"


def test_every_kernel_has_a_suite_of_its_own() -> None:
    suites = [kernel.suite for kernel in kernels.KERNELS.values()]
    assert len(set(suites)) == len(suites)
    for kernel in kernels.KERNELS.values():
        # Either the kernel unpacks, or it is known what it answers.
        assert (kernel.decompresses is None) != (kernel.without_decompression is None)
        assert kernel.capabilities <= kernels.WORDS


def test_what_a_kernel_shows_is_read_from_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.release", lambda: "6.12.1")
    sys, modules = tmp_path / "sys", tmp_path / "modules"
    (sys / "kernel/btf").mkdir(parents=True)
    (sys / "kernel/btf/vmlinux").write_bytes(b"\0bpf_loop\0")
    (sys / "module").mkdir()
    (sys / "module/compression").write_text("xz\n")
    folder = modules / "6.12.1/kernel/fs"
    folder.mkdir(parents=True)
    (folder / "ext4.ko.xz").touch()
    assert kernels.seen(sys, modules) == {"rung": "bpf-lsm", "decompresses": "xz", "packed": True}
    assert kernels.this().suite == "trixie"
    monkeypatch.setattr("platform.release", lambda: "4.19.0")
    with pytest.raises(LookupError, match=r"add a row to tests/vm/kernels\.py"):
        kernels.this()
