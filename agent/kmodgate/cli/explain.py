# SPDX-License-Identifier: Apache-2.0
"""``kmodgate explain``: the verdict that a policy gives one module file, and why."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kmodgate.cli import terminal
from kmodgate.cli.options import RUNNING, examples, kernel_profile_option, parse_labels
from kmodgate.errors import ModuleFormatError, NodeError
from kmodgate.model import Decision, EffectivePolicy, Origin, Verdict, Verification

if TYPE_CHECKING:
    from kmodgate.config import NodeConfig
    from kmodgate.signature import KernelProfile, TrustStore
    from kmodgate.whatif import Case, Change, Outcome

_ORIGINS = {"pinned-root": Origin.PINNED_ROOT, "other": Origin.OTHER_FILESYSTEM, "memory": Origin.MEMORY}


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that ``explain`` says, before it is put into words."""

    file: str
    case: Case
    origin_known_by: str
    outcome: Outcome
    would_change: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """The stable form for machines."""
        case, found = self.case, self.outcome
        signature = asdict(found.signature)
        signature["status"] = found.signature.status.value
        return {
            "file": self.file,
            **_decision_json(found.decision),
            "policy": case.policy.policy.value,
            "mode": case.policy.mode.value,
            "load_pin": case.policy.load_pin,
            "pinned_root_exempt": case.policy.pinned_root_exempt,
            "api": case.api.label,
            "origin": case.origin.label,
            "origin_known_by": self.origin_known_by,
            "forced": case.forced,
            "kernel_profile": case.profile.name,
            "signature": signature,
            "would_change": [
                {
                    "kind": change.kind,
                    "change": change.change,
                    **_decision_json(change.decision),
                    "provided": change.provided,
                    "danger": change.danger,
                }
                for change in self.would_change
            ],
            "notes": list(self.notes),
        }


def _decision_json(decision: Decision) -> dict[str, object]:
    return {
        "verdict": decision.verdict.label,
        "reason": decision.reason.label,
        "errno": errno.errorcode[decision.errno] if decision.errno else None,
    }


@click.command(
    "explain",
    short_help="Explain the verdict that a policy gives one module file.",
    epilog=examples(
        (
            "kmodgate explain driver.ko --config node.yaml",
            "May it load from where it lies, and what would change that?",
        ),
        (
            "kmodgate explain driver.ko --config node.yaml --from other",
            "… from /tmp, a container, or any other mount?",
        ),
        (
            "kmodgate explain driver.ko --config node.yaml --kernel-trust kernel.pem",
            "… on a node whose kernel has this certificate built in?",
        ),
        (
            "kmodgate explain driver.ko --config node.yaml --output json | jq '.would_change[].change'",
            "The ways out, for machines.",
        ),
    ),
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="Node config (YAML).",
)
@click.option(
    "--from",
    "place",
    type=click.Choice(["auto", *_ORIGINS]),
    default="auto",
    show_default=True,
    help="Where the load would come from. auto compares the file's file system with that of the root; "
    "memory stands for init_module(2).",
)
@click.option(
    "--force",
    "forced",
    is_flag=True,
    help="As `modprobe --force` loads it: version checks off, and with them the signature.",
)
@click.option(
    "--kernel-trust",
    metavar="PEM",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Certificate (PEM or DER) that the node's kernel has in its keyrings. May be repeated.",
)
@click.option(
    "--node-label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=parse_labels,
    help="A label of the node, to pick its node pool. May be repeated.",
)
@kernel_profile_option(RUNNING)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(  # noqa: PLR0917  # click passes them by name
    file: Path,
    config_path: Path,
    place: str,
    forced: bool,
    kernel_trust: tuple[Path, ...],
    labels: dict[str, str],
    profile: KernelProfile,
    output: str,
) -> int:
    """Explain the verdict that the policy of a node config gives one module file.

    Each fact, the verdict, the errno that the loader would see, and at the end every single
    change that would give another verdict. Each was tried; what it lets in besides is said.

    Needs no root: the kernel's own keyrings cannot be read by a program, so name the
    certificates in them with --kernel-trust, or a module signed by the kernel's build key
    counts as not trusted here.

    Exit codes: 0 the module may load, 1 it may not (or would not, in audit), 2 bad input.
    """
    explanation = explain(
        file, config_path, place, kernel_trust, labels=labels, forced=forced, profile=profile
    )
    if output == "json":
        click.echo(json.dumps(explanation.as_json()))
    else:
        _print(explanation)
    return 0 if explanation.outcome.decision.verdict is Verdict.ALLOW else 1


