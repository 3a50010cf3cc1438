from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import onnx
import pytest

from autocompress.errors import RegistryError, VerificationError
from autocompress.records import Finalist, Lineage, Version
from autocompress.registry.card import EvidenceCard, Origin
from autocompress.registry.store import ALIASES, Store
from autocompress.registry.tags import estimates, is_noisy, values
from autocompress.registry.tags import test_accuracy as accuracy_on_test

pytestmark = pytest.mark.integration
Network = Callable[..., bytes]
MakeFinalist = Callable[..., Finalist]
Register = Callable[..., Version]


def _artifacts(store: Store, version: Version) -> Path:
    location = store._connection.client.get_model_version_download_uri(version.model, str(version.version))
    return Path(url2pathname(urlsplit(location).path))


def test_registered_bytes_and_card_come_back_unchanged(
    store: Store, register: Register, network: Network, finalist: MakeFinalist, origin: Origin
) -> None:
    version = register(3)
    data, card = store.fetch(version.uri)
    assert data == network(3)
    assert hashlib.sha256(data).hexdigest() == version.sha256 == card.artifact.sha256
    expected = EvidenceCard.of("digits", finalist(3, data), origin, created=card.created)
    assert card == expected
    assert version.model == "digits"
    assert version.version == 1
    assert version.run_id


def test_tags_give_the_very_floats_that_were_measured(
    register: Register, network: Network, finalist: MakeFinalist
) -> None:
    version = register(2)
    final = finalist(2, network(2)).final
    assert estimates(version) == final.values
    assert values(version) == {name: e.value for name, e in final.values.items()}
    assert accuracy_on_test(version) == 0.91
    assert not is_noisy(version)
    assert version.tags["autocompress.plan"] == "1 group cut, 1 layer int8"
    assert version.tags["autocompress.study"] == "digits"
    assert version.tags["autocompress.host"] == final.host.key


def test_values_hold_no_figure_of_the_test_split(register: Register) -> None:
    assert "test_accuracy" not in values(register())


def test_registering_again_registers_nothing(store: Store, register: Register, origin: Origin) -> None:
    first = register()
    again = register()
    other = Store(None, store._connection.artifacts.parent)  # type: ignore[union-attr]
    third = register(0, other)
    assert first == again == third
    client = store._connection.client
    assert len(store.versions("digits")) == 1
    experiment = store._connection.experiment(origin.lineage.study)
    assert len(client.search_runs([experiment])) == 1
    assert len(client.search_logged_models([experiment])) == 1


def test_another_study_of_the_same_bytes_is_another_version(
    store: Store, register: Register, network: Network, finalist: MakeFinalist, origin: Origin
) -> None:
    register()
    lineage = origin.lineage.model_copy(update={"data_sha256": "f" * 64})
    chosen = finalist(0, network(0))
    card = EvidenceCard.of("digits", chosen, origin.model_copy(update={"lineage": lineage}))
    assert store.register("digits", chosen, network(0), card, lineage).version == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "step",
    ["create_logged_model", "log_model_artifacts", "finalize_logged_model", "create_model_version", "set_terminated"],
)
def test_a_process_that_dies_while_registering_leaves_nothing_twice(
    step: str,
    store: Store,
    register: Register,
    network: Network,
    finalist: MakeFinalist,
    origin: Origin,
    tmp_path: Path,
) -> None:
    """The process is killed right after `step` was done, the worst moment: nothing knows that it was."""
    chosen = finalist(0, network(0))
    (tmp_path / "finalist.json").write_text(chosen.model_dump_json())
    (tmp_path / "card.json").write_text(EvidenceCard.of("digits", chosen, origin).model_dump_json())
    (tmp_path / "model.onnx").write_bytes(network(0))
    script = """
        import os, sys
        from pathlib import Path
        from mlflow import MlflowClient
        from autocompress.records import Finalist
        from autocompress.registry.card import EvidenceCard
        from autocompress.registry.store import Store
        folder, store, step = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
        done = getattr(MlflowClient, step)
        def die(*args, **kwargs):
            done(*args, **kwargs)
            os._exit(9)
        setattr(MlflowClient, step, die)
        card = EvidenceCard.model_validate_json((folder / "card.json").read_text())
        Store(None, store).register(
            "digits",
            Finalist.model_validate_json((folder / "finalist.json").read_text()),
            (folder / "model.onnx").read_bytes(),
            card,
            card.origin.lineage,
        )
    """
    root = store._connection.artifacts.parent  # type: ignore[union-attr]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path), str(root), step], check=False, timeout=120
    )
    assert run.returncode == 9
    version = register()
    client = store._connection.client
    experiment = store._connection.experiment("digits")
    runs = client.search_runs([experiment])
    assert [v.version for v in store.versions("digits")] == [1]
    assert [r.info.status for r in runs] == ["FINISHED"]
    assert len(client.search_logged_models([experiment])) == 1
    outputs = client.get_run(version.run_id).outputs
    assert outputs is not None
    assert len(outputs.model_outputs) == 1
    assert store.fetch(version.uri)[0] == network(0)


