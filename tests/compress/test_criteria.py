from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compress.coupling import Units
from autocompress.compress.criteria import channel_criterion, channel_scores, weight_scores
from autocompress.compress.statistics import Statistics
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import Criterion, Group, Reduction
from autocompress.records.plan import CHANNEL_CRITERIA, WEIGHT_CRITERIA

NONE = Statistics({})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair() -> nn.Module:
    """Layer a gives 5 channels, b too (through a head of two rows each); n normalizes them."""
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Conv2d(2, 5, 3), "b": nn.Linear(4, 10, bias=False), "n": nn.BatchNorm2d(5)})


A = {("a.weight", 0): [[0], [1], [2], [3], [4]], ("a.bias", 0): [[0], [1], [2], [3], [4]]}
#: Unit u owns rows u and 5 + u.
B = {("b.weight", 0): [[u, 5 + u] for u in range(5)]}
N = {(f"n.{kind}", 0): [[0], [1], [2], [3], [4]] for kind in ("weight", "bias", "running_mean", "running_var")}


def units(positions: Mapping[tuple[str, int], list[list[int]]], layers: tuple[str, ...], **group: Any) -> Units:
    tensors = {use: torch.tensor(at) for use, at in positions.items()}
    width = len(next(iter(tensors.values())))
    return Units(Group(name=layers[0], width=width, layers=layers, **group), tensors, mixes=False)


BOTH = units(A | B, ("a", "b"))
NORMED = units(A | B | N, ("a", "b"), norms=("n",))


def gradients(module: nn.Module, seed: int = 0) -> Statistics:
    g = generator(seed)
    first = {n: torch.randn(p.shape, generator=g) for n, p in module.named_parameters()}
    second = {n: torch.rand(p.shape, generator=g) for n, p in module.named_parameters()}
    outputs = {"a": torch.rand(5, generator=g), "b": torch.rand(10, generator=g), "n": torch.rand(5, generator=g)}
    return Statistics(first, second, outputs, {name: 2 * value for name, value in outputs.items()})


def weights_of(module: nn.Module, layer: str, unit: int) -> np.ndarray:
    w = module.get_parameter(f"{layer}.weight").detach().double().numpy()
    return (w[unit] if layer == "a" else w[[unit, 5 + unit]]).ravel()


def rows(values: Tensor, layer: str, unit: int) -> np.ndarray:
    array = values.detach().double().numpy()
    return (array[[unit, 5 + unit]] if layer == "b" else array[unit]).ravel()


def naive(criterion: str, module: nn.Module, statistics: Statistics, layer: str, unit: int) -> float:
    """One unit's score in one layer, without normalizations."""
    w = weights_of(module, layer, unit)
    names = [f"{layer}.{kind}" for kind in ("weight", "bias") if f"{layer}.{kind}" in statistics.gradients]
    own = [(rows(module.get_parameter(n), layer, unit), n) for n in names]
    match criterion:
        case "magnitude":
            return sum(float(v) ** 2 for v in w) ** 0.5
        case "l1":
            return sum(abs(float(v)) for v in w)
        case "fpgm":
            return sum(sum(float(d) ** 2 for d in w - weights_of(module, layer, j)) ** 0.5 for j in range(5))
        case "taylor":
            return sum(float(x @ rows(statistics.gradient(n), layer, unit)) for x, n in own) ** 2
        case "hessian":
            return sum(0.5 * float(x**2 @ rows(statistics.fisher(n), layer, unit)) for x, n in own)
        case "taylor_activation":
            return float(rows(statistics.activation_taylor(layer), layer, unit).sum())
    return float(rows(statistics.f_statistic(layer), layer, unit).sum())


@pytest.mark.parametrize("reduction", get_args(Reduction))
@pytest.mark.parametrize(
    "criterion", ["magnitude", "l1", "fpgm", "taylor", "hessian", "taylor_activation", "f_statistic"]
)
def test_a_unit_is_scored_in_each_layer_by_its_formula_then_reduced(criterion: Any, reduction: Reduction) -> None:
    module = pair()
    statistics = gradients(module)
    raw = np.array([[naive(criterion, module, statistics, layer, u) for u in range(5)] for layer in "ab"])
    scaled = raw / raw.mean(axis=1, keepdims=True)
    expected = {"mean": scaled.mean(0), "sum": scaled.sum(0), "max": scaled.max(0), "prod": scaled.prod(0)}[reduction]
    got = channel_scores(criterion, reduction, module, BOTH, statistics, generator())
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-4)


