# SPDX-License-Identifier: Apache-2.0
"""What can be put in force, and what is refused with place and remedy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from tests.vectors.generate import make_identity

from kmodgate.errors import ConfigError, KmodgateError, NodeError
from kmodgate.model import Policy
from kmodgate.node import CgroupHierarchy, NodeFacts, NodePaths, read_facts
from kmodgate.policy import compile_table, judges_bytes
from kmodgate.settings import files_named, read_settings
from kmodgate.signature import load_certificates
from kmodgate.signature.revocation import tbs_digests

ENFORCE = "linuxNodeConfig: {kernelModuleLoading: {policy: ENFORCE_SIGNED_MODULES}}\n"


@pytest.fixture
def node(tmp_path: Path) -> NodeFacts:
    """A node that can do everything."""
    facts = read_facts(NodePaths(proc=tmp_path, sys=tmp_path, boot=tmp_path), mount_id_of=lambda _path: None)
    return replace(
        facts,
        btf=True,
        lsms=("lockdown", "bpf"),
        modules_built=True,
        signatures=replace(facts.signatures, built=True, enforced=False),
        cgroups=CgroupHierarchy.V2,
        ftrace_enabled=True,
    )


def config(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "node.yaml"
    path.write_text(text)
    return path


def test_a_config_with_its_certificates(tmp_path: Path, node: NodeFacts) -> None:
    (tmp_path / "a.pem").write_bytes(make_identity("a").pem)
    path = config(tmp_path, ENFORCE + "kmodgate: {trust: {certificates: [a.pem]}}\n")
    settings = read_settings(path, None, node)
    assert settings.policy.policy is Policy.ENFORCE
    assert len(settings.trust) == 1


def test_other_certificates_give_another_digest(tmp_path: Path, node: NodeFacts) -> None:
    path = config(tmp_path, ENFORCE + "kmodgate: {trust: {certificates: [a.pem]}}\n")
    (tmp_path / "a.pem").write_bytes(make_identity("a").pem)
    first = read_settings(path, None, node).trust_digest
    assert read_settings(path, None, node).trust_digest == first
    (tmp_path / "a.pem").write_bytes(make_identity("b").pem)
    assert read_settings(path, None, node).trust_digest != first


def test_the_flag_wins(tmp_path: Path, node: NodeFacts) -> None:
    text = "linuxNodeConfig: {kernelModuleLoading: {policy: DO_NOT_ENFORCE_SIGNED_MODULES}}\n"
    path = config(tmp_path, text + "kmodgate: {loadPin: off}\n")
    assert read_settings(path, None, node).policy.policy is Policy.DO_NOT_ENFORCE
    assert read_settings(path, Policy.ENFORCE, node).policy.policy is Policy.ENFORCE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cgroups": CgroupHierarchy.V1}, "cgroup v2"),
        ({"ftrace_enabled": False}, "ftrace_enabled"),
    ],
)
def test_a_node_that_cannot_enforce_is_refused_with_the_reason(
    tmp_path: Path, node: NodeFacts, change: dict[str, object], words: str
) -> None:
    with pytest.raises(NodeError, match="cannot enforce ENFORCE_SIGNED_MODULES") as refused:
        read_settings(config(tmp_path, ENFORCE), None, replace(node, **change))  # type: ignore[arg-type]
    assert words in str(refused.value)
    assert refused.value.exit_code == 3


def test_kernel_keyrings_may_count_for_nothing(tmp_path: Path, node: NodeFacts) -> None:
    (tmp_path / "a.pem").write_bytes(make_identity("a").pem)
    text = ENFORCE + "kmodgate:\n  trust:\n    certificates: [a.pem]\n    kernelKeyrings: false\n"
    settings = read_settings(config(tmp_path, text), None, node)
    assert settings.policy.kernel_keyrings is False
    assert judges_bytes(compile_table(settings.policy))


@pytest.mark.parametrize(
    ("key", "content", "revokes"),
    [
        ("revoked", b"# nothing yet\n", False),
        ("revoked", b"bin:" + b"00" * 32 + b"\n", True),
        ("revoked", b"tbs:" + b"00" * 32 + b"\n", True),
        ("revoked", b"id:00\n", True),
        ("revokedCertificates", make_identity("revoked").pem, True),
    ],
)
def test_only_an_entry_makes_every_load_be_looked_up(
    tmp_path: Path, node: NodeFacts, key: str, content: bytes, revokes: bool
) -> None:
    (tmp_path / "file").write_bytes(content)
    path = config(tmp_path, f"kmodgate: {{loadPin: off, trust: {{{key}: [file]}}}}\n")
    policy = read_settings(path, None, node).policy
    assert policy.revocations is revokes
    assert judges_bytes(compile_table(policy)) is revokes


def test_trusted_verity_digests(tmp_path: Path, node: NodeFacts) -> None:
    path = config(tmp_path, "kmodgate: {loadPin: off, loadPinTrustedVerityDigests: list}\n")
    with pytest.raises(KmodgateError, match="list: no such file"):
        read_settings(path, None, node)
    assert files_named(path) == [tmp_path / "list"]
    (tmp_path / "list").write_text("# LOADPIN_TRUSTED_VERITY_ROOT_DIGESTS\n" + "ab" * 32 + "\n")
    assert read_settings(path, None, node).verity_digests == {bytes([0xAB]) * 32}
    (tmp_path / "list").write_text("# LOADPIN_TRUSTED_VERITY_ROOT_DIGESTS\n\n" + "ab" * 32 + "\n")
    with pytest.raises(ConfigError, match=r"list:2: is blank"):
        read_settings(path, None, node)
    (tmp_path / "list").write_bytes(bytes(5000))
    with pytest.raises(ConfigError, match="has 5000 bytes"):
        read_settings(path, None, node)
    assert (
        read_settings(config(tmp_path, "kmodgate: {loadPin: off}"), None, node).verity_digests == frozenset()
    )


def test_a_revoked_certificate_is_no_anchor_and_changes_the_digest(tmp_path: Path, node: NodeFacts) -> None:
    (tmp_path / "a.pem").write_bytes(make_identity("a").pem)
    path = config(tmp_path, "kmodgate: {loadPin: off, trust: {revokedCertificates: [a.pem]}}\n")
    first = read_settings(path, None, node)
    assert len(first.trust) == 0
    assert files_named(path) == [tmp_path / "a.pem"]
    (tmp_path / "a.pem").write_bytes(make_identity("b").pem)
    assert read_settings(path, None, node).trust_digest != first.trust_digest


@pytest.mark.parametrize("kind", ["tbs", "id"])
@pytest.mark.parametrize("at_hand", ["certificates", "revokedCertificates", None])
def test_an_entry_whose_certificate_is_not_at_hand_is_warned_of(
    tmp_path: Path, node: NodeFacts, caplog: pytest.LogCaptureFixture, kind: str, at_hand: str | None
) -> None:
    identity = make_identity("a")
    (anchor,) = load_certificates(identity.pem, "a.pem")
    assert anchor.skid is not None
    value = min(tbs_digests(anchor.certificate)) if kind == "tbs" else anchor.skid
    (tmp_path / "a.pem").write_bytes(identity.pem)
    (tmp_path / "revoked").write_text(f"{kind}:{value.hex()}\n")
    also = f", {at_hand}: [a.pem]" if at_hand else ""
    read_settings(
        config(tmp_path, f"kmodgate: {{loadPin: off, trust: {{revoked: [revoked]{also}}}}}\n"), None, node
    )
    named = [
        record.message for record in caplog.records if f"revocation {kind}:{value.hex()}" in record.message
    ]
    assert len(named) == (0 if at_hand else 1)
    assert all("trust.revokedCertificates" in message for message in named)


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "no such file"), (b"nothing", "X.509"), (b"-----BEGIN PRIVATE KEY-----\n", "private key")],
)
def test_a_certificate_that_is_none_is_named(
    tmp_path: Path, node: NodeFacts, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / "a.pem").write_bytes(content)
    path = config(tmp_path, ENFORCE + "kmodgate: {trust: {certificates: [a.pem]}}\n")
    with pytest.raises(KmodgateError) as refused:
        read_settings(path, None, node)
    assert "a.pem" in str(refused.value)
    assert words in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_revocation_that_is_none_names_its_line(tmp_path: Path, node: NodeFacts) -> None:
    (tmp_path / "revoked").write_text("# comment\ntbs:xyz\n")
    path = config(tmp_path, ENFORCE + "kmodgate: {trust: {revoked: [revoked]}}\n")
    with pytest.raises(ConfigError, match=r"revoked:2"):
        read_settings(path, None, node)


def test_node_pools_need_labels_and_the_first_match_is_in_force(tmp_path: Path, node: NodeFacts) -> None:
    text = (
        "kmodgate:\n  loadPin: off\n  nodePools:\n  - name: strict\n    matchLabels: {pool: strict}\n"
        "    policy: ENFORCE_SIGNED_MODULES\n"
    )
    path = config(tmp_path, text)
    with pytest.raises(NodeError, match="--node-label"):
        read_settings(path, None, node)
    assert read_settings(path, None, node, {"pool": "strict"}).policy.policy is Policy.ENFORCE
    assert read_settings(path, None, node, {"pool": "other"}).policy.policy is Policy.UNSPECIFIED
