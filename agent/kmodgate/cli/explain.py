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

from kmodgate.errors import ModuleFormatError, NodeError
from kmodgate.model import (
    Api,
    Decision,
    EffectivePolicy,
    LoadFacts,
    Origin,
    Policy,
    SignatureReport,
    SignatureStatus,
    Verdict,
    Verification,
)
from kmodgate.policy import evaluate, verification_of

if TYPE_CHECKING:
    from kmodgate.config import NodeConfig
    from kmodgate.signature import TrustStore

_ORIGINS = {"pinned-root": Origin.PINNED_ROOT, "other": Origin.OTHER_FILESYSTEM, "memory": Origin.MEMORY}


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that ``explain`` says, before it is put into words."""

    file: str
    policy: EffectivePolicy
    api: Api
    origin: Origin
    origin_known_by: str
    signature: SignatureReport
    decision: Decision
    would_change: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """The stable form for machines."""
        signature = asdict(self.signature)
        signature["status"] = self.signature.status.value
        return {
            "file": self.file,
            "verdict": self.decision.verdict.label,
            "reason": self.decision.reason.label,
            "errno": errno.errorcode[self.decision.errno] if self.decision.errno else None,
            "policy": self.policy.policy.value,
            "mode": self.policy.mode.value,
            "load_pin": self.policy.load_pin,
            "pinned_root_exempt": self.policy.pinned_root_exempt,
            "api": self.api.label,
            "origin": self.origin.label,
            "origin_known_by": self.origin_known_by,
            "signature": signature,
            "would_change": list(self.would_change),
            "notes": list(self.notes),
        }


@click.command("explain", short_help="Explain the verdict that a policy gives one module file.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--config", "config_path", required=True, type=click.Path(path_type=Path), help="Node config (YAML)."
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
    "--kernel-trust",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Certificate (PEM or DER) that the node's kernel has in its keyrings. May be repeated.",
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(file: Path, config_path: Path, place: str, kernel_trust: tuple[Path, ...], output: str) -> int:
    """Explain the verdict that the policy of a node config gives one module file.

    Each fact, the verdict, the errno that the loader would see, and what would change it.
    Needs no root: the kernel's own keyrings cannot be read by a program, so name the
    certificates in them with --kernel-trust, or a module signed by the kernel's build key
    counts as not trusted here.

    Exit codes: 0 the module may load, 1 it may not (or would not, in audit), 2 bad input.
    """
    explanation = explain(file, config_path, place, kernel_trust)
    if output == "json":
        click.echo(json.dumps(explanation.as_json()))
    else:
        _print(explanation)
    return 0 if explanation.decision.verdict is Verdict.ALLOW else 1


def explain(file: Path, config_path: Path, place: str, kernel_trust: tuple[Path, ...]) -> Explanation:
    """Gather the facts and decide. Raises KmodgateError for input that cannot be used."""
    from kmodgate import config as node_config
    from kmodgate.fsutil import read_regular_file
    from kmodgate.inspection import inspect
    from kmodgate.signature import TrustStore
    from kmodgate.truststore import load_trust

    config = node_config.load(config_path)
    policy = node_config.to_effective_policy(config)
    trust, _ = load_trust(config.trust.certificates, config.trust.revoked)
    extra, _ = load_trust(kernel_trust if config.trust.kernel_keyrings else (), ())
    both = TrustStore((*trust.anchors, *extra.anchors), trust.revocations)
    raw = read_regular_file(file, config.max_module_size)
    try:
        found = inspect(
            raw,
            both,
            max_size=config.max_module_size,
            now=datetime.now(UTC),
            require_validity=config.trust.require_validity,
        )
    except ModuleFormatError as error:
        found = SignatureReport(SignatureStatus.UNREADABLE, error.errno_name, detail=str(error))
    origin, known_by = _origin(file, place)
    api = Api.INIT_MODULE if origin is Origin.MEMORY else Api.FINIT_MODULE
    facts = LoadFacts(api, origin, verification_of(found))
    decision = evaluate(policy, facts)
    return Explanation(
        file=str(file),
        policy=policy,
        api=api,
        origin=origin,
        origin_known_by=known_by,
        signature=found,
        decision=decision,
        would_change=tuple(_would_change(policy, facts, decision, config)),
        notes=(*_revocation_notes(policy, facts), *_notes(policy, trust)),
    )


def _origin(file: Path, place: str) -> tuple[Origin, str]:
    if place != "auto":
        return _ORIGINS[place], "--from"
    root = Path("/proc/1/root/")
    try:
        device = root.stat().st_dev
        known_by = "the file system of /proc/1/root"
    except OSError:
        device = Path("/").stat().st_dev
        known_by = "the file system of / (process 1 is out of sight; give --from to be sure)"
    same = file.stat().st_dev == device
    return (Origin.PINNED_ROOT if same else Origin.OTHER_FILESYSTEM), known_by


def _would_change(
    policy: EffectivePolicy, facts: LoadFacts, decision: Decision, config: NodeConfig
) -> list[str]:
    """What would turn a refusal into an allow, and an allow into a refusal."""
    if decision.verdict is Verdict.ALLOW:
        if policy.policy is Policy.ENFORCE:
            return ["removing the signer's certificate from trust.certificates", "revoking the signer"]
        strict = EffectivePolicy(Policy.ENFORCE, policy.mode, policy.load_pin)
        if evaluate(strict, facts).verdict is not Verdict.ALLOW:
            return [f"policy {Policy.ENFORCE}: this signature would then be refused"]
        return []
    changes = []
    if facts.verification in {Verification.UNSIGNED, Verification.BAD_SIGNATURE}:
        changes.append("signing the module with a trusted key")
    elif facts.verification is Verification.UNTRUSTED_SIGNER:
        changes.append("adding the signer's certificate to kmodgate.trust.certificates")
        if config.trust.kernel_keyrings:
            changes.append("or, if the node's kernel trusts it, naming its certificate with --kernel-trust")
    elif facts.verification is Verification.REVOKED:
        changes.append("signing with a key that is not revoked; no policy lets a revoked one in")
    if policy.policy is not Policy.ENFORCE and facts.verification is not Verification.REVOKED:
        changes = ["loading it from a file on the pinned root file system"]
        strict = EffectivePolicy(Policy.ENFORCE, policy.mode, policy.load_pin)
        if evaluate(strict, facts).verdict is Verdict.ALLOW:
            changes.append(f"policy {Policy.ENFORCE}: its signature is trusted, wherever it comes from")
    return changes


def _revocation_notes(policy: EffectivePolicy, facts: LoadFacts) -> list[str]:
    if facts.verification is not Verification.REVOKED:
        return []
    first = evaluate(policy, LoadFacts(facts.api, facts.origin, Verification.NOT_YET))
    if first.verdict is Verdict.ALLOW:
        return [
            "this version of the agent looks revocations up under ENFORCE only, and would let this load in"
        ]
    return ["what the kernel's own keyrings trust is not checked against revocations in this version"]


def _notes(policy: EffectivePolicy, trust: TrustStore) -> list[str]:
    """What the kernel that runs here adds to the policy by itself."""
    from kmodgate.node import limits, read_facts

    try:
        findings = limits(read_facts(), policy, configured_certificates=bool(trust))
    except NodeError as error:
        return [f"this node could not be looked at: {error}"]
    decisive = ("sig-enforce", "lockdown", "kernel-loadpin", "module-sig", "modules-")
    return [f"on this node: {finding.message}" for finding in findings if finding.code.startswith(decisive)]


def _print(found: Explanation) -> None:
    colours = {Verdict.ALLOW: "green", Verdict.DENY: "red", Verdict.WOULD_DENY: "yellow"}
    verdict = click.style(found.decision.verdict.label, fg=colours[found.decision.verdict], bold=True)
    number = f", errno {errno.errorcode[found.decision.errno]}" if found.decision.errno else ""
    click.echo(f"{found.file}: {verdict} ({found.decision.reason.label}{number})")
    signature, policy = found.signature, found.policy
    rows = [
        ("policy", f"{policy.policy}, mode {policy.mode}, LoadPin {'on' if policy.load_pin else 'off'}"),
        ("call", found.api.label),
        ("origin", f"{found.origin.label}, by {found.origin_known_by}"),
        ("signature", f"{signature.status}: {signature.detail}"),
        ("trusted by", signature.trusted_by),
        ("signer", signature.signer.subject or signature.signer.issuer if signature.signer else None),
        ("sha256", signature.sha256),
        ("module", signature.module.name if signature.module else None),
    ]
    for name, value in rows:
        if value:
            click.echo(f"  {name:<11}{value}")
    for change in found.would_change:
        click.echo(f"  {'changes by':<11}{change}")
    for note in found.notes:
        click.echo(f"  {'note':<11}{note}")
