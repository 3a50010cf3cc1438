"""Functions by name: ``package.module:function`` or ``file.py:function``, made and checked without importing them."""

from __future__ import annotations

import ast
import math
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, JsonValue, field_validator

from autocompress.space.explain import nearest


def function_reference(function: Any) -> str:
    """The name under which another process finds a function.

    Args:
        function: defined with ``def`` at the top level of a module or script.

    Returns:
        ``module:function``, or ``/absolute/file.py:function`` if it lives in the script being run.

    Raises:
        ValueError: a lambda, a nested function, a method, or one typed into an interactive session.
    """
    name = getattr(function, "__qualname__", "")
    module = getattr(function, "__module__", None)
    if not name.isidentifier() or not module:
        raise ValueError(
            f"expected a function defined with 'def' at the top level of a module, got {name or repr(function)}; "
            "every candidate's process must be able to import it"
        )
    if module != "__main__":
        found = getattr(sys.modules.get(module), name, None)
        if found is not function:
            raise ValueError(f"expected a function that {module} offers as {name!r}, got another object of that name")
        return f"{module}:{name}"
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None and spec.name != "__main__":  # python -m package.module
        return f"{spec.name}:{name}"
    if file is None or not Path(file).is_file():
        raise ValueError(
            f"expected a function in a file, got {name!r} of an interactive session; save it in a .py file"
        )
    return f"{Path(file).resolve()}:{name}"


def anchored(reference: str, base: Path) -> str:
    """The reference with a relative ``file.py`` made absolute; a module's name stays.

    Args:
        reference: ``package.module:function`` or ``file.py:function``.
        base: folder that a relative path starts from.
    """
    place, colon, name = reference.rpartition(":")
    if not place.endswith(".py"):
        return reference
    return f"{(base.absolute() / Path(place).expanduser()).resolve()}{colon}{name}"


def reference_problem(reference: str) -> str | None:
    """Why a reference leads nowhere, as ``"<what was expected>, got <what>"``; None if it seems to lead somewhere.

    Nothing is imported: a module is looked for along the import path, and its source is only parsed.

    Args:
        reference: ``package.module:function`` or ``/absolute/file.py:function``.
    """
    place, _, name = reference.rpartition(":")
    source: Path | None = Path(place)
    if place.endswith(".py"):
        if not Path(place).is_file():
            return f"an existing file, got {place}"
    else:
        spec, missing = _find(place)
        if spec is None:
            return f"a module that can be imported, got {place!r}: there is no {missing!r}"
        source = Path(spec.origin) if spec.origin is not None and spec.origin.endswith(".py") else None
    return None if source is None else _name_problem(source, name)


def _named(value: Any) -> Any:
    return function_reference(value) if callable(value) else value


def _placed(value: str) -> str:
    module, _, name = value.partition(":")
    if not module or not name.isidentifier():
        raise ValueError(f"expected 'package.module:function' or 'file.py:function', got {value!r}")
    return anchored(value, Path.cwd())


#: A setting that names a function; from Python the function itself may be given. A relative file becomes absolute.
FunctionName = Annotated[str, BeforeValidator(_named), AfterValidator(_placed)]


class TaskConfig(BaseModel):
    """The function that brings the model and the data.

    Attributes:
        factory: ``package.module:function`` or ``/absolute/file.py:function``; from Python also the function itself.
        arguments: its keyword arguments, plain JSON data.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    factory: FunctionName
    arguments: dict[str, JsonValue] = {}

    @field_validator("arguments")
    @classmethod
    def _finite(cls, value: dict[str, JsonValue]) -> dict[str, JsonValue]:
        for name, item in value.items():
            if not _is_finite(item):
                raise ValueError(f"expected finite numbers in arguments, got {item} for {name!r}")
        return value


def _find(module: str) -> tuple[ModuleSpec | None, str]:
    """The module's spec, found without importing its parents; else None and the part that is missing."""
    path: Any = None
    spec: ModuleSpec | None = None
    name = ""
    for part in module.split("."):
        name = f"{name}.{part}" if name else part
        found = (finder.find_spec(name, path) for finder in sys.meta_path)
        spec = next((each for each in found if each is not None), None)
        if spec is None:
            return None, name
        path = spec.submodule_search_locations or []
    return spec, ""


def _name_problem(source: Path, name: str) -> str | None:
    try:
        tree = ast.parse(source.read_bytes())
    except (SyntaxError, ValueError) as error:
        line = f" in line {error.lineno}" if isinstance(error, SyntaxError) else ""
        return f"a Python file, got {source} with a syntax error{line}"
    except OSError as error:
        return f"a readable file, got {source}: {error.strerror}"
    names: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef() | ast.ClassDef() | ast.AsyncFunctionDef():
                names.add(node.name)
            case ast.Name(ctx=ast.Store()):
                names.add(node.id)
            case ast.alias(name="*"):
                return None  # what it brings is known only to an import
            case ast.alias():
                names.add(node.asname or node.name)
    if name in names or "__getattr__" in names:
        return None
    return f"a function of {source}, got {name!r}, which it does not define{nearest(name, names)}"


def _is_finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_finite(item) for item in value.values())
    if isinstance(value, list):
        return all(_is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
