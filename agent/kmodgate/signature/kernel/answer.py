# SPDX-License-Identifier: Apache-2.0
"""The two answers of the model: accepted, or refused with an errno."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kmodgate.model import SignatureStatus

if TYPE_CHECKING:
    from .certificate import Certificate
    from .message import SignedInfo
    from .predict import Key


class Refusal(Exception):  # noqa: N818  # an answer, not a failure of the model
    """The kernel refuses.

    Args:
        errno_name: what the kernel's function returns, before ``sig_enforce`` turns ENODATA,
            ENOPKG and ENOKEY into EKEYREJECTED.
        detail: one sentence for people.
        status: which of the closed set; None derives it from the errno (parsers).
    """

    def __init__(self, errno_name: str, detail: str, status: SignatureStatus | None = None) -> None:
        super().__init__(errno_name, detail)
        self.errno_name = errno_name
        self.detail = detail
        self.status = status or (
            SignatureStatus.UNSUPPORTED_SIGNATURE
            if errno_name in {"ENOPKG", "ENOENT"}
            else SignatureStatus.MALFORMED_SIGNATURE
        )


@dataclass(frozen=True, slots=True)
class Acceptance:
    """One SignerInfo that leads to the keyring.

    Attributes:
        signer: the SignerInfo.
        path: embedded certificates from the signer's on; the last one is signed by ``key``.
            Empty when ``key`` made the signature itself.
        key: the keyring's key at the end.
        copy: the embedded certificate that has the key's ids, when there is one.
    """

    signer: SignedInfo
    path: tuple[Certificate, ...]
    key: Key
    copy: Certificate | None = None
