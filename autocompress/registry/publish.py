"""One finalist into the registry: run, model files, version; each step is found again if it was done before."""

from __future__ import annotations

import hashlib
import tempfile
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autocompress.errors import RegistryError
from autocompress.registry.card import EvidenceCard
from autocompress.registry.connection import Connection, all_pages
from autocompress.registry.markdown import card_summary
from autocompress.registry.tags import KEY, KIND, PREFIX, registration_key, registry_tags, version_tags
from autocompress.registry.tracking import PARENT, find_runs, log_params, milliseconds

if TYPE_CHECKING:
    import onnx
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

MODEL_FILE = "model.onnx"
CARD_FILE = "card.json"
PAGE_FILE = "card.md"


def publish(connection: Connection, card: EvidenceCard, onnx_bytes: bytes, parent_run: str | None) -> ModelVersion:
    """The version that holds `onnx_bytes`, made unless it is there; see `Store.register`."""
    proto = _parse(onnx_bytes, card)
    key = registration_key(card.origin.lineage, card.plan, card.artifact.sha256)
    with connection.guard(f"registering trial {card.trial} as {card.model!r}") as client:
        experiment = connection.experiment(card.origin.lineage.study)
        found = _same_versions(client, card.model, key)
        if not found:
            run = _run(client, experiment, card, key, parent_run)
            logged, card_sha256 = _log_model(connection, experiment, run, card, key, onnx_bytes, proto)
            _ensure_model(client, card.model)
            client.create_model_version(
                card.model,
                # The location itself: a models:/ address would be looked up in MLflow's process-wide store.
                source=logged.artifact_location,
                run_id=run.info.run_id,
                model_id=logged.model_id,
                tags=version_tags(card, key, card_sha256),
                description=card_summary(card),
            )
            found = _same_versions(client, card.model, key)
        # A request that was repeated after a lost reply made a second version of the same content.
        for double in found[1:]:
            client.delete_model_version(card.model, str(double.version))
        for run in find_runs(client, experiment, {KEY: key}):
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id)
        return found[0]


def _parse(onnx_bytes: bytes, card: EvidenceCard) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    sha256 = hashlib.sha256(onnx_bytes).hexdigest()
    if sha256 != card.artifact.sha256:
        raise RegistryError(
            f"trial {card.trial}: expected the measured file, sha256 {card.artifact.sha256}, got one with {sha256}"
        )
    try:
        proto = onnx.load_model_from_string(onnx_bytes)
    except DecodeError as error:
        raise RegistryError(f"trial {card.trial}: expected an ONNX file, got {len(onnx_bytes)} other bytes") from error
    if proto.SerializeToString() != onnx_bytes:
        raise RegistryError(
            f"trial {card.trial}: MLflow would write this model as other bytes than those that were measured; "
            "export it in protobuf's own order: onnx.load_model_from_string(data).SerializeToString()"
        )
    return proto


def _same_versions(client: MlflowClient, model: str, key: str) -> list[ModelVersion]:
    found = all_pages(
        lambda token: client.search_model_versions(f"name = '{model}' and tags.`{KEY}` = '{key}'", page_token=token)
    )
    return sorted(found, key=lambda v: int(v.version))


