# SPDX-License-Identifier: Apache-2.0
"""Whether an ML-DSA signature value decodes, which libraries do not tell from a mismatch.

Sources: FIPS 204 algorithms 21 and 27; ``lib/crypto/mldsa.c``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

_COEFFICIENTS = 256


@dataclass(frozen=True, slots=True)
class _Parameters:
    """FIPS 204 table 1, as far as decoding goes.

    Attributes:
        commitment: bytes of the commitment hash.
        rows: k, polynomials of the hint.
        columns: l, polynomials of the response.
        bits: of one coefficient of the response; gamma1 is half of their range.
        beta: what a coefficient must stay away from gamma1.
        hints: omega, the most hints there may be.
    """

    commitment: int
    rows: int
    columns: int
    bits: int
    beta: int
    hints: int


_SETS = {
    "mldsa44": _Parameters(32, 4, 4, 18, 78, 80),
    "mldsa65": _Parameters(48, 6, 5, 20, 196, 55),
    "mldsa87": _Parameters(64, 8, 7, 20, 120, 75),
}


def decodes_as_mldsa(name: str, value: bytes) -> bool:
    """Response in range and hint well-formed.

    Args:
        name: ``mldsa44``, ``mldsa65`` or ``mldsa87``.
        value: of the right length.
    """
    one = _SETS[name]
    end = one.commitment + one.columns * _COEFFICIENTS * one.bits // 8
    return _in_range(value[one.commitment : end], one) and _hint_decodes(value[end:], one)


def _in_range(response: bytes, one: _Parameters) -> bool:
    """Every coefficient is below gamma1 - beta in size."""
    gamma = 1 << (one.bits - 1)
    mask = (1 << one.bits) - 1
    step = one.bits // 2  # bytes that hold four coefficients
    for position in range(0, len(response), step):
        four = int.from_bytes(response[position : position + step], "little")
        for _ in range(4):
            if abs(gamma - (four & mask)) >= gamma - one.beta:
                return False
            four >>= one.bits
    return True


def _hint_decodes(hint: bytes, one: _Parameters) -> bool:
    """Positions rise within each polynomial, counts do not fall, the rest is zero."""
    start = 0
    for row in range(one.rows):
        end = hint[one.hints + row]
        if end < start or end > one.hints:
            return False
        positions = hint[start:end]
        if any(second <= first for first, second in pairwise(positions)):
            return False
        start = end
    return not any(hint[start : one.hints])
