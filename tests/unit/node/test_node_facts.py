# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kmodgate.errors import NodeError
from kmodgate.node import (
    CgroupHierarchy,
    NodePaths,
    RootProtection,
    read_facts,
    read_keys,
    read_modules,
    read_pinned_root,
)
from kmodgate.node.devicemapper import live_table
from kmodgate.node.kconfig import read_kconfig
from kmodgate.node.kernel import Preemption
from kmodgate.node.mounts import mount_id_of
from kmodgate.node.security import KernelLoadPin, Lockdown, ModuleSignatures

if TYPE_CHECKING:
    from tests.unit.node.conftest import Tree


def test_a_whole_node(tree: Tree) -> None:
    facts = read_facts(tree.paths, mount_id_of=lambda _: 27)
    assert facts.release == "6.1.0-28-amd64"
    assert facts.btf is True
    assert facts.lsms == ("lockdown", "capability", "landlock", "yama", "apparmor", "bpf")
    assert facts.has_bpf_lsm is True
    assert facts.lockdown is Lockdown.NONE
    assert facts.signatures == ModuleSignatures(built=True, enforced=False)
    assert facts.load_pin == KernelLoadPin(enforced=False, excludes_modules=False)
    assert facts.modules_built is True
    assert facts.modules_disabled is False
    assert facts.ftrace_enabled is True
    assert facts.cgroups is CgroupHierarchy.V2
    assert facts.online_cpus == 5
    assert facts.preemption is Preemption.VOLUNTARY
    assert facts.pinned_root is not None
    assert facts.pinned_root.device == "254:1"
    assert facts.keys is not None
    assert len(facts.keys.certificates) == 2


def test_a_node_that_tells_nothing(bare: Tree) -> None:
    facts = read_facts(bare.paths)
    assert facts.has_bpf_lsm is None
    assert facts.signatures == ModuleSignatures(built=None, enforced=None)
    assert facts.load_pin == KernelLoadPin(enforced=None, excludes_modules=False)
    told = {name for name in facts.__slots__ if getattr(facts, name) is not None}
    assert told == {"btf", "signatures", "load_pin", "modules_built"}
    assert not facts.btf
    assert not facts.modules_built
    assert read_modules(bare.paths) is None


def test_the_machine_at_hand_can_be_read() -> None:
    read_facts()
    read_modules(NodePaths())


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("proc/sys/kernel/osrelease", "../../etc/passwd"),
        ("proc/sys/kernel/ftrace_enabled", "maybe"),
        ("proc/keys", "what\n"),
        ("proc/1/mountinfo", "27 1 254:1 / /\n"),
        ("sys/kernel/security/lsm", "a b"),
        ("sys/kernel/security/lockdown", "[some]"),
        ("sys/module/module/parameters/sig_enforce", "?"),
        ("sys/devices/system/cpu/online", "3-0"),
        ("proc/sys/kernel/loadpin/enforce", "2"),
    ],
)
def test_nonsense_is_an_error(tree: Tree, name: str, content: str) -> None:
    tree.write(name, content)
    with pytest.raises(NodeError):
        read_facts(tree.paths)


def test_the_root_is_found_by_mount_id_not_by_mount_point(tree: Tree) -> None:
    writable = read_pinned_root(tree.paths, mount_id_of=lambda _: 27)
    stacked = read_pinned_root(tree.paths, mount_id_of=lambda _: 40)
    assert writable is not None
    assert stacked is not None
    assert (writable.device, writable.fs_type, writable.mount_point) == ("254:1", "ext4", "/")
    assert (writable.mount_read_only, writable.superblock_read_only) == (False, False)
    assert (stacked.device, stacked.fs_type, stacked.source) == ("253:0", "squashfs", "/dev/mapper/root")
    assert (stacked.mount_read_only, stacked.superblock_read_only) == (True, True)
    assert (writable.device_read_only, stacked.device_read_only) == (False, False)
    assert read_pinned_root(tree.paths, mount_id_of=lambda _: 99) is None
    assert read_pinned_root(tree.paths, mount_id_of=lambda _: None) is None


@pytest.mark.parametrize(
    ("ro", "protection"),
    [
        ("1\n", RootProtection.READ_ONLY_DEVICE),
        ("0\n", RootProtection.READ_ONLY_MOUNT),
        ("yes\n", RootProtection.READ_ONLY_MOUNT),
        (None, RootProtection.READ_ONLY_MOUNT),
    ],
)
def test_a_root_whose_device_is_read_only(tree: Tree, ro: str | None, protection: RootProtection) -> None:
    if ro is not None:
        tree.write("sys/dev/block/253:0/ro", ro)
    # One of the device mapper's, which cannot be asked here: the weaker word.
    tree.write("sys/dev/block/253:0/dm/name", "root\n")
    root = read_pinned_root(tree.paths, mount_id_of=lambda _: 40)
    assert root is not None
    assert root.protection is protection


@pytest.mark.parametrize("kind", ["missing", "file", "device"])
def test_a_device_mapper_that_is_none_is_not_asked(tree: Tree, kind: str) -> None:
    control = tree.root / "dev/mapper/control"
    if kind == "file":
        tree.write("dev/mapper/control", "x")
    elif kind == "device":
        control.parent.mkdir(parents=True)
        control.symlink_to("/dev/null")
    with pytest.raises(NodeError, match=r"device mapper cannot be asked: .*control"):
        live_table(tree.paths, 253, 0)


