"""Networks that a task builds instead of the dense one, through the whole engine: images, tokens and recurrence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

from autocompress.compress.api import compress
from autocompress.compress.architecture import build_network, check_builder, layer_bits, own_layers
from autocompress.compress.artifact import describe
from autocompress.compress.engine import Compressed, build
from autocompress.compress.export import runtime_session
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.errors import InfeasibleError, TaskError
from autocompress.inputs import arrays, forward
from autocompress.models.bert import bert
from autocompress.models.lenet import simple_cnn
from autocompress.models.recurrent import text_classifier
from autocompress.models.scaling import scaled_arguments
from autocompress.models.vit import vit
from autocompress.records import (
    Architecture,
    Features,
    LayerBits,
    NoDistillation,
    Plan,
    Quantizer,
    Structure,
)
from autocompress.task import Recipe, Task

#: Function, its dense arguments, and the shape of the dense network's main layers: name -> shape at half the width.
CNN = (simple_cnn, {"width": 16, "depth": 2, "classes": 4, "image": 8, "channels": 3})
VIT = (vit, {"image": 8, "patch": 4, "width": 32, "depth": 2, "heads": 4, "classes": 4, "channels": 3})
BERT = (bert, {"vocabulary": 20, "width": 32, "depth": 2, "heads": 4, "length": 8, "segments": 1, "classes": 4})
LSTM = (text_classifier, {"vocabulary": 20, "classes": 4, "width": 16, "hidden": 32, "depth": 2})


def images(count: int, seed: int) -> Dataset[Any]:
    classes = torch.arange(count) % 4
    centres = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return TensorDataset(
        centres[classes] + 0.5 * torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)), classes
    )


def tokens(count: int, seed: int) -> Dataset[Any]:
    classes = torch.arange(count) % 4
    words = torch.randint(1, 20, (count, 8), generator=torch.Generator().manual_seed(seed))
    words[:, ::2] = 1 + classes[:, None]
    return TensorDataset(words, classes)


def task_of(kind: tuple[Callable[..., nn.Module], dict[str, Any]], **changes: Any) -> Task:
    function, arguments = kind
    data = images if kind in (CNN, VIT) else tokens

    def model(width: float = 1.0, depth: float = 1.0) -> nn.Module:
        return function(**scaled_arguments(function, arguments, width=width, depth=depth))

    recipe = {"batch_size": 32} if kind is CNN else {"batch_size": 32, "optimizer": "adamw", "learning_rate": 5e-3}
    roles = {role: data(96, seed) for seed, role in enumerate(("train", "validation", "selection", "test"))}
    return Task(**{"name": "toy", "model": model, "recipe": Recipe(**recipe), **roles, **changes})


def build_of(task: Task, plan: Plan, **options: Any) -> Compressed:
    torch.manual_seed(0)
    dense = task.build().eval()
    structure = find_structure(dense, task.example_input())
    return build(task, dense, plan, structure, Statistics({}), **{"epochs": 0.4, "seed": 0, **options})


def shapes(result: Compressed) -> dict[str, tuple[int, ...]]:
    return {layer.name: layer.shape for layer in result.artifact.layers}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name", "half"), [
    (CNN, "features.4", (16, 8, 3, 3)),
    (VIT, "layers.0.mlp.fc1", (64, 16)),
    (BERT, "embeddings.tokens", (20, 16)),
    (LSTM, "layers.weight_hh_l1", (64, 16)),
], ids=["cnn", "vit", "bert", "lstm"])  # fmt: skip
def test_the_file_has_the_width_and_depth_that_were_asked_for(kind: Any, name: str, half: tuple[int, ...]) -> None:
    task = task_of(kind)
    wide = shapes(build_of(task, Plan()))
    result = build_of(task, Plan(architecture=Architecture(width=0.5, bits=8)))
    narrow = shapes(result)
    assert describe(result.model) == result.artifact
    assert narrow.keys() == wide.keys()
    assert narrow[name] == half
    assert wide[name] != half
    assert {layer.bits for layer in result.artifact.layers} == {8}
    shallow = shapes(build_of(task, Plan(architecture=Architecture(depth=0.5)), epochs=0.0))
    assert shallow.keys() < wide.keys()
    assert all(warning.startswith("fewer bits save storage only") for warning in result.warnings)
    assert result.agreement < 1e-4


@pytest.mark.parametrize("kind", [CNN, VIT, BERT, LSTM], ids=["cnn", "vit", "bert", "lstm"])
def test_the_file_answers_like_the_network_that_was_trained(kind: Any) -> None:
    task = task_of(kind)
    result = build_of(task, Plan(architecture=Architecture(width=0.5, depth=0.5)))
    inputs, _ = next(iter(torch.utils.data.DataLoader(task.validation, batch_size=5)))
    with torch.no_grad():
        want = forward(result.module, inputs).numpy()
    session = runtime_session(result.model)
    got = session.run(None, {session.get_inputs()[0].name: arrays(inputs)})[0]
    np.testing.assert_allclose(got, want, atol=1e-4)


def accuracy(module: nn.Module, task: Task) -> float:
    inputs, targets = next(iter(torch.utils.data.DataLoader(task.validation, batch_size=96)))
    with torch.no_grad():
        return float((forward(module, inputs).argmax(1) == targets).float().mean())


def test_without_training_it_knows_nothing_and_with_it_learns() -> None:
    task = task_of(CNN)
    plan = Plan(architecture=Architecture(width=0.5), distillation=NoDistillation())
    untrained, trained = build_of(task, plan, epochs=0.0), build_of(task, plan, epochs=6.0)
    assert accuracy(untrained.module, task) < 0.6
    assert accuracy(trained.module, task) > 0.9
    assert not torch.equal(untrained.module.head.weight, trained.module.head.weight)


@pytest.mark.slow
def test_it_is_trained_at_the_recipe_s_rate_and_taught_by_the_dense_network() -> None:
    plan = Plan(architecture=Architecture(width=0.5))
    slow = task_of(CNN, recipe=Recipe(batch_size=32, learning_rate=1e-9), recovery_learning_rate=1.0)
    start, end = build_of(slow, plan, epochs=0.0).module, build_of(slow, plan, epochs=1.0).module
    assert torch.allclose(start.head.weight, end.head.weight, atol=1e-6)
    task = task_of(CNN)
    taught, alone = build_of(task, plan), build_of(task, plan.model_copy(update={"distillation": NoDistillation()}))
    assert not torch.equal(taught.module.head.weight, alone.module.head.weight)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_another_one_other_weights() -> None:
    task, plan = task_of(CNN), Plan(architecture=Architecture(width=0.5, bits=8))
    state = torch.random.get_rng_state()
    first = build_of(task, plan)
    torch.manual_seed(99)
    assert first.model == build_of(task, plan).model
    assert first.model != build_of(task, plan, seed=1).model
    torch.random.set_rng_state(state)


def test_the_dense_network_stays_as_it_was_and_only_training_data_is_read() -> None:
    class Counted(TensorDataset):
        reads = 0

        def __getitem__(self, index: Any) -> Any:
            self.reads += 1
            return super().__getitem__(index)

    parts = {role: Counted(*images(96, 1).tensors) for role in ("train", "validation", "selection", "test")}
    task = task_of(CNN, **parts)
    dense = task.build().eval()
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    structure = find_structure(dense, task.example_input())
    build(task, dense, Plan(architecture=Architecture(width=0.5)), structure, Statistics({}), epochs=0.4, seed=0)
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())
    assert task.train.reads > 0
    assert [getattr(task, role).reads for role in ("validation", "selection", "test")] == [0, 0, 0]


def test_it_trains_through_its_own_grids() -> None:
    plan = Plan(architecture=Architecture(width=0.5, bits=4), quantizer=Quantizer(training="aware"))
    result = build_of(task_of(CNN), plan, epochs=2.0)
    assert {layer.bits for layer in result.artifact.layers} <= {2, 3, 4}
    assert shapes(result)["features.4"] == (16, 8, 3, 3)


def test_only_the_weights_of_linear_layers_are_quantized_where_asked() -> None:
    result = build_of(task_of(VIT), Plan(architecture=Architecture(width=0.5, bits=4, weights_only=True)))
    layers = {layer.name: layer for layer in result.artifact.layers}
    assert layers["layers.0.mlp.fc1"].stored_bits == 4
    assert layers["layers.0.mlp.fc1"].compute == "weights"


def test_inner_layers_of_the_same_names_may_teach() -> None:
    plan = Plan(architecture=Architecture(width=0.5), distillation=Features())
    assert shapes(build_of(task_of(CNN), plan))["features.4"] == (16, 8, 3, 3)


def test_a_builder_with_trained_weights_of_the_dense_size_gives_none_of_them_away() -> None:
    trained = simple_cnn(**CNN[1]).state_dict()

    def model(width: float = 1.0) -> nn.Module:
        module = simple_cnn(**scaled_arguments(simple_cnn, CNN[1], width=width))
        if width == 1.0:
            module.load_state_dict(trained)
        return module

    task = task_of(CNN, model=model, trained=True)
    result = build_of(task, Plan(architecture=Architecture(width=1.0)), epochs=0.0)
    assert result.warnings == ("built at width 1 the network has the dense one's layers, with weights drawn anew",)
    assert not torch.equal(result.module.head.weight, trained["head.weight"])


def test_a_task_that_cannot_build_says_so() -> None:
    plan = Plan(architecture=Architecture(width=0.5))
    task = task_of(CNN, model=lambda: simple_cnn(**CNN[1]))
    with pytest.raises(TaskError, match="expected a model function that takes 'width'"):
        build_of(task, plan)
    dense = task.build()
    structure = find_structure(dense, task.example_input())
    with pytest.raises(TaskError, match="expected a Task as data, whose model function builds networks of other sizes"):
        compress(dense, plan, images(96, 0), structure=structure)
    with pytest.raises(InfeasibleError, match="expected a network to build, got none"):
        build_network(task, Plan(), structure, seed=0)


def test_from_python_with_a_plan_in_a_file(tmp_path: Any) -> None:
    (tmp_path / "plan.yaml").write_text("architecture: {width: 0.5, depth: 0.5, bits: 8}\n")
    task = task_of(CNN)
    result = compress(task.build(), tmp_path / "plan.yaml", task, epochs=0.4)
    assert shapes(result) == {"features.0": (8, 3, 3, 3), "hidden": (32, 128), "head": (4, 32)}


def ignores_depth(width: float = 1.0, depth: float = 1.0) -> nn.Module:
    return simple_cnn(**scaled_arguments(simple_cnn, CNN[1], width=width))


def structure_of(task: Task) -> Structure:
    return find_structure(task.build(), task.example_input())


def test_sizes_are_tried_before_anything_is_trained() -> None:
    check_builder(task_of(CNN), structure_of(task_of(CNN)), widths=(0.5, 1.0), depths=(0.5,))
    task = task_of(CNN, model=ignores_depth)
    check_builder(task, structure_of(task), widths=(0.5,), depths=(1.0,))
    with pytest.raises(
        TaskError,
        match=r"task 'toy': expected its model function to make another network of depth=0\.5, got the dense one's "
        r"layers; leave architecture\.depth out of the space",
    ):
        check_builder(task, structure_of(task), widths=(0.5,), depths=(0.5, 1.0))
    task = task_of(CNN, model=lambda: simple_cnn(**CNN[1]))
    with pytest.raises(TaskError, match="expected a model function that takes 'width'"):
        check_builder(task, structure_of(task), widths=(0.5,))


@pytest.mark.parametrize("kind", [CNN, VIT, BERT, LSTM], ids=["cnn", "vit", "bert", "lstm"])
def test_its_layers_are_those_that_a_dense_network_of_its_size_would_have(kind: Any) -> None:
    task = task_of(kind)
    module = task.build(width=0.5)
    found, whole = own_layers(module, task.example_input()), find_structure(module, task.example_input())
    assert [(x.name, x.kind, x.shape, x.macs) for x in found.layers] == [
        (x.name, x.kind, x.shape, x.macs) for x in whole.layers
    ]
    assert found.groups == found.blocks == ()


def test_one_choice_of_bits_is_that_of_every_layer() -> None:
    task = task_of(VIT)
    structure = own_layers(task.build(width=0.5), task.example_input())
    assert layer_bits(Architecture(width=0.5), structure) == ()
    found = layer_bits(Architecture(width=0.5, bits=8, weights_only=True), structure)
    assert [entry.layer for entry in found] == sorted(layer.name for layer in structure.layers)
    assert LayerBits(layer="patches", bits=8) in found
    assert LayerBits(layer="head", bits=8, weights_only=True) in found


def test_tensors_of_several_inputs_are_examples_too() -> None:
    words = torch.randint(1, 20, (32, 8))
    data = [({"input_ids": row, "attention_mask": torch.ones(8, dtype=torch.int64)}, int(i % 4)) for i, row in
            enumerate(words)]  # fmt: skip
    task = task_of(BERT, **dict.fromkeys(("train", "validation", "selection", "test"), data))
    result = build_of(task, Plan(architecture=Architecture(width=0.5, depth=0.5, bits=8)))
    assert shapes(result)["embeddings.tokens"] == (20, 16)
    assert isinstance(forward(result.module, task.example_input()), Tensor)
