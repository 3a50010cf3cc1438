"""YAML as people expect it: 1.2 scalars, no duplicate keys, no tags, and the line of every value.

PyYAML follows YAML 1.1, where ``1e-3`` is text, ``no`` is false and ``1:30`` is a number. The scalar rules of
YAML 1.2's core schema replace those here. Aliases are refused, so that a small file cannot expand into a large one.

References:
    YAML 1.2.2, section 10.3, "Core schema".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from autocompress.errors import ConfigError

Key = str | int
KeyPath = tuple[Key, ...]

MAX_BYTES = 1_000_000
_TAG = "tag:yaml.org,2002:"
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_INF = re.compile(r"([-+]?)\.(inf|Inf|INF)")
_NAN = re.compile(r"\.(nan|NaN|NAN)")


@dataclass(frozen=True)
class Document:
    """A parsed mapping that knows where each of its values stands.

    Attributes:
        source: name of the file, as the user gave it.
        data: plain data: dict, list, str, int, float, bool, None.
        places: path of keys -> where it stands, such as ``"study.yaml:12"``.
    """

    source: str
    data: dict[str, Any]
    places: dict[KeyPath, str] = field(default_factory=dict)

    def place(self, path: KeyPath) -> str:
        """Where the value at `path` stands, or else the nearest value that holds it."""
        for end in range(len(path), -1, -1):
            if path[:end] in self.places:
                return self.places[path[:end]]
        return self.source


def key_text(path: KeyPath) -> str:
    """``("overrides", 0, "match")`` as ``"overrides[0].match"``.

    Examples:
        >>> key_text(("overrides", 0, "match"))
        'overrides[0].match'
    """
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_document(path: Path, source: str | None = None) -> Document:
    """Parse a YAML file that holds one mapping.

    Args:
        path: the file.
        source: its name in errors; `path` as given by default.

    Raises:
        ConfigError: the file cannot be read, is larger than `MAX_BYTES`, or is not the YAML that is accepted here.
    """
    name = source or str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{name}: expected a readable YAML file, got {error.strerror or error}") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{name}: expected at most {MAX_BYTES} bytes, got a larger file")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: expected UTF-8 text, got byte {raw[error.start]:#04x} at {error.start}") from error
    return parse_document(text, name)


def parse_document(text: str, source: str) -> Document:
    """Parse YAML text that holds one mapping.

    Args:
        text: YAML 1.2 with plain data only.
        source: name of the file in errors and places.

    Raises:
        ConfigError: a syntax error, a duplicate key, a tag, an alias, a key that is not text, or no mapping at the top.
    """
    places: dict[KeyPath, str] = {}
    data = _parse(text, source, places)
    if not isinstance(data, dict):
        found = "an empty file" if data is None else f"a {_kind(data)}"
        raise ConfigError(f"{source}:1: expected a mapping of keys to values, got {found}")
    return Document(source, data, places)


def parse_value(text: str, source: str) -> Any:
    """Parse one YAML value, as in a command-line override.

    Raises:
        ConfigError: `text` is not the YAML that is accepted here.
    """
    return _parse(text, source, {})


def override(document: Document, text: str) -> None:
    """Replace one value of a document.

    Args:
        document: changed in place.
        text: ``key.path=value``, the value in YAML; mappings on the way are made.

    Raises:
        ConfigError: not of that form, or the path leads through something that is no mapping.
    """
    key, equals, value = text.partition("=")
    path = tuple(part.strip() for part in key.split("."))
    if not equals or not all(path):
        # The value may be a secret: only the key is shown.
        raise ConfigError(f"override: expected key.path=value, got {key!r}")
    place = f"override {'.'.join(path)}"
    target: Any = document.data
    for depth, part in enumerate(path[:-1], start=1):
        target = target.setdefault(part, {})
        if target is None:
            raise ConfigError(f"{place}: expected a mapping at {'.'.join(path[:depth])}, got null")
        if not isinstance(target, dict):
            raise ConfigError(f"{place}: expected a mapping at {'.'.join(path[:depth])}, got {type(target).__name__}")
    target[path[-1]] = parse_value(value, place)
    for known in [known for known in document.places if known[: len(path)] == path]:
        del document.places[known]
    document.places[path] = "override"


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; empty mappings and lists are values."""
    if isinstance(data, Mapping) and data:
        found: dict[str, Any] = {}
        for key, value in data.items():
            found |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return found
    return {prefix: data}


