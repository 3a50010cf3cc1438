from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autocompress.errors import RegistryError
from autocompress.records import Finalist, Lineage, TrialRecord
from autocompress.registry.address import ModelUri, tracking_address
from autocompress.registry.card import EvidenceCard, Origin
from autocompress.registry.redact import redact
from autocompress.registry.store import Store
from autocompress.registry.tags import values


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _whole_text(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + str(error) + repr(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://ann:s3cret@db:5432/x", "postgresql://***@db:5432/x"),
        ("https://token@host/a and http://u:p@b", "https://***@host/a and http://***@b"),
        ("postgresql://ann:p@ss@db/x", "postgresql://***@db/x"),
        ("postgresql://ann:p/ss@db/x", "postgresql://***@db/x"),
        ("sqlite:////home/a@b/mlflow.db", "sqlite:////home/a@b/mlflow.db"),
        ("x?password=abc&user=ann", "x?password=***&user=ann"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("mail ann@example.org", "mail ann@example.org"),
    ],
)
def test_credentials_are_hidden_in_any_text(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_the_password_of_an_address_is_hidden_wherever_it_stands() -> None:
    uri = "postgresql://ann:p%40ssw0rd@db/x"
    assert redact("no entry for 'ann' with p@ssw0rd or p%40ssw0rd", uri) == "no entry for 'ann' with *** or ***"


def test_mlflow_credentials_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "abcdef123")
    assert redact("Bearer abcdef123 refused") == "Bearer *** refused"


@pytest.mark.parametrize("uri", ["file:///tmp/mlruns", "/tmp/mlruns", "./mlruns", "s3://bucket/x", "sqlite://"])  # noqa: S108
def test_an_address_without_a_registry_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="tracking address: expected "):
        Store(uri, tmp_path)


def test_addresses_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert tracking_address(None, Path("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_address("sqlite:///here.db?timeout=30", Path("runs")) == f"sqlite:///{tmp_path}/here.db?timeout=30"


def test_model_addresses_have_two_forms() -> None:
    assert ModelUri.parse("models:/my net/12") == ModelUri(model="my net", version=12)
    assert ModelUri.parse("models:/net@most-accurate") == ModelUri(model="net", alias="most-accurate")
    for text in ("models:/net/12", "models:/net@knee"):
        assert str(ModelUri.parse(text)) == text


@pytest.mark.integration
def test_a_server_that_is_away_says_so_without_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    store = Store(f"http://ann:hunter22@127.0.0.1:{_free_port()}", tmp_path)
    began = time.perf_counter()
    with pytest.raises(RegistryError, match=r"looking up 'digits': http://\*\*\*@127.0.0.1:") as caught:
        store.versions("digits")
    assert time.perf_counter() - began < 20
    assert "hunter22" not in _whole_text(caught.value)
    assert "hunter22" not in repr(store)


@pytest.mark.integration
@pytest.mark.parametrize("password", ["hunter22", "hunt/hunter22", "hunt@hunter22", "hunt%2Fhunter22"])
def test_a_database_that_is_away_says_so_at_once_without_the_password(
    password: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    store = Store(f"postgresql://ann:{password}@127.0.0.1:{_free_port()}/mlflow", tmp_path)
    with pytest.raises(RegistryError, match=r"no answer at 127.0.0.1:\d+ .*start it, or set another") as caught:
        store.versions("digits")
    assert "hunter22" not in _whole_text(caught.value) + caplog.text


@pytest.mark.integration
def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("not a database, and long enough to be taken for a damaged one" * 20)
    with pytest.raises(RegistryError, match=r"looking up 'digits': sqlite:////.*not a database"):
        Store(f"sqlite:///{tmp_path}/mlflow.db", tmp_path).versions("digits")


def test_importing_the_registry_is_quick_and_loads_no_mlflow() -> None:
    code = """
        import sys
        import autocompress.registry.store
        heavy = {"mlflow", "onnx", "torch", "sqlalchemy", "alembic"} & set(sys.modules)
        sys.exit(f"loaded {heavy}" if heavy else 0)
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, capture_output=True, timeout=60)
    assert run.stderr == b""
    assert run.returncode == 0


def test_a_question_does_not_create_the_store(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"no model 'digits': .*mlflow\.db does not exist yet"):
        Store(None, tmp_path / "runs").versions("digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.integration
def test_four_processes_may_open_a_fresh_store_at_once_and_the_terminal_stays_calm(tmp_path: Path) -> None:
    code = """
        import sys
        from pathlib import Path
        from autocompress.registry.connection import Connection
        sys.exit(len(Connection(None, Path(sys.argv[1])).client.search_registered_models()))
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW", "PYTHONWARNINGS"))}
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "new" / "runs")]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) for _ in range(4)
    ]
    for process in running:
        out, err = process.communicate(timeout=180)
        assert (out, err) == (b"", b"")
        assert process.returncode == 0


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[str]:
    """A real MLflow server on loopback, which keeps the artifacts itself."""
    port = _free_port()
    address = f"http://127.0.0.1:{port}"
    (tmp_path / "server").mkdir()
    database = tmp_path / "server" / "mlflow.db"
    database.write_bytes(empty_database.read_bytes())
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{database}",
        "--artifacts-destination",
        str(tmp_path / "server/files"),
    ]
    with (tmp_path / "server" / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=tmp_path / "server",
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        deadline = time.monotonic() + 90
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=2).close()  # noqa: S310
                break
            except OSError:
                if time.monotonic() > deadline or process.poll() is not None:
                    pytest.fail((tmp_path / "server" / "log").read_text()[-3000:])
                time.sleep(0.3)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.mark.slow