def test_behind_normalizations_what_silences_a_unit_is_their_scale_and_shift() -> None:
    module = pair()
    nn.init.normal_(module.get_parameter("n.weight"))
    nn.init.normal_(module.get_parameter("n.bias"))
    s = gradients(module)
    w, b = (module.get_parameter(f"n.{kind}").detach() for kind in ("weight", "bias"))
    gw, gb, hw, hb = s.gradient("n.weight"), s.gradient("n.bias"), s.fisher("n.weight"), s.fisher("n.bias")
    for criterion, raw in (
        ("bn_scale", w.abs()),
        ("taylor", (w * gw + b * gb).square()),
        ("hessian", 0.5 * (hw * w.square() + hb * b.square())),
        ("taylor_activation", s.activation_taylor("n")),
    ):
        got = channel_criterion(criterion)(module, NORMED, s, generator())  # type: ignore[arg-type]
        torch.testing.assert_close(got, raw / raw.mean(), rtol=1e-4, atol=1e-6)
    # The F-statistic does not see an affine map, and the other criteria are of the filters.
    for criterion in ("f_statistic", "magnitude", "fpgm"):
        first, second = (channel_criterion(criterion)(module, u, s, generator()) for u in (NORMED, BOTH))
        assert torch.equal(first, second)


def test_bn_scale_without_a_normalization_names_the_criteria_that_are_possible() -> None:
    with pytest.raises(InfeasibleError, match=r"bn_scale on 'a': .* got none; possible are f_statistic, fpgm, hessian"):
        channel_criterion("bn_scale")(pair(), BOTH, NONE, generator())


@pytest.mark.parametrize(
    ("layer", "positions", "expected"),
    [
        (nn.ConvTranspose2d(4, 2, 3), {("x.weight", 1): [[0], [1]]}, 1),
        (nn.Embedding(7, 4), {("x.weight", 1): [[0, 1], [2, 3]]}, 1),
        (nn.Conv2d(4, 4, 3), {("x.weight", 0): [[0], [1]], ("x.weight", 1): [[2], [3]]}, 0),
        (nn.ConvTranspose2d(4, 4, 3), {("x.weight", 0): [[2], [3]], ("x.weight", 1): [[0], [1]]}, 1),
        (nn.Conv2d(4, 4, 3, groups=4), {("x.weight", 0): [[0], [3]]}, 0),
    ],
    ids=["transposed", "embedding", "residual", "residual transposed", "depthwise"],
)
def test_units_are_read_along_the_axis_of_their_outputs(layer: nn.Module, positions: Any, expected: int) -> None:
    module = nn.ModuleDict({"x": layer})
    w = module.get_parameter("x.weight").detach().double().numpy()
    raw = np.array([np.linalg.norm(w.take(at, axis=expected)) for at in positions["x.weight", expected]])
    got = channel_criterion("magnitude")(module, units(positions, ("x",)), NONE, generator())
    np.testing.assert_allclose(got.numpy(), raw / raw.mean(), rtol=1e-5)


def test_hidden_units_of_a_recurrent_layer_own_a_row_of_every_gate() -> None:
    module = nn.ModuleDict({"r": nn.LSTM(2, 3)})
    gates = [[u, 3 + u, 6 + u, 9 + u] for u in range(3)]
    names = ("r.weight_ih_l0", "r.weight_hh_l0")
    positions: Any = {(n.replace("weight", kind), 0): gates for n in names for kind in ("weight", "bias")}
    positions["r.weight_hh_l0", 1] = [[0], [1], [2]]
    hidden = units(positions, names, kind="hidden")
    s = Statistics({n: torch.randn(p.shape, generator=generator(1)) for n, p in module.named_parameters()})
    raw = np.zeros((2, 3))
    for i, n in enumerate(names):
        for u in range(3):
            for kind in ("weight", "bias"):
                p = n.replace("weight", kind)
                product = (module.get_parameter(p).detach() * s.gradient(p)).numpy().reshape(12, -1)
                raw[i, u] += product[gates[u]].sum()
    raw = raw**2
    got = channel_criterion("taylor")(module, hidden, s, generator())
    np.testing.assert_allclose(got.numpy(), (raw / raw.mean(1, keepdims=True)).mean(0), rtol=1e-4)
    # Only one of the two shows its outputs: that one decides.
    one = Statistics({}, {}, {}, {"r.weight_hh_l0": torch.tensor([1.0, 2.0, 3.0] * 4)})
    assert channel_criterion("f_statistic")(module, hidden, one, generator()).tolist() == [0.5, 1.0, 1.5]


def test_a_layers_scale_does_not_decide_for_the_others() -> None:
    module = pair()
    before = channel_criterion("magnitude")(module, BOTH, NONE, generator())
    module.get_parameter("b.weight").data *= 1000.0
    torch.testing.assert_close(channel_criterion("magnitude")(module, BOTH, NONE, generator()), before)


