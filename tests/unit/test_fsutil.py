# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from pathlib import Path

import pytest

from kmodgate.fsutil import FileReadError, read_regular_fd, read_regular_file


def test_the_bytes_come_back(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert read_regular_file(tmp_path / "a", 3) == b"abc"
    with pytest.raises(FileReadError, match="above the limit of 2") as caught:
        read_regular_file(tmp_path / "a", 2)
    assert caught.value.errno_name == "EFBIG"


def test_a_descriptor_keeps_its_offset_and_stays_open(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    os.lseek(fd, 2, os.SEEK_SET)
    assert read_regular_fd(fd, 10, "a") == b"abc"
    assert os.lseek(fd, 0, os.SEEK_CUR) == 2
    os.close(fd)
    with pytest.raises(FileReadError, match=r"^a: bad file descriptor"):
        read_regular_fd(fd, 10, "a")


@pytest.mark.parametrize("promised", [0, 2, 3_000_000])
def test_a_file_that_changes_size_is_read_to_its_end_and_no_further(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promised: int
) -> None:
    content = bytes(2_500_000)
    (tmp_path / "a").write_bytes(content)
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        status = list(real(fd))
        status[6] = promised  # st_size
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", fstat)
    assert read_regular_file(tmp_path / "a", 4_000_000) == content
    if promised < len(content):
        with pytest.raises(FileReadError, match="above the limit"):
            read_regular_file(tmp_path / "a", 2_400_000)


def test_a_file_of_procfs_has_no_size_and_is_read() -> None:
    assert read_regular_file("/proc/self/status", 1 << 20)


def test_a_null_byte_is_no_path() -> None:
    with pytest.raises(FileReadError, match="null"):
        read_regular_file("a\0b", 10)
