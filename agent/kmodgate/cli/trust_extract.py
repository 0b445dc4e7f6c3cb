# SPDX-License-Identifier: Apache-2.0
"""``kmodgate trust extract``: the certificates that a kernel image brings with it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kmodgate.cli.options import examples, parse_size
from kmodgate.cli.terminal import printable
from kmodgate.errors import InputError
from kmodgate.fsutil import read_regular_file, replace_file

if TYPE_CHECKING:
    from kmodgate.modfile.embedded import Embedded
    from kmodgate.signature.describe import Description

USES = {
    "module_key": "module key of the build",
    "trusted": "trusted by the kernel",
    "revoked": "revoked by the kernel",
    "self_test": "for the kernel's self test",
    "regulatory": "for wireless regulations",
    "unknown": "use not known",
}
"""What a certificate is for, in words."""


def counted(number: int, noun: str) -> str:
    """For example ``1 file``, ``2 files``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def certificates_in(image: bytes, max_size: int | None = None) -> tuple[tuple[Embedded, Description], ...]:
    """What an image holds; certificates that do not parse are none (they only look like it)."""
    from kmodgate.modfile import embedded, kernelimage
    from kmodgate.signature.describe import describe_der

    kernel = kernelimage.extract(image, max_size=max_size or kernelimage.DEFAULT_MAX_SIZE)
    found = []
    for one in embedded.find(kernel):
        try:
            found.append((one, describe_der(one.der)))
        except InputError:
            continue
    return tuple(found)


def facts_json(facts: Description, now: datetime) -> dict[str, object]:
    """One certificate for machines."""
    return {
        "subject": facts.subject,
        "issuer": facts.issuer,
        "serial": facts.serial,
        "skid": facts.skid,
        "key": facts.key,
        "signed_with": facts.signed_with,
        "self_issued": facts.self_issued,
        "ca": facts.ca,
        "not_before": facts.not_before.isoformat(),
        "not_after": facts.not_after.isoformat(),
        "days_left": facts.days_left(now),
        "sha256": facts.sha256,
        "revoke_with": f"tbs:{facts.tbs_sha256}",
    }


@click.command(
    "extract",
    short_help="Take the trusted certificates out of a kernel image, as PEM.",
    epilog=examples(
        (
            "kmodgate trust extract /boot/vmlinuz-6.1.0-56-amd64 --out kernel.pem",
            "Whom does this kernel trust?",
        ),
        ("kmodgate verify nic.ko --trust kernel.pem", "Will it load under that kernel?"),
        (
            "kmodgate trust extract vmlinuz --all --output json | jq .",
            "Every certificate in it, with its use.",
        ),
    ),
)
@click.argument("image", metavar="VMLINUZ")
@click.option(
    "--out", metavar="FILE", default="-", help="Write the PEM here; - is standard output.  [default: -]"
)
@click.option("--all", "everything", is_flag=True, help="Certificates that are no trust anchors, too.")
@click.option(
    "--max-size",
    callback=parse_size,
    default="256M",
    show_default=True,
    metavar="SIZE",
    help="Largest kernel, packed and unpacked.",
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def extract_command(image: str, out: str, everything: bool, max_size: int, output: str) -> int:
    """Take the certificates that a kernel trusts out of its image, as PEM.

    Reads vmlinuz and bzImage (x86), Image, Image.gz and EFI zboot (arm64, riscv), unified kernel
    images and plain ELF; compressed with gzip, xz, zstd, bzip2, lzma or lz4. Needs no root.

    The list of trusted certificates is found by its length, which the kernel keeps behind it.
    Others lie in kernels, too, for tests or for wireless regulations: those are left out, and
    so are those whose use the image does not tell, with a warning. Keys that a kernel gets from
    firmware or as machine owner keys are in no image.

    Exit codes: 0 fine, 1 there are no trusted certificates in it, 2 the file could not be used.
    """
    from kmodgate.modfile.embedded import ANCHORS

    try:
        found = certificates_in(read_regular_file(image, max_size), max_size)
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(image) else f"{image}: {text}") from error
    chosen = [one for one in found if everything or one[0].use in ANCHORS]
    pem = "".join(_pem(one, facts) for one, facts in chosen)
    now = datetime.now(UTC)
    if out != "-":
        replace_file(Path(out), pem.encode())
    if output == "json":
        listed = [
            {"use": one.use.value, "offset": one.offset, **facts_json(facts, now), "pem": _pem(one, facts)}
            for one, facts in chosen
        ]
        click.echo(json.dumps({"file": image, "certificates": listed, "found": len(found)}))
    elif out == "-":
        click.echo(pem, nl=False)
    unknown = sum(one.use == "unknown" for one, _ in found)
    if unknown:
        kept = "written, too" if everything else "left out; --all writes them"
        click.echo(
            f"kmodgate: warning: {printable(image)}: "
            f"{counted(unknown, 'certificate')} of unknown use: {kept}",
            err=True,
        )
    trusted = sum(one.use in ANCHORS for one, _ in found)
    where = "" if out == "-" else f" {len(chosen)} written to {printable(out)}"
    click.echo(
        f"{printable(image)}: {counted(len(found), 'certificate')}, {trusted} trusted;{where}".rstrip(";"),
        err=True,
    )
    return 0 if trusted else 1


def _pem(one: Embedded, facts: Description) -> str:
    from kmodgate.signature.describe import to_pem

    return f"# {USES[one.use]}\n{to_pem(one.der, facts)}"
