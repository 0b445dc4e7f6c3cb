# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from tests.vectors.generate import Identity, make_identity

from kmodgate.signature import TrustStore, load_certificates


@pytest.fixture(scope="session")
def signer() -> Identity:
    return make_identity("signer")


@pytest.fixture(scope="session")
def stranger() -> Identity:
    return make_identity("stranger")


@pytest.fixture(scope="session")
def trust(signer: Identity) -> TrustStore:
    return TrustStore(load_certificates(signer.pem, "signer.pem"))
