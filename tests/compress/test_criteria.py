from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from autocompress.compress.criteria import channel_criterion, magnitude, random, taylor, weight_scores
from autocompress.compress.statistics import Statistics
from autocompress.errors import CompressionError
from autocompress.records import Criterion, Group

NONE = Statistics({})


def pair() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"a": nn.Conv2d(2, 5, 3), "b": nn.Conv2d(4, 5, 1, bias=False), "n": nn.BatchNorm2d(5)})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_magnitude_is_the_mean_of_each_coupled_layers_normalized_norms() -> None:
    module = pair()
    group = Group(name="a", width=5, layers=("a", "b"))
    weights = {n: module.get_submodule(n).weight.detach() for n in "ab"}
    norms = {n: [float(w[c].square().sum()) ** 0.5 for c in range(5)] for n, w in weights.items()}
    expected = [sum(norms[n][c] / (sum(norms[n]) / 5) for n in "ab") / 2 for c in range(5)]
    assert magnitude(module, group, NONE, generator()).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_layers_scale_does_not_decide_for_the_others() -> None:
    module = pair()
    group = Group(name="a", width=5, layers=("a", "b"))
    before = magnitude(module, group, NONE, generator())
    module.get_submodule("b").weight.data *= 1000.0
    torch.testing.assert_close(magnitude(module, group, NONE, generator()), before)


def test_a_group_of_zeros_has_finite_scores() -> None:
    module = pair()
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    gradients = Statistics({n: torch.ones_like(p) for n, p in module.named_parameters()})
    group = Group(name="a", width=5, layers=("a", "b"), norms=("n",))
    assert magnitude(module, group, NONE, generator()).tolist() == [0.0] * 5
    assert taylor(module, group, gradients, generator()).tolist() == [0.0] * 5


def test_taylor_sums_before_it_squares() -> None:
    module = pair()
    g = {n: torch.randn(p.shape, generator=generator()) for n, p in module.named_parameters()}
    group = Group(name="a", width=5, layers=("a",))
    a = copy.deepcopy(module.get_submodule("a")).requires_grad_(False)
    raw = [float((a.weight[c] * g["a.weight"][c]).sum() + a.bias[c] * g["a.bias"][c]) ** 2 for c in range(5)]
    mean = sum(raw) / 5
    got = taylor(module, group, Statistics(g), generator())
    assert got.tolist() == pytest.approx([r / mean for r in raw], rel=1e-4)


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
    scores = taylor(module, Group(name="0", width=6, layers=("0",), norms=("1",)), statistics, generator())
    changes = []
    for c in range(6):
        kept = module[1].weight[c].item(), module[1].bias[c].item()
        module[1].weight.data[c], module[1].bias.data[c] = 0.0, 0.0
        changes.append((nn.functional.cross_entropy(module(x), y) - loss).item() ** 2)
        module[1].weight.data[c], module[1].bias.data[c] = kept
    assert torch.argsort(scores).tolist() == torch.argsort(torch.tensor(changes)).tolist()


def test_random_depends_on_its_generator_only() -> None:
    group = Group(name="a", width=5, layers=("a",))
    assert torch.equal(random(pair(), group, NONE, generator(1)), random(nn.Identity(), group, NONE, generator(1)))
    assert not torch.equal(random(pair(), group, NONE, generator(1)), random(pair(), group, NONE, generator(2)))


def test_a_missing_gradient_is_named() -> None:
    with pytest.raises(CompressionError, match=r"expected a gradient of 'n\.weight', got 0 others"):
        taylor(pair(), Group(name="a", width=5, layers=("a",), norms=("n",)), NONE, generator())


@pytest.mark.parametrize("name", ["magnitude", "taylor", "random"])
def test_every_word_of_a_plan_has_a_criterion_with_one_finite_score_per_channel(name: Criterion) -> None:
    module = pair()
    g = Statistics({n: torch.randn(p.shape, generator=generator()) for n, p in module.named_parameters()})
    scores = channel_criterion(name)(module, Group(name="a", width=5, layers=("a", "b"), norms=("n",)), g, generator())
    assert scores.shape == (5,)
    assert torch.isfinite(scores).all()
    weight = module.get_submodule("a").weight
    single = weight_scores(name, weight, g.gradient("a.weight"), generator())
    assert single.shape == weight.shape
    assert (single >= 0).all()
    assert not single.requires_grad


def test_weight_scores_follow_their_formulas_and_refuse_a_foreign_gradient() -> None:
    weight, gradient = torch.tensor([[1.0, -3.0], [0.5, 2.0]]), torch.tensor([[2.0, 0.1], [-4.0, 0.0]])
    assert weight_scores("magnitude", weight, None, generator()).tolist() == [[1.0, 3.0], [0.5, 2.0]]
    expected = [[4.0, pytest.approx(0.09)], [4.0, 0.0]]
    assert weight_scores("taylor", weight, gradient, generator()).tolist() == expected
    with pytest.raises(ValueError, match=r"expected a gradient of shape \(2, 2\), got None"):
        weight_scores("taylor", weight, None, generator())
    with pytest.raises(ValueError, match=r"got \(2, 1\)"):
        weight_scores("taylor", weight, gradient[:, :1], generator())
