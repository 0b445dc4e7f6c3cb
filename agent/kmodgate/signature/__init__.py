# SPDX-License-Identifier: Apache-2.0
"""Module signatures, judged as the kernel judges them.

Pure: no file and network I/O, no clock, no logging; bytes in, verdict or error out.
"""

from .revocation import Revocations
from .trust import TrustAnchor, TrustStore, load_certificates
from .verify import VerifiedSignature, report, verify

__all__ = [
    "Revocations",
    "TrustAnchor",
    "TrustStore",
    "VerifiedSignature",
    "load_certificates",
    "report",
    "verify",
]