def _ensure_model(client: MlflowClient, model: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(
            model, description="Compressed networks; each version carries its evidence in card.md and card.json."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _run(client: MlflowClient, experiment: str, card: EvidenceCard, key: str, parent_run: str | None) -> Run:
    wanted = {KEY: key, KIND: "finalist"}
    found = find_runs(client, experiment, wanted)
    for double in found[1:]:
        client.delete_run(double.info.run_id)
    if found:
        run = found[0]
    else:
        tags = version_tags(card, key, card_sha256="") | ({PARENT: parent_run} if parent_run else {})
        run = client.create_run(
            experiment,
            tags=registry_tags({name: value for name, value in tags.items() if value}),
            run_name=f"finalist-{card.trial:04d}",
        )
    log_params(client, run, {"trial": card.trial, "seed": card.origin.seed, "epochs": card.final.fidelity.epochs})
    return run


def _log_model(
    connection: Connection,
    experiment: str,
    run: Run,
    card: EvidenceCard,
    key: str,
    onnx_bytes: bytes,
    proto: onnx.ModelProto,
) -> tuple[LoggedModel, str]:
    """Upload the files, read back what is stored, and only then call the model ready."""
    from mlflow.entities import LoggedModelOutput

    client = connection.client
    run_id = run.info.run_id
    logged = _logged_model(client, experiment, run_id, card, key)
    with tempfile.TemporaryDirectory(prefix="autocompress-") as name:
        folder = Path(name) / "model"
        _save(folder, proto, run_id, logged.model_id)
        text = card.model_dump_json(indent=2)
        (folder / CARD_FILE).write_text(text, encoding="utf-8")
        (folder / PAGE_FILE).write_text(card.to_markdown(), encoding="utf-8")
        client.log_model_artifacts(logged.model_id, str(folder))
    for file, expected in ((MODEL_FILE, onnx_bytes), (CARD_FILE, text.encode())):
        stored = connection.read(logged.artifact_location, file)
        if stored != expected:
            raise RegistryError(
                f"trial {card.trial}: the registry stored other bytes than were sent as {file}: expected sha256 "
                f"{hashlib.sha256(expected).hexdigest()}, got {hashlib.sha256(stored).hexdigest()}; "
                "no version was made; check the artifact store and register again"
            )
    if not (run.outputs and run.outputs.model_outputs):
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
    _log_metrics(client, run_id, logged.model_id, card)
    client.finalize_logged_model(logged.model_id, "READY")
    return logged, hashlib.sha256(text.encode()).hexdigest()


def _logged_model(client: MlflowClient, experiment: str, run_id: str, card: EvidenceCard, key: str) -> LoggedModel:
    found = all_pages(
        lambda token: client.search_logged_models(
            [experiment], filter_string=f"tags.`{KEY}` = '{key}'", page_token=token
        )
    )
    if found:
        return min(found, key=lambda model: (model.creation_timestamp, model.model_id))
    return client.create_logged_model(
        experiment,
        name=f"finalist-{card.trial:04d}",
        source_run_id=run_id,
        tags={KEY: key, PREFIX + "sha256": card.artifact.sha256},
        model_type="onnx",
    )


def _save(folder: Path, proto: onnx.ModelProto, run_id: str, model_id: str) -> None:
    # Typed as Any: these functions of MLflow carry no types.
    import mlflow.models
    import mlflow.onnx

    flavor: Any = mlflow.onnx
    model: Any = mlflow.models.Model
    flavor.save_model(
        proto,
        str(folder),
        mlflow_model=model(run_id=run_id, model_id=model_id, model_uuid=model_id),
        signature=_signature(proto),
        pip_requirements=[f"{package}=={installed(package)}" for package in ("onnx", "onnxruntime", "numpy")],
        onnx_execution_providers=["CPUExecutionProvider"],
        # The default moves the weights out of the proto, into a second file.
        save_as_external_data=False,
    )


def _signature(proto: onnx.ModelProto) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import Schema

    stored = {x.name for x in proto.graph.initializer}
    inputs = [_tensor(x, "input") for x in proto.graph.input if x.name not in stored]
    outputs = [_tensor(x, "output") for x in proto.graph.output]
    signature: Any = ModelSignature
    schema: Any = Schema
    return signature(inputs=schema(inputs), outputs=schema(outputs))


def _tensor(value: onnx.ValueInfoProto, what: str) -> Any:
    from mlflow.types import TensorSpec
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
    if not shape or shape[0] != -1:
        raise RegistryError(
            f"{what} {value.name!r} of the ONNX file: expected a free batch axis first, got shape {list(shape)}; "
            "export the network with a free batch axis"
        )
    spec: Any = TensorSpec
    return spec(tensor_dtype_to_np_dtype(kind.elem_type), shape, name=value.name)


def _log_metrics(client: MlflowClient, run_id: str, model_id: str, card: EvidenceCard) -> None:
    from mlflow.entities import Metric

    final, moment = card.final, milliseconds(card.created)
    values = {"test_accuracy": card.test.value, "latency_ratio": final.latency.ratio.value}
    for name, estimate in final.values.items():
        values |= {name: estimate.value, f"{name}.low": estimate.low, f"{name}.high": estimate.high}
    client.log_batch(
        run_id, metrics=[Metric(name, value, moment, 0, model_id=model_id) for name, value in values.items()]
    )