def test_versions_that_a_lost_reply_doubled_are_removed(store: Store, register: Register) -> None:
    version = register()
    client = store._connection.client
    location = client.get_model_version_download_uri("digits", "1")
    client.create_model_version("digits", location, run_id=version.run_id, tags=dict(version.tags))
    assert len(store.versions("digits")) == 2
    assert register() == version
    assert len(store.versions("digits")) == 1


def test_aliases_move_and_never_double(store: Store, register: Register) -> None:
    one, two = register(0), register(1)
    store.alias("digits", {"fastest": one, "smallest": one})
    store.alias("digits", {"fastest": two})
    assert [v.aliases for v in store.versions("digits")] == [("smallest",), ("fastest",)]
    assert store.resolve("models:/digits@fastest").version == two.version
    assert store.fetch("models:/digits@smallest")[1].trial == 0


def test_every_alias_of_the_project_is_one_that_mlflow_takes(store: Store, register: Register) -> None:
    version = register()
    store.alias("digits", dict.fromkeys(ALIASES, version))
    assert store.versions("digits")[0].aliases == tuple(sorted(ALIASES))


def test_nothing_moves_when_one_alias_is_wrong(store: Store, register: Register) -> None:
    version = register()
    with pytest.raises(RegistryError, match=r"expected one of fastest, knee, .*got 'quickest'"):
        store.alias("digits", {"fastest": version, "quickest": version})  # type: ignore[dict-item]
    with pytest.raises(RegistryError, match=r"models:/digits/9: no such version; the latest are 1"):
        store.alias("digits", {"fastest": version, "knee": 9})
    assert store.versions("digits")[0].aliases == ()


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("digits", r"expected models:/NAME/VERSION or models:/NAME@ALIAS, got 'digits'"),
        ("models:/digits", r"expected models:/NAME/VERSION"),
        ("models:/digits/0", r"expected models:/NAME/VERSION"),
        ("models:/digits/latest", r"expected models:/NAME/VERSION"),
        ("models:/digits/7", r"models:/digits/7: no such version; the latest are 1"),
        ("models:/digits@knee", r"has no alias 'knee'; it has fastest"),
        ("models:/digit/1", r"no model 'digit' in sqlite:.*; there is digits"),
    ],
)
def test_an_address_that_names_nothing_says_what_there_is(
    uri: str, message: str, store: Store, register: Register
) -> None:
    store.alias("digits", {"fastest": register()})
    with pytest.raises(RegistryError, match=message):
        store.fetch(uri)


def test_bytes_other_than_the_measured_ones_are_refused(
    store: Store, network: Network, finalist: MakeFinalist, origin: Origin, lineage: Lineage
) -> None:
    chosen = finalist(0, network(0))
    card = EvidenceCard.of("digits", chosen, origin)
    with pytest.raises(RegistryError, match=r"expected the measured file, sha256 \w{64}, got one with \w{64}"):
        store.register("digits", chosen, network(1), card, lineage)
    with pytest.raises(RegistryError, match=r"no model 'digits'.*it is empty"):
        store.versions("digits")


def test_bytes_that_mlflow_would_rewrite_are_refused(
    store: Store, network: Network, finalist: MakeFinalist, origin: Origin, lineage: Lineage
) -> None:
    """A second, equal ``ir_version`` field at the end is valid protobuf, and is lost when it is written again."""
    data = network(0) + onnx.ModelProto(ir_version=10).SerializeToString()
    chosen = finalist(0, data)
    with pytest.raises(RegistryError, match="would write this model as other bytes than those that were measured"):
        store.register("digits", chosen, data, EvidenceCard.of("digits", chosen, origin), lineage)


