# SPDX-License-Identifier: Apache-2.0
"""What a section of the file is: a table of keys, each with what reads its value. Pure.

It knows no key, no line and no wording of a report; ``schema`` declares the keys and
``problems`` words what is wrong. A reader takes what YAML made of a value and gives the
value, or raises ``ValueError``; nothing is converted on the way, so ``"yes"`` is no
boolean. A section is read to its end: everything wrong in it is found at once.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, ClassVar, Generic, Self, TypeAlias, TypeVar, overload

from .tree import KeyPath

_T = TypeVar("_T")
_E = TypeVar("_E", bound=StrEnum)
_S = TypeVar("_S", bound="Section")

Reader: TypeAlias = Callable[[object], _T]
Finding: TypeAlias = tuple[KeyPath, ValueError]


class UnknownKeyError(ValueError):
    """A key that the section does not have; the path ends with it."""


class MissingKeyError(ValueError):
    """A key that must be given; the path ends with it."""


class UnknownWordError(ValueError):
    """A value that is none of a closed set of words. Which one was meant is looked up when told."""

    def __init__(self, value: object, allowed: tuple[str, ...]) -> None:
        super().__init__("not one of the words")
        self.value = value
        self.allowed = allowed


class WrongInsideError(ValueError):
    """What is wrong inside one value; each path is relative to it."""

    def __init__(self, findings: list[Finding]) -> None:
        super().__init__("wrong inside")
        self.findings = findings


class Key(Generic[_T]):
    """One key of a section, and the attribute by which its value is had; None when it is not given.

    Attributes:
        name: as it stands in the file.
        section: the section that the value holds, itself or as a list.
        required: the key must be given.
    """

    required: ClassVar[bool] = False

    def __init__(self, name: str, read: Reader[_T], section: type[Section] | None = None) -> None:
        self.name = name
        self.section = section
        self._read = read

    def read(self, value: object) -> _T:
        """Read the key's value.

        Every key may be left out, none may be left empty: a forgotten value is not a choice.

        Raises:
            ValueError: nothing stands there, or not what belongs there.
        """
        if value is None:
            raise ValueError("has no value; write one or remove the key")
        return self._read(value)

    @overload
    def __get__(self, instance: None, owner: type[Section]) -> Self: ...
    @overload
    def __get__(self, instance: Section, owner: type[Section]) -> _T | None: ...
    def __get__(self, instance: Section | None, owner: type[Section]) -> Any:
        return self if instance is None else instance.given.get(self.name)


class RequiredKey(Key[_T]):
    """A key that must be given."""

    required = True

    @overload
    def __get__(self, instance: None, owner: type[Section]) -> Self: ...
    @overload
    def __get__(self, instance: Section, owner: type[Section]) -> _T: ...
    def __get__(self, instance: Section | None, owner: type[Section]) -> Any:
        return self if instance is None else instance.given[self.name]


class Section:
    """A mapping whose keys are all known.

    Attributes:
        known: its keys by their name in the file, those of the base class first.
        skipped: keys that may stand there and are not looked at.
        given: the value of each key that the file gives.
    """

    __slots__ = ("given",)

    known: ClassVar[dict[str, Key[Any]]] = {}
    skipped: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        own = {key.name: key for key in vars(cls).values() if isinstance(key, Key)}
        cls.known = {**cls.known, **own}

    def __init__(self, given: dict[str, Any] | None = None) -> None:
        self.given = given or {}

    @classmethod
    def read(cls, value: object) -> Self:
        """Read a mapping.

        Raises:
            WrongInsideError: everything that is wrong in it, in the order of the declaration.
            ValueError: no mapping, or keys that do not go together.
        """
        if not isinstance(value, dict):
            raise ValueError("must hold keys of its own; indent them below it")  # noqa: TRY004  # see the module
        given: dict[str, Any] = {}
        findings: list[Finding] = []
        for name, key in cls.known.items():
            if name not in value:
                if key.required:
                    findings.append(((name,), MissingKeyError()))
                continue
            try:
                given[name] = key.read(value[name])
            except ValueError as error:
                findings += below(name, error)
        stray = value.keys() - cls.known.keys() - cls.skipped
        findings += [((name,), UnknownKeyError()) for name in value if name in stray]
        if findings:
            raise WrongInsideError(findings)
        section = cls(given)
        section.check()
        return section

    def check(self) -> None:
        """Refuse keys that do not go together, with ``ValueError``; each is right by itself."""


def below(part: str | int, error: ValueError) -> list[Finding]:
    """What was found in the value at ``part``, seen from one level further up."""
    if isinstance(error, WrongInsideError):
        return [((part, *path), inner) for path, inner in error.findings]
    return [((part,), error)]


def section(name: str, model: type[_S]) -> Key[_S]:
    """A key whose value is a section."""
    return Key(name, model.read, model)


def sections(name: str, model: type[_S], limit: int) -> Key[list[_S]]:
    """A key whose value is a list of sections."""
    return Key(name, list_of(model.read, limit), model)


def word(kind: type[_E]) -> Reader[_E]:
    """Reads a member of ``kind`` by its word."""
    by_word = {str(member): member for member in kind}
    allowed = tuple(by_word)

    def read(value: object) -> _E:
        if not isinstance(value, str) or value not in by_word:
            raise UnknownWordError(value, allowed)
        return by_word[value]

    return read


def flag(value: object) -> bool:
    """Reads true or false."""
    if not isinstance(value, bool):
        raise ValueError("must be true or false")  # noqa: TRY004  # see the module
    return value


def list_of(read: Reader[_T], limit: int) -> Reader[list[_T]]:
    """Reads a list of at most ``limit`` values, each read by ``read``."""

    def read_list(value: object) -> list[_T]:
        if not isinstance(value, list):
            raise ValueError("must be a list; write each item on its own line after '- '")  # noqa: TRY004  # see the module
        if len(value) > limit:
            raise ValueError(f"has more than {limit} entries; shorten it")
        items: list[_T] = []
        findings: list[Finding] = []
        for index, item in enumerate(value):
            try:
                items.append(read(item))
            except ValueError as error:
                findings += below(index, error)
        if findings:
            raise WrongInsideError(findings)
        return items

    return read_list
