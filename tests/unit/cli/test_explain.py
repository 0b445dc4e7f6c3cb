# SPDX-License-Identifier: Apache-2.0
"""``kmodgate explain``: verdict, facts, what would change it, and what goes wrong."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.vectors.generate import MODINFO, Identity, append, make_elf, make_identity, openssl_cms

from kmodgate.cli import main
from kmodgate.cli.explain import command


@pytest.fixture(scope="module")
def operator() -> Identity:
    return make_identity("operator")


@pytest.fixture
def lab(tmp_path: Path, operator: Identity) -> Path:
    elf = make_elf(MODINFO)
    (tmp_path / "signed.ko").write_bytes(append(elf, openssl_cms(elf, operator)))
    (tmp_path / "unsigned.ko").write_bytes(elf)
    (tmp_path / "operator.pem").write_bytes(operator.pem)
    write_config(tmp_path, "ENFORCE_SIGNED_MODULES")
    return tmp_path


def write_config(directory: Path, policy: str, ours: str = "") -> None:
    (directory / "node.yaml").write_text(
        f"linuxNodeConfig:\n  kernelModuleLoading:\n    policy: {policy}\n"
        f"kmodgate:\n  trust:\n    certificates: [operator.pem]\n{ours}"
    )


def explain(lab: Path, name: str, *options: str) -> tuple[int, dict[str, object]]:
    arguments = [str(lab / name), "--config", str(lab / "node.yaml"), "--output", "json", *options]
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    assert result.exception is None, result.exception
    return result.return_value, json.loads(result.stdout)


def test_a_trusted_module_may_load_from_anywhere(lab: Path) -> None:
    for place in ("pinned-root", "other", "memory"):
        status, said = explain(lab, "signed.ko", "--from", place)
        assert status == 0
        assert (said["verdict"], said["reason"], said["errno"]) == ("allow", "trusted_signature", None)


def test_an_unsigned_module_is_refused_and_the_remedy_named(lab: Path) -> None:
    status, said = explain(lab, "unsigned.ko", "--from", "other")
    assert status == 1
    assert (said["verdict"], said["reason"], said["errno"]) == ("deny", "unsigned", "EKEYREJECTED")
    changes = said["would_change"]
    assert isinstance(changes, list)
    assert [(change["kind"], change["verdict"]) for change in changes] == [
        ("sign", "allow"),
        ("mode-audit", "would_deny"),
    ]
    assert "nothing is refused any more" in changes[1]["danger"]


def test_loadpin_looks_at_the_place_and_enforce_would_let_it_in(lab: Path) -> None:
    write_config(lab, "DO_NOT_ENFORCE_SIGNED_MODULES")
    status, said = explain(lab, "signed.ko", "--from", "other")
    assert (status, said["verdict"], said["reason"], said["errno"]) == (
        1,
        "deny",
        "outside_pinned_root",
        "EPERM",
    )
    changes = said["would_change"]
    assert isinstance(changes, list)
    found = {change["kind"]: (change["verdict"], change["reason"]) for change in changes}
    assert found["policy"] == ("allow", "trusted_signature")
    assert found["pinned-root"] == ("allow", "pinned_root")
    assert explain(lab, "unsigned.ko", "--from", "pinned-root")[0] == 0
    assert explain(lab, "unsigned.ko", "--from", "memory")[1]["reason"] == "no_file"


def test_audit_is_not_an_allow(lab: Path) -> None:
    write_config(lab, "ENFORCE_SIGNED_MODULES", "  mode: audit\n")
    status, said = explain(lab, "unsigned.ko", "--from", "other")
    assert (status, said["verdict"], said["errno"]) == (1, "would_deny", "EKEYREJECTED")


def test_certificates_of_the_kernel_can_be_named(lab: Path, operator: Identity) -> None:
    (lab / "kernel.pem").write_bytes(operator.pem)
    other = make_identity("other")
    (lab / "operator.pem").write_bytes(other.pem)
    assert explain(lab, "signed.ko", "--from", "other")[1]["reason"] == "untrusted_signer"
    status, said = explain(lab, "signed.ko", "--from", "other", "--kernel-trust", str(lab / "kernel.pem"))
    assert (status, said["reason"]) == (0, "trusted_signature")


def test_text_reads_well(lab: Path) -> None:
    arguments = [str(lab / "unsigned.ko"), "--config", str(lab / "node.yaml"), "--from", "other"]
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    lines = result.stdout.splitlines()
    assert lines[0].endswith("unsigned.ko: deny (unsigned, errno EKEYREJECTED)")
    start = lines.index("What would change this verdict, each tried by itself:")
    assert lines[start + 1].startswith("  - sign the module anew")
    assert lines[start + 1].endswith(": allow (trusted_signature)")
    assert lines[-1].startswith("      DANGER: nothing is refused any more")


def test_force_takes_the_signature_away(lab: Path) -> None:
    status, said = explain(lab, "signed.ko", "--from", "other", "--force")
    assert (status, said["verdict"], said["reason"], said["forced"]) == (1, "deny", "unsigned", True)


def test_the_kernel_that_checks_can_be_named(lab: Path) -> None:
    curve = make_identity("curve", "p256")
    elf = make_elf(MODINFO)
    (lab / "signed.ko").write_bytes(append(elf, openssl_cms(elf, curve)))
    (lab / "operator.pem").write_bytes(curve.pem)
    assert explain(lab, "signed.ko", "--from", "other", "--kernel-profile", "latest")[0] == 0
    status, said = explain(lab, "signed.ko", "--from", "other", "--kernel-profile", "5.10")
    assert (status, said["reason"], said["kernel_profile"]) == (1, "unsupported_signature", "5.10")
    changes = said["would_change"]
    assert isinstance(changes, list)
    assert ("kernel", "allow") in {(change["kind"], change["verdict"]) for change in changes}
    assert explain(lab, "signed.ko", "--from", "other")[1]["kernel_profile"] == os.uname().release


def test_a_node_pool_is_picked_by_labels(lab: Path) -> None:
    write_config(
        lab,
        "ENFORCE_SIGNED_MODULES",
        "  nodePools:\n  - {name: dev, nodeSelector: {dev: 'yes'}, mode: audit}\n",
    )
    status, said = explain(lab, "unsigned.ko", "--from", "other")
    assert (status, said["mode"]) == (1, "enforce")
    assert any("--node-label" in str(note) for note in said["notes"])  # type: ignore[attr-defined]
    assert explain(lab, "unsigned.ko", "--from", "other", "--node-label", "dev=yes")[1]["mode"] == "audit"


@pytest.mark.parametrize(
    ("name", "config", "place"),
    [
        ("missing.ko", None, "missing.ko"),
        (".", None, "is a directory"),
        ("signed.ko", "nonsense: 1\n", "node.yaml:1"),
        ("signed.ko", "linuxNodeConfig: [\n", "node.yaml:"),
        ("signed.ko", "linuxNodeConfig: {kernelModuleLoading: {policy: MAYBE}}\n", "POLICY_UNSPECIFIED"),
        (
            "signed.ko",
            (
                "linuxNodeConfig:\n  cgroupMode: CGROUP_MODE_V1\n"
                "  kernelModuleLoading: {policy: ENFORCE_SIGNED_MODULES}\n"
            ),
            "cgroup v2",
        ),
        ("signed.ko", "kmodgate: {trust: {certificates: [/nowhere.pem]}}\n", "/nowhere.pem"),
        ("signed.ko", "kmodgate: {trust: {certificates: [signed.ko]}}\n", "signed.ko"),
    ],
)
def test_bad_input_is_one_line_that_names_the_place(
    lab: Path, capsys: pytest.CaptureFixture[str], name: str, config: str | None, place: str
) -> None:
    if config is not None:
        (lab / "node.yaml").write_text(config)
    with pytest.raises(SystemExit) as ended:
        main(["explain", str(lab / name), "--config", str(lab / "node.yaml")])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert place in said
    assert len(said.strip().splitlines()) == 1


def test_validity_is_asked_for_where_the_config_asks(lab: Path) -> None:
    expired = make_identity("expired", days=(-20, -10))
    elf = make_elf(MODINFO)
    (lab / "signed.ko").write_bytes(append(elf, openssl_cms(elf, expired)))
    (lab / "operator.pem").write_bytes(expired.pem)
    assert explain(lab, "signed.ko", "--from", "other")[0] == 0
    write_config(lab, "ENFORCE_SIGNED_MODULES", "    requireValidity: true\n")
    assert explain(lab, "signed.ko", "--from", "other")[0] == 1
