# SPDX-License-Identifier: Apache-2.0
"""``kmodgate sign``: append signatures to modules, as the kernel's ``sign-file`` does."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kmodgate.cli.options import examples, parse_size
from kmodgate.cli.terminal import printable
from kmodgate.errors import InputError, ModuleFormatError, SignatureError
from kmodgate.fsutil import read_regular_file, replace_file
from kmodgate.inspection import DEFAULT_MAX_SIZE
from kmodgate.model import SignatureStatus

if TYPE_CHECKING:
    from kmodgate.signature import TrustAnchor
    from kmodgate.signature.sign import SigningKey

_MAX_KEY_FILE = 1 << 20
# So near to the end a marker counts: one with something behind it is no surprise then.
_TAIL = 4096
_COMPRESSED = {b"\x1f\x8b": ("gzip", "gz"), b"\xfd7zXZ\0": ("xz", "xz"), b"\x28\xb5\x2f\xfd": ("zstd", "zst")}


@dataclass(frozen=True, slots=True)
class _Job:
    """What is the same for every file."""

    certificate: TrustAnchor
    key: SigningKey
    digest: str | None
    by_key_id: bool
    replace: bool
    force: bool
    max_size: int


@click.command(
    "sign",
    short_help="Append signatures to module files, as the kernel's sign-file does.",
    epilog=examples(
        ("kmodgate sign driver.ko --key signing.key --cert signing.pem", "Sign the file in place."),
        ("kmodgate sign driver.ko --out signed.ko --key …", "Leave the file alone and write another."),
        (
            "kmodgate sign driver.ko --key 'pkcs11:token=build;object=modules' --cert signing.pem",
            "The key stays in its token; it is asked for the PIN.",
        ),
        ("kmodgate verify driver.ko --trust signing.pem", "Will it load where the certificate is trusted?"),
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--key",
    "key_name",
    metavar="KEY",
    type=click.Path(),
    required=True,
    help="Private key: PEM or DER file, or a pkcs11: URI.",
)
@click.option(
    "--cert",
    "cert_path",
    metavar="CERT",
    type=click.Path(),
    required=True,
    help="Its X.509 certificate: PEM or DER file.",
)
@click.option(
    "--hash",
    "digest",
    type=click.Choice(["sha256", "sha384", "sha512"]),
    help="Digest of the module.  [default: sha256; sha512 for ML-DSA]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write here, not in place; one module only.",
)
@click.option(
    "--detached",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the PKCS#7 message alone (.p7s), and leave the module alone; one module only.",
)
@click.option("--keyid", "by_key_id", is_flag=True, help="Name the signer by its key id (sign-file -k).")
@click.option(
    "--replace", is_flag=True, help="Take an old signature off first. Without it signed files are refused."
)
@click.option("--force", is_flag=True, help="Sign what is no kernel module, too.")
@click.option(
    "--passphrase-file",
    metavar="FILE",
    type=click.Path(),
    help="Passphrase of the key, or PIN of the token: the first line.",
)
@click.option("--passphrase-env", metavar="NAME", help="The same from an environment variable.")
@click.option(
    "--pkcs11-module",
    metavar="FILE",
    type=click.Path(),
    help="PKCS#11 module.  [default: the URI's, else p11-kit's]",
)
@click.option(
    "--max-size",
    callback=parse_size,
    default=f"{DEFAULT_MAX_SIZE >> 20}M",
    show_default=True,
    metavar="SIZE",
    help="Largest module.",
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(  # noqa: PLR0917  # click passes them by name
    files: tuple[str, ...],
    key_name: str,
    cert_path: str,
    digest: str | None,
    out: Path | None,
    detached: Path | None,
    by_key_id: bool,
    replace: bool,
    force: bool,
    passphrase_file: str | None,
    passphrase_env: str | None,
    pkcs11_module: str | None,
    max_size: int,
    output: str,
) -> int:
    """Append signatures to module files: the same bytes as the kernel's sign-file for the same key.

    Each file is verified with the certificate before it is written, and written in one step: nobody sees
    half a module, and a file that cannot be signed stays as it was. Its mode and owner are kept.

    Sign before compressing: kernels check the decompressed module.

    Exit codes: 0 all signed, 2 a file, key or option could not be used, 3 no access to the token.
    """
    from kmodgate.signature.describe import describe

    if (out is not None or detached is not None) and (len(files) > 1 or (out and detached)):
        raise click.UsageError("--out and --detached are for one module, and exclude each other")
    certificate = _certificate(cert_path)
    for warning in describe(certificate.certificate).warnings(datetime.now(UTC)):
        click.echo(f"kmodgate: warning: {printable(cert_path)}: {warning}", err=True)
    failed = False
    passphrase = _passphrase(passphrase_file, passphrase_env)
    with _open_key(key_name, passphrase, pkcs11_module) as key:
        job = _Job(certificate, key, digest, by_key_id, replace, force, max_size)
        for name in files:
            try:
                record = _sign_one(name, out, detached, job)
            except InputError as error:
                click.echo(f"kmodgate: error: {printable(str(error))}", err=True)
                failed = True
                continue
            click.echo(json.dumps(record) if output == "json" else _text(record))
    return InputError.exit_code if failed else 0


def _certificate(path: str) -> TrustAnchor:
    from kmodgate.signature import load_certificates

    return load_certificates(read_regular_file(path, _MAX_KEY_FILE), path)[0]


def _passphrase(file: str | None, variable: str | None) -> str | None:
    """From the place that is named; None when none is."""
    if file is not None and variable is not None:
        raise click.UsageError("--passphrase-file and --passphrase-env exclude each other")
    if file is not None:
        lines = read_regular_file(file, _MAX_KEY_FILE).decode("utf-8", "replace").splitlines()
        if not lines:
            raise InputError(f"{file}: is empty; the passphrase is its first line")
        return lines[0]
    if variable is not None:
        if variable not in os.environ:
            raise InputError(f"the environment has no variable {variable}, which --passphrase-env names")
        return os.environ[variable]
    return None


@contextmanager
def _open_key(name: str, passphrase: str | None, module: str | None) -> Iterator[SigningKey]:
    from kmodgate import tokens
    from kmodgate.signature.sign import load_private_key

    if name.startswith(tokens.SCHEME):
        uri = tokens.parse_uri(name)
        if passphrase is None and uri.pin is None and sys.stdin.isatty():
            passphrase = click.prompt("PIN of the token", hide_input=True, err=True)
        with tokens.open_key(uri, module=module, pin=passphrase) as key:
            yield key
        return
    if module is not None:
        raise click.UsageError("--pkcs11-module goes with a key that is a pkcs11: URI")
    data = read_regular_file(name, _MAX_KEY_FILE)
    yield load_private_key(data, None if passphrase is None else passphrase.encode(), name)


def _sign_one(name: str, out: Path | None, detached: Path | None, job: _Job) -> dict[str, object]:
    from kmodgate.signature import TrustStore, verify
    from kmodgate.signature.sign import append, sign

    payload, replaced = _payload(name, read_regular_file(name, job.max_size), job)
    message = sign(payload, job.certificate, job.key, digest=job.digest, by_key_id=job.by_key_id)
    signed = append(payload, message)
    try:
        verified = verify(signed, TrustStore([job.certificate]))
    except SignatureError as error:
        problem = f"the signature made for it does not verify ({error.detail})"
        if error.status is SignatureStatus.BAD_SIGNATURE:
            problem = f"not signed: the private key does not belong to {job.certificate.label}"
        raise InputError(f"{name}: {problem}") from error
    target = detached or out or Path(name)
    replace_file(target, message if detached else signed, like=Path(name))
    signer = job.certificate.signer
    return {
        "file": name,
        "written": str(target),
        "signer": {
            "issuer": signer.issuer,
            "serial": signer.serial,
            "skid": signer.skid,
            "subject": signer.subject,
        },
        "hash_algorithm": verified.hash_algorithm,
        "signature_algorithm": verified.signature_algorithm,
        "signature_bytes": len(message),
        "replaced": replaced,
        "sha256": hashlib.sha256(message if detached else signed).hexdigest(),
    }


def _payload(name: str, data: bytes, job: _Job) -> tuple[bytes | memoryview, bool]:
    """What is to be signed, and whether an old signature was taken off it."""
    from kmodgate.modfile import modinfo
    from kmodgate.signature.trailer import MARKER, split

    for magic, (kind, suffix) in _COMPRESSED.items():
        if data.startswith(magic):
            raise InputError(
                f"{name}: is compressed with {kind}; kernels check the decompressed module: "
                f"decompress it, sign it, then compress it again (.ko.{suffix})"
            )
    payload: bytes | memoryview = data
    replaced = MARKER in data[-_TAIL:]
    if replaced:
        if not job.replace:
            raise InputError(
                f"{name}: is signed already; --replace signs it anew. "
                "(sign-file appends another signature, and kernels read the last one alone.)"
            )
        try:
            payload = split(data).payload
        except SignatureError as error:
            raise InputError(
                f"{name}: its signature cannot be taken off: {error.detail}; build it anew"
            ) from error
    if not job.force:
        try:
            modinfo(payload)
        except ModuleFormatError as error:
            raise InputError(
                f"{name}: is no kernel module ({error}); --force signs it nevertheless"
            ) from error
    return payload, replaced


def _text(record: dict[str, object]) -> str:
    signer = record["signer"]
    assert isinstance(signer, dict)  # noqa: S101  # our own record
    what = "signed anew" if record["replaced"] else "signed"
    where = "" if record["written"] == record["file"] else f" into {printable(str(record['written']))}"
    return (
        f"{what}  {printable(str(record['file']))}{where}: by {printable(str(signer['subject']))} "
        f"({record['signature_algorithm']} with {record['hash_algorithm']})"
    )
