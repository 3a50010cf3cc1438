"""Addresses: of a tracking server or store, and of a model version in it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from autocompress.errors import RegistryError
from autocompress.records import Record
from autocompress.registry.redact import redact

_SERVERS = frozenset({"http", "https", "databricks", "databricks-uc"})
_DATABASES = frozenset({"sqlite", "postgresql", "mysql", "mssql"})
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ -]*")
_URI = re.compile(r"models:/(?P<model>[^/:@]+)(?:/(?P<version>[1-9][0-9]*)|@(?P<alias>[A-Za-z0-9_-]+))")


class ModelUri(Record):
    """``models:/name/3`` or ``models:/name@alias``; exactly one of `version` and `alias` is set."""

    model: str
    version: int | None = None
    alias: str | None = None

    @classmethod
    def parse(cls, text: str) -> ModelUri:
        """Read an address.

        Raises:
            RegistryError: `text` has neither form.
        """
        match = _URI.fullmatch(text)
        if match is None:
            raise RegistryError(f"model address: expected models:/NAME/VERSION or models:/NAME@ALIAS, got {text!r}")
        version = match["version"]
        return cls(
            model=check_model_name(match["model"]), version=int(version) if version else None, alias=match["alias"]
        )

    def __str__(self) -> str:
        """The address as MLflow writes it."""
        return f"models:/{self.model}@{self.alias}" if self.version is None else f"models:/{self.model}/{self.version}"


def check_model_name(name: str) -> str:
    """`name`, if the registry and its filters take it.

    Raises:
        RegistryError: another character than letters, digits, space, ``.``, ``_`` and ``-``.
    """
    if _NAME.fullmatch(name) is None:
        raise RegistryError(f"model name: expected letters, digits, spaces, '.', '_' or '-', got {name!r}")
    return name


def tracking_address(uri: str | None, folder: Path) -> str:
    """The tracking address to use, absolute.

    Args:
        uri: as the user gave it; None takes ``MLFLOW_TRACKING_URI``, or else a SQLite file ``mlflow.db`` in `folder`.
        folder: folder of all studies.

    Raises:
        RegistryError: the address is of a kind that cannot hold a model registry.
    """
    chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
    scheme = urlsplit(chosen).scheme
    if chosen != "databricks" and scheme not in _SERVERS and scheme.partition("+")[0] not in _DATABASES:
        raise RegistryError(
            "tracking address: expected http(s)://HOST:PORT, sqlite:////PATH/mlflow.db or another database URL, got "
            f"{redact(chosen, chosen)!r}; folders of files (file:...) cannot hold a registry"
        )
    file = sqlite_file(chosen)
    return chosen if file is None else f"sqlite:///{file}{_query(chosen)}"


def sqlite_file(uri: str) -> Path | None:
    """The absolute path of a SQLite address; None for every other kind of address.

    Raises:
        RegistryError: the address is of a database in memory.
    """
    if not uri.startswith("sqlite:"):
        return None
    path = uri.partition("?")[0].partition(":///")[2]
    if path in ("", ":memory:"):
        raise RegistryError(f"tracking address: expected sqlite:////PATH/mlflow.db, got {uri!r}")
    return Path(path).resolve()


def is_server(uri: str) -> bool:
    """Whether a tracking server stands behind `uri`, which then keeps the artifacts itself."""
    return urlsplit(uri).scheme in _SERVERS or uri == "databricks"


def _query(uri: str) -> str:
    _, mark, query = uri.partition("?")
    return mark + query
