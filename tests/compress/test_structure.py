from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.state import module_digest
from autocompress.compress.structure import IS_OUTPUT, evaluate, find_structure, layer_calls
from autocompress.errors import TaskError
from autocompress.models.resnet import resnet_cifar
from autocompress.records import Structure

IMAGE = torch.zeros(1, 3, 16, 16)


def reasons(structure: Structure) -> dict[str, str]:
    return {entry.name: entry.reason for entry in structure.left_dense}


def test_a_projection_network_has_one_group_per_stage_and_one_per_block() -> None:
    structure = find_structure(resnet_cifar(widths=(32, 64, 128), shortcut="projection"), IMAGE)
    assert len(structure.groups) == 12
    stage = structure.group("body.3.c2")
    assert set(stage.layers) == {"body.3.c2", "body.3.sc.0", "body.4.c2", "body.5.c2"}
    assert set(stage.consumers) == {"body.4.c1", "body.5.c1", "body.6.c1", "body.6.sc.0"}
    assert set(stage.norms) == {"body.3.b2", "body.3.sc.1", "body.4.b2", "body.5.b2"}
    assert stage.width == 64
    assert reasons(structure) == {"fc": IS_OUTPUT}
    assert structure.layer("fc").group is None
    assert structure.layer("body.5.c2").group == "body.3.c2"


def test_multiply_adds_are_those_of_the_published_network() -> None:
    structure = find_structure(resnet_cifar(widths=(32, 64, 128), shortcut="projection"), torch.zeros(2, 3, 32, 32))
    assert sum(layer.macs for layer in structure.layers) == 162_366_720
    stem = structure.layer("stem.0")
    assert (stem.kind, stem.shape, stem.macs) == ("conv2d", (32, 3, 3, 3), 32 * 27 * 32 * 32)
    assert (structure.layer("fc").kind, structure.layer("fc").macs) == ("linear", 1280)


def test_padded_shortcuts_leave_the_coupled_stages_dense_and_the_inner_channels_free() -> None:
    structure = find_structure(resnet_cifar(depth=14, shortcut="pad"), IMAGE)
    assert [g.name for g in structure.groups] == [f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1)]
    left = reasons(structure)
    assert left.pop("linear") == IS_OUTPUT
    assert set(left) == {"conv1", *(f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in (0, 1))}
    assert set(left.values()) == {"its channels are coupled, not one to one, with layers of 16, 32, 64 channels"}


def test_frozen_parameters_and_no_grad_hide_nothing_and_the_module_is_left_alone() -> None:
    module = resnet_cifar(depth=8, widths=(8, 8, 8), shortcut="projection").train()
    expected = find_structure(module, IMAGE)
    module.requires_grad_(False)
    before = module_digest(module)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        assert find_structure(module, IMAGE) == expected
    assert module_digest(module) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(part.training for part in module.modules())
    assert not any(p.requires_grad for p in module.parameters())


class Net(nn.Module):
    """A convolution, what a test puts between, and a classifier."""

    def __init__(self, between: nn.Module, features: int, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.between = between
        self.head = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.between(functional.relu(self.conv(x))))
        return out


class Fn(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.function(x)  # type: ignore[operator]
        return out


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def test_channels_that_are_flattened_stay_coupled_with_all_their_positions() -> None:
    structure = find_structure(Net(nn.Flatten(), 8 * 64), torch.zeros(1, 3, 8, 8))
    assert [(g.name, g.width, g.consumers) for g in structure.groups] == [("conv", 8, ("head",))]


def test_a_hard_coded_view_is_left_dense() -> None:
    structure = find_structure(Net(Fn(lambda x: pooled(x).view(-1, 8)), 8), IMAGE)
    assert structure.groups == ()
    assert "output's shape" in reasons(structure)["conv"] or "cutting it fails" in reasons(structure)["conv"]


def test_channels_that_a_function_reorders_are_left_dense() -> None:
    # Both halves are cut alike in shape, but the sum pairs other channels than before.
    structure = find_structure(Net(Fn(lambda x: pooled(x).flip(1)), 8), IMAGE)
    assert structure.groups == ()
    assert "not the same as masking" in reasons(structure)["conv"]


def test_channels_that_a_function_normalizes_together_are_left_dense() -> None:
    structure = find_structure(Net(Fn(lambda x: functional.normalize(pooled(x), dim=1)), 8), IMAGE)
    assert "not the same as masking" in reasons(structure)["conv"]


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), Fn(pooled)), "is a convolution in 4 groups"),
        (nn.Sequential(nn.GroupNorm(4, 8), Fn(pooled)), "normalizes in 4 groups of channels"),
        (nn.Sequential(nn.ConvTranspose2d(8, 8, 2), Fn(pooled)), "cutting ConvTranspose2d is not supported"),
    ],
)
def test_what_follows_may_forbid_a_cut(between: nn.Module, reason: str) -> None:
    structure = find_structure(Net(between, 8), IMAGE)
    assert structure.groups == ()
    assert reason in reasons(structure)["conv"]