@pytest.mark.parametrize("criterion", sorted(CHANNEL_CRITERIA - {"random", "taylor_activation", "f_statistic"}))
def test_zero_weights_score_zero_and_equal_units_are_equal(criterion: Any) -> None:
    module = pair()
    constant = {n: torch.ones_like(p) for n, p in module.named_parameters()}
    statistics = Statistics(constant, constant)
    for value in (0.0, 0.5):
        for parameter in module.parameters():
            nn.init.constant_(parameter, value)
        scores = channel_criterion(criterion)(module, NORMED, statistics, generator())
        assert scores.tolist() == [0.0 if value == 0.0 or criterion == "fpgm" else 1.0] * 5


@pytest.mark.parametrize("criterion", sorted(CHANNEL_CRITERIA))
def test_every_word_of_a_plan_has_a_criterion_with_one_finite_score_per_unit(criterion: Any) -> None:
    module = pair()
    scores = channel_criterion(criterion)(module, NORMED, gradients(module), generator())
    assert scores.shape == (5,)
    assert scores.dtype == torch.float32
    assert (scores >= 0).all()
    assert float(scores.mean()) == pytest.approx(1.0)
    assert not scores.requires_grad


def test_large_layers_distances_from_products_are_those_from_differences() -> None:
    torch.manual_seed(0)
    module = nn.ModuleDict({"x": nn.Linear(1200, 400)})
    w = module.get_parameter("x.weight").detach().double().numpy()
    raw = np.array([np.sqrt(((w - row) ** 2).sum(axis=1)).sum() for row in w])
    big = units({("x.weight", 0): [[u] for u in range(400)]}, ("x",))
    np.testing.assert_allclose(channel_criterion("fpgm")(module, big, NONE, generator()), raw / raw.mean(), rtol=1e-5)


def test_lamp_scores_weights_only() -> None:
    with pytest.raises(InfeasibleError, match=r"expected one for channels \(bn_scale, .*got 'lamp'"):
        channel_criterion("lamp")


def test_a_weight_that_is_nan_is_refused_with_its_layer() -> None:
    module = pair()
    module.get_parameter("b.weight").data[7, 0] = float("nan")
    for criterion in ("magnitude", "l1", "fpgm"):
        with pytest.raises(CompressionError, match=rf"criterion {criterion} on 'a': expected 5 finite scores in 'b'"):
            channel_criterion(criterion)(module, BOTH, NONE, generator())


def test_statistics_that_are_missing_or_of_another_network_are_refused() -> None:
    module = pair()
    with pytest.raises(CompressionError, match=r"expected a gradient of 'a\.weight', got 0 others"):
        channel_criterion("taylor")(module, BOTH, NONE, generator())
    with pytest.raises(CompressionError, match=r"expected squared gradients of 'n\.weight', got 0 others"):
        channel_criterion("hessian")(module, NORMED, NONE, generator())
    with pytest.raises(CompressionError, match="expected an F-statistic of 'a', got 0 others"):
        channel_criterion("f_statistic")(module, BOTH, NONE, generator())
    foreign = Statistics({"a.weight": torch.ones(1)}, {}, {"a": torch.ones(7)})
    with pytest.raises(CompressionError, match=r"'a\.weight': expected shape \(5, 2, 3, 3\), got \(1,\)"):
        channel_criterion("taylor")(module, BOTH, foreign, generator())
    with pytest.raises(CompressionError, match=r"'a': expected 5 outputs, got \(7,\)"):
        channel_criterion("taylor_activation")(module, BOTH, foreign, generator())
    with pytest.raises(CompressionError, match="expected positions of its units in 'b', got none"):
        channel_criterion("magnitude")(module, units(A, ("a", "b")), NONE, generator())


def test_random_depends_on_its_generator_only() -> None:
    score = channel_criterion("random")
    assert torch.equal(score(pair(), BOTH, NONE, generator(1)), score(nn.Identity(), BOTH, NONE, generator(1)))
    assert not torch.equal(score(pair(), BOTH, NONE, generator(1)), score(pair(), BOTH, NONE, generator(2)))


# --- what the scores promise about the loss --------------------------------------------------------------------------


