# SPDX-License-Identifier: Apache-2.0
"""``kmodgate doctor``: what this node can do, rung by rung, and why not more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kmodgate.cli import terminal
from kmodgate.cli.options import examples, parse_labels
from kmodgate.errors import NodeError
from kmodgate.model import EffectivePolicy, Mode, Policy

if TYPE_CHECKING:
    from kmodgate.config import NodeConfig
    from kmodgate.doctor import Diagnosis, Purpose, Rung

_EXIT = {"yes": 0, "no": 1, "unknown": 3}
_OFFERED = {True: "yes", False: "no", None: "unknown"}


@click.command(
    "doctor",
    short_help="Say what this node can enforce, and why not more.",
    epilog=examples(
        ("kmodgate doctor", "Can this node enforce ENFORCE_SIGNED_MODULES?"),
        ("kmodgate doctor --config node.yaml", "Can it enforce this policy, and is its agent ready?"),
        ("kmodgate doctor --root /mnt/image", "Will the newest kernel of this image be able to?"),
        ("kmodgate doctor --output json | jq -r .answer", "yes, no or unknown."),
    ),
)
@click.option(
    "--root",
    type=click.Path(path_type=Path),
    default="/",
    show_default=True,
    metavar="DIR",
    help="Where the node's root is mounted: its running kernel if DIR/proc is mounted, else its files.",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Node config (YAML) whose policy is asked about; without it ENFORCE_SIGNED_MODULES.",
)
@click.option(
    "--node-label",
    "labels",
    metavar="KEY=VALUE",
    multiple=True,
    callback=parse_labels,
    help="A label of the node, to pick its node pool. May be repeated.",
)
@click.option("--output", type=click.Choice(["text", "json"]), default="text", show_default=True)
def command(root: Path, config_path: Path | None, labels: dict[str, str], output: str) -> int:
    """Say what this node can enforce, rung by rung, and what to do for more.

    The ladder has a rung for each way into the kernel, best first. Then one line for each thing
    that the policy leans on: ok, warning, problem with its remedy, or unknown with how to see it.

    Needs no root, but sees more as root: the pinned root, and whether the kernel's verifier
    takes the programs. These are loaded for a moment and never attached; nothing is changed.

    Exit codes: 0 the policy can be enforced here, 1 it cannot, 2 bad input, 3 cannot be told.
    """
    from kmodgate.doctor import diagnose, look

    config, purpose = _purpose(config_path, labels)
    diagnosis = diagnose(look(root, listen=None if config is None else config.listen), purpose)
    if output == "json":
        click.echo(json.dumps(as_json(diagnosis, purpose)))
    else:
        _print(diagnosis, purpose)
    return _EXIT[diagnosis.answer]


def _purpose(path: Path | None, labels: dict[str, str]) -> tuple[NodeConfig | None, Purpose]:
    """The policy asked about, and the config that it comes from."""
    from kmodgate import config as node_config
    from kmodgate.config import CannotEnforce
    from kmodgate.doctor import Purpose
    from kmodgate.settings import read_verity_digests, refuse_unlabelled
    from kmodgate.signature import TrustStore
    from kmodgate.truststore import load_trust

    if path is None:
        return None, Purpose(EffectivePolicy(Policy.ENFORCE, Mode.ENFORCE, load_pin=True), TrustStore())
    loaded = node_config.load(path)
    config = node_config.resolve(loaded, labels)
    refusal = None
    try:
        refuse_unlabelled(loaded, labels or None)
    except NodeError as error:
        refusal = str(error)
    read_verity_digests(config)
    trust, _ = load_trust(config.trust.certificates, config.trust.revoked, config.trust.revoked_certificates)
    purpose = Purpose(
        policy=node_config.to_effective_policy(config, revocations=bool(trust.revocations)),
        trust=trust,
        kernel_keyrings=config.trust.kernel_keyrings,
        require_validity=config.trust.require_validity,
        refusal=refusal,
        warnings=config.warnings,
        backend=config.backend.rung,
        may_observe=config.cannot_enforce is CannotEnforce.OBSERVE,
    )
    return config, purpose


def as_json(diagnosis: Diagnosis, purpose: Purpose) -> dict[str, object]:
    """The stable form for machines."""
    return {
        "answer": diagnosis.answer.value,
        "policy": purpose.policy.policy.value,
        "mode": purpose.policy.mode.value,
        "because": list(diagnosis.because),
        "backend": diagnosis.chosen.value if diagnosis.chosen else None,
        "rungs": [
            {
                "backend": rung.backend.value,
                "offered": _OFFERED[rung.offered],
                "enforces": rung.enforces,
                "policy_obstacles": list(diagnosis.obstacles[rung.backend]),
                "unknown_fields": list(rung.unknown),
                "fleeting_fields": list(rung.fleeting),
                "unasked_fields": list(rung.unasked),
                "problems": list(rung.problems),
                "unseen": list(rung.unseen),
            }
            for rung in diagnosis.rungs
        ],
        "checks": [
            {"code": line.code, "subject": line.subject, "state": line.state.value, "message": line.message}
            for line in diagnosis.checks
        ],
    }


def _print(diagnosis: Diagnosis, purpose: Purpose) -> None:
    from rich.text import Text

    styles = {"yes": terminal.GOOD, "no": terminal.BAD, "unknown": terminal.UNSURE}
    states = {"ok": terminal.GOOD, "warning": terminal.UNSURE, "problem": terminal.BAD}
    ladder = terminal.table(("RUNG", "NODE", "POLICY", "WOULD ENFORCE, OR LACKS"))
    for rung in diagnosis.rungs:
        offered = _OFFERED[rung.offered]
        ladder.add_row(
            rung.backend.value,
            Text(offered, styles[offered]),
            Text(*_policy(diagnosis, rung)),
            terminal.cell("; ".join(_why(rung))),
        )
    terminal.show(ladder)
    click.echo()
    lines = terminal.table(("CHECK", "STATE", "FOUND"))
    for line in diagnosis.checks:
        lines.add_row(
            terminal.cell(line.subject),
            Text(line.state.value, states.get(line.state, terminal.FAINT)),
            terminal.cell(line.message),
        )
    terminal.show(lines)
    click.echo()
    words = {
        "yes": f"{purpose.policy.policy} can be enforced here",
        "no": f"{purpose.policy.policy} cannot be enforced here",
        "unknown": f"whether {purpose.policy.policy} can be enforced here cannot be told from here",
    }
    answer = diagnosis.answer.value
    terminal.show(terminal.cell(words[answer] + (":" if diagnosis.because else ""), styles[answer]))
    for reason in diagnosis.because:
        terminal.hang("  - ", terminal.cell(reason))
    if diagnosis.chosen is not None:
        terminal.show(terminal.cell(f"an agent would stand on {diagnosis.chosen}"))
        for backend, why in diagnosis.passed_over:
            terminal.hang("  - ", terminal.cell(f"not on {backend}: {why}"))


def _policy(diagnosis: Diagnosis, rung: Rung) -> tuple[str, str]:
    """Whether a rung that works can carry the policy out, and how to show that."""
    if not rung.offered:
        return "", ""
    return ("no", terminal.BAD) if diagnosis.obstacles[rung.backend] else ("yes", terminal.GOOD)


def _why(rung: Rung) -> tuple[str, ...]:
    if rung.offered:
        fields: tuple[str, ...] = ()
        if rung.unknown:
            fields += (f"events never have {', '.join(rung.unknown)}",)
        if rung.fleeting:
            fields += (f"only while the caller is there: {', '.join(rung.fleeting)}",)
        if rung.unasked:
            fields += (f"not of a load that it refuses: {', '.join(rung.unasked)}",)
        return (rung.enforces, *fields)
    return rung.problems or tuple(f"not seen: {text}" for text in rung.unseen)
