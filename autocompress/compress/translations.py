"""The exporter's table of translations, made once in a process and not for every network."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Where torch 2.13 takes the table from; a torch that takes it from elsewhere is slower, not wrong.
_HOME = "onnxscript._framework_apis.torch_2_11"
_NAME = "get_torchlib_ops"


@contextmanager
def remembered() -> Iterator[None]:
    """Within it, an export takes the table that an earlier one of this process made.

    torch asks onnxscript for it in every export, which parses the source of 500 functions: 0.3 of the 1.1 seconds that
    ResNet-20 takes. The table is a list of frozen entries that depends on the installed libraries alone.
    """
    try:
        home: Any = importlib.import_module(_HOME)
    except ImportError:
        home = None
    original = getattr(home, _NAME, None)
    if original is None:
        yield
        return
    setattr(home, _NAME, lambda: list(_table(original)))
    try:
        yield
    finally:
        setattr(home, _NAME, original)


@functools.cache
def _table(make: Any) -> tuple[Any, ...]:
    return tuple(make())
