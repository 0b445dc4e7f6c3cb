# SPDX-License-Identifier: Apache-2.0
"""A model of the kernel's own signature code, from the trailer to the keyrings.

Written to give the kernel's answer, errno and all, for any bytes: the BER decoder with its
leniencies, the order of checks, the chain of embedded certificates. It knows nothing of
kmodgate's policy, and nothing is trusted because of it alone: ``signature.verify`` asks for
strict DER and more once this model has said yes, and takes its no as it is.

Sources: ``kernel/module/signing.c``, ``lib/asn1_decoder.c``, ``crypto/asymmetric_keys/``.
"""

from .answer import Acceptance, Refusal
from .predict import Keyring, examine, predict

__all__ = ["Acceptance", "Keyring", "Refusal", "examine", "predict"]
