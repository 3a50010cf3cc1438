"""Functions by name: ``package.module:function`` or ``path/file.py:function``."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def load_object(reference: str) -> Any:
    """Import what `reference` names.

    Args:
        reference: ``package.module:name`` or ``path/file.py:name``; a relative path is taken from the working
            directory.

    Raises:
        ValueError: the reference has another form.
        ImportError: there is no such module, file or name. Whatever the module itself raises passes through.
    """
    module_name, _, name = reference.rpartition(":")
    if not module_name or not name:
        raise ValueError(f"expected 'package.module:function' or 'path/file.py:function', got {reference!r}")
    module = _load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise ImportError(f"{module_name!r} has no {name!r}")
        found = getattr(found, part)
    return found


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    # Two files of one name in different folders are different modules.
    name = f"autocompress_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ImportError(f"no such file {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle and dataclasses look their module up by name
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
