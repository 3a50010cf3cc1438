"""The dense model's file, kept once with the study's run: a latency ratio can only be measured again beside it."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from autocompress.errors import RegistryError, VerificationError
from autocompress.registry.card import EvidenceCard
from autocompress.registry.connection import Connection
from autocompress.registry.tags import KIND, STUDY_KEY, study_key
from autocompress.registry.tracking import find_runs

_FOLDER = "dense"


def keep_dense(connection: Connection, parent_run: str, onnx_bytes: bytes) -> None:
    """Store the file unless it is there, whole; see `Store.keep_dense`."""
    name = _name(hashlib.sha256(onnx_bytes).hexdigest())
    with connection.guard(f"keeping the dense model with run {parent_run}") as client:
        if _stored(connection, parent_run, name) == onnx_bytes:
            return
        with tempfile.TemporaryDirectory(prefix="autocompress-") as folder:
            path = Path(folder) / name
            path.write_bytes(onnx_bytes)
            client.log_artifact(parent_run, str(path), _FOLDER)
        if _stored(connection, parent_run, name) != onnx_bytes:
            raise RegistryError(
                f"keeping the dense model with run {parent_run}: the registry stored other bytes than were sent; "
                "check the artifact store and run the study again"
            )


def read_dense(connection: Connection, card: EvidenceCard) -> bytes:
    """The file that the card's baseline names; see `Store.dense`."""
    lineage, sha256 = card.origin.lineage, card.origin.dense.artifact.sha256
    with connection.guard(f"fetching the dense model of study {lineage.study!r}") as client:
        experiment = connection.experiment(lineage.study)
        parents = find_runs(client, experiment, {STUDY_KEY: study_key(lineage), KIND: "study"})
        for run in parents:
            found = _stored(connection, run.info.run_id, _name(sha256))
            if found is not None:
                break
        else:
            raise RegistryError(
                f"study {lineage.study!r} kept no dense model with sha256 {sha256}; run the study again to keep it"
            )
    got = hashlib.sha256(found).hexdigest()
    if got != sha256:
        raise VerificationError(
            f"dense model of study {lineage.study!r}: expected sha256 {sha256}, got {got}; "
            "the artifact store was changed"
        )
    return found


def _name(sha256: str) -> str:
    return f"{sha256}.onnx"


def _stored(connection: Connection, run_id: str, name: str) -> bytes | None:
    client = connection.client
    path = f"{_FOLDER}/{name}"
    if path not in {item.path for item in client.list_artifacts(run_id, _FOLDER)}:
        return None
    return connection.read(str(client.get_run(run_id).info.artifact_uri), path)
