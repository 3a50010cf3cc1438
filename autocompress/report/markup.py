"""HTML whose text is escaped unless it says that it is markup."""

from __future__ import annotations

import html
import json
from typing import Any

_VOID = frozenset({"br", "meta", "link"})


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: str | bool | None) -> Html:
    """An element.

    Args:
        name: of the element.
        children: `Html` goes in as it is, other text is escaped, None is left out.
        attributes: values are escaped; True is written without a value, False and None are left out. A trailing
            underscore is dropped and others become hyphens, so ``class_`` and ``aria_label`` can be written.
    """
    told = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value), quote=True)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    return Html(f"<{name}{told}>" if name in _VOID else f"<{name}{told}>{join(*children)}</{name}>")


def join(*children: str | None) -> Html:
    """Children one after the other; text that is not `Html` is escaped."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c, quote=False) for c in children if c is not None))


def script_json(value: Any) -> Html:
    """JSON that may stand inside a script element: no text in it can end the element or open a comment.

    Raises:
        ValueError: a value is NaN or infinite, which JSON cannot say.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for char, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        text = text.replace(char, escape)
    return Html(text)
