# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from kmodgate.model import EffectivePolicy, Mode, Policy
from kmodgate.node import (
    CgroupHierarchy,
    KernelKeys,
    KeyringCertificate,
    NodeFacts,
    PinnedRoot,
    RootProtection,
    Severity,
    limits,
)
from kmodgate.node.kernel import Preemption
from kmodgate.node.security import KernelLoadPin, Lockdown, ModuleSignatures

ROOT = PinnedRoot(
    27,
    254,
    1,
    "/",
    "ext4",
    "/dev/vda1",
    mount_read_only=True,
    superblock_read_only=True,
    device_read_only=True,
)
GOOD = NodeFacts(
    release="6.1.0",
    btf=True,
    lsms=("capability", "bpf"),
    lockdown=Lockdown.NONE,
    signatures=ModuleSignatures(built=True, enforced=False),
    load_pin=KernelLoadPin(enforced=False, excludes_modules=False),
    modules_built=True,
    modules_disabled=False,
    ftrace_enabled=True,
    cgroups=CgroupHierarchy.V2,
    online_cpus=4,
    preemption=Preemption.VOLUNTARY,
    pinned_root=ROOT,
    keys=KernelKeys((KeyringCertificate("1", "CA", "00", "rsa"),), (".builtin_trusted_keys",)),
)
ENFORCE = EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True)
LOAD_PIN = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=True)
FREE = EffectivePolicy(Policy.UNSPECIFIED, Mode.ENFORCE, load_pin=False)


def codes(facts: NodeFacts, policy: EffectivePolicy, *, certificates: bool = False) -> list[str]:
    found = limits(facts, policy, configured_certificates=certificates)
    assert all("\n" not in finding.message for finding in found)
    return [f"{finding.severity}:{finding.code}" for finding in found]


@pytest.mark.parametrize("policy", [ENFORCE, LOAD_PIN, FREE])
@pytest.mark.parametrize("certificates", [True, False])
def test_a_good_node_has_no_limits(policy: EffectivePolicy, *, certificates: bool) -> None:
    assert codes(GOOD, policy, certificates=certificates) == []


@pytest.mark.parametrize(
    ("change", "policy", "certificates", "expected"),
    [
        ({"lsms": ("capability",)}, LOAD_PIN, False, "warning:bpf-lsm-inactive"),
        ({"lsms": None}, LOAD_PIN, False, "warning:lsm-list-unreadable"),
        ({"btf": False}, FREE, False, "warning:btf-missing"),
        ({"ftrace_enabled": False}, ENFORCE, False, "error:ftrace-disabled"),
        ({"modules_built": False}, ENFORCE, False, "warning:modules-not-built"),
        ({"modules_disabled": True}, ENFORCE, False, "warning:modules-disabled"),
        (
            {"signatures": ModuleSignatures(built=False, enforced=False)},
            ENFORCE,
            True,
            "error:module-sig-missing",
        ),
        ({"signatures": ModuleSignatures(built=False, enforced=False)}, LOAD_PIN, True, None),
        (
            {"signatures": ModuleSignatures(built=None, enforced=None)},
            ENFORCE,
            True,
            "warning:module-sig-unknown",
        ),
        (
            {"signatures": ModuleSignatures(built=True, enforced=True)},
            ENFORCE,
            True,
            "warning:sig-enforce-excludes-certificates",
        ),
        ({"signatures": ModuleSignatures(built=True, enforced=True)}, ENFORCE, False, None),
        (
            {"signatures": ModuleSignatures(built=True, enforced=True)},
            FREE,
            True,
            "warning:sig-enforce-stricter",
        ),
        (
            {"signatures": ModuleSignatures(built=True, enforced=True)},
            replace(ENFORCE, mode=Mode.AUDIT),
            False,
            "warning:sig-enforce-stricter",
        ),
        ({"lockdown": Lockdown.INTEGRITY}, ENFORCE, True, "warning:lockdown-excludes-certificates"),
        ({"lockdown": Lockdown.CONFIDENTIALITY}, LOAD_PIN, True, "warning:lockdown-stricter"),
        ({"lockdown": None}, ENFORCE, True, None),
        ({"cgroups": CgroupHierarchy.V1}, ENFORCE, False, "error:cgroup-v1"),
        ({"cgroups": CgroupHierarchy.HYBRID}, ENFORCE, False, "error:cgroup-v1"),
        ({"cgroups": CgroupHierarchy.V1}, LOAD_PIN, False, None),
        ({"cgroups": None}, ENFORCE, False, None),
        ({"keys": KernelKeys((), (".builtin_trusted_keys",))}, ENFORCE, False, "error:kernel-keyrings-empty"),
        ({"keys": KernelKeys((), (".builtin_trusted_keys",))}, ENFORCE, True, None),
        ({"keys": KernelKeys((), ())}, ENFORCE, False, None),
        ({"keys": None}, ENFORCE, False, None),
        (
            {"load_pin": KernelLoadPin(enforced=True, excludes_modules=False)},
            ENFORCE,
            False,
            "warning:kernel-loadpin-stricter",
        ),
        ({"load_pin": KernelLoadPin(enforced=True, excludes_modules=True)}, ENFORCE, False, None),
        ({"load_pin": KernelLoadPin(enforced=True, excludes_modules=False)}, LOAD_PIN, False, None),
        ({"pinned_root": None}, LOAD_PIN, False, "error:pinned-root-unknown"),
        ({"pinned_root": None}, FREE, False, None),
        ({"pinned_root": None}, ENFORCE, False, None),
        (
            {"pinned_root": None},
            replace(ENFORCE, pinned_root_exempt=True),
            False,
            "error:pinned-root-unknown",
        ),
        (
            {"pinned_root": replace(ROOT, device_read_only=False)},
            LOAD_PIN,
            False,
            "warning:pinned-root-writable",
        ),
        (
            {"pinned_root": replace(ROOT, device_read_only=False)},
            replace(ENFORCE, pinned_root_exempt=True),
            False,
            "warning:pinned-root-writable",
        ),
        ({"pinned_root": replace(ROOT, device_read_only=False)}, FREE, False, None),
        ({"pinned_root": replace(ROOT, device_read_only=False)}, ENFORCE, False, None),
        ({"pinned_root": replace(ROOT, superblock_read_only=False)}, LOAD_PIN, False, None),
        ({"pinned_root": replace(ROOT, mount_read_only=False)}, LOAD_PIN, False, None),
    ],
)
def test_each_limit(
    change: dict[str, Any], policy: EffectivePolicy, certificates: bool, expected: str | None
) -> None:
    found = codes(replace(GOOD, **change), policy, certificates=certificates)
    assert found == ([] if expected is None else [expected])


