# SPDX-License-Identifier: Apache-2.0
"""Attacks with the calls themselves: flags, other entry points, compressed files, the kernel's own loads."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.vm import attack, kernels, lab
from tests.vm.attack import REFUSED, in_child
from tests.vm.rawcalls import X32_BIT, Int80

IGNORE = lab.IGNORE_MODVERSIONS | lab.IGNORE_VERMAGIC
_FINIT_MODULE = 313


# Flags


@pytest.mark.parametrize("flags", [lab.IGNORE_MODVERSIONS, lab.IGNORE_VERMAGIC, IGNORE])
def test_a_trusted_digest_is_not_carried_past_the_ignore_flags(watch: attack.Watch, flags: int) -> None:
    """Known or not yet known, by either way into the call."""
    path = watch.signer.fresh_file(watch.directory)
    assert lab.finit(path, flags).result == REFUSED
    assert lab.finit(path).ok
    lab.unload(attack.GOOD)
    assert lab.finit(path, flags).result == REFUSED
    fd = os.open(path, os.O_RDONLY)
    assert in_child(lambda: Int80().finit(fd, flags)) == REFUSED
    os.close(fd)


def test_flags_that_do_not_exist(watch: attack.Watch) -> None:
    path = watch.pest_file()
    before = watch.moves()
    for flags in (8, 1 << 31, 8 | IGNORE):
        assert lab.finit(path, flags).result == "EINVAL"
    assert watch.moves()["attempts"] == before["attempts"]


# Other entry points


def test_int_0x80_is_no_way_around_and_no_obstacle(watch: attack.Watch) -> None:
    """Both calls of the 32-bit table, whose arguments lie in other registers, from a 64-bit process."""
    before = watch.moves()
    pest = attack.pest_of(watch.signer.fresh())
    path = watch.pest_file()
    fd = os.open(path, os.O_RDONLY)
    assert in_child(lambda: Int80().finit(fd)) == REFUSED
    os.close(fd)
    assert in_child(lambda: Int80().init(pest)) == REFUSED
    # Nobody has seen these: the agent has to find file and memory by what the registers say.
    fd = os.open(watch.signer.fresh_file(watch.directory), os.O_RDONLY)
    assert in_child(lambda: Int80().finit(fd)) == "ok"
    os.close(fd)
    lab.unload(attack.GOOD)
    fresh = watch.signer.fresh()
    assert in_child(lambda: Int80().init(fresh)) == "ok"
    after = watch.moves()
    assert after["counted"] - before["counted"] == 4


def test_the_x32_table(watch: attack.Watch) -> None:
    """Debian's kernels have it switched off; where it is on, its calls are judged like the others."""
    path = watch.pest_file()
    with path.open("rb") as file:
        outcome = lab._call(X32_BIT | _FINIT_MODULE, file.fileno(), b"", 0)
    assert outcome.result in {"ENOSYS", REFUSED}


# Compressed files


def xz(data: bytes) -> bytes:
    """As the kernel's decoder takes it."""
    command = ["xz", "--check=crc32", "--lzma2=dict=1MiB", "-c"]
    return subprocess.run(command, input=data, check=True, capture_output=True).stdout


def load_packed(watch: attack.Watch, data: bytes, flags: int = lab.COMPRESSED_FILE) -> str:
    path = watch.directory / "packed"
    path.write_bytes(data)
    return lab.finit(path, flags).result


def test_what_the_kernel_unpacks_is_what_the_table_says() -> None:
    compression = Path("/sys/module/compression")
    assert (compression.read_text().strip() if compression.exists() else None) == kernels.this().decompresses


def test_a_compressed_file_is_judged_by_what_it_unpacks_to(watch: attack.Watch) -> None:
    """On kernels that unpack; on the others the flag is refused before anybody is asked."""
    good = watch.signer.fresh()
    pest = attack.pest_of(good)
    if kernels.this().decompresses is None:
        for data in (xz(good), xz(pest)):
            assert load_packed(watch, data) == kernels.this().without_decompression
        return
    assert load_packed(watch, xz(pest)) == REFUSED
    assert load_packed(watch, xz(good)) == "ok"
    lab.unload(attack.GOOD)
    # Its digest is known by now; the flags still take the signature away.
    assert load_packed(watch, xz(good), lab.COMPRESSED_FILE | IGNORE) == REFUSED
    # A signature behind the compressed bytes is none of the module's.
    unsigned = watch.signer.unsigned()
    assert load_packed(watch, xz(attack.pest_of(unsigned)) + good[-400:]) != "ok"


