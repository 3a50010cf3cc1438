"""Keeps credentials out of every text that leaves the registry: errors, tags, parameters."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, unquote, urlsplit

_HIDDEN = "***"
# Up to the last "@": database drivers take passwords with unquoted "/" and "@". A path (":///") has no user part.
_USERINFO = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)(?!/)[^\s'\"]*@")
_PARAMETER = re.compile(
    r"(?P<key>\b(?:password|passwd|pwd|token|secret|api_key|apikey|access_key|sslpassword)=)[^&\s'\";]+", re.IGNORECASE
)
#: MLflow's own credentials for a tracking server.
_VARIABLES = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")


def redact(text: str, uri: str | None = None) -> str:
    """`text` with credentials replaced by ``***``.

    Hidden are the user part of every URL, every ``password=…``, ``token=…`` and the like, and, wherever they stand,
    the password and query values of `uri` and the values of MLflow's credential variables.

    Args:
        text: any text.
        uri: an address whose secrets are looked for literally, raw and percent-decoded.

    Examples:
        >>> redact("cannot reach postgresql://ann:s3cret@db/x")
        'cannot reach postgresql://***@db/x'
    """
    text = _USERINFO.sub(rf"\g<scheme>{_HIDDEN}@", text)
    text = _PARAMETER.sub(rf"\g<key>{_HIDDEN}", text)
    for secret in sorted(_secrets(uri), key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    return text


def _secrets(uri: str | None) -> set[str]:
    found = {os.environ.get(name, "") for name in _VARIABLES}
    if uri is not None:
        rest = uri.partition("://")[2].partition("?")[0]
        user, _, password = ("" if rest.startswith("/") else rest.rpartition("@")[0]).partition(":")
        values = [value for _, value in parse_qsl(urlsplit(uri).query) if len(value) > 7]
        found |= {password, unquote(password), *values}
        # A token stands before the "@" alone: https://token@host.
        if user and not password:
            found |= {user, unquote(user)}
    # A very short secret would blank out ordinary words; the patterns above still hide it inside an address.
    return {secret for secret in found if len(secret) > 3}
