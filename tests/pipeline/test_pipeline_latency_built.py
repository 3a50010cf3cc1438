"""The operations of networks that a task builds, known without training them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from autocompress.compress.engine import build
from autocompress.compress.export import export_onnx
from autocompress.compress.skeleton import learn_skeleton
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.errors import InfeasibleError
from autocompress.inputs import arrays
from autocompress.measure.kernels import trace_artifact
from autocompress.models.resnet import resnet_cifar
from autocompress.models.scaling import scaled_arguments
from autocompress.models.vit import vit
from autocompress.pipeline.latency_built import MOST_SIZES, BuiltOutline, Files, PlanOutlines, built_files
from autocompress.pipeline.latency_outline import learn_outlines
from autocompress.records import Architecture, ChannelCut, Plan
from autocompress.records.outline import sites
from autocompress.task import Recipe, Task

RESNET = (resnet_cifar, {"depth": 8, "widths": (16, 32, 32), "classes": 4, "shortcut": "projection"})
VIT = (vit, {"image": 8, "patch": 4, "width": 32, "depth": 2, "heads": 4, "classes": 4})


def task_of(kind: Any) -> Task:
    function, arguments = kind

    def model(width: float = 1.0, depth: float = 1.0) -> torch.nn.Module:
        return function(**scaled_arguments(function, arguments, width=width, depth=depth))

    data = TensorDataset(torch.randn(32, 3, 8, 8), torch.arange(32) % 4)
    roles = dict.fromkeys(("train", "validation", "selection", "test"), data)
    return Task(name="toy", model=model, recipe=Recipe(batch_size=16), **roles)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [RESNET, VIT], ids=["resnet", "vit"])
def test_a_built_network_has_the_operations_of_the_file_that_ships(kind: Any) -> None:
    task = task_of(kind)
    torch.manual_seed(0)
    dense, example = task.build().eval(), task.example_input()
    structure = find_structure(dense, example)
    inputs = arrays(example)
    asked = [Architecture(width=0.5, depth=0.5), Architecture(width=0.5, depth=1.0, bits=8)]
    files = built_files(task, asked, inputs, seed=0)
    assert [(file.outline.width, file.outline.depth) for file in files] == [(0.5, 0.5), (0.5, 1.0)]
    for architecture, file in zip(asked, files, strict=True):
        plan = Plan(architecture=architecture)
        shipped = build(task, dense, plan, structure, Statistics({}), epochs=0.2, seed=0).model
        expected = Counter(sites(trace_artifact(shipped, inputs).outline))
        assert Counter(sites(trace_artifact(file.at(architecture), inputs).outline)) == expected
        assert Counter(sites(file.outline.of(architecture))) == expected
        assert BuiltOutline.model_validate_json(file.outline.model_dump_json()) == file.outline


@pytest.mark.slow
def test_plans_of_both_kinds_are_told_apart() -> None:
    task = task_of(RESNET)
    torch.manual_seed(0)
    dense, example = task.build().eval(), task.example_input()
    inputs, structure = arrays(example), find_structure(dense, example)
    model = export_onnx(dense, example).model
    skeleton = learn_skeleton(dense, model, structure, Statistics({}), example, round_to=8, seed=0)
    files = Files(skeleton, built_files(task, [Architecture(width=0.5)], inputs, seed=0))
    outlines = PlanOutlines(
        learn_outlines(skeleton, model, inputs, round_to=8, seed=0), tuple(file.outline for file in files.built)
    )
    group = structure.groups[-1]
    plans = [Plan(), Plan(cuts=(ChannelCut(group=group.name, keep=8, criterion="magnitude"),))]
    plans += [Plan(architecture=Architecture(width=0.5)), Plan(architecture=Architecture(width=0.5, bits=8))]
    found = [outlines.of(plan) for plan in plans]
    assert len(set(found)) == 4
    for plan, outline in zip(plans, found, strict=True):
        assert Counter(sites(trace_artifact(files.model(plan), inputs).outline)) == Counter(sites(outline))
    for tells in (outlines.of, files.model):
        with pytest.raises(InfeasibleError, match=r"expected a size of which a network was built, got width 0\.25"):
            tells(Plan(architecture=Architecture(width=0.25)))
    with pytest.raises(InfeasibleError, match="expected a plan for the dense network, got one that builds another"):
        outlines.dense.of(plans[2])
    with pytest.raises(InfeasibleError, match="expected a plan for the dense network, got one that builds another"):
        skeleton.model(plans[2])


@pytest.mark.slow
def test_each_size_is_built_once_and_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autocompress.pipeline.latency_built.MOST_SIZES", 2)
    asked = [Architecture(width=width, bits=bits) for width in (1.0, 0.75, 0.5) for bits in (32, 8)]
    told: list[str] = []
    files = built_files(task_of(VIT), asked, arrays(torch.randn(1, 3, 8, 8)), seed=0, on_step=told.append)
    assert [file.outline.width for file in files] == [1.0, 0.5]
    assert told == ["networks that are built, 1 of 2", "networks that are built, 2 of 2"]
    assert MOST_SIZES == 32
