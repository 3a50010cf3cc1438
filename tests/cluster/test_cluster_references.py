from __future__ import annotations

import json
from pathlib import Path

import pytest

from autocompress.references import load_object


def test_function_of_a_module_and_of_a_file(tmp_path: Path) -> None:
    assert load_object("json:dumps") is json.dumps
    assert load_object("json:JSONDecoder.decode") is json.JSONDecoder.decode
    (tmp_path / "mine.py").write_text("def f():\n    return 3\n")
    assert load_object(f"{tmp_path / 'mine.py'}:f")() == 3


def test_files_of_one_name_are_different_modules(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(f"def f():\n    return {name!r}\n")
    f, g = (load_object(f"{tmp_path / name / 'mine.py'}:f") for name in ("a", "b"))
    assert (f(), g()) == ("a", "b")
    assert f.__module__ != g.__module__


@pytest.mark.parametrize(
    ("reference", "error", "message"),
    [
        ("json", ValueError, "got 'json'"),
        (":f", ValueError, "got ':f'"),
        ("json:", ValueError, "got 'json:'"),
        ("json:nothing", ImportError, "'json' has no 'nothing'"),
        ("no_such_module:f", ImportError, "No module named 'no_such_module'"),
        ("/no/such.py:f", ImportError, "no such file /no/such.py"),
    ],
)
def test_refused(reference: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_object(reference)


def test_what_a_file_raises_passes_and_leaves_no_half_module(tmp_path: Path) -> None:
    import sys

    before = set(sys.modules)
    (tmp_path / "bad.py").write_text("1 / 0\n")
    with pytest.raises(ZeroDivisionError):
        load_object(f"{tmp_path / 'bad.py'}:f")
    assert not [m for m in set(sys.modules) - before if "bad" in m]