def test_depthwise_convolutions_and_unit_group_norms_follow_the_cut() -> None:
    between = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.GroupNorm(1, 8), Fn(pooled))
    structure = find_structure(Net(between, 8), IMAGE)
    assert [(g.name, g.layers, g.consumers) for g in structure.groups] == [("conv", ("conv", "between.0"), ("head",))]


def test_a_zero_initialized_branch_does_not_hide_a_wrong_cut() -> None:
    module = Net(Fn(lambda x: pooled(x).flip(1)), 8)
    nn.init.zeros_(module.head.weight)
    assert find_structure(module, IMAGE).groups == ()


def test_a_parametrized_weight_is_named_and_left_out() -> None:
    module = Net(Fn(pooled), 8)
    nn.utils.parametrizations.weight_norm(module.conv)
    structure = find_structure(module, IMAGE)
    assert structure.groups == ()
    assert "a parametrization" in reasons(structure)["conv"]
    assert [layer.name for layer in structure.layers] == ["head"]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(functional.gelu(self.hidden(self.lstm(self.words(x))[0][:, -1])))
        return out


def test_unsupported_modules_are_named_and_what_lies_beyond_them_can_be_cut() -> None:
    structure = find_structure(Recurrent(), torch.arange(5).unsqueeze(0))
    assert [(g.name, g.width) for g in structure.groups] == [("hidden", 12)]
    left = reasons(structure)
    assert left["words"] == "Embedding is not compressed"
    assert left["lstm"] == "LSTM is not compressed"
    assert left["head"] == IS_OUTPUT
    assert "does not run" in left["unused"]
    assert {layer.name for layer in structure.layers} == {"hidden", "head"}


def test_a_transformer_layer_gives_its_feed_forward_channels() -> None:
    encoder = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    module = nn.Sequential(encoder, Fn(lambda x: x.mean(1)), nn.Linear(16, 3))
    structure = find_structure(module, torch.randn(1, 5, 16))
    assert [(g.name, g.width) for g in structure.groups] == [("0.linear1", 24)]
    assert "MultiheadAttention" in " ".join(reasons(structure).values())


def test_a_module_that_cannot_be_traced_keeps_its_layers_and_says_why() -> None:
    module = Net(Fn(lambda x: pooled(x).detach()), 8)
    structure = find_structure(module, IMAGE)
    assert [layer.name for layer in structure.layers] == ["conv", "head"]
    assert structure.groups == ()
    assert set(reasons(structure)) == {"conv", "head"}


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: (pooled(x), x), "does not run on an input of shape"),
        (lambda x: pooled(x)[:, :3], r"does not run on an input of shape \(1, 3, 16, 16\): RuntimeError"),
    ],
)
def test_a_module_that_does_not_run_is_an_error_of_the_task(function: object, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        find_structure(Net(Fn(function), 8), IMAGE)


def test_an_output_that_is_no_tensor_is_an_error_of_the_task() -> None:
    with pytest.raises(TaskError, match="expected it to return one tensor, got tuple"):
        evaluate(Fn(lambda x: (x, x)), IMAGE)


def test_a_layer_called_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    module = nn.Sequential(layer, nn.ReLU(), layer)
    assert layer_calls(module, torch.zeros(3, 4)) == {"0": 32}
    assert find_structure(copy.deepcopy(module), torch.zeros(1, 4)).groups == ()


def test_a_record_of_the_structure_goes_through_json() -> None:
    structure = find_structure(resnet_cifar(depth=8, widths=(4, 4, 4)), IMAGE)
    assert Structure.model_validate_json(structure.model_dump_json()) == structure