def test_taylor_ranks_channels_as_removing_them_changes_the_loss() -> None:
    # The first-order change is exact for small channels: scale each channel's output down and compare the ranks.
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 3)).eval()
    module[1].weight.data = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.5, 0.1]) * 1e-2
    nn.init.normal_(module[1].bias, std=1e-2)
    x, y = torch.randn(16, 1, 8, 8), torch.randint(3, (16,))
    loss = nn.functional.cross_entropy(module(x), y)
    module.zero_grad()
    torch.autograd.backward(loss)
    statistics = Statistics({n: p.grad for n, p in module.named_parameters() if p.grad is not None})
    at: Any = {(f"{layer}.{kind}", 0): [[c] for c in range(6)] for layer in "01" for kind in ("weight", "bias")}
    scores = channel_criterion("taylor")(module, units(at, ("0",), norms=("1",)), statistics, generator())
    changes = []
    for c in range(6):
        kept = module[1].weight[c].item(), module[1].bias[c].item()
        module[1].weight.data[c], module[1].bias.data[c] = 0.0, 0.0
        changes.append((nn.functional.cross_entropy(module(x), y) - loss).item() ** 2)
        module[1].weight.data[c], module[1].bias.data[c] = kept
    assert torch.argsort(scores).tolist() == torch.argsort(torch.tensor(changes)).tolist()


def test_taylor_is_the_squared_change_of_a_linear_loss_and_obd_the_change_of_a_quadratic_one() -> None:
    torch.manual_seed(0)
    w = torch.randn(4, 3)
    slope, curvature = torch.randn(4, 3), torch.rand(4, 3)
    for u in range(4):
        for i in range(3):
            without = w.clone()
            without[u, i] = 0.0
            linear = float((slope * without).sum() - (slope * w).sum()) ** 2
            # At the minimum w of ½ Σ h (v - w)², whose gradient is zero.
            quadratic = 0.5 * float((curvature * (without - w).square()).sum())
            first = weight_scores("taylor", w, gradient=slope, generator=generator())
            second = weight_scores("hessian", w, fisher=curvature, generator=generator())
            assert float(first[u, i]) == pytest.approx(linear, rel=1e-3, abs=1e-9)
            assert float(second[u, i]) == pytest.approx(quadratic, rel=1e-5)


# --- single weights --------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([-2.0, -1.0, -0.25, 0.0, 0.25, 1.0, 1.5, 3.0]), min_size=1, max_size=20))
def test_lamp_is_its_formula(values: list[float]) -> None:
    expected = [v**2 / max(sum(u**2 for u in values if u**2 >= v**2), 1e-300) for v in values]
    got = weight_scores("lamp", torch.tensor([values]), generator=generator())
    assert got[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_single_weights_follow_their_formulas() -> None:
    weight, other = torch.tensor([[1.0, -3.0], [0.5, 2.0]]), torch.tensor([[2.0, 0.1], [4.0, 0.0]])
    g = generator()
    assert weight_scores("magnitude", weight, generator=g).tolist() == [[1.0, 3.0], [0.5, 2.0]]
    expected = [[4.0, pytest.approx(0.09)], [4.0, 0.0]]
    assert weight_scores("taylor", weight, gradient=other, generator=g).tolist() == expected
    assert weight_scores("hessian", weight, fisher=other, generator=g).tolist() == [
        [1.0, pytest.approx(0.45)],
        [0.5, 0.0],
    ]


@pytest.mark.parametrize("criterion", sorted(WEIGHT_CRITERIA))
def test_weights_that_are_not_finite_are_refused_by_layer(criterion: Criterion) -> None:
    ones = torch.ones(2, 2)
    good = weight_scores(criterion, ones.requires_grad_(True), gradient=ones, fisher=ones, generator=generator())
    assert good.shape == (2, 2)
    assert not good.requires_grad
    bad = torch.tensor([[1.0, float("nan")], [float("inf"), 0.0]])
    with pytest.raises(CompressionError, match=f"{criterion} on 'fc': expected finite weights, got 2 that are NaN"):
        weight_scores(criterion, bad, gradient=ones, fisher=ones, generator=generator(), name="fc")


def test_single_weights_without_their_statistics_or_with_a_channel_criterion_are_refused() -> None:
    weight, g = torch.ones(2, 2), generator()
    with pytest.raises(CompressionError, match=r"taylor on 'fc': expected a gradient of shape \(2, 2\), got None"):
        weight_scores("taylor", weight, generator=g, name="fc")
    with pytest.raises(CompressionError, match=r"expected squared gradients of shape \(2, 2\), got \(2, 1\)"):
        weight_scores("hessian", weight, fisher=weight[:, :1], generator=g)
    with pytest.raises(CompressionError, match="expected finite scores; its statistics are not finite"):
        weight_scores("taylor", weight, gradient=weight * float("inf"), generator=g)
    with pytest.raises(InfeasibleError, match=r"'fc': expected one for weights \(hessian, lamp, .*got 'fpgm'"):
        weight_scores("fpgm", weight, generator=g, name="fc")
