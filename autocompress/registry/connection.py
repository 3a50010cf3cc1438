"""One tracking address: opened once, quiet, and with errors that say what to do and hide credentials.

MLflow is imported by functions here and nowhere at module level, because it takes seconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from autocompress.errors import AutocompressError, RegistryError
from autocompress.registry.address import is_server, sqlite_file, tracking_address
from autocompress.registry.redact import redact

if TYPE_CHECKING:
    from mlflow import MlflowClient

T = TypeVar("T", covariant=True)

#: Set only where the user has not: each can be overridden from outside.
_QUIET = {
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "GIT_PYTHON_REFRESH": "quiet",
}
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


class Page(Protocol[T]):
    """A page of MLflow's search results."""

    token: str | None

    def __iter__(self) -> Iterator[T]: ...


def all_pages(search: Callable[[str | None], Page[T]]) -> list[T]:
    """Every result of a paged search; `search` takes the token of the page to fetch."""
    found: list[T] = []
    token: str | None = None
    while True:
        page = search(token)
        found.extend(page)
        # A server may send an empty text instead of no token at the end.
        token = page.token or None
        if token is None:
            return found


class Connection:
    """A tracking address and, once it is first used, an MLflow client of it.

    Nothing is opened when this is made. Tracking and registry share the address.
    """

    def __init__(self, tracking_uri: str | None, folder: Path) -> None:
        """See `autocompress.registry.store.Store`."""
        self.uri = tracking_address(tracking_uri, folder)
        self.artifacts = None if is_server(self.uri) else folder.resolve() / "mlartifacts"

    @property
    def safe_uri(self) -> str:
        """The address without credentials, for messages."""
        return redact(self.uri, self.uri)

    @cached_property
    def client(self) -> MlflowClient:
        """The client; the first use creates a SQLite file's tables, one process at a time."""
        _silence_before_import()
        _reachable(self.uri)
        from mlflow import MlflowClient

        _silence_loggers()
        file = sqlite_file(self.uri)
        if file is None:
            return MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        file.parent.mkdir(parents=True, exist_ok=True)
        # Two processes that create the tables at once leave a database that no process can open again.
        with Path(f"{file}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
        return client

    @contextmanager
    def guard(self, doing: str) -> Iterator[MlflowClient]:
        """The client, for a block whose failures become errors that name what was being done.

        Raises:
            RegistryError: MLflow, its database, the network or the file system failed in the block.
        """
        try:
            yield self.client
        except AutocompressError:
            raise
        except Exception as error:
            if not _is_expected(error):
                raise
            # Without the cause: its text and its frames hold the address with its credentials.
            raise RegistryError(f"{doing}: {self.safe_uri}: {redact(_first_lines(error), self.uri)}") from None

    def experiment(self, study: str) -> str:
        """Id of the study's experiment, created if there is none.

        Raises:
            RegistryError: the experiment was deleted in MLflow.
        """
        from mlflow.exceptions import MlflowException

        name = f"autocompress/{study}"
        found = self.client.get_experiment_by_name(name)
        if found is None:
            location = None if self.artifacts is None else self.artifacts.as_uri()
            try:
                return str(self.client.create_experiment(name, artifact_location=location))
            except MlflowException:
                # Another process, or a repeated request whose first reply was lost, may have created it.
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise RegistryError(
                f"experiment {name!r} (id {found.experiment_id}) was deleted; "
                f"restore it with `mlflow experiments restore -x {found.experiment_id}` or give the study another name"
            )
        return str(found.experiment_id)

    def read(self, location: str, name: str) -> bytes:
        """The bytes of one file below an artifact location."""
        from mlflow.artifacts import download_artifacts

        with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
            path: Any = download_artifacts(
                artifact_uri=f"{location.rstrip('/')}/{name}",
                dst_path=folder,
                tracking_uri=self.uri,
                registry_uri=self.uri,
            )
            return Path(path).read_bytes()


def _reachable(uri: str) -> None:
    # MLflow asks a database that is away ten times with growing pauses, nearly two minutes.
    if is_server(uri):
        return
    from sqlalchemy.engine import make_url

    address = make_url(uri)
    port = address.port or _PORTS.get(address.get_backend_name())
    # An unquoted "@" in the password leaves its end in front of the host.
    host = (address.host or "").rpartition("@")[2]
    if port is None or not host:
        return
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise RegistryError(
            f"tracking database {redact(uri, uri)}: no answer at {host}:{port} ({error}); "
            "start it, or set another MLFLOW_TRACKING_URI"
        ) from None


def _silence_before_import() -> None:
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    # Not a default but a rule: no model of this registry is ever read by unpickling.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"


def _silence_loggers() -> None:
    # MLflow may have been imported before its level was chosen here; a level that the user chose stays.
    chosen = logging.getLevelName(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    logging.getLogger("mlflow").setLevel(chosen if isinstance(chosen, int) else logging.ERROR)
    for name, level in (("alembic", logging.WARNING), ("urllib3", logging.ERROR)):
        logging.getLogger(name).setLevel(level)


def _is_expected(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return isinstance(error, MlflowException | RequestException | SQLAlchemyError | OSError | ModuleNotFoundError)


def _first_lines(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 600 else text[:600] + " …"
