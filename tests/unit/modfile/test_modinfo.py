# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import io
import os
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.vectors.generate import MODINFO, make_elf

from kmodgate.errors import ModuleFormatError
from kmodgate.model import ModuleInfo
from kmodgate.modfile import modinfo
from kmodgate.modfile.modinfo import _section

EXPECTED = ModuleInfo("kmg_demo", "1.2", "0123ABCD", "6.1.0 SMP mod_unload ")


def walked(data: bytes) -> bytes:
    section = ELFFile(io.BytesIO(data)).get_section_by_name(".modinfo")
    assert section is not None
    return bytes(section.data())


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("bits", [32, 64])
def test_every_class_and_byte_order_agrees_with_pyelftools(bits: int, order: str) -> None:
    data = make_elf(MODINFO, bits=bits, order=order)
    assert modinfo(data) == EXPECTED
    assert bytes(_section(data)) == walked(data) == MODINFO


@pytest.mark.modules
def test_real_modules_agree_with_pyelftools() -> None:
    folder = os.environ.get("KMODGATE_TEST_MODULES")
    if not folder:
        reason = "KMODGATE_TEST_MODULES must name a folder of real modules: NOTHING REAL WAS COMPARED"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    files = sorted(Path(folder).rglob("*.ko"))
    assert files
    for path in files[:: max(1, len(files) // 60)]:
        data = path.read_bytes()
        assert bytes(_section(data)) == walked(data), path


def test_a_name_that_is_the_tail_of_another_is_found() -> None:
    assert modinfo(make_elf(MODINFO, names=b"\0.old.modinfo\0.shstrtab\0")) == EXPECTED


def test_a_section_that_is_not_loaded_does_not_count() -> None:
    with pytest.raises(ModuleFormatError, match=r"no \.modinfo section"):
        modinfo(make_elf(MODINFO, flags=0))


@pytest.mark.parametrize(
    ("strings", "expected"),
    [
        (b"", ModuleInfo(None, None, None, None)),
        (b"alias=x\0parm_name=y\0", ModuleInfo(None, None, None, None)),
        (b"name=a\0name=b\0", ModuleInfo("a", None, None, None)),
        (b"name=no end", ModuleInfo("no end", None, None, None)),
        (b"version=\xff\0name=\xc3\xa9\0", ModuleInfo("é", "\\xff", None, None)),
        (b"version=\0", ModuleInfo(None, "", None, None)),
    ],
)
def test_strings(strings: bytes, expected: ModuleInfo) -> None:
    assert modinfo(make_elf(strings)) == expected


def test_values_are_bounded() -> None:
    name = modinfo(make_elf(b"name=" + b"x" * 100_000)).name
    assert name == "x" * 256


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an ELF file"),
        (b"#!/bin/sh\n", "not an ELF file"),
        (b"\x7fELF", "class or byte order"),
        (b"\x7fELF\x09\x01" + bytes(60), "class or byte order"),
        (b"\x7fELF\x02\x01" + bytes(20), "truncated"),
        (b"\x7fELF\x02\x01" + bytes(60), "section header table"),
        (make_elf(MODINFO)[:-1], "truncated"),
        (make_elf(MODINFO)[:100], "truncated"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, words: str) -> None:
    with pytest.raises(ModuleFormatError, match=words) as caught:
        modinfo(data)
    assert caught.value.errno_name == "ENOEXEC"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_hostile_elf_raises_nothing_else(data: st.DataObject) -> None:
    elf = bytearray(make_elf(MODINFO, bits=data.draw(st.sampled_from([32, 64]))))
    for _ in range(data.draw(st.integers(1, 6))):
        elf[data.draw(st.integers(4, len(elf) - 1))] = data.draw(st.sampled_from([0, 1, 2, 127, 128, 255]))
    with contextlib.suppress(ModuleFormatError):
        modinfo(elf)
