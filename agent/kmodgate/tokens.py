# SPDX-License-Identifier: Apache-2.0
"""Private keys in PKCS#11 tokens (HSMs, smart cards, SoftHSM2), named by URI.

The key never leaves the token. This module asks no person for a PIN and chooses no certificate.
Sources: RFC 7512 (the URI), PKCS#11 3.0 (CKM_RSA_PKCS, CKM_ECDSA).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, unquote_to_bytes

from .errors import InputError, NodeError
from .fsutil import read_regular_file
from .signature.sign import TokenKey

if TYPE_CHECKING:
    import pkcs11

SCHEME: Final = "pkcs11:"
DEFAULT_MODULE: Final = "p11-kit-proxy.so"
"""Gives every token that the system's p11-kit knows."""

_MAX_PIN_FILE = 4096
_PATH = frozenset({"token", "object", "id", "serial", "manufacturer", "model", "type"})
_QUERY = frozenset({"module-path", "pin-source", "pin-value"})


@dataclass(frozen=True, slots=True)
class KeyUri:
    """A parsed URI.

    Attributes:
        token: label of the token; None for any.
        serial: its serial number; None for any.
        label: of the key (``object``); None for any.
        key_id: CKA_ID (``id``); None for any.
        module: path of the PKCS#11 module; None when it names none.
        pin: from ``pin-value`` or ``pin-source``; None when it names none.
        manufacturer: of the token; None for any.
        model: of the token; None for any.
    """

    token: str | None = None
    serial: str | None = None
    label: str | None = None
    key_id: bytes | None = None
    module: str | None = None
    pin: str | None = field(default=None, repr=False)
    manufacturer: str | None = None
    model: str | None = None


def parse_uri(uri: str) -> KeyUri:
    """Read a URI such as ``pkcs11:token=signing;object=modules;type=private``.

    Raises:
        InputError: no such URI, or one that asks for what is not supported.
    """
    path, _, query = uri.removeprefix(SCHEME).partition("?")
    given: dict[str, str] = {}
    for text, separator, known in ((path, ";", _PATH), (query, "&", _QUERY)):
        for word in filter(None, text.split(separator)):
            name, equals, value = word.partition("=")
            if name not in known or not equals or name in given:
                raise InputError(
                    f"{word!r} in the PKCS#11 URI is not understood or repeated; "
                    f"known here: {', '.join(sorted(known))}"
                )
            given[name] = value
    if given.get("type", "private") != "private":
        raise InputError("the PKCS#11 URI must name a private key: write type=private or leave it out")
    if not given.keys() & {"object", "id"}:
        raise InputError("the PKCS#11 URI names no key; add object=LABEL or id=%01")
    text_of = {name: unquote(value) for name, value in given.items() if name != "id"}
    return KeyUri(
        token=text_of.get("token"),
        serial=text_of.get("serial"),
        label=text_of.get("object"),
        key_id=unquote_to_bytes(given["id"]) if "id" in given else None,
        module=text_of.get("module-path"),
        pin=_pin(text_of),
        manufacturer=text_of.get("manufacturer"),
        model=text_of.get("model"),
    )


def _pin(given: dict[str, str]) -> str | None:
    if "pin-value" in given:
        return given["pin-value"]
    if "pin-source" not in given:
        return None
    source = given["pin-source"]
    if source.startswith("|"):
        raise InputError("pin-source must be a file; programs are not run")
    data = read_regular_file(Path(source.removeprefix("file://").removeprefix("file:")), _MAX_PIN_FILE)
    return data.decode("utf-8", "replace").rstrip("\r\n")


@contextmanager
def open_key(uri: KeyUri, *, module: str | None, pin: str | None) -> Iterator[TokenKey]:
    """The key, as long as the block runs: a session with the token is open and logged in.

    Args:
        uri: names the key.
        module: the PKCS#11 module; None for the one that the URI names, else p11-kit's.
        pin: of the token; None for that of the URI, if any.

    Raises:
        NodeError: the Python package or the PKCS#11 module is not there.
        InputError: no such token or key, several, or a wrong PIN.
    """
    try:
        import pkcs11  # noqa: PLC0415  # an optional extra
        from pkcs11 import exceptions  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise NodeError(
            "keys in tokens need the Python package python-pkcs11: pip install 'kmodgate[pkcs11]'"
        ) from error
    path = module or uri.module or DEFAULT_MODULE
    try:
        library = pkcs11.lib(path)
    except (RuntimeError, exceptions.PKCS11Error) as error:
        raise NodeError(
            f"{path}: cannot be loaded as a PKCS#11 module ({_reason(error)}); name it with --pkcs11-module"
        ) from error
    try:
        pin = uri.pin if pin is None else pin
        with _token(library, uri).open(user_pin=pin) as session:
            yield _signing_key(_key(session, uri, logged_in=pin is not None))
    except exceptions.PinIncorrect as error:
        raise InputError("the token refuses the PIN; too many wrong ones lock it") from error
    except (exceptions.UserNotLoggedIn, exceptions.PinLenRange) as error:
        raise InputError("the token needs its PIN; give --passphrase-file or --passphrase-env") from error
    except exceptions.PKCS11Error as error:
        raise InputError(f"the token answers {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _token(library: Any, uri: KeyUri) -> pkcs11.Token:
    from pkcs11 import TokenFlag  # noqa: PLC0415

    seen: list[str] = []
    found: list[pkcs11.Token] = []
    for slot in library.get_slots(token_present=True):
        token = slot.get_token()
        if TokenFlag.TOKEN_INITIALIZED not in token.flags:
            continue
        seen.append(token.label)
        wanted = (
            (uri.token, token.label),
            (uri.serial, token.serial.decode("ascii", "replace")),
            (uri.manufacturer, token.manufacturer_id),
            (uri.model, token.model),
        )
        if all(want is None or want == has.rstrip("\0 ") for want, has in wanted):
            found.append(token)
    if len(found) != 1:
        labels = ", ".join(map(repr, seen)) or "none"
        problem = "several tokens match" if found else "no token matches"
        raise InputError(f"{problem} the PKCS#11 URI; tokens there: {labels}")
    return found[0]


def _key(session: pkcs11.Session, uri: KeyUri, *, logged_in: bool) -> Any:
    from pkcs11 import Attribute, ObjectClass  # noqa: PLC0415

    wanted: dict[Attribute, object] = {Attribute.CLASS: ObjectClass.PRIVATE_KEY}
    if uri.label is not None:
        wanted[Attribute.LABEL] = uri.label
    if uri.key_id is not None:
        wanted[Attribute.ID] = uri.key_id
    found = list(session.get_objects(wanted))
    if len(found) != 1:
        problem = "several private keys match" if found else "no private key matches"
        hint = "list them with pkcs11-tool --login --list-objects --type privkey"
        if not logged_in:
            hint = "it is seen with the token's PIN alone: give --passphrase-file or --passphrase-env"
        raise InputError(f"{problem} the PKCS#11 URI; {hint}")
    return found[0]


def _signing_key(key: Any) -> TokenKey:
    from pkcs11 import KeyType, Mechanism  # noqa: PLC0415

    def signer(kind: KeyType, mechanism: Mechanism) -> Callable[[bytes], bytes]:
        def sign(data: bytes) -> bytes:
            if key.key_type != kind:
                raise InputError("the key in the token is of another kind than the certificate's")
            return bytes(key.sign(data, mechanism=mechanism))

        return sign

    return TokenKey(signer(KeyType.RSA, Mechanism.RSA_PKCS), signer(KeyType.EC, Mechanism.ECDSA))
