# SPDX-License-Identifier: Apache-2.0
"""``kmodgate verify``: would these module files load under the given trust anchors?"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring_ascii

import click

from kmodgate.cli import terminal
from kmodgate.cli.options import examples, kernel_profile_option, parse_size
from kmodgate.cli.stderr import complain, hint
from kmodgate.errors import ModuleFormatError
from kmodgate.fsutil import FileReadError, read_regular_file
from kmodgate.inspection import DEFAULT_MAX_SIZE, inspect
from kmodgate.model import ModuleInfo, SignatureReport, SignatureStatus, Signer
from kmodgate.signature import LATEST, KernelProfile, Revocations, TrustStore, load_certificates

MAX_TRUST_FILE = 16 << 20
PROGRESS_FROM = 50

_TRUSTED = SignatureStatus.TRUSTED_SIGNATURE
_UNREADABLE = SignatureStatus.UNREADABLE
_WIDTH = max(map(len, SignatureStatus))


def load_trust(trust: Sequence[str], revoked: Sequence[str]) -> TrustStore:
    """Read certificate and revocation files.

    Raises:
        InputError, ConfigError: naming the file that cannot be used.
    """
    anchors = [
        anchor
        for path in trust
        for anchor in load_certificates(read_regular_file(path, MAX_TRUST_FILE), path)
    ]
    revocations = Revocations.merge(
        Revocations.parse(read_regular_file(path, MAX_TRUST_FILE).decode("utf-8", "replace"), path)
        for path in revoked
    )
    return TrustStore(anchors, revocations)


def examine(
    path: str,
    trust: TrustStore,
    *,
    max_size: int,
    now: datetime,
    require_validity: bool,
    profile: KernelProfile = LATEST,
) -> SignatureReport:
    """Report on one file; a file that cannot be read is reported, too."""
    try:
        raw = read_regular_file(path, max_size)
        return inspect(
            raw, trust, max_size=max_size, now=now, require_validity=require_validity, profile=profile
        )
    except FileReadError as error:
        return SignatureReport(_UNREADABLE, error.errno_name, detail=error.problem)
    except ModuleFormatError as error:
        return SignatureReport(_UNREADABLE, error.errno_name, detail=str(error))


def _quote(value: str | None) -> str:
    return "null" if value is None else encode_basestring_ascii(value)


@lru_cache(maxsize=64)
def _signer_json(signer: Signer) -> str:
    return (
        f'{{"issuer": {_quote(signer.issuer)}, "serial": {_quote(signer.serial)}, '
        f'"skid": {_quote(signer.skid)}, "subject": {_quote(signer.subject)}}}'
    )


def _module_json(module: ModuleInfo) -> str:
    return (
        f'{{"name": {_quote(module.name)}, "version": {_quote(module.version)}, '
        f'"srcversion": {_quote(module.srcversion)}, "vermagic": {_quote(module.vermagic)}}}'
    )


def as_json(path: str, report: SignatureReport) -> str:
    """One NDJSON line, without the line end; ASCII only.

    Thousands of files go through here: the keys are written out and only the values are
    encoded, which takes a third of the time of ``json.dumps``.
    """
    return (
        f'{{"file": {_quote(path)}, "status": "{report.status.value}", "errno": {_quote(report.errno)}, '
        f'"trusted_by": {_quote(report.trusted_by)}, '
        f'"signer": {"null" if report.signer is None else _signer_json(report.signer)}, '
        f'"hash_algorithm": {_quote(report.hash_algorithm)}, '
        f'"signature_algorithm": {_quote(report.signature_algorithm)}, "sha256": {_quote(report.sha256)}, '
        f'"module": {"null" if report.module is None else _module_json(report.module)}, '
        f'"detail": {_quote(report.detail)}}}'
    )


def _painted(status: SignatureStatus, text: str) -> str:
    shades = {_TRUSTED: "green", _UNREADABLE: "yellow"}
    return click.style(text, fg=shades.get(status, "red"), bold=True)


def as_text(path: str, report: SignatureReport, *, colour: bool) -> str:
    """One line for people, without the line end."""
    status = f"{report.status.value:<{_WIDTH}}"
    if colour:
        status = _painted(report.status, status)
    parts = [terminal.printable(report.detail)]
    if report.trusted_by is not None:
        parts.append(f"trusted by {terminal.printable(report.trusted_by)}")
    if report.errno is not None:
        parts.append(report.errno)
    return f"{status}  {terminal.printable(path)}: {'; '.join(parts)}"


def _with_progress(files: Sequence[str]) -> Iterator[str]:
    """The files; with a bar on stderr when that is a terminal and stdout is not."""
    if len(files) < PROGRESS_FROM or not sys.stderr.isatty() or sys.stdout.isatty():
        yield from files
        return
    with terminal.progress("verifying", len(files)) as advance:
        for path in files:
            yield path
            advance(1)


def _summary(counts: Counter[SignatureStatus], *, colour: bool) -> str:
    total = sum(counts.values())
    told = ((status, f"{counts[status]} {status.value}") for status in SignatureStatus if counts[status])
    listed = ", ".join(_painted(status, text) if colour else text for status, text in told)
    return f"{total} file{'' if total == 1 else 's'}: {listed}"


@click.command(
    name="verify",
    epilog=examples(
        ("kmodgate verify driver.ko --trust ours.pem", "Does our key vouch for exactly these bytes?"),
        (
            "kmodgate verify *.ko.xz --trust ours.pem --kernel-profile debian-12",
            "Would Debian 12's kernel say so, too?",
        ),
        (
            "kmodgate verify driver.ko --trust ours.pem --revoked revoked.txt --output json",
            "One JSON object a line, for pipelines.",
        ),
    ),
)
@click.argument("files", metavar="FILE...", nargs=-1, required=True, type=click.Path())
@click.option(
    "--trust",
    metavar="PEM",
    type=click.Path(),
    multiple=True,
    help="Certificates (PEM or DER) to trust; without one nothing is trusted. May be repeated.",
)
@click.option(
    "--revoked",
    metavar="FILE",
    type=click.Path(),
    multiple=True,
    help="Revocations, one a line: tbs:HEX, bin:HEX or id:HEX. They win over --trust. May be repeated.",
)
@click.option(
    "--require-validity", is_flag=True, help="Refuse signers outside their validity (the kernel does not)."
)
@click.option(
    "--max-size",
    callback=parse_size,
    default=f"{DEFAULT_MAX_SIZE >> 20}M",
    show_default=True,
    metavar="SIZE",
    help="Largest module, after decompression.",
)
@kernel_profile_option(LATEST.name)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(  # noqa: PLR0917  # click passes them by name
    files: tuple[str, ...],
    trust: tuple[str, ...],
    revoked: tuple[str, ...],
    require_validity: bool,
    max_size: int,
    profile: KernelProfile,
    output: str,
) -> int:
    """Verify the signatures of module files. Needs no root and no kernel.

    Reads .ko, .ko.gz, .ko.xz and .ko.zst files and says of each what a kernel that
    trusts the given certificates, and enforces signatures, answers at the signature stage.

    Exit codes: 0 all trusted, 1 some not trusted, 2 a file or option could not be used.
    """
    store = load_trust(trust, revoked)
    now = datetime.now(UTC)
    out = sys.stdout
    colour = terminal.colour_wanted(out)
    counts: Counter[SignatureStatus] = Counter()
    for path in _with_progress(files):
        report = examine(
            path, store, max_size=max_size, now=now, require_validity=require_validity, profile=profile
        )
        counts[report.status] += 1
        line = as_json(path, report) if output == "json" else as_text(path, report, colour=colour)
        out.write(line + "\n")
        if report.status is _UNREADABLE and (output == "json" or not out.isatty()):
            complain(f"{terminal.printable(path)}: {terminal.printable(report.detail)}")
    if output == "text":
        out.write(_summary(counts, colour=colour) + "\n")
    out.flush()
    if not len(store) and counts[SignatureStatus.UNTRUSTED_SIGNER]:
        hint(
            "no --trust was given, so no signer is trusted; "
            "add --trust CERTIFICATE.pem for each key that the node trusts"
        )
    if counts[_UNREADABLE]:
        return 2
    return 0 if counts[_TRUSTED] == len(files) else 1
