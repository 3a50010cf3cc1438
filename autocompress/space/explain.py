"""Validation errors as lines that a person can act on: ``file:line: key: expected ..., got ...``."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from autocompress.errors import ConfigError
from autocompress.space.yaml import Document, KeyPath, key_text

ModelT = TypeVar("ModelT", bound=BaseModel)


@dataclass(frozen=True)
class Described:
    """Put into a type's ``Annotated``: what a message calls what is expected there."""

    words: str


def validate(model: type[ModelT], document: Document) -> ModelT:
    """Build `model` from a document. Scalars are as strict as the model says.

    Args:
        model: what to build.
        document: the parsed file.

    Raises:
        ConfigError: one line for each problem: place, key, expected, got.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise ConfigError("\n".join(explain(error, model, document))) from None


def explain(error: ValidationError, model: type[BaseModel], document: Document) -> list[str]:
    """One line for each problem in `error`, in the order of the file's keys.

    Args:
        error: raised while `model` was built from ``document.data``.
        model: the class that was built.
        document: where the values stand.
    """
    # Never with the cause attached: a value in it may be a secret.
    details = error.errors(include_url=False)
    # A list whose only item is wrong is not also too short.
    deeper = {detail["loc"][:-1] for detail in details}
    kept = [detail for detail in details if detail["type"] != "too_short" or detail["loc"] not in deeper]
    return list(dict.fromkeys(_line(detail, model, document) for detail in kept))


def nearest(name: str, known: Iterable[str]) -> str:
    """``" (did you mean 'trials'?)"``, or nothing if no known name is close.

    Examples:
        >>> nearest("trails", ["trials", "workers"])
        " (did you mean 'trials'?)"
    """
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def alternatives(values: Sequence[Any]) -> str:
    """``"'a', 'b' or 'c'"``."""
    words = [repr(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def _line(detail: ErrorDetails, model: type[BaseModel], document: Document) -> str:
    path, annotation, owner = _resolve(model, detail["loc"])
    kind, context, got = detail["type"], detail.get("ctx", {}), detail["input"]
    if kind == "extra_forbidden" and owner is not None:
        known = list(owner.model_fields)
        expected = f"one of the keys {', '.join(known)}{nearest(str(path[-1]), known)}, got {path[-1]!r}"
    elif kind == "missing":
        expected = f"{describe(annotation)}, got nothing; the key is required"
    elif kind == "union_tag_invalid":
        path = (*path, "kind")
        expected = f"{context['expected_tags'].replace(', ', ' or ')}{_close_tag(context)}, got {context['tag']!r}"
    elif kind == "union_tag_not_found":
        path = (*path, "kind")
        expected = f"{alternatives(_tags(annotation))}, got nothing; the key is required"
    elif kind == "value_error":
        expected = str(context["error"]).removeprefix("expected ")
    else:
        suggestion = ""
        if kind == "literal_error" and isinstance(got, str):
            suggestion = nearest(got, [str(value) for value in _literals(annotation)])
        expected = f"{describe(annotation)}{suggestion}, got {_show(got, secret=_is_secret(annotation))}"
    key = key_text(path)
    return (
        f"{document.place(path)}: {key}: expected {expected}" if key else f"{document.place(path)}: expected {expected}"
    )


def _close_tag(context: dict[str, Any]) -> str:
    return nearest(str(context["tag"]), [tag.strip(" '") for tag in context["expected_tags"].split(",")])


def _resolve(model: type[BaseModel], loc: tuple[str | int, ...]) -> tuple[KeyPath, Any, type[BaseModel] | None]:
    """Pydantic's location as a path of the file's keys, with the type expected there and the class that holds it."""
    path: list[str | int] = []
    annotation: Any = model
    owner: type[BaseModel] | None = None
    keys: Any = None
    for i, part in enumerate(loc):
        bare = _bare(annotation)
        if part == "[key]" and i == len(loc) - 1 and keys is not None:
            annotation = keys
        elif _is_model(bare):
            owner, info = bare, bare.model_fields.get(str(part))
            path.append(part)
            annotation = None if info is None else Annotated[info.annotation, info]
        elif (members := [m for m in _members(bare) if str(part) in _tags(m)]) and isinstance(part, str):
            annotation = members[0]  # the tag of a discriminated union is no key of the file
        else:
            path.append(part)
            arguments = get_args(bare)
            keys = arguments[0] if get_origin(bare) is dict else None
            annotation = (arguments[-1] if get_origin(bare) is dict else arguments[0]) if arguments else None
    return tuple(path), annotation, owner


def describe(annotation: Any) -> str:
    """A type with its bounds, in words: ``"an integer >= 1"``."""
    bounds = _bounds(annotation)
    own = next((item.words for item in _metadata(annotation) if isinstance(item, Described)), None)
    if own is not None:
        return own
    bare = _bare(annotation, keep_none=True)
    if type(None) in get_args(bare):
        return f"{_describe_bare(_bare(bare), bounds)} or null"
    return _describe_bare(_bare(bare), bounds)


def _describe_bare(bare: Any, bounds: list[str]) -> str:
    if get_origin(bare) is Literal:
        return alternatives(get_args(bare))
    if get_origin(bare) in (tuple, list):
        return f"a list{' '.join(['', *bounds])}, each {describe(get_args(bare)[0])}"
    if get_origin(bare) is dict or bare is dict:
        return "a mapping"
    if _is_model(bare):
        return f"a mapping with the keys {', '.join(bare.model_fields)}"
    if _members(bare):
        return f"a mapping with the key 'kind', {alternatives(_tags(bare))}"
    words = {int: "an integer", float: "a finite number", bool: "true or false", Path: "a path"}
    return " ".join([words.get(bare, "text"), " and ".join(bounds)]).strip()


def _metadata(annotation: Any) -> list[Any]:
    found: list[Any] = []
    if get_origin(annotation) is Annotated:
        inner, *extra = get_args(annotation)
        for item in extra:
            found += item.metadata if isinstance(item, FieldInfo) else [item]
        return _metadata(inner) + found
    if get_origin(annotation) in (Union, types.UnionType):
        for member in get_args(annotation):
            found += _metadata(member)
    return found


def _bounds(annotation: Any) -> list[str]:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "min_length": "of at least"}
    words = []
    for item in _metadata(annotation):
        words += [f"{sign} {getattr(item, name)}" for name, sign in signs.items() if hasattr(item, name)]
    return words


def _bare(annotation: Any, *, keep_none: bool = False) -> Any:
    """The type without ``Annotated`` and, unless kept, without ``None``."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if not keep_none and get_origin(annotation) in (Union, types.UnionType):
        members = [member for member in get_args(annotation) if member is not type(None)]
        if len(members) == 1:
            return _bare(members[0])
    return annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    bare = _bare(annotation)
    return get_args(bare) if get_origin(bare) in (Union, types.UnionType) else ()


def _literals(annotation: Any) -> tuple[Any, ...]:
    bare = _bare(annotation)
    return get_args(bare) if get_origin(bare) is Literal else ()


def _tags(annotation: Any) -> list[str]:
    bare = _bare(annotation)
    if _is_model(bare):
        info = bare.model_fields.get("kind")
        return [] if info is None else [str(value) for value in _literals(info.annotation)]
    return [tag for member in _members(bare) for tag in _tags(member)]


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _is_secret(annotation: Any) -> bool:
    return _bare(annotation) is SecretStr


def _show(value: Any, *, secret: bool) -> str:
    if secret:
        return "a value that is not shown"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        return f"a mapping with the keys {', '.join(map(str, value))}" if value else "an empty mapping"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
