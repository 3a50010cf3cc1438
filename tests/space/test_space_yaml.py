from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import ConfigError
from autocompress.space.yaml import flatten, parse_document, parse_value, read_document


@pytest.mark.parametrize(("text", "value"), [
    ("1e-3", 0.001), ("1E5", 1e5), ("-.5", -0.5), ("1.", 1.0), ("0x1F", 31), ("0o17", 15), ("017", 17), ("+3", 3),
    ("yes", "yes"), ("off", "off"), ("true", True), ("False", False), ("null", None), ("~", None), ("", None),
    ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("1_000", "1_000"), ("0b1", "0b1"), ("'1e-3'", "1e-3"),
    ("=", "="), ("<<", "<<"), (".inf", math.inf), ("-.INF", -math.inf), ("[a, 1]", ["a", 1]), ("{a: {}}", {"a": {}}),
])  # fmt: skip
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    found = parse_value(text, "here")
    assert found == value
    assert type(found) is type(value)


def test_nan_is_a_number() -> None:
    assert math.isnan(parse_value(".nan", "here"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**15), 10**15) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", min_codepoint=32, exclude_characters="\x7f")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc<=", max_size=4), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@given(JSON)
def test_json_is_read_as_itself(value: Any) -> None:
    assert parse_value(json.dumps(value), "here") == value


def test_every_value_knows_its_line() -> None:
    document = parse_document("a: 1\nb:\n  - c: 2\n  -\n    d: 3\n", "f.yaml")
    assert document.data == {"a": 1, "b": [{"c": 2}, {"d": 3}]}
    assert document.place(("a",)) == "f.yaml:1"
    assert document.place(("b", 0, "c")) == "f.yaml:3"
    assert document.place(("b", 1, "d")) == "f.yaml:5"
    assert document.place(("b", 1, "missing")) == "f.yaml:5"


@pytest.mark.parametrize(("text", "message"), [
    ("a: 1\nb: 2\na: 3\n", r"f.yaml:3: a: expected each key once, got a duplicate of line 1"),
    ("a: {b: 1, b: 2}\n", r"f.yaml:1: a.b: expected each key once"),
    ("a: !!python/name:os.system x\n", r"f.yaml:1: expected YAML, got tag 'tag:yaml.org,2002:python/name:os.system'"),
    ("a: !!int '3'\n", r"f.yaml:1: expected YAML, got tag 'tag:yaml.org,2002:int' at a; tags are not accepted"),
    ("a: !custom {b: 1}\n", r"f.yaml:1: expected YAML, got tag '!custom' at a"),
    ("a: &x [1]\nb: [*x, *x]\n", r"f.yaml:2: expected YAML, got alias '\*x'; aliases are not accepted"),
    ("1: a\n", r"f.yaml:1: top: expected a key that is text, got 1"),
    ("[a]: b\n", r"f.yaml:1: top: expected a key that is text, got None"),
    ("a: b: c\n", r"f.yaml:1: expected YAML, got mapping values are not allowed here"),
    ("a: 1\n\tb: 2\n", r"f.yaml:2: expected YAML, got "),
    ("a: \x07\n", r"f.yaml: expected YAML, got "),
    ("a: " + "9" * 5000, r"f.yaml:1: expected YAML, got an integer of over 100 digits"),
    ("just text", r"f.yaml:1: expected a mapping of keys to values, got a text"),
])  # fmt: skip
def test_what_is_not_plain_data_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_document(text, "f.yaml")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe9\n")
    with pytest.raises(ConfigError, match="expected UTF-8 text, got byte 0xe9 at 3"):
        read_document(tmp_path / "latin.yaml")
    with pytest.raises(ConfigError, match="expected a readable YAML file, got Is a directory"):
        read_document(tmp_path)
    with pytest.raises(ConfigError, match="expected at most 1000000 bytes, got a larger file"):
        read_document(Path("/dev/zero"))


def test_flatten_keeps_empty_mappings_and_lists() -> None:
    assert flatten({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}