def test_a_file_that_is_no_onnx_is_refused(
    store: Store, finalist: MakeFinalist, origin: Origin, lineage: Lineage
) -> None:
    chosen = finalist(0, b"not onnx")
    with pytest.raises(RegistryError, match="expected an ONNX file, got 8 other bytes"):
        store.register("digits", chosen, b"not onnx", EvidenceCard.of("digits", chosen, origin), lineage)


def test_a_fixed_batch_axis_is_refused(
    store: Store, network: Network, finalist: MakeFinalist, origin: Origin, lineage: Lineage
) -> None:
    data = network(0, 4)
    chosen = finalist(0, data)
    with pytest.raises(
        RegistryError, match=r"input 'input'.*expected a free batch axis first, got shape \[4, 1, 8, 8\]"
    ):
        store.register("digits", chosen, data, EvidenceCard.of("digits", chosen, origin), lineage)


def test_a_card_of_another_finalist_is_refused(
    store: Store, network: Network, finalist: MakeFinalist, origin: Origin, lineage: Lineage
) -> None:
    card = EvidenceCard.of("digits", finalist(1, network(1)), origin)
    with pytest.raises(RegistryError, match=r"trial 0: card.trial: expected 0, got 1"):
        store.register("digits", finalist(0, network(0)), network(0), card, lineage)
    with pytest.raises(RegistryError, match=r"card.model: expected other, got digits"):
        store.register("other", finalist(1, network(1)), network(1), card, lineage)


def test_the_dense_file_is_kept_once_with_the_study(
    store: Store, register: Register, network: Network, lineage: Lineage
) -> None:
    data = network(99)
    parent = store.track_study("digits", {}, lineage, [])
    uri = register().uri
    with pytest.raises(
        RegistryError, match=r"study 'digits' kept no dense model with sha256 \w{64}; run the study again"
    ):
        store.dense(uri)
    for _ in range(2):
        store.keep_dense(parent, data)
    assert store.dense(uri) == data
    client = store._connection.client
    assert len(client.list_artifacts(parent, "dense")) == 1
    run = client.get_run(parent)
    path = (
        Path(url2pathname(urlsplit(run.info.artifact_uri).path)) / "dense" / f"{hashlib.sha256(data).hexdigest()}.onnx"
    )
    path.write_bytes(b"half")
    with pytest.raises(VerificationError, match=r"dense model of study 'digits': expected sha256 \w{64}, got \w{64}"):
        store.dense(uri)
    store.keep_dense(parent, data)
    assert store.dense(uri) == data


@pytest.mark.parametrize("file", ["model.onnx", "card.json"])
def test_files_changed_behind_the_registry_are_noticed(file: str, store: Store, register: Register) -> None:
    version = register()
    path = _artifacts(store, version) / file
    path.write_bytes(path.read_bytes().replace(b"a", b"b"))
    with pytest.raises(VerificationError, match=f"{file} is not the one that was registered: expected sha256"):
        store.fetch(version.uri)


def test_a_missing_file_is_named(store: Store, register: Register) -> None:
    version = register()
    (_artifacts(store, version) / "model.onnx").unlink()
    with pytest.raises(RegistryError, match=r"fetching models:/digits/1: .*model\.onnx"):
        store.fetch(version.uri)


