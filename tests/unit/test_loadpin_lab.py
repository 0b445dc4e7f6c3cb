# SPDX-License-Identifier: Apache-2.0
"""The pure parts of the lab that asks LoadPin: no machine is booted."""

from __future__ import annotations

import sys
from hashlib import sha256
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "vm-images"))

from vmtool import loadpinlab, verity
from vmtool.errors import VmToolError

SALT = b"salt"
CONSOLE = (
    b"noise\r\ncase root/good 0\r\ncase tmpfs/good 1\r\nphase root\r\ndigests 71\r\ncase x 4095\r\ndone\r\n"
)


def digest(data: bytes) -> bytes:
    return sha256(SALT + data).digest()


def test_a_tree_of_one_level() -> None:
    data = bytes(4096) + b"\x01" * 4096
    tree = verity.tree(data, SALT)
    assert tree.hashes == (digest(data[:4096]) + digest(data[4096:])).ljust(4096, b"\0")
    assert tree.root == digest(tree.hashes)
    assert tree.table == f"1 %1 %2 4096 4096 2 0 sha256 {tree.root.hex()} {SALT.hex()}"


def test_the_level_below_the_root_digest_comes_first() -> None:
    data = b"".join(bytes([number]) * 4096 for number in range(130))
    tree = verity.tree(data, SALT)
    top, first, second = (tree.hashes[at : at + 4096] for at in (0, 4096, 8192))
    assert len(tree.hashes) == 3 * 4096
    assert tree.root == digest(top)
    assert top == (digest(first) + digest(second)).ljust(4096, b"\0")
    assert second == (digest(data[128 * 4096 : 129 * 4096]) + digest(data[129 * 4096 :])).ljust(4096, b"\0")


@pytest.mark.parametrize("data", [b"", bytes(4095), bytes(4097)])
def test_a_tree_stands_on_whole_blocks(data: bytes) -> None:
    with pytest.raises(ValueError, match="whole number of blocks"):
        verity.tree(data, SALT)


def test_what_the_program_wrote_is_read() -> None:
    assert loadpinlab.read_cases(CONSOLE) == {
        "root/good": "ok",
        "tmpfs/good": "EPERM",
        "digests": "EPROTO",
        "x": "4095",
    }
    assert loadpinlab.phases_ended(CONSOLE) == ["root"]


def test_a_step_that_failed_is_an_error() -> None:
    with pytest.raises(VmToolError, match="could not do its part: /pin: ENODEV"):
        loadpinlab.read_cases(CONSOLE + b"fail /pin 19\r\n")


def test_a_bad_module_differs_in_one_byte_of_its_text() -> None:
    good = b"\x7fELF...license=GPL\0..."
    bad = loadpinlab.Modules("name", good, b"").bad
    (place,) = [at for at, (a, b) in enumerate(zip(good, bad, strict=True)) if a != b]
    assert place == good.index(b"GPL")