def test_the_mount_id_of_a_real_directory() -> None:
    own = mount_id_of(Path("/proc"))
    listed = [int(line.split()[0]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert own in listed
    assert mount_id_of(Path("/nowhere")) is None
    assert not [
        link for link in Path("/proc/self/fd").iterdir() if str(Path(os.path.realpath(link))) == "/proc"
    ]


def test_release_without_the_sysctl(tree: Tree) -> None:
    tree.remove("proc/sys/kernel/osrelease")
    assert read_facts(tree.paths).release == "6.1.0-28-amd64"


@pytest.mark.parametrize(
    ("kconfig", "expected"),
    [
        ("CONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_FORCE=y\n", ModuleSignatures(built=True, enforced=True)),
        ("CONFIG_MODULE_SIG=y\n", ModuleSignatures(built=True, enforced=None)),
        ("# CONFIG_MODULE_SIG is not set\n", ModuleSignatures(built=False, enforced=False)),
        ("CONFIG_X86=y\n", ModuleSignatures(built=False, enforced=False)),
    ],
)
def test_without_the_parameter_the_build_config_answers(
    tree: Tree, kconfig: str, expected: ModuleSignatures
) -> None:
    tree.remove("sys/module/module/parameters/sig_enforce")
    tree.write("proc/config.gz", gzip.compress(kconfig.encode()))
    assert read_facts(tree.paths).signatures == expected


def test_without_either_the_missing_parameter_answers(tree: Tree) -> None:
    tree.remove("sys/module/module/parameters/sig_enforce", "boot/config-6.1.0-28-amd64")
    assert read_facts(tree.paths).signatures == ModuleSignatures(built=False, enforced=False)


def test_kconfig_is_read_where_it_is(tree: Tree) -> None:
    options = read_kconfig(tree.paths, "6.1.0-28-amd64")
    assert options is not None
    assert dict(options) == {
        "MODULE_SIG": "y",
        "MODULE_SIG_FORCE": "n",
        "PREEMPT_VOLUNTARY": "y",
        "LSM": "lockdown,yama",
    }
    tree.write("proc/config.gz", b"no gzip")
    assert read_kconfig(tree.paths, "6.1.0-28-amd64") is not None
    assert read_kconfig(tree.paths, "other") is None
    assert read_kconfig(tree.paths, None) is None
    assert read_kconfig(tree.paths, "../config-x") is None


def test_a_compression_bomb_is_cut_off(tree: Tree) -> None:
    squeezed = zlib.compressobj(9, zlib.DEFLATED, 31)
    data = squeezed.compress(b"CONFIG_A=y\n" + b"\0" * (64 << 20)) + squeezed.flush()
    tree.write("proc/config.gz", data)
    options = read_kconfig(tree.paths, None)
    assert options is not None
    assert options["A"] == "y"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/sys/kernel/loadpin/enforce": "1\n"}, KernelLoadPin(enforced=True, excludes_modules=False)),
        ({"proc/sys/kernel/loadpin/enforced": "0\n"}, KernelLoadPin(enforced=False, excludes_modules=False)),
        ({"proc/sys/kernel/loadpin/enabled": "1\n"}, KernelLoadPin(enforced=True, excludes_modules=False)),
        (
            {
                "proc/sys/kernel/loadpin/enforce": "1\n",
                "proc/cmdline": "loadpin.exclude=kexec-image,kernel-module\n",
            },
            KernelLoadPin(enforced=True, excludes_modules=True),
        ),
        (
            {"sys/kernel/security/lsm": "loadpin,bpf", "proc/cmdline": "loadpin.enforce=1"},
            KernelLoadPin(enforced=True, excludes_modules=False),
        ),
        ({"sys/kernel/security/lsm": "loadpin,bpf"}, KernelLoadPin(enforced=False, excludes_modules=False)),
    ],
)
def test_the_kernels_own_load_pin(tree: Tree, files: dict[str, str], expected: KernelLoadPin) -> None:
    for name, content in files.items():
        tree.write(name, content)
    load_pin = read_facts(tree.paths).load_pin
    assert load_pin == expected
    assert load_pin.restricts_modules is (expected.enforced and not expected.excludes_modules)


def test_cgroups_by_sysfs_when_mounts_are_out_of_sight(tree: Tree) -> None:
    tree.remove("proc/1/mountinfo")
    assert read_facts(tree.paths).cgroups is None
    tree.write("sys/fs/cgroup/cgroup.controllers", "cpu memory\n")
    assert read_facts(tree.paths).cgroups is CgroupHierarchy.V2


def test_modules_carry_the_taints_of_sysfs(tree: Tree) -> None:
    modules = read_modules(tree.paths)
    assert modules is not None
    nvidia, loop, fuse = modules
    assert (nvidia.size, nvidia.references, nvidia.taints) == (62398464, 2, "POE")
    assert nvidia.used_by == ("nvidia_uvm", "nvidia_modeset")
    assert (loop.used_by, loop.taints, loop.is_unsigned) == ((), "", False)
    assert (fuse.references, fuse.used_by, fuse.taints, fuse.is_unsigned) == (None, (), "E", True)
    tree.write("sys/module/loop/taint", "<>")
    with pytest.raises(NodeError, match="taint of module loop"):
        read_modules(tree.paths)


def test_keys_carry_subject_and_skid(tree: Tree) -> None:
    keys = read_keys(tree.paths)
    assert keys is not None
    assert keys.keyrings == (".user_reg", ".builtin_trusted_keys")
    debian, site = keys.certificates
    assert debian.subject == "Debian Secure Boot CA"
    assert debian.skid == "6ccece7e4c6c0d1f6149f3dd27dfcc5cbb419ea1"
    assert debian.algorithm == "rsa"
    assert (site.subject, site.skid, site.algorithm) == ("Site: modules", "00ff12", "ecdsa-nist-p384")
