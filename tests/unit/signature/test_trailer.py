# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from tests.vectors.generate import MARKER, append

from kmodgate.errors import SignatureError
from kmodgate.signature.trailer import split

PAYLOAD = b"payload" * 20
CMS = b"0\x03\x02\x01\x00"
SIZE = len(PAYLOAD + CMS)

DEFECTS = {
    "empty": (b"", "unsigned", "EKEYREJECTED"),
    "no marker": (PAYLOAD, "unsigned", "EKEYREJECTED"),
    "marker alone": (MARKER, "unsigned", "EKEYREJECTED"),
    "byte after the marker": (append(PAYLOAD, CMS) + b"\n", "unsigned", "EKEYREJECTED"),
    "marker without line end": (append(PAYLOAD, CMS, marker=MARKER[:-1]), "unsigned", "EKEYREJECTED"),
    "one byte before the marker": (b"x" + MARKER, "malformed_signature", "EBADMSG"),
    "twelve bytes before the marker": (bytes(12) + MARKER, "malformed_signature", "EBADMSG"),
    "sig_len is all there is": (append(PAYLOAD, CMS, sig_len=SIZE), "malformed_signature", "EBADMSG"),
    "sig_len above the file": (append(PAYLOAD, CMS, sig_len=2**32 - 1), "malformed_signature", "EBADMSG"),
    "sig_len before id_type": (
        append(PAYLOAD, CMS, sig_len=SIZE, id_type=1),
        "malformed_signature",
        "EBADMSG",
    ),
    "id_type PGP": (append(PAYLOAD, CMS, id_type=0), "unsupported_signature", "EKEYREJECTED"),
    "id_type X.509": (append(PAYLOAD, CMS, id_type=1), "unsupported_signature", "EKEYREJECTED"),
    "id_type before reserved fields": (
        append(PAYLOAD, CMS, id_type=3, algo=1),
        "unsupported_signature",
        "EKEYREJECTED",
    ),
    "algo": (append(PAYLOAD, CMS, algo=1), "malformed_signature", "EBADMSG"),
    "hash": (append(PAYLOAD, CMS, hash_=4), "malformed_signature", "EBADMSG"),
    "signer_len": (append(PAYLOAD, CMS, signer_len=1), "malformed_signature", "EBADMSG"),
    "key_id_len": (append(PAYLOAD, CMS, key_id_len=1), "malformed_signature", "EBADMSG"),
    "pad 0": (append(PAYLOAD, CMS, pad=b"\1\0\0"), "malformed_signature", "EBADMSG"),
    "pad 2": (append(PAYLOAD, CMS, pad=b"\0\0\1"), "malformed_signature", "EBADMSG"),
    "message too long": (append(PAYLOAD, bytes(65536)), "malformed_signature", "EMSGSIZE"),
}


@pytest.mark.parametrize(("data", "status", "errno"), DEFECTS.values(), ids=DEFECTS)
def test_every_defect_has_the_errno_of_the_kernel(data: bytes, status: str, errno: str) -> None:
    with pytest.raises(SignatureError) as caught:
        split(data)
    assert (caught.value.status, caught.value.errno_name) == (status, errno)


def test_the_pieces_are_the_file() -> None:
    data = append(PAYLOAD, CMS)
    parts = split(data)
    assert (bytes(parts.payload), parts.cms) == (PAYLOAD, CMS)
    assert bytes(parts.payload) + bytes(parts.tail) == data


def test_the_longest_message_is_taken() -> None:
    assert len(split(append(PAYLOAD, bytes(65535))).cms) == 65535


def test_an_empty_payload_is_never_reached() -> None:
    # sig_len must stay below what stands before the trailer, so one byte is the least.
    assert len(split(append(b"x", CMS)).payload) == 1
