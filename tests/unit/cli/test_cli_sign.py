# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import json
import lzma
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from tests.vectors import generate
from tests.vectors.generate import Identity, append, make_identity, openssl_cms

from kmodgate.cli import main

PAYLOAD = generate.make_elf(generate.MODINFO)
KEY = ("--key", "a.key", "--cert", "a.pem")


@pytest.fixture(scope="module")
def signer() -> Identity:
    return make_identity("signer")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, signer: Identity, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.key").write_bytes(signer.key_pem)
    (tmp_path / "a.pem").write_bytes(signer.pem)
    (tmp_path / "m.ko").write_bytes(PAYLOAD)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return int(caught.value.code or 0), out, err


def expected(signer: Identity, *options: str, digest: str = "sha256") -> bytes:
    return append(
        PAYLOAD, openssl_cms(PAYLOAD, signer, digest, "-noattr", "-nocerts", "-nosmimecap", *options)
    )


def test_in_place_with_mode_and_owner_kept(
    folder: Path, signer: Identity, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "m.ko").chmod(0o640)
    if os.geteuid() == 0:
        os.chown(folder / "m.ko", 12, 34)
    before = (folder / "m.ko").stat()
    code, out, err = run(capsys, "sign", "m.ko", *KEY)
    assert (code, err) == (0, "")
    assert out == "signed  m.ko: by CN=signer (rsa with sha256)\n"
    assert (folder / "m.ko").read_bytes() == expected(signer)
    after = (folder / "m.ko").stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert sorted(path.name for path in folder.iterdir()) == ["a.key", "a.pem", "m.ko"]
    assert run(capsys, "verify", "m.ko", "--trust", "a.pem")[0] == 0


def test_elsewhere_and_with_options(
    folder: Path, signer: Identity, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run(capsys, "sign", "m.ko", "--out", "s.ko", "--keyid", "--hash", "sha384", *KEY)
    assert (code, out) == (0, "signed  m.ko into s.ko: by CN=signer (rsa with sha384)\n")
    assert (folder / "s.ko").read_bytes() == expected(signer, "-keyid", digest="sha384")
    assert (folder / "m.ko").read_bytes() == PAYLOAD


def test_detached(folder: Path, signer: Identity, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "sign", "m.ko", "--detached", "m.p7s", *KEY)[0] == 0
    assert append(PAYLOAD, (folder / "m.p7s").read_bytes()) == expected(signer)
    assert (folder / "m.ko").read_bytes() == PAYLOAD


def test_json_is_stable(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "n.ko").write_bytes(PAYLOAD)
    code, out, _ = run(capsys, "sign", "m.ko", "n.ko", "--output", "json", *KEY)
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert first | {"file": "n.ko", "written": "n.ko"} == second
    assert list(first) == [
        *("file", "written", "signer", "hash_algorithm", "signature_algorithm"),
        *("signature_bytes", "replaced", "sha256"),
    ]
    assert not first["replaced"]


def test_a_link_is_followed_and_stays(
    folder: Path, signer: Identity, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "link.ko").symlink_to("m.ko")
    assert run(capsys, "sign", "link.ko", *KEY)[0] == 0
    assert (folder / "link.ko").is_symlink()
    assert (folder / "m.ko").read_bytes() == expected(signer)


def test_signing_twice(folder: Path, signer: Identity, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "sign", "m.ko", *KEY)[0] == 0
    code, _, err = run(capsys, "sign", "m.ko", *KEY)
    assert code == 2
    assert "m.ko: is signed already; --replace signs it anew. (sign-file appends another" in err
    other = make_identity("other", "p256")
    (folder / "b.key").write_bytes(other.key_pem)
    (folder / "b.pem").write_bytes(other.pem)
    code, out, _ = run(capsys, "sign", "m.ko", "--replace", "--key", "b.key", "--cert", "b.pem")
    assert (code, out) == (0, "signed anew  m.ko: by CN=other (ecdsa with sha256)\n")
    assert run(capsys, "sign", "m.ko", "--replace", *KEY)[0] == 0
    assert (folder / "m.ko").read_bytes() == expected(signer)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            gzip.compress(PAYLOAD),
            "is compressed with gzip; kernels check the decompressed module: decompress it",
        ),
        (lzma.compress(PAYLOAD), "is compressed with xz"),
        (b"\x28\xb5\x2f\xfd...", "is compressed with zstd"),
        (b"text", "is no kernel module (not an ELF file); --force"),
        (PAYLOAD[:100], "is no kernel module"),
        (b"", "is no kernel module"),
        (PAYLOAD + generate.MARKER, "its signature cannot be taken off: "),
        (PAYLOAD + generate.MARKER + b"x", "its signature cannot be taken off: "),
    ],
)
def test_files_that_are_not_signed(
    folder: Path, capsys: pytest.CaptureFixture[str], data: bytes, words: str
) -> None:
    (folder / "bad.ko").write_bytes(data)
    code, out, err = run(capsys, "sign", "bad.ko", "m.ko", "--replace", *KEY)
    assert code == 2
    assert err.startswith("kmodgate: error: bad.ko: ")
    assert words in err
    assert (folder / "bad.ko").read_bytes() == data
    assert out.startswith("signed  m.ko")  # the others are not held up


