"""Everything that makes a network smaller, behind one call: ``compress(module, plan, data)``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autocompress.compress.api import compress
    from autocompress.compress.engine import Compressed
    from autocompress.compress.structure import find_structure

__all__ = ["Compressed", "compress", "find_structure"]

_HOMES = {
    "Compressed": "autocompress.compress.engine",
    "compress": "autocompress.compress.api",
    "find_structure": "autocompress.compress.structure",
}


def __getattr__(name: str) -> Any:
    # Lazy: a submodule, such as the reading of an artifact, does not load every pass and its libraries.
    if name not in _HOMES:
        raise AttributeError(f"module 'autocompress.compress' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
