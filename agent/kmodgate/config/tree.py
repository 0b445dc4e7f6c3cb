# SPDX-License-Identifier: Apache-2.0
"""YAML bytes to plain data that remembers its lines. Pure; knows no key of the config.

Only mappings with string keys, lists, strings, numbers, booleans and null come through. The
size of the file, its depth and its number of values are bounded, aliases counted as
often as they are used, so no input makes the agent grow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import yaml

from kmodgate.errors import ConfigError

from .scalars import shown

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NODES = 10_000
# PyYAML computes 1:1:1… (base sixty) in quadratic time.
MAX_NUMBER = 64

Data: TypeAlias = "dict[str, Data] | list[Data] | str | int | float | bool | None"
KeyPath: TypeAlias = tuple[str | int, ...]

_PREFIX = "tag:yaml.org,2002:"


@dataclass(frozen=True, slots=True)
class Tree:
    """A document: its values, and the line of each by its path."""

    data: Data
    lines: dict[KeyPath, int] = field(repr=False)

    def line(self, path: KeyPath) -> int | None:
        """Line of the value at ``path``, or of the nearest one around it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.lines:
                return self.lines[path[:end]]
        return None


class _BoundedLoader(yaml.SafeLoader):
    """PyYAML's composer recurses; this one stops before the stack or the memory ends."""

    depth = 0
    count = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.depth += 1
        self.count += 1
        if self.depth > MAX_DEPTH or self.count > MAX_NODES:
            problem = _TOO_DEEP if self.depth > MAX_DEPTH else _TOO_MANY
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels; flatten it"
_TOO_MANY = f"more than {MAX_NODES} values; shorten the file"


def read(data: bytes, *, source: str) -> Tree:
    """Read one YAML document.

    Raises:
        ConfigError: not YAML, empty, too large, a duplicate key, an unsupported tag;
            with the line where one can be named.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(f"larger than {MAX_BYTES} bytes; shorten the file", source=source)
    root = _compose(_decode(data, source), source)
    lines: dict[KeyPath, int] = {}
    tree = Tree(None if root is None else _Converter(source, lines).convert(root, (), _line(root)), lines)
    if tree.data is None:
        # Also what a reader sees between an editor's truncation and its write: never "all defaults".
        raise ConfigError("the file is empty; write `kmodgate: {}` to accept all defaults", source=source)
    return tree


def _decode(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError("not UTF-8 text; save the file as UTF-8", source=source, line=line) from None


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        loader = _BoundedLoader(text)
        node: yaml.Node | None = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(part for part in (error.context, error.problem) if part)
        remedy = "" if error.problem in {_TOO_DEEP, _TOO_MANY} else "; correct the YAML"
        raise ConfigError(
            f"{_one_line(what)}{remedy}", source=source, line=None if mark is None else mark.line + 1
        ) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            "a character that YAML does not allow; remove it", source=source, line=line
        ) from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        # PyYAML passes "\UFFFFFFFF" in a quoted string on to chr().
        raise ConfigError(f"{_one_line(str(error))}; correct the YAML", source=source) from None
    return node


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


@dataclass(slots=True)
class _Converter:
    """Nodes to plain data. An alias is a node met again: it costs its whole size each time."""

    source: str
    lines: dict[KeyPath, int]
    left: int = MAX_NODES

    def convert(self, node: yaml.Node, path: KeyPath, line: int) -> Data:
        self.left -= 1
        if self.left < 0:
            raise self.error(f"{_TOO_MANY} (aliases count each time)", line)
        if len(path) > MAX_DEPTH:
            raise self.error(_TOO_DEEP, line)
        self.lines[path] = line
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            self.plain_tag(node, "seq")
            return [self.convert(item, (*path, index), _line(item)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, line)
        raise self.error("a value of a kind that YAML does not have; correct it", line)

    def mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Data]:
        self.plain_tag(node, "map")
        result: dict[str, Data] = {}
        first: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error("a key must be a single word", line)
            key = key_node.value
            if key_node.tag == f"{_PREFIX}merge":
                raise self.error("merge keys (<<) are not supported; write the keys out", line)
            if key in first:
                raise self.error(f"{shown(key)} stands twice, first on line {first[key]}; remove one", line)
            first[key] = line
            result[key] = self.convert(value_node, (*path, key), line)
        return result

    def scalar(self, node: yaml.ScalarNode, line: int) -> Data:
        text = str(node.value)
        kind = node.tag.removeprefix(_PREFIX)
        if kind in {"str", "timestamp", "value"}:
            return text
        if kind == "null":
            return None
        if len(text) > MAX_NUMBER and kind in {"bool", "int", "float"}:
            raise self.error(f"{shown(text)} is no {kind}; correct it or put it in quotes", line)
        try:
            constructor = yaml.constructor.SafeConstructor()
            if kind == "bool":
                return bool(constructor.construct_yaml_bool(node))
            if kind == "int":
                return int(constructor.construct_yaml_int(node))
            if kind == "float":
                return float(constructor.construct_yaml_float(node))
        except (ValueError, KeyError, IndexError, OverflowError):
            raise self.error(f"{shown(text)} is no {kind}; correct it or put it in quotes", line) from None
        raise self.error(f"the tag {shown(node.tag)} is not supported; remove it", line)

    def plain_tag(self, node: yaml.Node, kind: str) -> None:
        if node.tag != f"{_PREFIX}{kind}":
            raise self.error(f"the tag {shown(node.tag)} is not supported; remove it", _line(node))

    def error(self, message: str, line: int) -> ConfigError:
        return ConfigError(message, source=self.source, line=line)
