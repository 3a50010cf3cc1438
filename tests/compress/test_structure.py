from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from toy_networks import ALL_CUT, SEQUENCE, TOKENS, Attention, Fn, Net, Recurrent, Residual, Tied, TwoWays, pooled
from toy_networks import IMAGE as SMALL

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


def test_padded_shortcuts_carry_the_first_stage_through_and_leave_the_padding_dense() -> None:
    structure = find_structure(resnet_cifar(depth=14, shortcut="pad"), IMAGE)
    assert [g.name for g in structure.groups] == ["conv1", *(f"layer{s}.{b}.conv1" for s in (1, 2, 3) for b in (0, 1))]
    stage = structure.group("conv1")
    assert stage.width == 16
    assert stage.layers == ("conv1", *(f"layer{s}.{b}.conv2" for s in (1, 2, 3) for b in (0, 1)))
    assert stage.consumers[-1] == "linear"
    assert all(use.per_unit == 1 for use in stage.uses)
    shapes = structure.shapes([("conv1", 10)])
    assert [shapes[name][0] for name in ("conv1", "layer2.1.conv2", "layer3.1.conv2")] == [10, 26, 58]
    assert shapes["linear"] == (10, 58)
    left = reasons(structure)
    assert left.pop("linear") == IS_OUTPUT
    assert set(left) == {f"layer{s}.{b}.conv2" for s in (2, 3) for b in (0, 1)}
    assert left["layer2.0.conv2"].startswith("16 of its 32 channels: cutting it fails: RuntimeError: The size")
    assert left["layer3.1.conv2"].startswith("48 of its 64 channels: cutting it fails: RuntimeError: The size")
    assert structure.layer("layer2.0.conv2").group is None
    assert structure.layer("layer1.0.conv2").group == "conv1"


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


def test_channels_that_are_flattened_stay_coupled_with_all_their_positions() -> None:
    structure = find_structure(Net(nn.Flatten(), 8 * 64), torch.zeros(1, 3, 8, 8))
    assert [(g.name, g.width, g.consumers) for g in structure.groups] == [("conv", 8, ("head",))]


def test_a_hard_coded_view_is_left_dense() -> None:
    structure = find_structure(Net(Fn(lambda x: pooled(x).view(-1, 8)), 8), IMAGE)
    assert structure.groups == ()
    assert "output's shape" in reasons(structure)["conv"] or "cutting it fails" in reasons(structure)["conv"]


def test_channels_that_move_when_others_go_are_left_dense() -> None:
    # Every layer shrinks, but the roll brings the survivors to other places than before.
    structure = find_structure(Net(Fn(lambda x: pooled(x).roll(3, 1)), 8), IMAGE)
    assert structure.groups == ()
    assert "not the same as masking" in reasons(structure)["conv"]


def test_channels_that_move_are_seen_even_where_removing_is_not_masking() -> None:
    between = nn.Sequential(Fn(lambda x: pooled(x).roll(3, 1)), nn.LayerNorm(8))
    structure = find_structure(Net(between, 8), IMAGE)
    assert structure.groups == ()
    assert "not the same as masking" in reasons(structure)["conv"]


def test_channels_that_a_function_normalizes_together_are_left_dense() -> None:
    structure = find_structure(Net(Fn(lambda x: functional.normalize(pooled(x), dim=1)), 8), IMAGE)
    assert reasons(structure)["conv"] == "linalg vector norm over its channels"


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (Fn(lambda x: pooled(x).softmax(1)), "softmax over its channels"),
        (Fn(lambda x: torch.fft.fft(pooled(x)).abs()), "aten._fft_r2c is not followed"),
        (Fn(lambda x: pooled(x)[:, torch.arange(8)]), "single channels are picked by their index"),
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
    module = Net(Fn(lambda x: pooled(x).roll(3, 1)), 8)
    nn.init.zeros_(module.head.weight)
    assert find_structure(module, IMAGE).groups == ()


def test_a_parametrized_weight_is_named_and_left_out() -> None:
    module = Net(Fn(pooled), 8)
    nn.utils.parametrizations.weight_norm(module.conv)
    structure = find_structure(module, IMAGE)
    assert structure.groups == ()
    assert "a parametrization" in reasons(structure)["conv"]
    assert [layer.name for layer in structure.layers] == ["head"]


