# SPDX-License-Identifier: Apache-2.0
"""A config with all that it names, read whole and checked against the node.

What is returned can be put in force; whatever cannot is an error here, at start and at
reload alike.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from . import __version__
from . import config as node_config
from .config import KernelProfileChoice, NodeConfig, OnExit, to_effective_policy
from .errors import KmodgateError, NodeError
from .fsutil import read_regular_file
from .model import EffectivePolicy, Policy
from .node import NodeFacts, NodePaths, Severity, limits
from .node.verity import parse_trusted_digests
from .running import running_profile
from .signature import LATEST, PROFILES, KernelProfile, TrustStore
from .truststore import TrustFiles, read_trust

_DIGEST_FILE_BYTES: Final = 1 << 20  # far more than is taken: the parser says so with a better message

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Settings:
    """A config that was read whole, checked against the node, with its certificates."""

    config: NodeConfig
    policy: EffectivePolicy
    trust: TrustStore
    trust_digest: bytes
    profile: KernelProfile = LATEST
    verity_digests: frozenset[bytes] = frozenset()

    @property
    def trust_key(self) -> tuple[bytes, bool, KernelProfile]:
        """Differs when an earlier answer may be wrong."""
        return self.trust_digest, self.config.trust.require_validity, self.profile

    @property
    def trust_number(self) -> int:
        """The same in 64 bits, for answers that outlive the agent; another version's do not count."""
        profile = json.dumps(asdict(self.profile), sort_keys=True, default=sorted)
        parts = (self.trust_digest.hex(), __version__, profile)
        digest = hashlib.sha256("\0".join(parts).encode())
        if self.config.trust.require_validity:
            # Validity may have ended while nobody looked.
            digest.update(os.urandom(16))
        return int.from_bytes(digest.digest()[:8], "little")

    def summary(self) -> str:
        """In a few words, for the log."""
        load_pin = "on" if self.policy.load_pin else "off"
        return (
            f"{self.policy.policy}, mode {self.policy.mode}, LoadPin {load_pin}, "
            f"{len(self.trust)} configured certificate(s)"
        )

    def left_for_next_start(self, new: Settings, *, pinned: bool) -> Iterator[str]:
        """What ``new`` asks for that a running agent cannot do any more."""
        was, asked = self.config, new.config
        if (asked.listen, asked.web_config) != (was.listen, was.web_config):
            yield "listen or webConfig changed"
        if asked.on_exit is OnExit.KEEP and not pinned:
            yield "onExit keep: nothing is pinned"
        if asked.backend != was.backend:
            yield "backend changed"


def next_validity_change(settings: Settings, now: float) -> float:
    """Unix time at which a certificate's validity begins or ends next; infinity where none matters."""
    if not settings.config.trust.require_validity:
        return math.inf
    moments = (
        moment.timestamp()
        for anchor in settings.trust.anchors
        for moment in (anchor.not_before, anchor.not_after)
    )
    return min((moment for moment in moments if moment > now), default=math.inf)


def files_named(path: Path) -> list[Path]:
    """Certificates, revocations and digests that a config names, usable or not; none if it does not parse."""
    try:
        return [*node_config.load(path).files]
    except KmodgateError:
        return []


def refuse_unlabelled(config: NodeConfig, labels: Mapping[str, str] | None) -> None:
    """Node pools without labels to pick one by. Raises NodeError."""
    if config.node_pools and labels is None:
        raise NodeError(
            f"{config.source}: nodePools need the node's labels, which only a pod with NODE_NAME and a "
            "service account can look up; name them with --node-label KEY=VALUE"
        )


def profile_of_config(config: NodeConfig, paths: NodePaths | None = None) -> KernelProfile:
    """The kernel profile that a config asks for; of the running kernel as a rule."""
    choice = config.trust.kernel_profile
    if choice is KernelProfileChoice.RUNNING:
        return running_profile(paths)
    return PROFILES[choice]


def read_settings(
    path: Path,
    flag: Policy | None,
    facts: NodeFacts,
    labels: Mapping[str, str] | Callable[[], Mapping[str, str] | None] | None = None,
    paths: NodePaths | None = None,
) -> Settings:
    """Read everything that the config names and check that this node can do it.

    Args:
        path: the node config.
        flag: the policy that a command line flag demands, or None.
        facts: what the node can do.
        labels: the node's labels, which pick its node pool; None when nobody told them. A function
            is called only if there are node pools.
        paths: where the running kernel is looked at.

    Raises:
        KmodgateError: the first thing that is wrong, with place and remedy.
    """
    config = node_config.load(path)
    if flag is not None:
        config = config.with_policy(flag)
    if callable(labels):
        labels = labels() if config.node_pools else None
    refuse_unlabelled(config, labels)
    config = node_config.resolve(config, labels or {})
    files = read_trust(config.trust.certificates, config.trust.revoked, config.trust.revoked_certificates)
    trust = files.store
    policy = to_effective_policy(config, revocations=bool(trust.revocations))
    findings = limits(
        facts, policy, configured_certificates=bool(trust), kernel_keyrings=config.trust.kernel_keyrings
    )
    errors = [finding.message for finding in findings if finding.severity is Severity.ERROR]
    if errors:
        raise NodeError(f"this node cannot enforce {policy.policy}: " + "; ".join(errors))
    for finding in findings:
        log.warning("%s", finding.message)
    for warning in config.warnings:
        log.warning("%s", warning)
    for warning in _revocation_warnings(files):
        log.warning("%s", warning)
    return Settings(
        config,
        policy,
        trust,
        files.digest,
        profile_of_config(config, paths),
        read_verity_digests(config),
    )


def read_verity_digests(config: NodeConfig) -> frozenset[bytes]:
    """The trusted dm-verity root digests; none where the config names no file.

    Raises:
        KmodgateError: the file cannot be read or holds something else; it is named.
    """
    path = config.load_pin_digests
    if path is None:
        return frozenset()
    return parse_trusted_digests(read_regular_file(path, _DIGEST_FILE_BYTES), str(path))


def _revocation_warnings(files: TrustFiles) -> Iterator[str]:
    if files.store.revocations:
        yield (
            "revocations: every load waits for the agent's answer, modules that the kernel's own keyrings "
            "trust too; while the agent is away, failurePolicy decides"
        )
    for entry in files.unnamed:
        yield (
            f"revocation {entry}: the certificate that it stands for is in no file of this config, so it is "
            "not seen in a module that names its signer by issuer and serial number only, as most do; add "
            "the certificate to trust.revokedCertificates"
        )
