# SPDX-License-Identifier: Apache-2.0
"""Keys in PKCS#11 tokens: the URI, and a real token (SoftHSM2)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.vectors import generate
from tests.vectors.generate import Identity, make_identity

from kmodgate.errors import InputError
from kmodgate.tokens import parse_uri

PAYLOAD = generate.make_elf(generate.MODINFO)
LIBRARIES = ("/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so")


def test_a_uri_in_full(tmp_path: Path) -> None:
    (tmp_path / "pin").write_text("12 34\n")
    uri = parse_uri(
        "pkcs11:token=my%20token;object=key%3b1;id=%01%ff;serial=ab;manufacturer=me;model=m;type=private"
        f"?module-path=/lib/p.so&pin-source=file:{tmp_path}/pin"
    )
    assert (uri.token, uri.label, uri.key_id, uri.serial) == ("my token", "key;1", b"\x01\xff", "ab")
    assert (uri.manufacturer, uri.model, uri.module, uri.pin) == ("me", "m", "/lib/p.so", "12 34")
    assert "12 34" not in repr(uri)
    assert parse_uri("pkcs11:object=k?pin-value=%31").pin == "1"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("pkcs11:token=t", "names no key; add object=LABEL"),
        ("pkcs11:", "names no key"),
        ("pkcs11:object=k;type=cert", "must name a private key"),
        ("pkcs11:object=k;slot-id=1", "'slot-id=1' in the PKCS#11 URI is not understood"),
        ("pkcs11:object=k;object=l", "'object=l' in the PKCS#11 URI is not understood or repeated"),
        ("pkcs11:object", "'object' in the PKCS#11 URI is not understood"),
        ("pkcs11:object=k?pin-source=|sh", "programs are not run"),
        ("pkcs11:object=k?pin-source=file:/nowhere", "/nowhere: no such file"),
    ],
)
def test_a_uri_that_cannot_be_used(uri: str, words: str) -> None:
    with pytest.raises(InputError, match=words.replace("|", r"\|")):
        parse_uri(uri)


@pytest.fixture(scope="module")
def identities() -> dict[str, Identity]:
    return {kind: make_identity(kind, kind) for kind in ("rsa", "p256", "p384")}


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory, identities: dict[str, Identity]) -> Path:
    """A directory with a token in it that holds the keys, their certificates, and a module."""
    library = next((path for path in LIBRARIES if Path(path).exists()), None)
    if shutil.which("softhsm2-util") is None or library is None:
        message = "SoftHSM2 is missing; type: apt-get install softhsm2"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    folder = tmp_path_factory.mktemp("token")
    (folder / "tokens").mkdir()
    (folder / "softhsm.conf").write_text(f"directories.tokendir = {folder}/tokens\n")
    (folder / "library").symlink_to(library)
    environment = os.environ | {"SOFTHSM2_CONF": str(folder / "softhsm.conf")}
    commands = [["--init-token", "--free", "--label", "build", "--pin", "1234", "--so-pin", "4321"]]
    for number, (kind, identity) in enumerate(identities.items(), start=1):
        (folder / f"{kind}.pem").write_bytes(identity.pem)
        (folder / f"{kind}.key").write_bytes(identity.key_pem)
        imported = ["--import", str(folder / f"{kind}.key"), "--token", "build", "--label", kind]
        commands.append([*imported, "--id", f"0{number}", "--pin", "1234"])
    for words in commands:
        subprocess.run(["softhsm2-util", *words], env=environment, check=True, capture_output=True)
    (folder / "m.ko").write_bytes(PAYLOAD)
    return folder


def sign(
    token: Path, uri: str, certificate: str, *options: str, pin: str | None = "1234", module: str = "library"
) -> subprocess.CompletedProcess[str]:
    """A process of its own: a PKCS#11 module reads its settings once in each."""
    environment = os.environ | {"SOFTHSM2_CONF": str(token / "softhsm.conf"), "PIN": pin or ""}
    words = ["sign", "m.ko", "--out", "signed.ko", "--key", uri, "--cert", certificate, "--pkcs11-module"]
    words += [str(token / module), *options, *(["--passphrase-env", "PIN"] if pin else [])]
    return subprocess.run(
        [sys.executable, "-m", "kmodgate", *words],
        cwd=token,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.parametrize("kind", ["rsa", "p256", "p384"])
@pytest.mark.parametrize("digest", ["sha256", "sha512"])
def test_a_token_signs_as_a_file_does(token: Path, kind: str, digest: str) -> None:
    done = sign(
        token, f"pkcs11:token=build;object={kind}", f"{kind}.pem", "--hash", digest, "--output", "json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["hash_algorithm"] == digest
    signed = (token / "signed.ko").read_bytes()
    if kind == "rsa":
        from_file = [sys.executable, "-m", "kmodgate", "sign", "m.ko", "--out", "file.ko", "--key", "rsa.key"]
        subprocess.run(
            [*from_file, "--cert", "rsa.pem", "--hash", digest], cwd=token, check=True, capture_output=True
        )
        assert signed == (token / "file.ko").read_bytes()


def test_a_key_by_its_id(token: Path) -> None:
    assert sign(token, "pkcs11:id=%02", "p256.pem").returncode == 0


@pytest.mark.parametrize(
    ("uri", "certificate", "pin", "words"),
    [
        ("pkcs11:object=rsa", "rsa.pem", "9999", "the token refuses the PIN"),
        ("pkcs11:object=rsa", "rsa.pem", None, "seen with the token's PIN alone: give --passphrase-file"),
        ("pkcs11:object=nope", "rsa.pem", "1234", "no private key matches the PKCS#11 URI; list them with"),
        (
            "pkcs11:token=no;object=rsa",
            "rsa.pem",
            "1234",
            "no token matches the PKCS#11 URI; tokens there: 'build'",
        ),
        ("pkcs11:object=p256", "rsa.pem", "1234", "is of another kind than the certificate's"),
        ("pkcs11:object=p384", "p256.pem", "1234", "m.ko: "),
    ],
)
def test_what_a_token_refuses(token: Path, uri: str, certificate: str, pin: str | None, words: str) -> None:
    (token / "signed.ko").unlink(missing_ok=True)
    done = sign(token, uri, certificate, pin=pin)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not (token / "signed.ko").exists()


def test_a_module_that_is_none(token: Path) -> None:
    done = sign(token, "pkcs11:object=rsa", "rsa.pem", module="m.ko")
    assert done.returncode == 3
    assert "cannot be loaded as a PKCS#11 module" in done.stderr
    assert "--pkcs11-module" in done.stderr


def test_the_extra_is_named_when_it_is_missing(token: Path) -> None:
    code = (
        "import sys; sys.modules['pkcs11'] = None; from kmodgate.cli import main; "
        "main(['sign', 'm.ko', '--key', 'pkcs11:object=rsa', '--cert', 'rsa.pem'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=token,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 3
    assert "pip install 'kmodgate[pkcs11]'" in done.stderr
