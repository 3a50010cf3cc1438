"""Where a ledger lies: a journal file or a database, and what is wrong with it in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import BaseStorage, JournalStorage, RDBStorage

from autocompress.errors import AutocompressError, SearchError
from autocompress.search.journal import JournalFile

#: Seconds that a SQLite ledger may be locked by another program.
_SQLITE_WAIT_S = 30


def open_storage(storage: str | Path) -> BaseStorage:
    """Optuna's storage at the path of a journal file, or at a database's URL."""
    if isinstance(storage, Path):
        return JournalStorage(JournalFile(storage))
    options: dict[str, Any] = {}
    if storage.startswith("sqlite"):
        options = {"connect_args": {"timeout": _SQLITE_WAIT_S}}
    return RDBStorage(storage, engine_kwargs=options)


@contextmanager
def readable(storage: str | Path) -> Iterator[None]:
    """Turn what a storage raises into one error that names the ledger without its password."""
    try:
        yield
    except AutocompressError:
        raise
    except Exception as error:  # noqa: BLE001 - databases raise what they like; it is raised again, named
        shown, message = str(storage), f"{type(error).__name__}: {error}"
        if isinstance(storage, str):
            from sqlalchemy.engine import make_url
            from sqlalchemy.exc import ArgumentError

            try:
                url = make_url(storage)
                shown = url.render_as_string(hide_password=True)
                message = message.replace(str(url.password), "***") if url.password else message
            except ArgumentError:
                shown, message = "(an URL that cannot be read)", type(error).__name__
        raise SearchError(
            f"ledger {shown} cannot be opened: {message.splitlines()[0]}; restore it from a backup, or move it away to "
            "begin anew"
        ) from (None if isinstance(storage, str) else error)