def test_the_messages_hold_the_remedy() -> None:
    facts = replace(
        GOOD,
        lsms=("lockdown", "yama"),
        cgroups=CgroupHierarchy.V1,
        signatures=ModuleSignatures(built=True, enforced=True),
    )
    found = {item.code: item.message for item in limits(facts, ENFORCE, configured_certificates=True)}
    assert "add lsm=lockdown,yama,bpf to the kernel command line" in found["bpf-lsm-inactive"]
    assert "kernel module signature enforcement requires cgroup v2" in found["cgroup-v1"]
    assert "configured certificates cannot admit anything" in found["sig-enforce-excludes-certificates"]


def test_errors_come_first() -> None:
    facts = replace(GOOD, modules_disabled=True, lockdown=Lockdown.INTEGRITY, btf=False, ftrace_enabled=False)
    severities = [item.severity for item in limits(facts, ENFORCE, configured_certificates=True)]
    assert severities == [Severity.ERROR, Severity.WARNING, Severity.WARNING, Severity.WARNING]


def test_a_writable_file_system_behind_a_read_only_mount_is_told_apart() -> None:
    (plain,) = limits(
        replace(
            GOOD,
            pinned_root=replace(
                ROOT, mount_read_only=False, superblock_read_only=False, device_read_only=False
            ),
        ),
        LOAD_PIN,
        configured_certificates=False,
    )
    (behind,) = limits(
        replace(GOOD, pinned_root=replace(ROOT, superblock_read_only=False, device_read_only=False)),
        LOAD_PIN,
        configured_certificates=False,
    )
    assert "it is writable" in plain.message
    assert "its mount alone is not" in behind.message


def test_without_the_kernels_keyrings_their_emptiness_does_not_matter() -> None:
    facts = replace(GOOD, keys=KernelKeys((), (".builtin_trusted_keys",)))
    assert limits(facts, ENFORCE, configured_certificates=True, kernel_keyrings=False) == ()


@pytest.mark.parametrize(
    ("device", "superblock", "verity", "protection", "words"),
    [
        (True, True, True, RootProtection.VERITY, None),
        (True, True, False, RootProtection.READ_ONLY_DEVICE, None),
        (True, False, False, RootProtection.READ_ONLY_DEVICE, None),
        (False, True, False, RootProtection.READ_ONLY_MOUNT, "root can mount it anew"),
        (False, True, True, RootProtection.READ_ONLY_MOUNT, "root can mount it anew"),
        (False, False, False, RootProtection.WRITABLE, "its mount alone is not"),
    ],
)
def test_what_protects_the_root(
    device: bool, superblock: bool, verity: bool, protection: RootProtection, words: str | None
) -> None:
    root = replace(ROOT, device_read_only=device, superblock_read_only=superblock, verity=verity)
    assert root.protection is protection
    found = limits(replace(GOOD, pinned_root=root), LOAD_PIN, configured_certificates=False)
    assert [words in finding.message for finding in found if words] == ([True] if words else [])
    assert bool(found) is protection.is_weak