def test_a_recurrent_module_is_one_group_and_each_of_its_matrices_a_layer() -> None:
    structure = find_structure(Recurrent(nn.LSTM, num_layers=2), TOKENS)
    hidden = structure.group("rnn.weight_ih_l0")
    assert (hidden.width, hidden.kind, hidden.unit) == (6, "hidden", 1)
    assert hidden.layers == ("rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1")
    assert hidden.consumers == ("rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1", "head")
    uses = {(use.parameter, use.axis): use.per_unit for use in hidden.uses}
    assert uses["rnn.weight_ih_l0", 0] == uses["rnn.bias_hh_l1", 0] == 4
    assert uses["rnn.weight_hh_l0", 1] == uses["head.weight", 1] == 1
    assert ("rnn.weight_ih_l0", 1) not in uses
    words = structure.group("words")
    assert (words.layers, words.consumers) == (("words",), ("rnn.weight_ih_l0",))
    layer = structure.layer("rnn.weight_ih_l1")
    # 24 × 6 weights at each of 5 steps.
    assert (layer.kind, layer.shape, layer.macs, layer.group) == ("recurrent", (24, 6), 720, "rnn.weight_ih_l0")
    assert (structure.layer("words").kind, structure.layer("words").macs) == ("embedding", 0)
    assert reasons(structure) == {"head": IS_OUTPUT}


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True, proj_size=5)
        self.hidden = nn.Linear(5, 12)
        self.head = nn.Linear(12, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(functional.gelu(self.hidden(self.lstm(self.words(x))[0][:, -1])))
        return out


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_what_cannot_be_cut_is_named_and_what_lies_around_it_can_be_cut() -> None:
    structure = find_structure(Projected(), TOKENS)
    assert [(g.name, g.width) for g in structure.groups] == [("words", 6), ("hidden", 12)]
    left = reasons(structure)
    assert left["lstm.weight_ih_l0"] == left["lstm.weight_hh_l0"] == "its hidden units are projected (proj_size)"
    assert left["head"] == IS_OUTPUT
    assert "does not run" in left["unused"]
    assert "unused" not in {layer.name for layer in structure.layers}


def test_a_transformer_layer_gives_features_heads_and_neurons() -> None:
    encoder = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    module = nn.Sequential(nn.Linear(6, 16), encoder, Fn(lambda x: x.mean(1)), nn.Linear(16, 3))
    structure = find_structure(module, SEQUENCE)
    found = {g.name: (g.width, g.kind, g.unit) for g in structure.groups}
    assert found == {
        "0": (16, "channels", 1),
        "1.self_attn.in_proj_weight": (4, "heads", 12),
        "1.linear1": (24, "channels", 1),
    }
    assert reasons(structure) == {
        "1.self_attn.out_proj": "it does not run as a module in the forward pass",
        "3": IS_OUTPUT,
    }


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_cut_by_heads(fused: bool) -> None:
    # As many heads as a head has features: which attribute counts heads is found by trying.
    inner = Residual(Attention(12, 4, 16, fused=fused), nn.LayerNorm(12))
    module = nn.Sequential(nn.Linear(6, 12), inner, nn.Linear(12, 3))
    structure = find_structure(module, SEQUENCE)
    heads = structure.groups[1]
    assert (heads.kind, heads.width, heads.unit) == ("heads", 4, 12 if fused else 4)
    assert heads.layers == (("1.inner.qkv",) if fused else ("1.inner.q", "1.inner.k", "1.inner.v"))
    assert heads.consumers == ("1.inner.out",)
    assert structure.groups[0].consumers == (*heads.layers, "2")
    assert reasons(structure) == {"2": IS_OUTPUT}


def test_a_weight_with_two_names_shrinks_under_both() -> None:
    structure = find_structure(Tied(), TOKENS)
    [group] = structure.groups
    assert (group.name, group.layers, group.consumers) == ("words", ("words", "inner"), ("inner", "out"))
    shapes = structure.shapes([("words", 3)])
    assert shapes == {"words": (11, 3), "inner": (3, 3), "out": (11, 3)}


def test_several_inputs_and_outputs_are_all_watched() -> None:
    structure = find_structure(TwoWays(), {"a": SEQUENCE, "b": SEQUENCE})
    [group] = structure.groups
    assert (group.layers, group.consumers) == (("left", "right"), ("first", "second"))
    assert reasons(structure) == {"first": IS_OUTPUT, "second": IS_OUTPUT}


def test_channels_that_are_added_to_the_input_stay() -> None:
    module = nn.Sequential(Residual(nn.Conv2d(3, 3, 3, padding=1)), Fn(pooled), nn.Linear(3, 2))
    structure = find_structure(module, SMALL)
    assert structure.groups == ()
    assert "0.inner" in reasons(structure)


@pytest.mark.parametrize("name", ALL_CUT)
def test_networks_of_every_form_are_cut_everywhere_but_at_their_output(name: str) -> None:
    build, example = ALL_CUT[name]
    torch.manual_seed(0)
    structure = find_structure(build(), example)
    last = {"tied": "out", "two ways": "second", "one dimension": "4"}.get(name, "2" if "heads" in name else "head")
    assert structure.groups
    assert last in reasons(structure)
    apart = {"1.attention.out_proj", "first", last}
    assert set(reasons(structure)) <= apart


def test_a_stage_has_its_residual_blocks_and_none_inside_another() -> None:
    structure = find_structure(resnet_cifar(depth=14, widths=(4, 8, 8), shortcut="projection"), IMAGE)
    # The first blocks of the later stages halve the image.
    assert [block.name for block in structure.blocks] == ["body.0", "body.1", "body.3", "body.5"]
    assert structure.block("body.1").layers == ("body.1.c1", "body.1.c2")
    plain = nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6)), nn.Linear(6, 6))
    assert find_structure(plain, SEQUENCE).blocks == ()
    inner = nn.ModuleList([Residual(nn.Linear(6, 6))])
    outer = Residual(nn.Sequential(nn.Linear(6, 6), *inner))
    nested = nn.Sequential(nn.Linear(6, 6), outer, nn.Linear(6, 3))
    assert [block.name for block in find_structure(nested, SEQUENCE).blocks] == ["1"]


