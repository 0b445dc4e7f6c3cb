# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import lzma
import os
import pty
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from tests.vectors import generate
from tests.vectors.generate import Identity, append, make_identity, openssl_cms

from kmodgate.cli import main
from kmodgate.cli.verify import as_json
from kmodgate.model import ModuleInfo, SignatureReport, SignatureStatus, Signer

PAYLOAD = generate.make_elf(generate.MODINFO)
FIELDS = [
    *("file", "status", "errno", "trusted_by", "signer", "hash_algorithm", "signature_algorithm"),
    *("sha256", "module", "detail"),
]


@pytest.fixture(scope="module")
def signer() -> Identity:
    return make_identity("signer")


@pytest.fixture(scope="module")
def signed(signer: Identity) -> bytes:
    return append(PAYLOAD, openssl_cms(PAYLOAD, signer))


@pytest.fixture
def folder(tmp_path: Path, signer: Identity, signed: bytes, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "anchor.pem").write_bytes(signer.pem)
    (tmp_path / "good.ko").write_bytes(signed)
    (tmp_path / "good.ko.xz").write_bytes(lzma.compress(signed))
    (tmp_path / "plain.ko").write_bytes(PAYLOAD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(["verify", *arguments])
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return int(caught.value.code or 0), out, err


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    code, out, err = run(capsys, "--output", "json", *arguments)
    return code, [json.loads(line) for line in out.splitlines()], err


@pytest.mark.usefixtures("folder")
def test_json_is_the_contract(capsys: pytest.CaptureFixture[str], signer: Identity, signed: bytes) -> None:
    code, (one, two), err = run_json(capsys, "good.ko", "good.ko.xz", "--trust", "anchor.pem")
    assert (code, err) == (0, "")
    assert list(one) == FIELDS
    assert one | {"file": "good.ko.xz"} == two
    assert one["status"] == "trusted_signature"
    assert one["errno"] is None
    assert one["trusted_by"] == "anchor.pem"
    assert one["signer"] == {
        "issuer": "CN=signer",
        "serial": f"{signer.certificate.serial_number:x}",
        "skid": signer.skid.hex(),
        "subject": "CN=signer",
    }
    assert (one["hash_algorithm"], one["signature_algorithm"]) == ("sha256", "rsa")
    assert one["sha256"] == hashlib.sha256(signed).hexdigest()
    assert one["module"] == {
        "name": "kmg_demo",
        "version": "1.2",
        "srcversion": "0123ABCD",
        "vermagic": "6.1.0 SMP mod_unload ",
    }


def test_json_is_what_the_json_module_writes() -> None:
    report = SignatureReport(
        SignatureStatus.TRUSTED_SIGNATURE,
        None,
        'a"b\\',
        Signer("CN=\x1b\u00e9", "0a", None, "\ud800"),
        "sha256",
        None,
        "00",
        ModuleInfo("a\n", None, "", "\u2028"),
        "\x00",
    )
    line = as_json("odd\udcff\n.ko", report)
    value = json.loads(line)
    assert json.dumps(value) == line
    assert list(value) == FIELDS
    assert value["signer"]["subject"] == "\ud800"
    empty = json.loads(as_json("x", SignatureReport(SignatureStatus.UNSIGNED, "EKEYREJECTED")))
    assert empty["module"] is empty["signer"] is None


@pytest.mark.usefixtures("folder")
def test_one_refused_file_makes_it_one(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "good.ko", "plain.ko", "--trust", "anchor.pem")
    assert code == 1
    assert out.splitlines()[1].startswith("unsigned")
    assert "EKEYREJECTED" in out.splitlines()[1]
    assert out.splitlines()[2] == "2 files: 1 trusted_signature, 1 unsigned"
    assert "\x1b" not in out


@pytest.mark.usefixtures("folder")
def test_without_trust_nothing_is_trusted_and_a_hint_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, (one,), err = run_json(capsys, "good.ko")
    assert (code, one["status"], one["errno"]) == (1, "untrusted_signer", "EKEYREJECTED")
    assert "--trust" in err


def test_files_that_cannot_be_read(folder: Path, capsys: pytest.CaptureFixture[str], signed: bytes) -> None:
    os.mkfifo(folder / "fifo")
    (folder / "empty.ko").write_bytes(b"")
    (folder / "cut.ko.xz").write_bytes(lzma.compress(signed)[:-5])
    with (folder / "sparse.ko").open("wb") as file:
        file.truncate(2 << 30)
    unix = socket.socket(socket.AF_UNIX)
    unix.bind("socket")
    unix.close()
    expected = {
        "fifo": "EINVAL",
        "empty.ko": "EINVAL",
        "cut.ko.xz": "EINVAL",
        "sparse.ko": "EFBIG",
        "socket": "ENXIO",
        "/dev/null": "EINVAL",
        ".": "EINVAL",
        "missing.ko": "ENOENT",
    }
    code, lines, err = run_json(capsys, *expected, "good.ko", "--trust", "anchor.pem")
    assert code == 2
    assert {line["file"]: line["errno"] for line in lines[:-1]} == expected
    assert {line["status"] for line in lines[:-1]} == {"unreadable"}
    assert lines[-1]["status"] == "trusted_signature"
    assert len(err.splitlines()) == len(expected)
    for name, line in zip(expected, err.splitlines(), strict=True):
        assert line.startswith(f"kmodgate: error: {name}: ")


def test_a_file_that_is_no_elf(folder: Path, capsys: pytest.CaptureFixture[str], signer: Identity) -> None:
    text = b"not a module\n" * 10
    (folder / "text.ko").write_bytes(text)
    (folder / "signed-text.ko").write_bytes(append(text, openssl_cms(text, signer)))
    code, (plain, signed), _ = run_json(capsys, "text.ko", "signed-text.ko", "--trust", "anchor.pem")
    assert code == 1
    assert (plain["status"], plain["module"]) == ("unsigned", None)
    assert (signed["status"], signed["module"]) == ("trusted_signature", None)
    assert "not an ELF file" in plain["detail"]
    assert "not an ELF file" in signed["detail"]


def test_revocation_wins(folder: Path, capsys: pytest.CaptureFixture[str], signed: bytes) -> None:
    (folder / "revoked").write_text(f"bin:{hashlib.sha256(signed).hexdigest()}\n")
    options = ("--trust", "anchor.pem", "--revoked", "revoked")
    code, lines, _ = run_json(capsys, "good.ko", "good.ko.xz", *options)
    assert code == 1
    assert [(line["status"], line["errno"]) for line in lines] == [("revoked", "EKEYREJECTED")] * 2


def test_validity_on_request(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = make_identity("old", days=(-30, -10))
    (folder / "old.pem").write_bytes(old.pem)
    (folder / "old.ko").write_bytes(append(PAYLOAD, openssl_cms(PAYLOAD, old)))
    code, (line,), _ = run_json(capsys, "old.ko", "--trust", "old.pem")
    assert (code, line["status"]) == (0, "trusted_signature")
    assert "expired on" in line["detail"]
    code, (line,), _ = run_json(capsys, "old.ko", "--trust", "old.pem", "--require-validity")
    assert (code, line["status"]) == (1, "untrusted_signer")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["good.ko", "--trust", "plain.ko"], "plain.ko: holds no X.509 certificate"),
        (["good.ko", "--trust", "none.pem"], "none.pem: no such file"),
        (["good.ko", "--trust", "."], "is a directory"),
        (["good.ko", "--revoked", "anchor.pem"], "anchor.pem:1: not a revocation"),
        (["good.ko", "--max-size", "many"], "not a size"),
        (["good.ko", "--max-size", "0"], "not a size"),
        ([], "Missing argument"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_bad_usage_is_two(capsys: pytest.CaptureFixture[str], arguments: list[str], words: str) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert words in err


@pytest.mark.parametrize(("size", "code"), [("100", 2), ("500b", 2), ("4K", 0), ("1MiB", 0), ("1g", 0)])
@pytest.mark.usefixtures("folder")
def test_max_size(capsys: pytest.CaptureFixture[str], size: str, code: int) -> None:
    assert run(capsys, "good.ko", "good.ko.xz", "--trust", "anchor.pem", "--max-size", size)[0] == code


def test_names_do_not_drive_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str], signed: bytes
) -> None:
    name = "a\x1b[2J\n.ko"
    (folder / name).write_bytes(signed)
    _, out, err = run(capsys, name, "b\x1b.ko", "--trust", "anchor.pem")
    assert "\x1b" not in out + err
    assert "a\\x1b[2J\\x0a.ko" in out


def on_a_terminal(folder: Path, *arguments: str, **environment: str) -> str:
    """What a command shows on a terminal that is its output."""
    master, slave = pty.openpty()
    settings = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    child = subprocess.Popen(
        [sys.executable, "-m", "kmodgate", "verify", *arguments],
        stdout=slave,
        stderr=slave,
        cwd=folder,
        env={**settings, "TERM": "xterm-256color", **environment},
    )
    os.close(slave)
    shown = b""
    with suppress(OSError):  # EIO: the other side is closed
        while chunk := os.read(master, 1 << 16):
            shown += chunk
    os.close(master)
    child.wait()
    return shown.decode()


def test_colours_on_a_terminal_that_wants_them(folder: Path) -> None:
    arguments = ("good.ko", "plain.ko", "--trust", "anchor.pem")
    shown = on_a_terminal(folder, *arguments)
    assert "\x1b[32m\x1b[1mtrusted_signature" in shown
    assert "2 files: \x1b[32m\x1b[1m1 trusted_signature\x1b[0m, \x1b[31m\x1b[1m1 unsigned\x1b[0m" in shown
    assert "\x1b" not in on_a_terminal(folder, *arguments, NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(folder, *arguments, TERM="dumb")
