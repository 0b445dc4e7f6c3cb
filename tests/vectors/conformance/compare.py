# SPDX-License-Identifier: Apache-2.0
"""kmodgate beside a real kernel, case by case."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tests.vectors.conformance import cases, mldsa, pki
from tests.vectors.conformance.cases import Lab
from tests.vectors.conformance.pki import Party
from vmtool import siglab
from vmtool.siglab import Answers, Case, Target

from kmodgate.errors import ConfigError
from kmodgate.model import Api, SignatureReport, SignatureStatus
from kmodgate.signature import (
    PROFILES,
    KernelProfile,
    TrustAnchor,
    TrustStore,
    load_certificates,
    predict,
    report,
)
from kmodgate.signature.kernel import Keyring, Refusal
from kmodgate.signature.kernel.certificate import parse_certificate

PROFILE_OF = {"bullseye": "debian-11", "bookworm": "debian-12", "trixie": "debian-13", "sid": "debian-14"}
# The payload is no ELF file, and the kernel looks at that after the signature: ENOEXEC means that
# the signature was accepted. Nothing on the way there returns it.
ACCEPTED = "ENOEXEC"
_IGNORE_FLAGS = 3
_ELF_HEADER = 64


@dataclass(frozen=True)
class Outcome:
    """One case.

    Attributes:
        kernel: errno name of the kernel; None when it accepted the signature.
        predicted: the model's.
        report: kmodgate's verdict.
    """

    kernel: str | None
    predicted: str | None
    report: SignatureReport

    @property
    def stricter(self) -> bool:
        """The kernel accepts and kmodgate refuses."""
        return self.kernel is None and self.report.status is not SignatureStatus.TRUSTED_SIGNATURE

    @property
    def falsely_trusted(self) -> bool:
        """The kernel refuses and kmodgate trusts."""
        return self.kernel is not None and self.report.status is SignatureStatus.TRUSTED_SIGNATURE


@dataclass(frozen=True)
class Comparison:
    """One kernel, all cases.

    Attributes:
        release: as ``uname -r`` prints it.
        profile: what kmodgate takes it for.
        named: the cases that somebody thought of.
        damaged: the good messages with something broken.
        keys: certificates that kernel and model disagree about: name, kernel, model.
        algorithms: names in the kernel's ``/proc/crypto``.
    """

    release: str
    profile: KernelProfile
    named: Mapping[str, Outcome]
    damaged: Mapping[str, Outcome]
    keys: tuple[tuple[str, str | None, str | None], ...]
    algorithms: frozenset[str]

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """Both kinds together."""
        return {**self.named, **self.damaged}

    def differences(self) -> dict[str, Outcome]:
        """Where the model gives another answer than the kernel."""
        return {name: one for name, one in self.outcomes.items() if one.kernel != one.predicted}


class _Certificates:
    """A trust store for ``predict``: also what ``load_certificates`` would refuse."""

    def __init__(self, certificates: list[bytes]) -> None:
        self._certificates = certificates
        self._keyrings: dict[KernelProfile, Keyring] = {}

    def keyring(self, profile: KernelProfile) -> Keyring:
        """As TrustStore has it."""
        if profile not in self._keyrings:
            self._keyrings[profile] = Keyring(self._certificates, profile)
        return self._keyrings[profile]


def _store(certificates: list[bytes]) -> TrustStore:
    anchors: list[TrustAnchor] = []
    for der in certificates:
        try:
            anchors += load_certificates(der, "anchor")
        except ConfigError:  # a key that no kernel uses
            continue
    return TrustStore(anchors)


def _judge(
    found: Mapping[str, Case], answers: Answers, certificates: list[bytes], profile: KernelProfile
) -> dict[str, Outcome]:
    ring, store = _Certificates(certificates), _store(certificates)
    outcomes = {}
    for name, case in found.items():
        kernel = answers.cases[name]
        short = case.api == "i" and len(case.data) < _ELF_HEADER
        outcomes[name] = Outcome(
            None if kernel == ACCEPTED and not short else kernel,
            predict(
                case.data,
                ring,
                profile,
                api=Api.INIT_MODULE if case.api == "i" else Api.FINIT_MODULE,
                ignore_flags=bool(case.flags & _IGNORE_FLAGS),
            ),
            report(case.data, store, profile=profile),
        )
    return outcomes


def _key_answer(der: bytes, profile: KernelProfile) -> str | None:
    try:
        parse_certificate(der, profile)
    except Refusal as refusal:
        return refusal.errno_name
    return None


def _compare(
    target: Target,
    profile: KernelProfile,
    lab: Lab,
    keyring: Mapping[str, Party],
    named: dict[str, Case],
    damaged: dict[str, Case],
) -> Comparison:
    keys = {name: party.der for name, party in keyring.items()}
    answers = siglab.ask(target, lab.ca.der, keys, {**named, **damaged})
    certificates = [lab.ca.der, *keys.values()]
    return Comparison(
        release=answers.release,
        profile=profile,
        named=_judge(named, answers, certificates, profile),
        damaged=_judge(damaged, answers, certificates, profile),
        keys=tuple(
            (name, answers.keys[name], _key_answer(der, profile))
            for name, der in keys.items()
            if answers.keys[name] != _key_answer(der, profile)
        ),
        algorithms=answers.algorithms,
    )


def compare(suite: str) -> Comparison:
    """Boot the suite's kernel once and load every case."""
    target = siglab.debian(suite)
    lab = Lab(pki.certificate_of_length(len(target.certificate)))
    profile = PROFILES[PROFILE_OF[suite]]
    return _compare(target, profile, lab, lab.keyring, cases.named(lab), cases.damaged(lab))


def compare_small() -> Comparison:
    """The same with the small kernel, which knows everything, and the cases of ML-DSA."""
    target = siglab.small()
    lab = Lab(pki.certificate_of_length(len(target.certificate)))
    anchors = mldsa.anchors(lab.ca)
    named = cases.named(lab) | mldsa.cases(anchors)
    return _compare(target, PROFILES["7.2"], lab, lab.keyring | anchors, named, cases.damaged(lab))