def test_a_residual_block_that_the_network_cannot_do_without_is_named() -> None:
    class Reads(nn.Module):
        """Uses a part of its own block by name."""

        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(6, 6)
            self.body = nn.ModuleList([Residual(nn.Linear(6, 6))])
            self.out = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.body[0](self.stem(x))) * self.body[0].inner.weight.sum()

    structure = find_structure(Reads(), SEQUENCE)
    assert structure.blocks == ()
    assert reasons(structure)["body.0"].startswith("leaving the block out fails: AttributeError: ")


def test_groups_that_work_alone_but_not_together_are_told_apart() -> None:
    class Sum(nn.Module):
        """Runs while at least one of two layers has its width."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
            self.c, self.d = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            if a.shape[-1] + b.shape[-1] < 12:
                raise RuntimeError("too thin")
            out: Tensor = self.c(a.relu()) + self.d(b.relu())
            return out

    structure = find_structure(Sum(), SEQUENCE)
    assert [g.name for g in structure.groups] == ["a"]
    assert reasons(structure)["b"] == "it cannot be cut together with a: cutting it fails: RuntimeError: too thin"


class Opaque(nn.Module):
    """Fails while it is watched: it refuses tensors that a mode sees."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("watched")
        out: Tensor = self.head(pooled(self.conv(x)))
        return out


def test_a_module_that_cannot_be_traced_keeps_its_layers_and_says_why() -> None:
    structure = find_structure(Opaque(), IMAGE)
    assert [layer.name for layer in structure.layers] == ["conv", "head"]
    assert structure.groups == ()
    assert set(reasons(structure).values()) == {"the channels of Opaque could not be followed: RuntimeError: watched"}


def test_a_module_that_cannot_be_copied_keeps_its_layers_and_says_why() -> None:
    module = Net(Fn(pooled), 8)
    module.kept = module.head.weight * 2  # a tensor with a history
    structure = find_structure(module, IMAGE)
    assert structure.groups == ()
    assert set(reasons(structure)) == {"conv", "head"}
    assert all(reason.startswith("Net cannot be copied: RuntimeError") for reason in reasons(structure).values())


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: pooled(x).tolist(), "does not run on an input of shape"),
        (lambda x: pooled(x)[:, :3], r"does not run on an input of shape \(1, 3, 16, 16\): RuntimeError"),
    ],
)
def test_a_module_that_does_not_run_is_an_error_of_the_task(function: object, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        find_structure(Net(Fn(function), 8), IMAGE)


def test_an_output_without_a_tensor_is_an_error_of_the_task() -> None:
    with pytest.raises(TaskError, match="expected it to return a tensor, got list"):
        evaluate(Fn(lambda x: x.tolist()), IMAGE)
    assert evaluate(Fn(lambda x: (x + 1, x)), IMAGE).equal(IMAGE + 1)


def test_a_layer_called_twice_counts_twice() -> None:
    layer = nn.Linear(4, 4)
    module = nn.Sequential(layer, nn.ReLU(), layer)
    assert layer_calls(module, torch.zeros(3, 4)) == {"0": 32}
    assert find_structure(copy.deepcopy(module), torch.zeros(1, 4)).groups == ()


def test_a_record_of_the_structure_goes_through_json() -> None:
    structure = find_structure(resnet_cifar(depth=8, widths=(4, 4, 4)), IMAGE)
    assert Structure.model_validate_json(structure.model_dump_json()) == structure