def _parse(text: str, source: str, places: dict[KeyPath, str]) -> Any:
    try:
        node = _Loader(text, source).get_single_node()
        return None if node is None else _construct(node, (), source, places)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"{source}:{mark.line + 1}" if mark else source
        raise ConfigError(f"{line}: expected YAML, got {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: expected YAML, got {str(error).splitlines()[0]}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: expected YAML, got values nested too deeply") from error


class _Loader(yaml.SafeLoader):
    """Composes nodes only: data is built by `_construct`, so no tag can call anything."""

    def __init__(self, text: str, source: str) -> None:
        super().__init__(text)
        self.name = source

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = cast(yaml.AliasEvent, self.peek_event())  # type: ignore[no-untyped-call]
            problem = f"alias '*{event.anchor}'; aliases are not accepted, write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=cast(yaml.Mark, event.start_mark))
        return super().compose_node(parent, index)


def _construct(node: yaml.Node, path: KeyPath, source: str, places: dict[KeyPath, str]) -> Any:
    places.setdefault(path, f"{source}:{node.start_mark.line + 1}")
    if isinstance(node, yaml.MappingNode):
        _check_tag(node, ("map",), path)
        return dict(_items(node, path, source, places))
    if isinstance(node, yaml.SequenceNode):
        _check_tag(node, ("seq",), path)
        return [_construct(item, (*path, i), source, places) for i, item in enumerate(node.value)]
    return _scalar(node, path)


def _items(node: yaml.MappingNode, path: KeyPath, source: str, places: dict[KeyPath, str]) -> Iterator[tuple[str, Any]]:
    seen: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = _scalar(key_node, path) if isinstance(key_node, yaml.ScalarNode) else None
        if not isinstance(key, str):
            raise ConfigError(f"{source}:{line}: {key_text(path) or 'top'}: expected a key that is text, got {key!r}")
        if key in seen:
            raise ConfigError(
                f"{source}:{line}: {key_text((*path, key))}: expected each key once, "
                f"got a duplicate of line {seen[key]}; remove one of them"
            )
        seen[key] = line
        places[(*path, key)] = f"{source}:{line}"
        yield key, _construct(value_node, (*path, key), source, places)


def _scalar(node: Any, path: KeyPath) -> Any:
    """The value of a scalar node by YAML 1.2's core schema; PyYAML's own (1.1) resolution is ignored."""
    value: str = node.value
    if node.style in ("'", '"', "|", ">"):
        _check_tag(node, ("str",), path)
        return value
    # PyYAML resolved a plain scalar to one of these 1.1 tags; anything else was written by hand.
    _check_tag(node, ("str", "null", "bool", "int", "float", "timestamp", "merge", "value"), path)
    if _NULL.fullmatch(value):
        return None
    if _BOOL.fullmatch(value):
        return value.lower() == "true"
    if _INT.fullmatch(value):
        if len(value) > 100:
            raise yaml.MarkedYAMLError(problem="an integer of over 100 digits", problem_mark=node.start_mark)
        return int(value, 0) if value[:2] in ("0o", "0x") else int(value)
    if _FLOAT.fullmatch(value):
        return float(value)
    if match := _INF.fullmatch(value):
        return float(f"{match[1]}inf")
    if _NAN.fullmatch(value):
        return float("nan")
    return value


def _check_tag(node: yaml.Node, accepted: tuple[str, ...], path: KeyPath) -> None:
    if not (node.tag.startswith(_TAG) and node.tag[len(_TAG) :] in accepted):
        where = f" at {key_text(path)}" if path else ""
        problem = f"tag {node.tag!r}{where}; tags are not accepted, write plain values"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)


def _kind(value: Any) -> str:
    return {list: "list", str: "text", bool: "truth value"}.get(type(value), "number")