def explain(
    file: Path,
    config_path: Path,
    place: str,
    kernel_trust: tuple[Path, ...],
    *,
    labels: dict[str, str],
    forced: bool,
    profile: KernelProfile,
) -> Explanation:
    """Gather the facts and decide. Raises KmodgateError for input that cannot be used."""
    from kmodgate import config as node_config
    from kmodgate.truststore import load_trust
    from kmodgate.whatif import Case, changes, judge

    config = node_config.resolve(node_config.load(config_path), labels)
    named = config.trust
    trust, _ = load_trust(named.certificates, named.revoked, named.revoked_certificates)
    in_kernel, _ = load_trust(kernel_trust if named.kernel_keyrings else (), ())
    origin, known_by = _origin(file, place)
    case = Case(
        data=_read(file, config.max_module_size),
        policy=node_config.to_effective_policy(config, revocations=bool(trust.revocations)),
        trust=trust,
        origin=origin,
        kernel_trust=in_kernel,
        forced=forced,
        now=datetime.now(UTC),
        require_validity=config.trust.require_validity,
        profile=profile,
        max_size=config.max_module_size,
    )
    outcome = judge(case)
    return Explanation(
        file=str(file),
        case=case,
        origin_known_by=known_by,
        outcome=outcome,
        would_change=changes(case, outcome),
        notes=(*_case_notes(outcome, config), *_node_notes(case.policy, trust)),
    )


def _read(file: Path, max_size: int) -> bytes:
    """The file, decompressed if it can be: a damaged container is judged as it is."""
    from kmodgate.fsutil import read_regular_file
    from kmodgate.modfile import decompress

    raw = read_regular_file(file, max_size)
    try:
        return bytes(decompress(raw, max_size=max_size))
    except ModuleFormatError:
        return raw


def _origin(file: Path, place: str) -> tuple[Origin, str]:
    from kmodgate.fsutil import FileReadError

    if place != "auto":
        return _ORIGINS[place], "--from"
    root = Path("/proc/1/root/")
    try:
        device = root.stat().st_dev
        known_by = "the file system of /proc/1/root"
    except OSError:
        device = Path("/").stat().st_dev
        known_by = "the file system of / (process 1 is out of sight; give --from to be sure)"
    try:
        same = file.stat().st_dev == device
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise FileReadError(str(file), reason.lower(), "ENOENT") from error
    return (Origin.PINNED_ROOT if same else Origin.OTHER_FILESYSTEM), known_by


def _case_notes(outcome: Outcome, config: NodeConfig) -> list[str]:
    """What the verdict alone does not say."""
    notes = []
    if config.node_pools and config.pool is None:
        notes.append("no node pool was applied; name the node's labels with --node-label")
    if outcome.verification is Verification.UNTRUSTED_SIGNER and config.trust.kernel_keyrings:
        notes.append(
            "if the node's kernel itself trusts the signer, the verdict is allow: name its certificate with "
            "--kernel-trust"
        )
    return notes


def _node_notes(policy: EffectivePolicy, trust: TrustStore) -> list[str]:
    """What the kernel that runs here adds to the policy by itself."""
    from kmodgate.node import limits, read_facts

    try:
        findings = limits(read_facts(), policy, configured_certificates=bool(trust))
    except NodeError as error:
        return [f"this node could not be looked at: {error}"]
    decisive = ("sig-enforce", "lockdown", "kernel-loadpin", "module-sig", "modules-")
    return [f"on this node: {finding.message}" for finding in findings if finding.code.startswith(decisive)]


_COLOURS = {Verdict.ALLOW: terminal.GOOD, Verdict.DENY: terminal.BAD, Verdict.WOULD_DENY: terminal.UNSURE}


def _print(found: Explanation) -> None:
    from rich.text import Text

    case, signature, decision = found.case, found.outcome.signature, found.outcome.decision
    terminal.show(
        Text.assemble(f"{terminal.printable(found.file)}: ", (_words(decision), _COLOURS[decision.verdict]))
    )
    policy = case.policy
    rows = [
        ("policy", f"{policy.policy}, mode {policy.mode}, LoadPin {'on' if policy.load_pin else 'off'}"),
        ("call", case.api.label + (" with --force" if case.forced else "")),
        ("origin", f"{case.origin.label}, by {found.origin_known_by}"),
        ("signature", f"{signature.status}: {signature.detail}"),
        ("kernel", f"as Linux {case.profile.name} checks it"),
        ("trusted by", signature.trusted_by),
        ("signer", signature.signer.subject or signature.signer.issuer if signature.signer else None),
        ("sha256", signature.sha256),
        ("module", signature.module.name if signature.module else None),
        *(("note", note) for note in found.notes),
    ]
    for name, value in rows:
        if value:
            terminal.hang(f"  {name:<11}", terminal.cell(value))
    click.echo()
    if not found.would_change:
        click.echo("No single change would give another verdict.")
        return
    click.echo("What would change this verdict, each tried by itself:")
    for change in found.would_change:
        _print_change(change)


def _print_change(change: Change) -> None:
    from rich.text import Text

    verdict = (_words(change.decision), _COLOURS[change.decision.verdict])
    terminal.hang("  - ", Text.assemble(f"{terminal.printable(change.change)}: ", verdict))
    if change.provided is not None:
        terminal.hang("      ", terminal.cell(f"provided that {change.provided}", terminal.FAINT))
    if change.danger is not None:
        terminal.hang("      ", terminal.cell(f"DANGER: {change.danger}", terminal.UNSURE))


def _words(decision: Decision) -> str:
    """``deny (unsigned, errno EKEYREJECTED)``."""
    number = f", errno {errno.errorcode[decision.errno]}" if decision.errno else ""
    return f"{decision.verdict.label} ({decision.reason.label}{number})"
