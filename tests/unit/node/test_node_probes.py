# SPDX-License-Identifier: Apache-2.0
"""Readers that only ``doctor`` and the profile of the running kernel need."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kmodgate.node.bpf import names_in_btf, read_bpffs, read_btf_names, read_pinned
from kmodgate.node.crypto import parse_crypto, read_crypto
from kmodgate.node.paths import MAX_BYTES, NodePaths, read_bytes, read_word
from kmodgate.node.process import (
    Capability,
    ProcessFacts,
    parse_capabilities,
    parse_locked_memory,
    read_process,
)

if TYPE_CHECKING:
    from tests.unit.node.conftest import Tree

CRYPTO = """\
name         : sha256
driver       : sha256-generic
module       : kernel
selftest     : passed
type         : shash

name         : pkcs1(rsa,sha512)
driver       : pkcs1(rsa-generic,sha512)
selftest     : passed
type         : sig

name         : md4
driver       : md4-generic
selftest     : unknown
type         : shash
"""


def btf(*names: str, magic: int = 0xEB9F, header: int = 24, cut: int = 0) -> bytes:
    strings = b"\0" + b"".join(name.encode() + b"\0" for name in names)
    types = b"TYPES"
    fixed = struct.pack("=HBBIIIII", magic, 1, 0, header, 0, len(types), len(types), len(strings))
    data = fixed + bytes(header - 24) + types + strings
    return data[: len(data) - cut]


def test_crypto_names_are_those_that_passed(tree: Tree, bare: Tree) -> None:
    assert parse_crypto(CRYPTO) == {"sha256", "pkcs1(rsa,sha512)"}
    assert parse_crypto("garbage\n\n: :\n") == frozenset()
    tree.write("proc/crypto", CRYPTO)
    assert read_crypto(tree.paths) == frozenset({"sha256", "pkcs1(rsa,sha512)"})
    tree.write("proc/crypto", "")
    assert read_crypto(tree.paths) is None
    assert read_crypto(bare.paths) is None


def test_this_machine_has_sha256() -> None:
    assert "sha256" in parse_crypto(Path("/proc/crypto").read_text())


def test_btf_knows_whole_names_only() -> None:
    names = ("bpf_loop", "loop", "bpf_loo", "bpf_loop2")
    assert names_in_btf(btf("bpf_loop", "other"), names) == frozenset({"bpf_loop"})
    assert names_in_btf(btf("a", header=32), ["a"]) == frozenset({"a"})
    assert names_in_btf(btf(), ["a"]) == frozenset()


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb", btf("a", magic=1), btf("a", cut=1), b"BTF" * 20])
def test_what_is_no_btf_says_nothing(data: bytes, tree: Tree) -> None:
    assert names_in_btf(data, ["a"]) is None
    tree.write("sys/kernel/btf/vmlinux", data)
    assert read_btf_names(tree.paths, ["a"]) is None


def test_this_machines_btf_names_its_functions() -> None:
    blob = Path("/sys/kernel/btf/vmlinux")
    if not blob.exists():
        pytest.skip("this kernel has no BTF")
    assert names_in_btf(blob.read_bytes(), ["do_exit", "kmg_no_such_function"]) == frozenset({"do_exit"})


def test_bpffs_and_what_is_pinned(tree: Tree, bare: Tree) -> None:
    assert read_bpffs(tree.paths) == ()
    assert read_pinned(tree.paths) is None
    tree.write(
        "proc/1/mountinfo",
        "27 1 254:1 / / rw - ext4 /dev/vda1 rw\n50 27 0:40 / /sys/fs/bpf rw - bpf bpf rw,mode=700\n",
    )
    for name in ("kmodgate", "cilium", "kmg_table"):
        tree.write(f"sys/fs/bpf/{name}/x", "")
    assert read_bpffs(tree.paths) == ("/sys/fs/bpf",)
    assert read_pinned(tree.paths) == ("kmg_table", "kmodgate")
    assert read_bpffs(bare.paths) is None


def test_capabilities_by_bit() -> None:
    assert parse_capabilities("Name:\tx\nCapEff:\t000000c000010000\nCapBnd:\tffff\n") == frozenset(
        {Capability.CAP_BPF, Capability.CAP_PERFMON, Capability.CAP_SYS_MODULE}
    )
    assert parse_capabilities("CapEff:\t0000000000000000\n") == frozenset()
    assert parse_capabilities("CapEff: none\n") is None


def test_sys_admin_stands_for_bpf() -> None:
    admin = ProcessFacts(frozenset({Capability.CAP_SYS_ADMIN}), -1, in_initial_pid_namespace=True)
    assert admin.may(Capability.CAP_BPF)
    assert admin.may(Capability.CAP_PERFMON)
    assert admin.may(Capability.CAP_SYS_MODULE) is False
    assert ProcessFacts(None, None, None).may(Capability.CAP_BPF) is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Max locked memory         8388608              8388608              bytes", 8388608),
        ("Max locked memory         unlimited            unlimited            bytes", -1),
        ("Max locked memory         many                 many                 bytes", None),
        ("Max open files            1024                 4096                 files", None),
    ],
)
def test_locked_memory(line: str, expected: int | None) -> None:
    assert parse_locked_memory(f"Limit   Soft Limit\n{line}\n") == expected


def test_a_process_that_tells_nothing(bare: Tree, tree: Tree) -> None:
    assert read_process(bare.paths) == ProcessFacts(None, None, None)
    tree.write("proc/self/status", "CapEff:\t0000000000010000\n")
    namespace = tree.root / "proc/self/ns/pid"
    namespace.parent.mkdir(parents=True)
    namespace.symlink_to("pid:[4026532201]")
    own = read_process(tree.paths)
    assert own.may(Capability.CAP_SYS_MODULE)
    assert own.in_initial_pid_namespace is False


def test_a_real_sysctl_is_read() -> None:
    """A read of 4 MiB or more is answered ENOMEM there."""
    paths = NodePaths()
    assert read_word(paths.proc / "sys/kernel/ostype") == "Linux"
    word = read_word(paths.proc / "sys/kernel/randomize_va_space")
    assert word is not None
    assert word.isdecimal()


def test_reading_stops_at_the_bound(tmp_path: Path) -> None:
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(MAX_BYTES + 5)
    data = read_bytes(big)
    assert data is not None
    assert len(data) == MAX_BYTES
    assert read_bytes(tmp_path) is None
