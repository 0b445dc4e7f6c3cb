# SPDX-License-Identifier: Apache-2.0
"""From what is wrong in a file to one line each: file, line, what is wrong, the remedy. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from kmodgate.errors import ConfigError

from .scalars import shown
from .schema import Document, keys, places
from .section import Finding, MissingKeyError, Section, UnknownKeyError, UnknownWordError, WrongInsideError
from .tree import KeyPath, Tree

# A file that is wrong all over is not worth a thousand lines.
MAX_PROBLEMS = 20


class ConfigProblems(ConfigError):  # noqa: N818  # it carries several errors
    """Everything that is wrong with one file.

    ``message``, ``line`` and ``source`` are those of the first problem; the text of the
    error has one line for each, in the order of the file.

    Attributes:
        problems: every problem, each a ``ConfigError`` of its own.
    """

    def __init__(self, problems: Iterable[ConfigError]) -> None:
        ordered = sorted(problems, key=lambda problem: problem.line or 0)
        first = ordered[0]
        super().__init__(first.message, source=first.source, line=first.line)
        self.problems = tuple(ordered)
        self.args = ("\n".join(str(problem) for problem in ordered),)


def report(error: ValueError, tree: Tree, source: str, document: type[Section] = Document) -> ConfigProblems:
    """Name the line and the remedy of everything that reading the document found."""
    found: list[Finding] = error.findings if isinstance(error, WrongInsideError) else [((), error)]
    ordered = sorted(found, key=lambda finding: tree.line(finding[0]) or 0)
    return ConfigProblems(
        ConfigError(_message(path, inner, document), source=source, line=tree.line(path))
        for path, inner in ordered[:MAX_PROBLEMS]
    )


def _message(path: KeyPath, error: ValueError, document: type[Section]) -> str:
    if isinstance(error, UnknownKeyError):
        return unknown_key(path, document)
    if isinstance(error, MissingKeyError):
        return f"{dotted(path[:-1])} has no {path[-1]}; add one"
    if isinstance(error, UnknownWordError):
        return f"{dotted(path)}: {_word(error.value, error.allowed)}"
    return f"{dotted(path)}: {error}"


def dotted(path: KeyPath) -> str:
    """``("kmodgate", "nodePools", 0, "mode")`` as ``kmodgate.nodePools[0].mode``; never more than a line."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    text = text.removeprefix(".") or "the file"
    return text if text.isprintable() else shown(text)


def unknown_key(path: KeyPath, document: type[Section] = Document) -> str:
    """What to write instead of an unknown key: its neighbour in spelling, or its real place."""
    key = str(path[-1])
    section = tuple(part for part in path[:-1] if isinstance(part, str))
    sections = dict(places(document))
    model = sections[section]
    known = keys(model)
    where = f" in {dotted(path[:-1])}" if section else ""
    message = f"unknown key {shown(key)}{where}"
    homes = [at for at, other in sections.items() if key in keys(other)]
    if homes:
        home = min(homes, key=lambda at: ("nodePools" in at, -_shared(at, section), len(at)))
        return f"{message}; it belongs under {dotted(home)}"
    close = _closest(key, [*known, *sorted(model.skipped)], cutoff=0.6)
    if close is None:
        close = {candidate.lower(): candidate for candidate in known}.get(key.lower())
    return f"{message}; did you mean {close}?" if close else f"{message}; allowed here: {', '.join(known)}"


def _shared(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    """How many leading parts two places have in common."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


def _word(value: object, allowed: Sequence[str]) -> str:
    words = f"write one of: {', '.join(allowed)}"
    if not isinstance(value, str):
        shape = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
        quoted = "in quotes " if isinstance(value, float) else ""
        words = words.replace("one", f"{quoted}one", 1)
        return f"must be a word, not {shape.get(type(value), 'nothing')}; {words}"
    by_case = {word.upper(): word for word in allowed}
    close = _closest(value.upper(), list(by_case), cutoff=0.7)
    hint = f", did you mean {by_case[close]}?" if close else ""
    return f"{shown(value)} is not known{hint}; {words}"


def _closest(word: str, candidates: list[str], *, cutoff: float) -> str | None:
    """The candidate that is spelt most like ``word``, or None when none is."""
    from difflib import get_close_matches  # noqa: PLC0415  # only a file that is wrong needs it

    return next(iter(get_close_matches(word[:60], candidates, n=1, cutoff=cutoff)), None)
