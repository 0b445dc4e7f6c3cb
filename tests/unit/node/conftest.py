# SPDX-License-Identifier: Apache-2.0
"""A small /proc and /sys, written anew for each test."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodgate.node import NodePaths

MOUNTINFO = """\
22 27 0:21 / /proc rw,relatime shared:5 - proc proc rw
27 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw,errors=remount-ro
28 27 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate
31 27 254:2 / /mnt/with\\040space ro,relatime shared:9 master:2 - ext4 /dev/disk/by\\134name ro
40 27 253:0 / / ro,relatime - squashfs /dev/mapper/root ro
"""

_CERTIFICATE = "{serial} I------     1 perm 1f030000     0     0 asymmetri {description} []\n"
KEYS = (
    "13e59e0e I--Q---     1 perm 0c030000     0 65534 keyring   .user_reg: 2\n"
    "2b96776c I------     1 perm 1f0b0000     0     0 keyring   .builtin_trusted_keys: 2\n"
    + _CERTIFICATE.format(
        serial="2f1d6ad5",
        description="Debian Secure Boot CA: 6ccece7e4c6c0d1f6149f3dd27dfcc5cbb419ea1: X509.rsa bb419ea1",
    )
    + _CERTIFICATE.format(serial="30ff43cf", description="Site: modules: 00ff12: X509.ecdsa-nist-p384 00ff12")
)

MODULES = """\
nvidia 62398464 2 nvidia_uvm,nvidia_modeset, Live 0xffffffffc0a00000 (POE)
loop 32768 0 - Live 0x0000000000000000
fuse 176128 - [permanent], Live 0x0000000000000000 (E+)
"""

FILES = {
    "proc/1/mountinfo": MOUNTINFO,
    "proc/keys": KEYS,
    "proc/modules": MODULES,
    "proc/version": "Linux version 6.1.0-28-amd64 (builder) #1 SMP PREEMPT_DYNAMIC Debian 6.1.119-1\n",
    "proc/cmdline": "root=/dev/vda1 ro quiet\n",
    "proc/sys/kernel/osrelease": "6.1.0-28-amd64\n",
    "proc/sys/kernel/modules_disabled": "0\n",
    "proc/sys/kernel/ftrace_enabled": "1\n",
    "sys/kernel/btf/vmlinux": "BTF",
    "sys/kernel/security/lsm": "lockdown,capability,landlock,yama,apparmor,bpf",
    "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    "sys/module/module/parameters/sig_enforce": "N\n",
    "sys/module/nvidia/taint": "POE\n",
    "sys/module/loop/taint": "\n",
    "sys/devices/system/cpu/online": "0-3,8\n",
    "boot/config-6.1.0-28-amd64": (
        "CONFIG_MODULE_SIG=y\n# CONFIG_MODULE_SIG_FORCE is not set\nCONFIG_PREEMPT_VOLUNTARY=y\n"
        'CONFIG_LSM="lockdown,yama"\n'
    ),
}


class Tree:
    """The fixture: paths for the code under test, and a way to change files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = NodePaths(proc=root / "proc", sys=root / "sys", boot=root / "boot", dev=root / "dev")

    def write(self, name: str, content: str | bytes) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def remove(self, *names: str) -> None:
        for name in names:
            (self.root / name).unlink()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    for name, content in FILES.items():
        tree.write(name, content)
    return tree


@pytest.fixture
def bare(tmp_path: Path) -> Tree:
    """A node that tells nothing at all."""
    return Tree(tmp_path / "none")
