"""A self-contained page around a body: no network, light and dark, wide and narrow."""

from __future__ import annotations

from collections.abc import Mapping

from plotly.offline import get_plotlyjs

from autocompress.report.figures import Figure
from autocompress.report.markup import Html, join, script_json, tag
from autocompress.report.style import CSS, SCRIPT

#: The page may run its own script and style, and load nothing.
_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def page(title: str, body: Html, figures: Mapping[str, Figure]) -> str:
    """The whole document.

    Args:
        title: of the window.
        body: what it shows, with an element for each figure.
        figures: by the id of their element.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'),
        tag("title", title),
        tag("style", Html(CSS)),
    )
    scripts = join(
        tag("script", script_json(dict(figures)), type="application/json", id="figures"),
        tag("script", Html(get_plotlyjs())),
        tag("script", Html(SCRIPT)),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body, scripts), lang='en')}\n"
