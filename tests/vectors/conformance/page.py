# SPDX-License-Identifier: Apache-2.0
"""Writes docs/conformance.md from what real kernels answer::

    python -m tests.vectors.conformance.page bullseye bookworm trixie sid > docs/conformance.md

Boots each kernel once (about a minute each under emulation).
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tests.vectors.conformance.compare import Comparison, Outcome, compare

from kmodgate.model import SignatureStatus

_KERNEL_LINES = (
    # what kmodgate says -> what the kernel overlooks, and where
    (
        r"not the DER of SignedData",
        "BER that is not DER, and bytes behind the message",
        "`lib/asn1_decoder.c`: `asn1_ber_decoder()` stops after the outermost element, and is no DER decoder",
    ),
    (
        r"an algorithm has parameters",
        "parameters of algorithms",
        "`crypto/asymmetric_keys/pkcs7.asn1`: `parameters ANY OPTIONAL`, without an action",
    ),
    (
        r"digest is not announced",
        "a digest that the message does not announce",
        "`pkcs7.asn1`: `digestAlgorithms` is read and not kept",
    ),
    (
        r"names another digest",
        "ecdsa-with-SHA512 beside SHA-256 and the like",
        "`pkcs7_parser.c`: `pkcs7_sig_note_pkey_algo()` takes the family from it, no more",
    ),
    (
        r"an issuer that is no Name",
        "an issuer with another tag",
        "`pkcs7_parser.c`: `pkcs7_sig_note_issuer()` keeps the contents without the tag",
    ),
    (
        r"no part in any signer's path",
        "certificates that nobody needs",
        "`pkcs7_verify.c`: `pkcs7_find_key()` looks for the signer's and leaves the others",
    ),
    (
        r"has the ids of a trust anchor",
        "a certificate that has an anchor's ids and is another one",
        "`pkcs7_trust.c`: `pkcs7_validate_trust_one()` compares ids",
    ),
    (
        r"is no CA|does not allow|CAs below it|does not verify strictly",
        "RFC 5280: CA, key usage, path length, names, algorithms inside and outside a certificate",
        "`pkcs7_verify.c`: `pkcs7_verify_sig_chain()` and `pkcs7_trust.c` check signatures only",
    ),
    (
        r"too weak",
        "weak digests",
        "`pkcs7_parser.c`: `pkcs7_sig_note_digest_algo()` of kernels before 6.7 knows MD5",
    ),
    (
        r"ECDSA signature that is not DER",
        "ECDSA values with padding, or numbers without sign byte",
        "`crypto/ecdsa.c`: `ecdsa_get_signature_rs()`",
    ),
    (
        r"not DER \(",
        "a certificate that is not DER",
        "the same decoder, called by `x509_cert_parse()`",
    ),
    (
        r"attributes beside a signature that is not ML-DSA",
        "signed attributes of a second signer beside ML-DSA",
        "`pkcs7_parser.c`: `pkcs7_check_authattrs()` looks at the first SignerInfo's algorithm only (7.0)",
    ),
)


_TEMPLATE = Path(__file__).with_name("page.md.in")


def why(detail: str) -> tuple[str, str]:
    """What is overlooked and where, for what kmodgate says of a case.

    Raises:
        LookupError: a deviation that belongs to no class.
    """
    for pattern, what, where in _KERNEL_LINES:
        if re.search(pattern, detail):
            return what, where
    raise LookupError(f"a deviation of no known class: {detail}")


def _mark(outcome: Outcome | None) -> str:
    if outcome is None:
        return ""
    return outcome.report.status.value if outcome.stricter else "same"


def deviations(comparisons: Sequence[Comparison]) -> list[tuple[str, list[str]]]:
    """Named cases that some kernel accepts and kmodgate refuses, a mark for each kernel."""
    names = {name: None for one in comparisons for name, outcome in one.named.items() if outcome.stricter}
    return [(name, [_mark(one.named.get(name)) for one in comparisons]) for name in names]


def classes(outcomes: Iterable[Outcome]) -> Counter[tuple[str, str]]:
    """How many deviations of each class."""
    return Counter(why(outcome.report.detail) for outcome in outcomes if outcome.stricter)


def _numbers(one: Comparison) -> str:
    outcomes = one.outcomes.values()
    accepted = sum(outcome.kernel is None for outcome in outcomes)
    trusted = sum(outcome.report.status is SignatureStatus.TRUSTED_SIGNATURE for outcome in outcomes)
    return (
        f"| {one.release} | `{one.profile.name}` | {len(one.named)} | {len(one.damaged):,} | "
        f"{len(one.differences())} | {accepted:,} | {trusted:,} |"
    )


def _errnos(comparisons: Sequence[Comparison]) -> Iterable[str]:
    found: Mapping[str, Counter[str]] = {
        one.release: Counter(outcome.kernel or "accepted" for outcome in one.outcomes.values())
        for one in comparisons
    }
    names = sorted({name for counts in found.values() for name in counts})
    yield f"| kernel | {' | '.join(names)} |"
    yield "|" + "---|" * (len(names) + 1)
    for release, counts in found.items():
        yield f"| {release} | {' | '.join(f'{counts[name]:,}' for name in names)} |"


def _classes(comparisons: Sequence[Comparison]) -> Iterable[str]:
    named = classes(outcome for one in comparisons for outcome in one.named.values())
    damaged = classes(outcome for one in comparisons for outcome in one.damaged.values())
    for what, where in dict.fromkeys((*named, *damaged)):
        yield f"| {what} | {where} | {named[what, where]} | {damaged[what, where]} |"


def _named(comparisons: Sequence[Comparison]) -> Iterable[str]:
    yield f"| case | {' | '.join(one.release for one in comparisons)} |"
    yield "|" + "---|" * (len(comparisons) + 1)
    for name, marks in deviations(comparisons):
        yield f"| {name} | {' | '.join(marks)} |"


def render(comparisons: Sequence[Comparison]) -> str:
    """The whole page."""
    parts = {
        "@NUMBERS@": map(_numbers, comparisons),
        "@ERRNOS@": _errnos(comparisons),
        "@CLASSES@": _classes(comparisons),
        "@NAMED@": _named(comparisons),
    }
    text = _TEMPLATE.read_text()
    for mark, lines in parts.items():
        text = text.replace(mark, "\n".join(lines))
    return text


if __name__ == "__main__":
    sys.stdout.write(render([compare(suite) for suite in sys.argv[1:]]))