def test_streams_that_two_decoders_read_differently(watch: attack.Watch) -> None:
    """The kernel's decoder ends with the first stream, Python's goes on to the last one.

    Whatever each makes of it: what gets in is what the kernel unpacked, and that is judged.
    """
    good = watch.signer.fresh()
    pest = attack.pest_of(good)
    if kernels.this().decompresses is None:
        assert load_packed(watch, xz(good) + xz(pest)) == kernels.this().without_decompression
        return
    for data in (
        xz(pest) + xz(good),
        xz(pest) + bytes(64) + xz(good),
        xz(pest) + good,
        xz(pest[:4000]) + xz(pest[4000:]),
        xz(pest)[:-12] + xz(good),
    ):
        assert load_packed(watch, data) != "ok"
        watch.check_modules()
    # The other way round the kernel unpacks the good one, which is trusted once it is known.
    assert load_packed(watch, xz(good)) == "ok"
    lab.unload(attack.GOOD)
    if load_packed(watch, xz(good) + xz(pest)) == "ok":
        assert lab.is_loaded(attack.GOOD)


def test_a_compressed_file_without_the_flag_is_no_module(watch: attack.Watch) -> None:
    for data in (xz(watch.signer.fresh()), xz(attack.pest_of(watch.signer.fresh()))):
        assert load_packed(watch, data, 0) == REFUSED
        assert lab.init(data).result == REFUSED


# The kernel's own loads


@contextmanager
def alias(name: str, path: Path) -> Iterator[None]:
    """What modprobe does when the kernel asks for a module by this name."""
    rule = Path("/etc/modprobe.d/attack.conf")
    rule.parent.mkdir(exist_ok=True)
    rule.write_text(f"install {name} /sbin/insmod {path}\n")
    try:
        yield
    finally:
        rule.unlink()


def ask_the_kernel(kind: str) -> None:
    """``request_module("rtnl-link-KIND")``: anybody who may add a link can make the kernel do it."""
    subprocess.run(["ip", "link", "add", "attack0", "type", kind], check=False, capture_output=True)


def test_what_the_kernel_loads_by_itself_is_judged_too(watch: attack.Watch) -> None:
    good, pest = watch.signer.fresh_file(watch.directory), watch.pest_file()
    watch.agent.mark()
    with alias("rtnl-link-attack", pest):
        ask_the_kernel("attack")
    event = watch.agent.next_event()
    assert (event["path"], event["verdict"], event["result"]) == (str(pest), "deny", REFUSED)
    assert not lab.is_loaded(attack.PEST)
    with alias("rtnl-link-attack", good):
        ask_the_kernel("attack")
    assert lab.is_loaded(attack.GOOD)
    lab.unload(attack.GOOD)
    # In-tree, as on any node, before and after.
    ask_the_kernel("dummy")
    assert lab.is_loaded("dummy")
    subprocess.run(["ip", "link", "del", "attack0"], check=True)


def test_another_program_in_place_of_modprobe(watch: attack.Watch) -> None:
    """``kernel.modprobe``: whoever may set it chooses the loader, not the verdict."""
    pest = watch.pest_file()
    helper = watch.directory / "helper"
    helper.write_text(f"#!/bin/sh\nexec /sbin/insmod {pest}\n")
    helper.chmod(0o755)
    setting = Path("/proc/sys/kernel/modprobe")
    usual = setting.read_text()
    watch.agent.mark()
    try:
        setting.write_text(str(helper))
        ask_the_kernel("attack")
    finally:
        setting.write_text(usual)
    event = watch.agent.next_event()
    assert (event["path"], event["verdict"], event["result"]) == (str(pest), "deny", REFUSED)
