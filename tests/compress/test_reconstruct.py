"""What stays takes over what goes: against least squares on the very inputs, and on whole networks of every kind."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.covariance import oas
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from toy_moments import Joined, correlated, mlp, moments_of

from autocompress.compress.moments import InputMoments, Moment, input_axis
from autocompress.compress.prune import cut_channels, follow_statistics
from autocompress.compress.reconstruct import reconstruct, ridged
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.compress.structure import find_structure
from autocompress.compress.train import recalibrate_bn
from autocompress.models.resnet import resnet_cifar
from autocompress.records import ChannelCut
from autocompress.task import Task


def task_of(inputs: Tensor, targets: Tensor) -> Task:
    data = TensorDataset(inputs, targets)
    splits: dict[str, Any] = dict.fromkeys(("train", "validation", "selection", "test"), data)
    return Task(name="t", model=nn.Identity, **splits)


@given(st.integers(0, 50), st.integers(2, 11), st.booleans())
@settings(max_examples=25)
def test_a_linear_layer_is_what_least_squares_on_its_inputs_gives(seed: int, keep: int, bias: bool) -> None:
    module = mlp(bias=bias)
    x = correlated(900, 6, seed=seed)
    moments = moments_of(module, find_structure(module, x[:2]), x)
    stays = torch.randperm(12, generator=torch.Generator().manual_seed(seed))[:keep].sort().values
    refitted = copy.deepcopy(module)
    reconstruct(refitted, {("2.weight", 1): stays}, moments)

    hidden = module[:2](x).detach().double().numpy()
    wanted = module(x).detach().double().numpy()
    design = hidden[:, stays]
    if bias:
        design = np.column_stack([design, np.ones(len(x))])
    best = np.linalg.lstsq(design, wanted, rcond=None)[0]
    least = ((design @ best - wanted) ** 2).sum()
    weight = refitted.get_parameter("2.weight").detach().double().numpy()[:, stays]
    got = hidden[:, stays] @ weight.T + (refitted.get_parameter("2.bias").detach().numpy() if bias else 0.0)
    plain = hidden[:, stays] @ module.get_parameter("2.weight").detach().double().numpy()[:, stays].T
    plain = plain + (module.get_parameter("2.bias").detach().numpy() if bias else 0.0)
    # Of the ridge, a thousandth of each input's spread.
    spread = hidden.var(axis=0).mean() if bias else (hidden**2).mean()
    slack = 2e-3 * len(x) * spread * float(module.get_parameter("2.weight").detach().square().sum()) * 12
    assert least - 1e-6 <= ((got - wanted) ** 2).sum() <= least + slack
    assert ((got - wanted) ** 2).sum() <= ((plain - wanted) ** 2).sum() * 1.001


def test_a_channel_that_repeats_another_goes_without_a_trace() -> None:
    module = mlp()
    with torch.no_grad():
        module[0].weight[7], module[0].bias[7] = module[0].weight[2], module[0].bias[2]
    x = correlated(500, 6)
    structure = find_structure(module, x[:2])
    statistics = Statistics({}, moments=moments_of(module, structure, x))
    stays = [unit for unit in range(12) if unit != 7]
    refitted = copy.deepcopy(module)
    reconstruct(refitted, {("2.weight", 1): torch.tensor(stays)}, statistics.moments)
    hidden = module[:2](x)[:, stays]
    got = hidden @ refitted.get_parameter("2.weight")[:, stays].T + refitted.get_parameter("2.bias")
    assert (got - module(x)).abs().max() < 0.02 * module(x).abs().max()


def test_weights_of_what_goes_and_all_other_layers_stay_as_they_are() -> None:
    module, x = mlp(), correlated(200, 6)
    moments = moments_of(module, find_structure(module, x[:2]), x)
    refitted = copy.deepcopy(module)
    reconstruct(refitted, {("0.weight", 0): torch.arange(5), ("2.weight", 1): torch.arange(5)}, moments)
    assert torch.equal(refitted[0].weight, module[0].weight)
    assert torch.equal(refitted[2].weight[:, 5:], module[2].weight[:, 5:])
    assert not torch.allclose(refitted[2].weight[:, :5], module[2].weight[:, :5])


def test_where_nothing_flows_nothing_changes() -> None:
    module = mlp()
    refitted = copy.deepcopy(module)
    nothing = Moment(torch.zeros(12), torch.zeros(12, 12), 100, 1, normalized=False)
    reconstruct(refitted, {("2.weight", 1): torch.arange(5)}, {"2.weight": nothing})
    assert torch.equal(refitted[2].weight, module[2].weight)
    assert torch.equal(refitted[2].bias, module[2].bias)


class Recurrent(nn.Module):
    """Channels of a linear layer flow into a recurrent one, whose hidden units flow into a linear one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(6, 12), nn.LSTM(12, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.lstm(torch.relu(self.first(x)))[0])


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(12, 6, 4, stride=2, padding=1), nn.Flatten()
    )


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: mlp(24), (6,)),
    "without bias": (lambda: mlp(24, bias=False), (6,)),
    "recurrent": (Recurrent, (6,)),
    "joined": (Joined, (6, 8, 8)),
    "transposed": (transposed, (6, 8, 8)),
    "normalized": (lambda: resnet_cifar(depth=8, widths=(16, 16, 32), channels=6, shortcut="projection"), (6, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_cut_network_stays_nearer_to_the_dense_one(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    module = make().eval()
    x = correlated(64, *shape)
    if name == "recurrent":
        x = correlated(64 * 10, 6).reshape(64, 10, 6)
    task = task_of(x, torch.zeros(len(x), dtype=torch.int64))
    structure = find_structure(module, x[:2])
    found = InputMoments(module, structure, 1, seed=0)
    with found.watching(), torch.no_grad():
        wanted = module(x)
    statistics = Statistics({}, moments=found.by_parameter())
    cuts = [ChannelCut(group=g.name, keep=max(1, g.width // 2), criterion="random") for g in structure.groups]
    cuts.sort(key=lambda cut: cut.group)
    errors = {}
    for reconstruction in ("none", "least-squares"):
        made = cut_channels(module, cuts, structure, statistics, example=x[:2], seed=1, reconstruction=reconstruction)  # type: ignore[arg-type]
        with torch.no_grad():
            errors[reconstruction] = float((recalibrate_bn(made, task)(x) - wanted).square().mean())
    assert errors["least-squares"] < 0.8 * errors["none"], (name, errors)


def test_statistics_keep_moments_over_a_file_and_follow_a_cut(tmp_path: Any) -> None:
    torch.manual_seed(0)
    module = resnet_cifar(depth=8, widths=(8, 12, 16), shortcut="projection").eval()
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    task = task_of(x, torch.randint(10, (64,), generator=torch.Generator().manual_seed(1)))
    structure = find_structure(module, x[:2])
    statistics = collect_statistics(module, task, structure, batches=1, seed=0)
    statistics.save(tmp_path / "s.safetensors")
    loaded = Statistics.load(tmp_path / "s.safetensors")
    assert statistics.moments.keys() == loaded.moments.keys() != set()
    for name, moment in statistics.moments.items():
        kept = loaded.moments[name]
        assert torch.equal(kept.mean, moment.mean)
        assert torch.equal(kept.covariance, moment.covariance)
        assert (kept.positions, kept.axis, kept.normalized) == (moment.positions, moment.axis, moment.normalized)
    assert [name for name, moment in statistics.moments.items() if not moment.normalized] == ["fc.weight"]

    inner = next(g for g in structure.groups if len(g.layers) == 1)
    (consumer,) = inner.consumers
    cut = cut_channels(
        module,
        (ChannelCut(group=inner.name, keep=3, criterion="magnitude"),),
        structure,
        statistics,
        example=x[:2],
        seed=0,
        reconstruction="none",
    )
    followed = follow_statistics(statistics, cut).moments
    anew = collect_statistics(cut, task, find_structure(cut, x[:2]), batches=1, seed=0).moments
    # What flows out of the group itself is the same, unit by unit; behind it all is other.
    name = f"{consumer}.weight"
    assert followed[name].covariance.shape == (3, 3)
    torch.testing.assert_close(followed[name].mean, anew[name].mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(followed[name].covariance, anew[name].covariance, rtol=1e-4, atol=1e-5)
    assert all(len(followed[other].mean) == cut.get_parameter(other).shape[1] for other in followed)


def test_layers_without_channels_of_their_own_or_with_a_shared_weight_have_no_moments() -> None:
    assert input_axis(nn.Conv2d(4, 4, 3, groups=2), "weight") is None
    assert input_axis(nn.Embedding(4, 4), "weight") is None
    assert input_axis(nn.LSTM(4, 4), "weight_hh_l0") is None
    assert input_axis(nn.LSTM(4, 4, num_layers=2), "weight_ih_l1") is None
    module = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12)).eval()
    structure = find_structure(module, torch.randn(2, 6))
    assert set(moments_of(module, structure, torch.randn(8, 6))) == {"2.weight", "4.weight"}
    module[4].weight = module[2].weight
    assert moments_of(module, structure, torch.randn(8, 6)) == {}


def test_a_sample_of_the_positions_says_about_the_same_as_all() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = correlated(64, 3, 32, 32)
    (found,) = moments_of(module, find_structure(module, x[:2]), *x.split(16)).values()
    hidden = module[:2](x).detach().movedim(1, -1).reshape(-1, 8)
    exact = hidden.T.cov()
    assert float((found.covariance - exact).norm() / exact.norm()) < 0.1
    assert float((found.mean - hidden.mean(dim=0)).norm() / hidden.mean(dim=0).norm()) < 0.05
    assert found.positions == 4096
    assert not found.normalized


def test_moments_of_what_hardly_varies_keep_their_digits() -> None:
    module = mlp()
    x = correlated(3000, 6)
    with torch.no_grad():  # what flows into the last layer is 100 and hardly anything beside it
        module[0].weight.mul_(1e-3)
        module[0].bias.fill_(100.0)
    (found,) = moments_of(module, find_structure(module, x[:2]), *x.split(500)).values()
    exact = module[:2](x).detach().double().numpy()
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(exact.T, bias=True), rtol=0.05, atol=1e-9)
    np.testing.assert_allclose(found.mean.numpy(), exact.mean(axis=0), rtol=1e-6)


def test_a_convolution_is_normalized_where_a_batch_norm_takes_what_it_returned() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 2, 1, bias=False), nn.ReLU(inplace=True),
        nn.BatchNorm2d(2),
    ).eval()  # fmt: skip
    x = correlated(16, 3, 8, 8)
    moments = moments_of(module, find_structure(module, x[:2]), x)
    assert {name: moment.normalized for name, moment in moments.items()} == {
        "2.weight": True,
        "5.weight": False,
        "7.weight": False,
    }
    # Of the last one nothing takes up a constant, the ReLU lies between: what stays stands in by second moments.
    refitted = copy.deepcopy(module)
    stays = torch.arange(3)
    reconstruct(refitted, {("7.weight", 1): stays}, moments)
    hidden = module[:7](x).detach().movedim(1, -1).reshape(-1, 8).double().numpy()
    wanted = hidden @ module[7].weight.detach().double().numpy()[:, :, 0, 0].T
    best = np.linalg.lstsq(hidden[:, :3], wanted, rcond=None)[0]
    got = refitted[7].weight.detach().double().numpy()[:, :3, 0, 0]
    least = ((hidden[:, :3] @ best - wanted) ** 2).sum()
    assert ((hidden[:, :3] @ got.T - wanted) ** 2).sum() <= 1.05 * least + 1e-6


def test_zeros_stay_zeros() -> None:
    module, x = mlp(), correlated(400, 6)
    moments = moments_of(module, find_structure(module, x[:2]), x)
    with torch.no_grad():
        module[2].weight[:, ::2] = 0.0
    refitted = copy.deepcopy(module)
    reconstruct(refitted, {("2.weight", 1): torch.arange(8)}, moments)
    assert torch.equal(refitted[2].weight == 0.0, module[2].weight == 0.0)
    assert not torch.allclose(refitted[2].weight[:, 1:8:2], module[2].weight[:, 1:8:2])


def test_enough_positions_get_a_thousandth_and_few_what_shrinkage_says() -> None:
    spread = torch.eye(8, dtype=torch.float64)
    assert float(ridged(spread, 8 * 4)[0, 0]) == pytest.approx(1.001, abs=1e-6)
    assert float(ridged(spread, 16)[0, 0]) == pytest.approx(501.0, abs=1.0), "independent inputs: next to none of it"
    x = correlated(20, 30, rank=2).double()
    covariance = x.T.cov(correction=0)
    scale = covariance.diagonal().rsqrt()
    # scikit-learn's has 1 where the mean of the correlations' diagonal is.
    shrinkage = oas(x.numpy() * scale.numpy())[1]
    wanted = shrinkage / (1.0 - shrinkage) * (1.0 - 20 / 120) + 1e-3
    got = ridged(covariance, 20).diagonal() / covariance.diagonal() - 1.0
    np.testing.assert_allclose(got.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("sources", [3, 100], ids=["few sources", "independent"])
def test_a_small_sample_is_trusted_where_inputs_are_of_few_sources(sources: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(sources, 100, bias=False), nn.Identity(), nn.Linear(100, 3)).eval()
    if sources == 100:
        nn.init.eye_(module[0].weight)
    x, fresh = torch.randn(60, sources), torch.randn(4000, sources)
    moments = moments_of(module, find_structure(module, x[:2]), x)
    assert moments["2.weight"].positions == 60
    lost = {}
    for words, positions in (("as it is", 60), ("trusted", 100_000), ("not refitted", 0)):
        refitted = copy.deepcopy(module)
        if positions:
            given = {"2.weight": dataclasses.replace(moments["2.weight"], positions=positions)}
            reconstruct(refitted, {("2.weight", 1): torch.arange(50)}, given)
        with torch.no_grad():
            refitted[2].weight[:, 50:] = 0.0
            lost[words] = float((refitted(fresh) - module(fresh)).square().mean())
    if sources == 100:
        assert lost["as it is"] < 1.1 * lost["not refitted"] < lost["trusted"], lost
    else:
        assert lost["as it is"] < 0.2 * lost["not refitted"], lost