def test_a_pickled_model_is_refused_by_name_and_never_loaded(store: Store, tmp_path: Path) -> None:
    import yaml

    folder = tmp_path / "foreign"
    folder.mkdir()
    marker = tmp_path / "executed"
    (folder / "model.pkl").write_bytes(b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR.")
    flavors = {"sklearn": {"pickled_model": "model.pkl"}, "python_function": {"loader_module": "mlflow.sklearn"}}
    (folder / "MLmodel").write_text(yaml.safe_dump({"flavors": flavors}))
    client = store._connection.client
    client.create_registered_model("foreign")
    client.create_model_version("foreign", str(folder))
    with pytest.raises(RegistryError, match="models:/foreign/1: expected an ONNX model, got the flavor sklearn"):
        store.fetch("models:/foreign/1")
    assert not marker.exists()
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    assert values(store.resolve("models:/foreign/1")) == {}


def test_an_onnx_model_of_another_tool_is_refused(store: Store, register: Register) -> None:
    location = str(_artifacts(store, register()))
    store._connection.client.create_registered_model("foreign")
    store._connection.client.create_model_version("foreign", location)
    with pytest.raises(RegistryError, match="expected a version that autocompress registered"):
        store.fetch("models:/foreign/1")


def test_the_registered_model_is_a_plain_mlflow_model(store: Store, register: Register, network: Network) -> None:
    """Any MLflow user can serve it: signature with a free batch, CPU provider, pinned requirements, no pickle."""
    import mlflow.models
    import mlflow.onnx
    import mlflow.pyfunc
    import onnxruntime

    folder = _artifacts(store, register())
    model = mlflow.models.Model.load(str(folder / "MLmodel"))
    assert set(model.flavors) == {"onnx", "python_function"}
    assert model.flavors["onnx"]["providers"] == ["CPUExecutionProvider"]
    assert [x.shape for x in model.signature.inputs] == [(-1, 1, 8, 8)]
    assert [x.shape for x in model.signature.outputs] == [(-1, 10)]
    requirements = (folder / "requirements.txt").read_text().split()
    assert [r.split("==")[0] for r in requirements] == ["mlflow", "onnx", "onnxruntime", "numpy"]
    assert not [p for p in folder.rglob("*") if p.suffix in {".pkl", ".pickle", ".pt", ".pth"}]
    x = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    got = mlflow.pyfunc.load_model(str(folder)).predict({"input": x})["output"]
    expected = onnxruntime.InferenceSession(network(0)).run(None, {"input": x})[0]
    np.testing.assert_array_equal(got, expected)


def test_download_writes_model_and_evidence(store: Store, register: Register, network: Network, tmp_path: Path) -> None:
    version = register()
    path = store.download(version.uri, tmp_path / "deep" / "out")
    assert path == tmp_path / "deep" / "out" / "model.onnx"
    assert path.read_bytes() == network(0)
    card = EvidenceCard.model_validate_json((path.parent / "card.json").read_text())
    assert (path.parent / "card.md").read_text() == card.to_markdown()
    assert (
        hashlib.sha256((path.parent / "card.json").read_bytes()).hexdigest() == version.tags["autocompress.card_sha256"]
    )
    assert sorted(p.name for p in path.parent.parent.iterdir()) == ["out"]


def test_download_into_a_folder_in_use_replaces_only_its_own_files(
    store: Store, register: Register, network: Network, tmp_path: Path
) -> None:
    register(0)
    register(1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    store.download("models:/digits/1", tmp_path / "out")
    assert store.download("models:/digits/2", tmp_path / "out").read_bytes() == network(1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["card.json", "card.md", "mine.txt", "model.onnx"]
    assert json.loads((tmp_path / "out" / "card.json").read_text())["trial"] == 1


def test_download_over_a_file_says_so_and_leaves_nothing(store: Store, register: Register, tmp_path: Path) -> None:
    version = register()
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RegistryError, match=r"models:/digits/1: cannot write to .*out"):
        store.download(version.uri, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"
    assert not list(tmp_path.glob(".out-*"))


def test_a_number_that_someone_edited_is_refused_by_name(store: Store, register: Register) -> None:
    register()
    store._connection.client.set_model_version_tag("digits", "1", "autocompress.latency_ms", "fast")
    with pytest.raises(
        RegistryError, match=r"models:/digits/1: tag autocompress.latency_ms: expected a finite number, got 'fast'"
    ):
        values(store.resolve("models:/digits/1"))


def test_versions_are_in_order_beyond_nine(store: Store, register: Register) -> None:
    location = str(_artifacts(store, register()))
    for _ in range(10):
        store._connection.client.create_model_version("digits", location)
    assert [v.version for v in store.versions("digits")] == list(range(1, 12))


def test_a_deleted_experiment_says_how_to_restore_it(store: Store, register: Register) -> None:
    register()
    client = store._connection.client
    client.delete_experiment(store._connection.experiment("digits"))
    with pytest.raises(RegistryError, match=r"was deleted; restore it with `mlflow experiments restore -x \d+`"):
        register(1)


def test_the_store_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_database: Path
) -> None:
    shutil.copy(empty_database, tmp_path / "other.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    store = Store(None, tmp_path / "runs")
    assert store.address == f"sqlite:///{tmp_path}/other.db"
    with pytest.raises(RegistryError, match="it is empty"):
        store.versions("digits")
    assert not (tmp_path / "runs").exists()