@pytest.mark.integration
def test_everything_works_over_a_real_server(
    server: str,
    tmp_path: Path,
    network: Callable[..., bytes],
    finalist: Callable[..., Finalist],
    origin: Origin,
    lineage: Lineage,
    trials: Callable[[int], list[TrialRecord]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    store = Store(server.replace("//", "//ann:hunter22@"), tmp_path / "client")
    parent = store.track_study("digits", {"seed": 7}, lineage, trials(5))
    assert store.track_study("digits", {"seed": 7}, lineage, trials(5)) == parent
    store.keep_dense(parent, network(99))
    made = []
    for seed in (0, 1, 0):
        chosen = finalist(seed, network(seed))
        card = EvidenceCard.of("digits", chosen, origin)
        made.append(store.register("digits", chosen, network(seed), card, lineage, parent))
    assert [v.version for v in made] == [1, 2, 1]
    store.alias("digits", {"fastest": made[0], "champion": made[1]})
    store.alias("digits", {"champion": made[0]})
    assert [v.aliases for v in store.versions("digits")] == [("champion", "fastest"), ()]
    data, card = store.fetch("models:/digits@champion")
    assert store.dense("models:/digits@champion") == network(99)
    assert data == network(0)
    assert values(store.resolve("models:/digits/2")) == {
        k: e.value for k, e in finalist(1, network(1)).final.values.items()
    }
    assert store.download("models:/digits/2", tmp_path / "out").read_bytes() == network(1)
    client = store._connection.client
    runs = client.search_runs([store._connection.experiment("digits")])
    assert len(runs) == 1 + 5 + 2
    assert client.get_run(made[0].run_id).data.tags["mlflow.parentRunId"] == parent
    everything = str([r.to_dictionary() for r in runs]) + str(store.versions("digits")) + card.model_dump_json()
    assert "hunter22" not in everything
    # Nothing of it was written on the client's side, and nothing was printed.
    assert not (tmp_path / "client").exists()
    assert capfd.readouterr() == ("", "")
    with pytest.raises(RegistryError, match="no model 'digit'") as caught:
        store.fetch("models:/digit/1")
    assert "hunter22" not in _whole_text(caught.value)
