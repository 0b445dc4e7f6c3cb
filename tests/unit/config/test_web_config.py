# SPDX-License-Identifier: Apache-2.0
"""The web config file: Prometheus' own keys, and an error for each that is not kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from kmodgate.config.web import MAX_USERS, WebConfig, parse_web
from kmodgate.errors import ConfigError

HASH = "$2b$10$" + "a" * 53
TLS = "tls_server_config:\n  cert_file: tls.crt\n  key_file: tls.key\n"


def web(text: str) -> WebConfig:
    return parse_web(text.encode(), source="web.yml", directory=Path("/etc/kmodgate"))


def test_all_keys() -> None:
    config = web(
        f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: /ca.pem\n"
        "  min_version: TLS13\n  max_version: TLS13\n  prefer_server_cipher_suites: true\n"
        f"http_server_config:\n  http2: false\nbasic_auth_users:\n  prometheus: {HASH}\n  other: {HASH}\n"
    )
    assert config == WebConfig(
        certificate=Path("/etc/kmodgate/tls.crt"),
        key=Path("/etc/kmodgate/tls.key"),
        client_ca=Path("/ca.pem"),
        client_required=True,
        only_tls13=True,
        users={"prometheus": HASH, "other": HASH},
    )
    assert config.files == (Path("/etc/kmodgate/tls.crt"), Path("/etc/kmodgate/tls.key"), Path("/ca.pem"))


def test_each_part_alone() -> None:
    assert web(TLS) == WebConfig(Path("/etc/kmodgate/tls.crt"), Path("/etc/kmodgate/tls.key"))
    assert web(f"basic_auth_users: {{a: {HASH}}}").certificate is None
    given = web(f"{TLS}  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.pem\n")
    assert (given.client_ca, given.client_required) == (Path("/etc/kmodgate/ca.pem"), False)
    assert web("http_server_config: {http2: true}") == WebConfig()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "web.yml: the file is empty"),
        ("tls_server_config:\n  cert_file: a\n", "web.yml:1: tls_server_config has no key_file; add one"),
        (
            f"{TLS}  client_auth: NoClientCert\n",
            "web.yml:4: unknown key 'client_auth' in tls_server_config; did you mean client_auth_type?",
        ),
        ("cert_file: x\n", "web.yml:1: unknown key 'cert_file'; it belongs under tls_server_config"),
        (f"{TLS}  client_auth_type: Yes\n", "web.yml:4: tls_server_config.client_auth_type: must be a word"),
        (
            f"{TLS}  client_auth_type: RequestClientCert\n",
            "takes any certificate without looking who signed it",
        ),
        (
            f"{TLS}  client_auth_type: RequireAnyClientCert\n",
            "takes any certificate without looking who signed it",
        ),
        (
            f"{TLS}  client_auth_type: RequireAndVerifyClientCert\n",
            "tls_server_config: client_auth_type RequireAndVerifyClientCert needs client_ca_file; add it",
        ),
        (f"{TLS}  client_ca_file: ca.pem\n", "client_ca_file has no effect without client_auth_type"),
        (f"{TLS}  min_version: TLS11\n", "TLS11 is broken and not offered here; write TLS12"),
        (f"{TLS}  max_version: TLS12\n", "only TLS13 is possible here; leave it out"),
        (
            f"{TLS}  cipher_suites: [TLS_AES_128_GCM_SHA256]\n",
            "the TLS library's own choice of ciphers is used",
        ),
        (
            f"{TLS}  curve_preferences: [X25519]\n",
            "the TLS library's own choice of curves is used; leave it out",
        ),
        (f"{TLS}  client_allowed_sans: [prometheus]\n", "names in client certificates are not looked at"),
        (
            "http_server_config:\n  headers: {X-Frame-Options: deny}\n",
            "no headers can be added here; leave it out",
        ),
        ("basic_auth_users: {}\n", "must map at least one user"),
        (f"basic_auth_users:\n  'a:b': {HASH}\n", "'a:b' is no user name"),
        (
            f"basic_auth_users: {{a: {HASH[:-1]}}}\n",
            "user a: no bcrypt hash; make one with `htpasswd -nBC 10 a`",
        ),
        (f"basic_auth_users: {{a: '$2b$31{HASH[6:]}'}}\n", "bcrypt's cost is 31, and 4 to 14 are possible"),
        (
            "basic_auth_users: {" + ", ".join(f"u{n}: {HASH}" for n in range(MAX_USERS + 1)) + "}",
            f"has more than {MAX_USERS} users",
        ),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        web(text)
    assert message in str(caught.value)


def test_a_password_that_was_not_hashed_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        web("basic_auth_users: {prometheus: correct-horse}\n")
    assert "correct-horse" not in str(caught.value)
