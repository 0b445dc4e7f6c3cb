# SPDX-License-Identifier: Apache-2.0
"""From pydantic's findings to one line each: file, line, what is wrong, the remedy. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from kmodgate.errors import ConfigError

from .scalars import shown
from .schema import SECTIONS, keys
from .tree import Data, KeyPath, Tree

# A file that is wrong all over is not worth a thousand lines.
MAX_PROBLEMS = 20

_KIND = {
    "bool_type": "must be true or false",
    "string_type": "must be text; put it in quotes",
    "list_type": "must be a list; write each item on its own line after '- '",
    "model_type": "must hold keys of its own; indent them below it",
    "dict_type": "must hold keys of its own; indent them below it",
}


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


def from_pydantic(error: ValidationError, tree: Tree, source: str) -> ConfigProblems:
    """Name the line and the remedy of each of pydantic's findings."""
    found = error.errors(include_url=False, include_input=False)
    found.sort(key=lambda item: tree.line(item["loc"]) or 0)
    problems = []
    for item in found[:MAX_PROBLEMS]:
        path = item["loc"]
        message = _message(item["type"], path, tree, item.get("ctx", {}), item["msg"])
        problems.append(ConfigError(message, source=source, line=tree.line(path)))
    return ConfigProblems(problems)


def _message(kind: str, path: KeyPath, tree: Tree, context: dict[str, Any], fallback: str) -> str:
    name = dotted(path)
    if kind == "extra_forbidden":
        return unknown_key(path)
    if kind == "missing":
        return f"{dotted(path[:-1])} has no {path[-1]}; add one"
    if kind == "value_error":
        return f"{name}: {context['error']}"
    if kind == "enum":
        return f"{name}: {_word(_value(tree.data, path), _allowed(str(context['expected'])))}"
    if kind in _KIND:
        return f"{name}: {_KIND[kind]}"
    if kind == "string_pattern_mismatch":
        return (
            f"{name}: {shown(str(_value(tree.data, path)))} is no name; use letters, digits, '-', '_' and '.'"
        )
    return f"{name}: {' '.join(fallback.split())}; correct it"


def dotted(path: KeyPath) -> str:
    """``("kmodgate", "nodePools", 0, "mode")`` as ``kmodgate.nodePools[0].mode``; never more than a line."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    text = text.removeprefix(".") or "the file"
    return text if text.isprintable() else shown(text)


def unknown_key(path: KeyPath) -> str:
    """What to write instead of an unknown key: its neighbour in spelling, or its real place."""
    key = str(path[-1])
    section = tuple(part for part in path[:-1] if isinstance(part, str))
    known = keys(SECTIONS[section][0])
    where = f" in {dotted(path[:-1])}" if section else ""
    message = f"unknown key {shown(key)}{where}"
    places = [at for at, (model, _) in SECTIONS.items() if key in keys(model)]
    if places:
        place = min(places, key=lambda at: ("nodePools" in at, -_shared(at, section), len(at)))
        return f"{message}; it belongs under {dotted(place)}"
    close = difflib.get_close_matches(key[:60], [*known, *sorted(SECTIONS[section][1])], n=1)
    if not close:
        lower = {candidate.lower(): candidate for candidate in known}
        close = [lower[key.lower()]] if key.lower() in lower else []
    return f"{message}; did you mean {close[0]}?" if close else f"{message}; allowed here: {', '.join(known)}"


def _shared(left: tuple[str, ...], right: tuple[str, ...]) -> int:
    """How many leading parts two places have in common."""
    count = 0
    for one, other in zip(left, right, strict=False):
        if one != other:
            break
        count += 1
    return count


def _allowed(expected: str) -> list[str]:
    """Pydantic's ``'a', 'b' or 'c'`` as a list."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",")]


def _word(value: Data, allowed: list[str]) -> str:
    words = f"write one of: {', '.join(allowed)}"
    if not isinstance(value, str):
        shape = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
        return f"must be a word, not {shape.get(type(value), 'nothing')}; {words}"
    by_case = {word.upper(): word for word in allowed}
    close = difflib.get_close_matches(value.upper()[:60], by_case, n=1, cutoff=0.7)
    hint = f", did you mean {by_case[close[0]]}?" if close else ""
    return f"{shown(value)} is not known{hint}; {words}"


def _value(data: Data, path: KeyPath) -> Data:
    """The value at a path that pydantic named."""
    for part in path:
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return None
    return data
