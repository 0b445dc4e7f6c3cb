# SPDX-License-Identifier: Apache-2.0
"""``kmodgate trust list``: every trust anchor that a node or pool uses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kmodgate.cli import terminal
from kmodgate.cli.options import examples, parse_labels
from kmodgate.cli.terminal import printable
from kmodgate.cli.trust_extract import USES, certificates_in, counted, facts_json
from kmodgate.errors import KmodgateError

if TYPE_CHECKING:
    from kmodgate.modfile.embedded import Embedded
    from kmodgate.node import KernelKeys
    from kmodgate.signature import TrustStore
    from kmodgate.signature.describe import Description

MAX_IMAGE = 256 << 20
"""Bytes of a kernel image file; Debian's have 8 to 15 million."""

_BUILTIN = ".builtin_trusted_keys"


@dataclass(frozen=True, slots=True)
class Configured:
    """One configured certificate: where it is from, what it is, whether a revocation hits it."""

    file: str
    facts: Description
    revoked: bool


@dataclass(frozen=True, slots=True)
class Image:
    """The running kernel's image: path, certificates with their use, and what kept us from them."""

    path: str | None
    certificates: tuple[tuple[Embedded, Description], ...]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """All that ``trust list`` reports.

    Attributes:
        configured: the certificates of the config and of ``--trust``.
        store: the same with the revocations.
        kernel_keyrings: the kernel's own keys count under this config.
        keys: what ``/proc/keys`` lists; None when there is no such file.
        image: of the running kernel.
        warnings: (file, subject, sentence).
        now: the time that they are true at.
    """

    configured: tuple[Configured, ...]
    store: TrustStore
    kernel_keyrings: bool
    keys: KernelKeys | None
    image: Image
    warnings: tuple[tuple[str, str, str], ...]
    now: datetime


