from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import onnx
import pytest

from autocompress import cli
from autocompress.config import Study
from autocompress.errors import AutocompressError, ConfigError, MeasurementError
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.pipeline import times
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.folder import StudyFolder
from autocompress.pipeline.graphs import graph_of, with_graphs
from autocompress.pipeline.prepare import Workbench, prepare
from autocompress.records import Fidelity, LayerBits, Plan

TASK = f"{Path(__file__).resolve().parent / 'spied.py'}:spied"

pytestmark = pytest.mark.alone


def study_in(folder: Path) -> Study:
    return Study(**{"name": "spied", "task": {"factory": TASK}, "output": folder, "search": {"trials": 2}})


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    return prepare(study_in(tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def small(bench: Workbench) -> tuple[Path, str]:
    """A compressed file of the study, and its sha256."""
    names = sorted(x.name for x in bench.prepared.structure.layers)
    plan = Plan(bits=tuple(LayerBits(layer=name, bits=8) for name in names))
    measurement = Evaluator(bench)(plan, Fidelity(epochs=0.0), "validation")
    sha256 = measurement.artifact.sha256
    seen = with_graphs(bench, [measurement])[0]
    assert seen.graph is not None
    assert {x.compute for x in seen.graph.layers} == {"integer"}
    assert seen.warnings == measurement.warnings
    return bench.folder.artifact(sha256), sha256


def test_a_study_that_was_not_prepared_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(AutocompressError, match=r"expected a prepared study in .*'autocompress run' makes one"):
        times.prepared_bench(study_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_without_finalists_there_is_no_front_to_profile(bench: Workbench) -> None:
    with pytest.raises(AutocompressError, match="has no finalists yet: continue it with 'autocompress run', or name"):
        times.front_files(bench)
    with pytest.raises(ConfigError, match=r"expected a trial of study 'spied' \(none yet\), got 7"):
        times.trial_file(bench, 7)


def test_a_file_is_profiled_beside_the_dense_model(bench: Workbench, small: tuple[Path, str], tmp_path: Path) -> None:
    path, sha256 = small
    found = times.profile_study(bench, {"small": times.read_onnx(path)}, tmp_path / "out")
    assert [m.name for m in found.times.models] == ["dense", "small"]
    assert [m.sha256 for m in found.times.models] == [bench.prepared.baseline.artifact.sha256, sha256]
    assert found.times.layers == tuple(x.name for x in bench.prepared.structure.layers)
    (comparison,) = found.comparisons
    assert [c.part for c in comparison.layers] == [*found.times.layers, "between layers"]
    for changes in (comparison.layers, comparison.kinds):
        for attribute, model in zip(("before", "after"), found.times.models, strict=True):
            assert sum(getattr(c, attribute) for c in changes) == pytest.approx(model.latency.latency_ms.value)
    assert "change of type" in {c.part for c in comparison.kinds}
    assert (tmp_path / "out" / "profile.html").read_text().startswith("<!doctype html>")
    assert times.Profiled.model_validate_json(found.model_dump_json()) == found


def test_a_device_of_the_cluster_is_not_profiled_from_here(bench: Workbench, tmp_path: Path) -> None:
    target = OnnxRuntimeCpu(node={"device": "rpi5"})
    away = Workbench(bench.study.model_copy(update={"target": target}), bench.folder, bench.prepared)
    with pytest.raises(MeasurementError, match=r"target\.node names another machine.*rpi5"):
        times.profile_study(away, {}, tmp_path)
    assert graph_of(away, bench.prepared.baseline.artifact) is None
    assert times.front_times(away) is None


def dense_path(bench: Workbench) -> Path:
    return StudyFolder(bench.folder.root).artifact(bench.prepared.baseline.artifact.sha256)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["autocompress", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_two_files_are_profiled_without_a_study(
    bench: Workbench,
    small: tuple[Path, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copy(dense_path(bench), tmp_path / "dense.onnx")
    shutil.copy(small[0], tmp_path / "small.onnx")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "profile", "dense.onnx", "small.onnx", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["title", "times", "comparisons", "page"]
    assert list(document["times"]) == ["runtime", "host", "inferences", "layers", "models"]
    assert list(document["times"]["models"][0]) == ["name", "sha256", "latency", "nodes"]
    assert list(document["times"]["models"][0]["nodes"][0]) == ["node", "layers", "operation", "milliseconds"]
    assert list(document["comparisons"][0]) == ["name", "layers", "kinds"]
    assert list(document["comparisons"][0]["layers"][0]) == ["part", "before", "after", "share"]
    assert document["page"] == "profile.html"
    assert run(monkeypatch, "profile", "dense.onnx", "small.onnx", "--to", "out", "--batch-size", 4) == 0
    told = capsys.readouterr().out
    assert "batch 4" in told
    assert "dense.onnx → small.onnx" in told
    assert "picture   out/profile.html" in told


def test_nodes_without_names_get_them(bench: Workbench, tmp_path: Path) -> None:
    proto = onnx.load(dense_path(bench))
    for node in proto.graph.node:
        node.name = ""
    onnx.save(proto, tmp_path / "nameless.onnx")
    names = [n.name for n in onnx.load_model_from_string(times.read_onnx(tmp_path / "nameless.onnx")).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    found = times.profile_files([tmp_path / "nameless.onnx"] * 2, tmp_path, threads=1, batch_size=1)
    assert "Conv (1)" in found.times.layers


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("a.onnx",), 2, "at least two ONNX files to hold against each other, got a.onnx"),
        (("a.onnx", "b.onnx"), 2, "expected an ONNX file, got a.onnx, which does not exist"),
        (("junk.onnx", "junk.onnx"), 2, "junk.onnx: expected an ONNX file, got 4 bytes that are none"),
        (("digits", "trec"), 2, "expected one study and ONNX files (ending in .onnx), got 'digits' and 'trec'"),
        (("a.onnx", "b.onnx", "--trial", "1"), 2, "expected its name before the files"),
        (("digits", "--threads", "2"), 2, "--set target.threads=2"),
        (("digits",), 1, "expected a prepared study in"),
        (("digits", "--trial", "3"), 1, "expected a prepared study in"),
        (("no-such-study",), 2, "no-such-study"),
    ],
)
def test_what_cannot_be_profiled_is_said_with_what_to_do(
    arguments: tuple[str, ...],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk")
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "profile", *arguments) == code
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.out == ""
    assert [p.name for p in tmp_path.iterdir()] == ["junk.onnx"]
