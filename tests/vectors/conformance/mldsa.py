# SPDX-License-Identifier: Apache-2.0
"""What Linux 7.x knows of ML-DSA: for a kernel with CONFIG_CRYPTO_MLDSA, which Debian's has not."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from tests.vectors.conformance.messages import PAYLOAD, attributes, by_skid, signed_data, signer_info, trailer
from tests.vectors.conformance.pki import MLDSA_KINDS, RSA_OID, Party, Wish, issue, make_key, sign
from vmtool.siglab import Case


def anchors(ca: Party) -> dict[str, Party]:
    """Certificates for the secondary keyring."""
    return {
        kind: issue(f"anchor {kind}", make_key(kind, "anchor"), ca, Wish(ca=True)) for kind in MLDSA_KINDS
    }


def _values(value: bytes) -> dict[str, bytes]:
    """Of the right length, damaged where decoding and verifying part ways."""
    changes = {
        "commitment": {0: value[0] ^ 1},
        "hint count": {len(value) - 1: 0xFF},
        "response at its low end": dict.fromkeys(range(200, 203), 0),
        "response at its high end": dict.fromkeys(range(200, 209), 0xFF),
    }
    found = {"noise": hashlib.shake_256(b"noise").digest(len(value)), "short": b"short"}
    for name, places in changes.items():
        damaged = bytearray(value)
        for place, byte in places.items():
            damaged[place] = byte
        found[name] = bytes(damaged)
    return found


def _messages(kind: str, anchor: Party) -> Iterator[tuple[str, bytes]]:
    announced = ("sha512",)
    leaf = issue(f"leaf {kind}", make_key(kind, "leaf"), anchor)
    signed, other = attributes("type", "digest", digest="sha512"), attributes("type", "digest")

    def direct(**changes: object) -> bytes:
        return signer_info(anchor, "sha512", **changes)  # type: ignore[arg-type]

    def embedded(**changes: object) -> bytes:
        return signed_data(
            signer_info(leaf, "sha512", **changes),  # type: ignore[arg-type]
            inside=[leaf],
            digests=announced,
        )

    yield "right", signed_data(direct(), digests=announced)
    yield "announced as SHA-256", signed_data(signer_info(anchor, "sha256"))
    yield "by SKID", signed_data(by_skid(anchor), version=3)
    yield "of other data", signed_data(direct(value=sign(anchor.key, b"y", "")), digests=announced)
    yield "attributes", signed_data(direct(attributes=signed), digests=announced)
    yield "attributes over SHA-256", signed_data(signer_info(anchor, "sha256", attributes=other))
    for what, parts in {"no digest": ("type",), "no type": ("digest",)}.items():
        one = direct(attributes=attributes(*parts, digest="sha512"))
        yield f"attributes, {what}", signed_data(one, digests=announced)
    yield (
        "attributes with a digest of another length",
        signed_data(direct(attributes=other), digests=announced),
    )
    wrong = attributes("type", "digest", digest="sha512", payload=b"x")
    yield "attributes with another digest", signed_data(direct(attributes=wrong), digests=announced)
    yield (
        "attributes on the first only",
        signed_data(direct(attributes=signed), direct(), digests=announced, keep_order=True),
    )
    yield "named RSA", signed_data(direct(algorithm=RSA_OID), digests=announced)
    another = next(oid for name, (_, oid) in MLDSA_KINDS.items() if name != kind)
    yield "named another size", signed_data(direct(algorithm=another), digests=announced)
    yield "embedded", embedded()
    yield "embedded, of other data", embedded(value=sign(leaf.key, b"y", ""))
    yield "embedded, attributes", embedded(attributes=signed)
    yield (
        "embedded, attributes over SHA-256",
        signed_data(signer_info(leaf, "sha256", attributes=other), inside=[leaf]),
    )
    for what, value in _values(sign(leaf.key, PAYLOAD, "")).items():
        yield f"embedded, {what}", embedded(value=value)
        yield f"direct, {what}", signed_data(direct(value=value), digests=announced)
    ec_leaf = issue(f"ec leaf {kind}", make_key("p256", "leaf"), anchor)
    yield "certifies a P-256 key", signed_data(signer_info(ec_leaf), inside=[ec_leaf])
    second = signer_info(ec_leaf, attributes=other)
    first = direct(attributes=signed)
    both = ("sha256", "sha512")
    # The kernel looks for ML-DSA in the first SignerInfo only.
    yield (
        "attributes, P-256 second",
        signed_data(first, second, inside=[ec_leaf], digests=both, keep_order=True),
    )
    yield (
        "attributes, P-256 first",
        signed_data(second, first, inside=[ec_leaf], digests=both, keep_order=True),
    )


def cases(parties: dict[str, Party]) -> dict[str, Case]:
    """Every case, by name."""
    return {
        f"{kind}: {name}": Case(trailer(message))
        for kind, anchor in parties.items()
        for name, message in _messages(kind, anchor)
    }