@click.command(
    "list",
    short_help="List every trust anchor that this node or pool uses, with its warnings.",
    epilog=examples(
        ("sudo kmodgate trust list --config node.yaml", "Who may sign modules for this node?"),
        ("kmodgate trust list --trust vendor.pem", "What is in this certificate?"),
        (
            "kmodgate trust list --config node.yaml --output json | jq -r '.certificates[].revoke_with'",
            "The lines that would revoke them.",
        ),
    ),
)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), metavar="FILE", help="Node config (YAML)."
)
@click.option(
    "--node-label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=parse_labels,
    help="A label of the node, to pick its node pool. May be repeated.",
)
@click.option(
    "--trust",
    metavar="PEM",
    type=click.Path(path_type=Path),
    multiple=True,
    help="More certificates (PEM or DER). May be repeated.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default="/",
    show_default=True,
    metavar="DIR",
    help="Where the node's root is mounted, for its keyrings and its kernel image.",
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def list_command(
    config_path: Path | None, labels: dict[str, str], trust: tuple[Path, ...], root: Path, output: str
) -> None:
    """List every trust anchor that this node or pool uses, with its warnings.

    First the configured certificates, with a line that would revoke each. Then what the kernel
    itself trusts: its keyrings (/proc/keys, which shows root all of them and others less), and
    the certificates built into its image. A kernel lists keys that it does not trust, too.

    Exit codes: 0 fine, warnings or not, 2 a file could not be used, 3 the node makes no sense.
    """
    found = _look(config_path, labels, trust, root)
    if output == "json":
        click.echo(json.dumps(as_json(found)))
    else:
        _print(found)
    for file, subject, sentence in found.warnings:
        click.echo(f"kmodgate: warning: {printable(file)}: {printable(subject)}: {sentence}", err=True)


def _look(config_path: Path | None, labels: dict[str, str], trust: tuple[Path, ...], root: Path) -> Findings:
    from kmodgate import config as node_config
    from kmodgate.node import NodePaths, read_keys
    from kmodgate.signature.describe import describe
    from kmodgate.truststore import load_trust

    configured = node_config.TrustConfig()
    if config_path is not None:
        configured = node_config.resolve(node_config.load(config_path), labels).trust
    store, _ = load_trust(
        (*configured.certificates, *trust), configured.revoked, configured.revoked_certificates
    )
    now = datetime.now(UTC)
    rows = tuple(
        Configured(anchor.label, describe(anchor.certificate), store.is_revoked(anchor.identity))
        for anchor in store.anchors
    )
    return Findings(
        configured=rows,
        store=store,
        kernel_keyrings=configured.kernel_keyrings,
        keys=read_keys(NodePaths(root / "proc", root / "sys", root / "boot")),
        image=_image(root),
        warnings=tuple(_warnings(rows, now)),
        now=now,
    )


def _warnings(rows: tuple[Configured, ...], now: datetime) -> list[tuple[str, str, str]]:
    found = []
    first: dict[str, str] = {}
    for row in rows:
        sentences = list(row.facts.warnings(now))
        if row.facts.sha256 in first:
            sentences.append(f"is given before, in {first[row.facts.sha256]}")
        first.setdefault(row.facts.sha256, row.file)
        if row.revoked:
            sentences.append("is revoked: nothing that it signs is trusted")
        found += [(row.file, row.facts.subject, sentence) for sentence in sentences]
    return found


def _image(root: Path) -> Image:
    """The certificates of the image of the kernel that runs below this root."""
    from kmodgate.node import NodePaths
    from kmodgate.node.kernel import read_release
    from kmodgate.scan.root import Root

    with Root(root) as opened:
        release = read_release(NodePaths(root / "proc", root / "sys", root / "boot"))
        if release is None:
            return Image(None, (), f"no kernel runs below {root}")
        places = (
            f"/boot/vmlinuz-{release}",
            f"/lib/modules/{release}/vmlinuz",
            f"/usr/lib/modules/{release}/vmlinuz",
        )
        path = next((place for place in places if opened.kind(place) == "file"), None)
        if path is None:
            return Image(None, (), f"there is no {places[0]}")
        try:
            return Image(path, certificates_in(opened.read(path, MAX_IMAGE)[0]))
        except KmodgateError as error:
            return Image(path, (), str(error).removeprefix(f"{path}: "))


def as_json(found: Findings) -> dict[str, object]:
    """The stable form for machines."""
    revocations = found.store.revocations
    keys = found.keys
    return {
        "certificates": [
            {"file": row.file, **facts_json(row.facts, found.now), "revoked": row.revoked}
            for row in found.configured
        ],
        "revocations": sorted(
            f"{kind}:{value.hex()}"
            for kind, values in (
                ("tbs", revocations.certificates),
                ("bin", revocations.files),
                ("id", revocations.key_ids),
            )
            for value in values
        ),
        "kernel": {
            "counts": found.kernel_keyrings,
            "keyrings_visible": keys is not None and _BUILTIN in keys.keyrings,
            "keys": None
            if keys is None
            else [
                {"key_id": key.key_id, "subject": key.subject, "skid": key.skid, "algorithm": key.algorithm}
                for key in keys.certificates
            ],
            "image": found.image.path,
            "image_problem": found.image.problem or None,
            "image_certificates": [
                {"use": one.use.value, **facts_json(facts, found.now)}
                for one, facts in found.image.certificates
            ],
        },
        "warnings": [
            {"file": file, "subject": subject, "message": sentence}
            for file, subject, sentence in found.warnings
        ],
    }


def _validity(facts: Description, now: datetime) -> tuple[str, str]:
    """Text and style."""
    days = facts.days_left(now)
    text = (
        f"{facts.not_after:%Y-%m-%d} ({days} days left)"
        if days >= 0
        else f"{facts.not_after:%Y-%m-%d} (over)"
    )
    return text, terminal.BAD if days < 0 else terminal.UNSURE if facts.warnings(now) else ""


def _print(found: Findings) -> None:
    if found.configured:
        table = terminal.table(("CONFIGURED CERTIFICATE", "KEY", "SIGNED WITH", "VALID UNTIL", "FILE"))
        for row in found.configured:
            until, style = _validity(row.facts, found.now)
            table.add_row(
                terminal.cell(row.facts.subject, terminal.BAD if row.revoked else ""),
                terminal.cell(row.facts.key),
                terminal.cell(row.facts.signed_with),
                terminal.cell("revoked" if row.revoked else until, terminal.BAD if row.revoked else style),
                terminal.cell(row.file),
            )
        terminal.show(table)
        for row in found.configured:
            _print_details(row)
    else:
        terminal.show(terminal.cell("no configured certificates"))
    revocations = found.store.revocations
    click.echo(
        f"\nrevocations: {counted(len(revocations.certificates), 'certificate')}, "
        f"{counted(len(revocations.files), 'file')}, {counted(len(revocations.key_ids), 'key id')}"
    )
    click.echo()
    _print_kernel(found)


def _print_details(row: Configured) -> None:
    facts = row.facts
    lines = [("issuer", "itself" if facts.self_issued else facts.issuer)]
    lines += [("serial", facts.serial), ("key id", facts.skid or "none"), ("sha256", facts.sha256)]
    lines += [("may issue others", "yes: what they sign is trusted, too")] if facts.ca else []
    lines += [("revoke with", f"tbs:{facts.tbs_sha256}")]
    click.echo()
    terminal.show(terminal.cell(facts.subject))
    for name, value in lines:
        terminal.show(terminal.cell(f"  {name}: {value}", terminal.FAINT))


def _print_kernel(found: Findings) -> None:
    if not found.kernel_keyrings:
        click.echo("the kernel's own keys do not count here (kernelKeyrings: false)")
    if found.keys is None:
        click.echo("the kernel's keyrings: /proc/keys is not there")
    else:
        hidden = (
            ""
            if _BUILTIN in found.keys.keyrings
            else "; those of the kernel are hidden from this user, try root"
        )
        click.echo(
            "the kernel's keyrings: "
            f"{counted(len(found.keys.certificates), 'certificate')} in /proc/keys{hidden}"
        )
        if found.keys.certificates:
            table = terminal.table(("KERNEL KEY", "ALGORITHM", "KEY ID"))
            for key in found.keys.certificates:
                table.add_row(
                    terminal.cell(key.subject),
                    terminal.cell(key.algorithm),
                    terminal.cell(key.skid or "none"),
                )
            terminal.show(table)
    image = found.image
    if image.problem:
        place = f"{image.path}: " if image.path else ""
        terminal.show(terminal.cell(f"the kernel's image: {place}{image.problem}"))
        return
    click.echo(f"the kernel's image: {counted(len(image.certificates), 'certificate')} in {image.path}")
    if image.certificates:
        table = terminal.table(("BUILT-IN CERTIFICATE", "KEY", "VALID UNTIL", "USE"))
        for one, facts in image.certificates:
            table.add_row(
                terminal.cell(facts.subject),
                terminal.cell(facts.key),
                terminal.cell(_validity(facts, found.now)[0]),
                terminal.cell(USES[one.use]),
            )
        terminal.show(table)