def test_force_signs_what_is_no_module(
    folder: Path, signer: Identity, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "text").write_bytes(b"text")
    assert run(capsys, "sign", "text", "--force", *KEY)[0] == 0
    assert (folder / "text").read_bytes() == append(b"text", openssl_cms(b"text", signer))


def test_another_key_is_noticed_and_nothing_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "b.key").write_bytes(make_identity("other").key_pem)
    code, _, err = run(capsys, "sign", "m.ko", "--key", "b.key", "--cert", "a.pem")
    assert code == 2
    assert "m.ko: not signed: the private key does not belong to a.pem" in err
    assert (folder / "m.ko").read_bytes() == PAYLOAD


def test_passphrases(
    folder: Path, signer: Identity, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = serialization.BestAvailableEncryption(b"open sesame")
    pem = signer.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
    (folder / "e.key").write_bytes(pem)
    (folder / "pass").write_text("open sesame\nsecond line\n")
    (folder / "none").write_text("")
    monkeypatch.setenv("PASS", "open sesame")
    monkeypatch.setenv("WRONG", "abracadabra")
    monkeypatch.delenv("UNSET", raising=False)
    base = ("sign", "m.ko", "--out", "s.ko", "--key", "e.key", "--cert", "a.pem")
    assert run(capsys, *base, "--passphrase-file", "pass")[0] == 0
    assert run(capsys, *base, "--passphrase-env", "PASS")[0] == 0
    for options, words in (
        ((), "e.key: is encrypted; give --passphrase-file FILE or --passphrase-env NAME"),
        (("--passphrase-env", "WRONG"), "e.key: cannot be decrypted"),
        (("--passphrase-env", "UNSET"), "no variable UNSET"),
        (("--passphrase-file", "none"), "none: is empty"),
        (("--passphrase-file", "nowhere"), "nowhere: no such file"),
        (("--passphrase-file", "pass", "--passphrase-env", "PASS"), "exclude each other"),
    ):
        code, _, err = run(capsys, *base, *options)
        assert code == 2
        assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("m.ko", "--key", "no.key", "--cert", "a.pem"), "no.key: no such file"),
        (("m.ko", "--key", "a.key", "--cert", "no.pem"), "no.pem: no such file"),
        (("m.ko", "--key", "a.pem", "--cert", "a.pem"), "a.pem: is a certificate"),
        (("m.ko", "--key", "a.key", "--cert", "a.key"), "holds a private key; give the certificate"),
        (("m.ko", "m.ko", "--out", "x", *KEY), "--out and --detached are for one module"),
        (("m.ko", "--out", "x", "--detached", "y", *KEY), "exclude each other"),
        (("m.ko", "--pkcs11-module", "x.so", *KEY), "--pkcs11-module goes with a key that is a pkcs11: URI"),
        (("m.ko", "--out", ".", *KEY), ".: is no regular file"),
        (("m.ko", "--out", "no/where.ko", *KEY), "no/where.ko: no such file"),
        (("m.ko", "--max-size", "10", *KEY), "above the limit of 10"),
        (("no.ko", *KEY), "no.ko: no such file"),
        (("m.ko", "--key", "pkcs11:token=t", "--cert", "a.pem"), "the PKCS#11 URI names no key"),
        (("m.ko",), "Missing option"),
    ],
)
def test_bad_usage_is_two(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    code, out, err = run(capsys, "sign", *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert (folder / "m.ko").read_bytes() == PAYLOAD


@pytest.mark.parametrize(
    ("days", "bits", "words"), [((-9, -2), 2048, "expired on"), ((-1, 99), 1024, "1024 bits is weak")]
)
def test_poor_certificates_are_warned_of(
    folder: Path, capsys: pytest.CaptureFixture[str], days: tuple[int, int], bits: int, words: str
) -> None:
    key: Any = rsa.generate_private_key(public_exponent=65537, key_size=bits)
    poor = make_identity("poor", key=key, days=days)
    (folder / "p.key").write_bytes(poor.key_pem)
    (folder / "p.pem").write_bytes(poor.pem)
    code, _, err = run(capsys, "sign", "m.ko", "--key", "p.key", "--cert", "p.pem")
    assert code == 0
    assert err.startswith("kmodgate: warning: p.pem: ")
    assert words in err


def test_a_full_disk_leaves_the_module_as_it_was(folder: Path) -> None:
    """``ulimit -f`` stands for it: the write fails in the middle."""
    (folder / "m.ko").write_bytes(PAYLOAD + bytes(64 << 10))
    before = (folder / "m.ko").read_bytes()
    typed = f"{sys.executable} -m kmodgate sign m.ko --force --key a.key --cert a.pem"
    script = f"trap '' XFSZ; ulimit -f 8; exec {typed}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "m.ko: file too large" in done.stderr
    assert (folder / "m.ko").read_bytes() == before
    assert sorted(path.name for path in folder.iterdir()) == ["a.key", "a.pem", "m.ko"]
