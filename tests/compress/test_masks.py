from __future__ import annotations

import copy
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocompress.compress.masks import FixedMasks, Masks, make_masks, masked_weight
from autocompress.compress.patterns import as_matrix, at_level, check_fits, from_matrix, select, zeros_asked
from autocompress.compress.prune import cut_channels
from autocompress.compress.state import load_module, save_module
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import ChannelCut, Criterion, Layer, LayerKind, Structure, WeightMask


def mask_of(pattern: str, sparsity: float, layer: str = "x", criterion: Criterion = "magnitude") -> WeightMask:
    return WeightMask(layer=layer, sparsity=sparsity, criterion=criterion, pattern=pattern)


def layer_of(shape: tuple[int, ...], kind: LayerKind = "conv2d", name: str = "x") -> Layer:
    return Layer(name=name, kind=kind, shape=shape, macs=1)


class Small(nn.Module):
    """A convolution, a classifier and an LSTM that share one record."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(4, 6, 3)
        self.fc = nn.Linear(8, 6)
        self.lstm = nn.LSTM(4, 2)


STRUCTURE = Structure(
    groups=(),
    layers=(
        layer_of((6, 4, 3, 3), "conv2d", "conv"),
        layer_of((6, 8), "linear", "fc"),
        layer_of((8, 4), "recurrent", "lstm.weight_ih_l0"),
        layer_of((8, 2), "recurrent", "lstm.weight_hh_l0"),
    ),
)


def statistics(module: nn.Module) -> Statistics:
    generator = torch.Generator().manual_seed(1)
    shapes = {name: p.shape for name, p in module.named_parameters()}
    return Statistics(
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()},
        {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()},
    )


@settings(max_examples=60, deadline=None)
@given(
    sparsity=st.floats(0.01, 0.98),
    criterion=st.sampled_from(["magnitude", "taylor", "hessian", "random"]),
    name=st.sampled_from([layer.name for layer in STRUCTURE.layers]),
)
def test_a_mask_takes_exactly_the_asked_number_of_lowest_scores(
    sparsity: float, criterion: Criterion, name: str
) -> None:
    module = Small()
    weight = masked_weight(module, name).detach()
    asked = mask_of("element", sparsity, name, criterion)
    zeros = round(sparsity * weight.numel())
    if zeros == weight.numel():
        with pytest.raises(InfeasibleError, match=f"of '{name}' leaves none of its {zeros} weights"):
            make_masks(module, [asked], STRUCTURE, statistics(module), seed=0)
        return
    known = statistics(module)
    kept = make_masks(module, [asked], STRUCTURE, known, seed=0).kept[name]
    parameter = STRUCTURE.layer(name).parameter
    assert int((~kept).sum()) == zeros == zeros_asked(asked, tuple(weight.shape))
    if criterion != "random" and zeros:
        scores = {
            "magnitude": lambda: weight.abs(),
            "taylor": lambda: (weight * known.gradient(parameter)).square(),
            "hessian": lambda: weight.square() * known.fisher(parameter),
        }[criterion]()
        assert scores[kept].min() >= scores[~kept].max()


def test_equal_scores_keep_the_lower_position() -> None:
    kept = select(torch.ones(2, 4), mask_of("element", 0.5), "linear")
    assert kept.tolist() == [[True] * 4, [False] * 4]
    assert select(torch.ones(1, 4), mask_of("1:2", 0.5), "linear").tolist() == [[True, False, True, False]]


def test_random_masks_follow_their_seed() -> None:
    module = Small()
    asked = [mask_of("element", 0.5, "conv", "random"), mask_of("element", 0.5, "fc", "random")]
    first, again, other = (make_masks(module, asked, STRUCTURE, Statistics({}), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.kept["fc"], again.kept["fc"])
    assert not torch.equal(first.kept["fc"], other.kept["fc"])


@settings(max_examples=40, deadline=None)
@given(
    n_m=st.sampled_from([(1, 2), (2, 4), (1, 4), (4, 8), (3, 4)]),
    out=st.integers(1, 4),
    groups=st.integers(1, 3),
    kernel=st.sampled_from([(), (1, 1), (3, 2)]),
    transposed=st.booleans(),
    seed=st.integers(0, 100),
)
def test_n_of_every_m_input_channels_stay_at_every_position(
    n_m: tuple[int, int], out: int, groups: int, kernel: tuple[int, ...], transposed: bool, seed: int
) -> None:
    n, m = n_m
    inputs = groups * m
    transposed = transposed and bool(kernel)
    shape = (inputs, out, *kernel) if transposed else (out, inputs, *kernel)
    kind = "conv_transpose2d" if transposed else "conv2d" if kernel else "linear"
    scores = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    asked = mask_of(f"{n}:{m}", 1 - n / m)
    kept = select(scores, asked, kind)
    values, chosen = scores.numpy(), kept.numpy()
    for o, where in product(range(out), product(*(range(k) for k in kernel))):
        for start in range(0, inputs, m):
            at = [((i, o) if transposed else (o, i)) + where for i in range(start, start + m)]
            best = sorted(at, key=lambda index: -values[index])[:n]
            assert {index for index in at if chosen[index]} == set(best)
    assert int((~kept).sum()) == zeros_asked(asked, shape) == prod(shape) * (m - n) // m


@settings(max_examples=40, deadline=None)
@given(
    r=st.integers(1, 3),
    c=st.integers(1, 3),
    tall=st.integers(1, 3),
    wide=st.integers(1, 4),
    sparsity=st.floats(0.05, 0.9),
    seed=st.integers(0, 100),
)
def test_whole_blocks_with_the_lowest_means_go(
    r: int, c: int, tall: int, wide: int, sparsity: float, seed: int
) -> None:
    scores = torch.rand(r * tall, c * wide, generator=torch.Generator().manual_seed(seed))
    asked = mask_of(f"block:{r}x{c}", sparsity)
    kept = select(scores, asked, "linear").numpy()
    tiles = [(slice(i * r, i * r + r), slice(j * c, j * c + c)) for i in range(tall) for j in range(wide)]
    gone = round(sparsity * len(tiles))
    ranked = sorted(tiles, key=lambda tile: scores.double().numpy()[tile].mean())
    assert all(not kept[tile].any() for tile in ranked[:gone])
    assert all(kept[tile].all() for tile in ranked[gone:])
    assert int((~kept).sum()) == zeros_asked(asked, tuple(scores.shape)) == gone * r * c


@pytest.mark.parametrize(
    ("shape", "kind"), [((3, 4, 2, 5), "conv2d"), ((4, 3, 2, 5), "conv_transpose2d"), ((3, 4), "linear")]
)
def test_columns_are_positions_then_input_channels(shape: tuple[int, ...], kind: str) -> None:
    weight = torch.arange(prod(shape)).view(shape)
    matrix = as_matrix(weight, kind)
    if kind == "linear":
        assert torch.equal(matrix, weight)
    else:
        by_hand = [
            [int(weight[(i, o, y, x) if kind == "conv_transpose2d" else (o, i, y, x)]) for y, x, i in COLUMNS]
            for o in range(3)
        ]
        assert matrix.tolist() == by_hand
    assert torch.equal(from_matrix(matrix, shape, kind), weight)


COLUMNS = [(y, x, i) for y in range(2) for x in range(5) for i in range(4)]


@pytest.mark.parametrize(
    ("pattern", "sparsity", "layer", "message"),
    [
        ("2:4", 0.5, layer_of((8, 6, 3, 3)), "2:4 needs inputs in multiples of 4, 'x' has 6; m may be 2, 3, 6"),
        ("2:4", 0.5, layer_of((8, 1, 5, 5)), "'x' has 1; m may be nothing above 1"),
        ("2:4", 0.5, layer_of((6, 8, 3, 3), "conv_transpose2d"), "'x' has 6; m may be 2, 3, 6"),
        ("block:4x1", 0.5, layer_of((6, 4), "linear"), "needs outputs in multiples of 4, 'x' has 6; R may be 2, 3, 6"),
        ("block:1x8", 0.5, layer_of((6, 4, 3, 3)), "needs input weights in multiples of 8, 'x' has 36; C may be 2, 3,"),
        ("element", 0.99, layer_of((3, 4), "linear"), "sparsity 0.99 of 'x' leaves none of its 12 weights"),
        ("block:3x4", 0.6, layer_of((3, 4), "linear"), "sparsity 0.6 of 'x' leaves none of its 12 weights"),
    ],
)
def test_patterns_that_do_not_fit_say_what_does(pattern: str, sparsity: float, layer: Layer, message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        check_fits(mask_of(pattern, sparsity), layer, layer.shape)


@given(sparsity=st.floats(0.0, 1.0))
def test_masks_on_their_way_never_pass_their_goal(sparsity: float) -> None:
    for goal in (mask_of("element", 0.6), mask_of("2:8", 0.75), mask_of("block:1x2", 0.6)):
        now = at_level(goal, sparsity)
        if sparsity >= goal.sparsity:
            assert now == goal
        elif now is not None:
            assert now.sparsity <= goal.sparsity
            assert abs(now.sparsity - sparsity) <= (1 / 16 + 1e-9 if goal.n_m else 0.0)
    assert at_level(mask_of("2:8", 0.75), 0.5) == mask_of("4:8", 0.5)
    assert at_level(mask_of("2:8", 0.75), 0.01) is None


def test_weights_that_are_zero_stay_zero_when_more_are_asked() -> None:
    module = Small()
    some = make_masks(module, [mask_of("element", 0.4, "fc", "random")], STRUCTURE, Statistics({}), seed=0)
    some.apply(module)
    more = make_masks(module, [mask_of("element", 0.7, "fc", "random")], STRUCTURE, Statistics({}), seed=7)
    assert not (more.kept["fc"] & ~some.kept["fc"]).any()


def test_zeros_survive_copies_and_a_strict_load(tmp_path: Path) -> None:
    module = Small()
    asked = [mask_of("element", 0.5, name) for name in ("conv", "fc", "lstm.weight_hh_l0")]
    masks = make_masks(module, asked, STRUCTURE, Statistics({}), seed=0)
    masks.apply(module)
    save_module(module, tmp_path / "m.safetensors")
    loaded = load_module(Small(), tmp_path / "m.safetensors")
    strict = Small()
    strict.load_state_dict(module.state_dict(), strict=True)
    for network in (copy.deepcopy(module), loaded, strict):
        masks.check(network)
        for name, zeros in masks.counts().items():
            assert int((masked_weight(network, name) == 0).sum()) == zeros == masked_weight(network, name).numel() // 2
    with pytest.raises(CompressionError, match="mask of 'conv': expected 108 weights to be zero, got 108 that are not"):
        masks.check(Small())


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_zeros_survive_momentum_and_weight_decay(optimizer: str, decay: float) -> None:
    module = Small()
    masks = make_masks(module, [mask_of("element", 0.5, "fc")], STRUCTURE, Statistics({}), seed=0)
    hook = FixedMasks(masks)
    parameters = [module.fc.weight]
    steps: torch.optim.Optimizer = torch.optim.AdamW(parameters, weight_decay=decay)
    if optimizer == "sgd":
        steps = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, nesterov=True, weight_decay=decay)
    # Momentum from before the mask, which must not move masked weights either.
    torch.autograd.backward(module.fc(torch.randn(4, 8)).square().sum())
    steps.step()
    for step in range(3):
        steps.zero_grad()
        hook.before_forward(module, step, 3)
        masks.check(module)
        torch.autograd.backward(module.fc(torch.randn(4, 8)).square().sum())
        hook.before_update(module, step, 3)
        assert module.fc.weight.grad is not None
        assert not module.fc.weight.grad[~masks.kept["fc"]].any()
        steps.step()
        hook.after_update(module, step, 3)
        masks.check(module)
    assert module.fc.weight[masks.kept["fc"]].all()


def test_applying_a_mask_zeroes_even_what_is_not_finite() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].weight.data = torch.tensor([[float("inf"), -1.0], [2.0, float("nan")]])
    Masks({"0": torch.tensor([[False, False], [True, False]])}).apply(module)
    assert module[0].weight.tolist() == [[0.0, 0.0], [2.0, 0.0]]
    assert not torch.signbit(module[0].weight).any()


def test_masks_that_do_not_belong_to_the_network_are_refused() -> None:
    module = Small()
    known = statistics(module)
    with pytest.raises(InfeasibleError, match="expected a layer of the network, got 'nowhere'"):
        make_masks(module, [mask_of("element", 0.5, "nowhere")], STRUCTURE, known, seed=0)
    few = Structure(groups=(), layers=STRUCTURE.layers[:1])
    with pytest.raises(InfeasibleError, match="expected a layer of the network, got 'fc'; it has conv"):
        make_masks(module, [mask_of("element", 0.5, "fc")], few, known, seed=0)
    with pytest.raises(CompressionError, match=r"mask of 'fc': expected a weight of shape \(3, 3\), got \(6, 8\)"):
        Masks({"fc": torch.ones(3, 3, dtype=torch.bool)}).apply(module)
    with pytest.raises(CompressionError, match=r"expected a gradient of 'fc\.weight'"):
        make_masks(module, [mask_of("element", 0.5, "fc", "taylor")], STRUCTURE, Statistics({}), seed=0)
    foreign = Statistics({"fc.weight": torch.ones(1, 1)})
    with pytest.raises(CompressionError, match=r"taylor on 'fc\.weight': expected a gradient of shape \(6, 8\)"):
        make_masks(module, [mask_of("element", 0.5, "fc", "taylor")], STRUCTURE, foreign, seed=0)
    module.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"'fc\.weight': expected finite weights, got 1 that are NaN"):
        make_masks(module, [mask_of("element", 0.5, "fc")], STRUCTURE, known, seed=0)


def test_no_masks_is_false_and_applies_to_anything() -> None:
    masks = make_masks(nn.Identity(), [], STRUCTURE, Statistics({}), seed=0)
    assert not masks
    assert masks.counts() == {}
    masks.apply(nn.Identity())
    masks.check(nn.Identity())


def test_choosing_masks_leaves_the_network_and_global_randomness_alone() -> None:
    module = Small()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state, numpy_state = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    make_masks(module, [mask_of("element", 0.5, "fc", "random")], STRUCTURE, Statistics({}), seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("criterion", ["taylor", "hessian"])
def test_masks_after_a_cut_use_the_surviving_weights_own_statistics(criterion: Criterion) -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 5, 3, padding=1), nn.ReLU())
    dense.extend([nn.Flatten(), nn.Linear(5 * 16, 3)])
    example, known = torch.zeros(1, 2, 4, 4), statistics(dense)
    structure = find_structure(dense, example)
    cuts = [ChannelCut(group="0", keep=3, criterion="magnitude"), ChannelCut(group="2", keep=2, criterion="magnitude")]
    cut = cut_channels(dense, cuts, structure, known, example=example, seed=0)
    asked = [mask_of("element", 0.5, name, criterion) for name in ("0", "2", "5")]
    masks = make_masks(cut, asked, structure, known, seed=0)
    # Who survived is told by the biases, which are all different.
    rows, columns = (
        [dense[i].bias.tolist().index(value) for value in cut[i].bias.tolist()] for i in (0, 2)
    )  # fmt: skip
    features = [c * 16 + p for c in columns for p in range(16)]
    survivors = {
        "0": lambda tensor: tensor[rows],
        "2": lambda tensor: tensor[columns][:, rows],
        "5": lambda tensor: tensor[:, features],
    }
    for name, take in survivors.items():
        weight = take(masked_weight(dense, name).detach())
        assert torch.equal(weight, masked_weight(cut, name))
        gradient, fisher = take(known.gradient(f"{name}.weight")), take(known.fisher(f"{name}.weight"))
        scores = (weight * gradient).square() if criterion == "taylor" else weight.square() * fisher
        cutoff = scores.flatten().sort().values[round(0.5 * scores.numel())]
        assert torch.equal(masks.kept[name], scores >= cutoff)
