"""Units go in the order in which a plain search, solving least squares anew for every choice, takes them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toy_moments import Joined, correlated, mlp, moments_of

from autocompress.compress.coupling import Units, find_units
from autocompress.compress.criteria import channel_scores
from autocompress.compress.elimination import elimination_scores
from autocompress.compress.prune import cut_channels
from autocompress.compress.reconstruct import ridged, spread_of
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.records import ChannelCut


def units_of(module: nn.Module, x: Tensor, name: str) -> Units:
    return find_units(module, x[:2])[name]


def plain_order(weight: np.ndarray, spread: np.ndarray, units: list[list[int]]) -> tuple[list[int], list[float]]:
    """Of every unit that is left, solve for the weights without it; the one that costs least goes. Ridge included."""
    left, order, lost = list(range(len(units))), [], []
    everything = range(weight.shape[1])
    energy = np.trace(weight @ spread @ weight.T)

    def cost(gone: list[int]) -> float:
        out = [i for u in gone for i in units[u]]
        stays = [i for i in everything if i not in out]
        best = weight @ spread[:, stays] @ np.linalg.inv(spread[np.ix_(stays, stays)]) if stays else None
        residual = weight @ spread @ weight.T
        if best is not None:
            residual = residual - best @ spread[stays] @ weight.T
        return float(np.trace(residual))

    while left:
        costs = [cost([*order, unit]) for unit in left]
        first = int(np.argmin(costs))
        lost.append(costs[first] / energy)
        order.append(left.pop(first))
    return order, lost


@given(st.integers(0, 30), st.integers(3, 14))
@settings(max_examples=15, deadline=None)
def test_units_go_as_a_plain_search_takes_them(seed: int, hidden: int) -> None:
    module, x = mlp(hidden), correlated(700, 6, seed=seed)
    moments = moments_of(module, find_structure(module, x[:2]), x)
    scores = elimination_scores(module, units_of(module, x, "0"), moments)
    assert scores is not None
    spread = ridged(spread_of(module, "2.weight", moments["2.weight"]), moments["2.weight"].positions)
    weight = module.get_parameter("2.weight").detach().double().numpy()
    order, lost = plain_order(weight, spread.numpy(), [[i] for i in range(hidden)])
    assert scores.argsort(stable=True).tolist() == order
    energy = np.trace(weight @ spread.numpy() @ weight.T)
    plain = np.trace(weight @ spread_of(module, "2.weight", moments["2.weight"]).numpy() @ weight.T)
    np.testing.assert_allclose(scores[order].numpy(), np.array(lost) * energy / plain, rtol=1e-5, atol=1e-9)


def test_of_two_units_that_say_the_same_one_goes_first_and_the_other_stays() -> None:
    module = mlp()
    with torch.no_grad():
        module[0].weight[7], module[0].bias[7] = 2.0 * module[0].weight[2], 2.0 * module[0].bias[2]
    x = correlated(500, 6)
    scores = elimination_scores(module, units_of(module, x, "0"), moments_of(module, find_structure(module, x[:2]), x))
    assert scores is not None
    first, second = sorted((float(scores[2]), float(scores[7])))
    assert first < 1e-3
    assert second > 10 * first


def test_units_of_several_inputs_go_whole() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(6, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 4, 5)).eval()
    x = correlated(600, 6, 4, 4)
    moments = moments_of(module, find_structure(module, x[:2]), x)
    scores = elimination_scores(module, units_of(module, x, "0"), moments)
    assert scores is not None
    weight = module.get_parameter("3.weight").detach().double().numpy()
    spread = ridged(spread_of(module, "3.weight", moments["3.weight"]), moments["3.weight"].positions).numpy()
    order, _ = plain_order(weight, spread, [list(range(4 * u, 4 * u + 4)) for u in range(9)])
    assert scores.argsort(stable=True).tolist() == order


def test_inputs_of_other_groups_stand_in_as_well() -> None:
    torch.manual_seed(0)
    module, x = Joined().eval(), correlated(64, 6, 8, 8)
    with torch.no_grad():  # the first four channels of one branch repeat the other's
        module.a.weight.zero_()
        module.a.weight[:4, :, 1, 1] = module.b.weight[:4, :, 0, 0]
        module.a.bias[:4] = module.b.bias[:4]
        module.a.weight[4:].normal_()
    moments = moments_of(module, find_structure(module, x[:2]), x)
    scores = elimination_scores(module, units_of(module, x, "a"), moments)
    assert scores is not None
    assert set(scores.argsort()[:4].tolist()) == {0, 1, 2, 3}


def test_wide_groups_go_in_steps_in_nearly_the_same_order() -> None:
    module, x = mlp(160), correlated(4000, 6, rank=6)
    moments = moments_of(module, find_structure(module, x[:2]), x)
    scores = elimination_scores(module, units_of(module, x, "0"), moments)
    assert scores is not None
    spread = ridged(spread_of(module, "2.weight", moments["2.weight"]), moments["2.weight"].positions).numpy()
    weight = module.get_parameter("2.weight").detach().double().numpy()

    def lost(gone: list[int]) -> float:
        stays = [i for i in range(160) if i not in gone]
        best = weight @ spread[:, stays] @ np.linalg.inv(spread[np.ix_(stays, stays)])
        return float(np.trace(weight @ spread @ weight.T - best @ spread[stays] @ weight.T))

    order, _ = plain_order(weight, spread, [[i] for i in range(160)])
    for count in (40, 80, 120):
        assert lost(scores.argsort(stable=True)[:count].tolist()) < 1.2 * lost(order[:count]), count


def test_scores_are_shares_and_those_of_nothing_are_magnitudes() -> None:
    module, x = mlp(), correlated(300, 6)
    units = units_of(module, x, "0")
    structure = find_structure(module, x[:2])
    moments = moments_of(module, structure, x)
    scores = elimination_scores(module, units, moments)
    assert scores is not None
    assert float(scores.min()) >= 0.0
    assert float(scores.max()) == pytest.approx(1.0, abs=0.01)
    assert elimination_scores(module, units, {}) is None
    generator = torch.Generator()
    plain = channel_scores("obs", "mean", module, units, Statistics({}), generator)
    assert torch.equal(plain, channel_scores("magnitude", "mean", module, units, Statistics({}), generator))
    # What was scored once is remembered, and what is handed out may be changed.
    again = elimination_scores(module, units, moments)
    assert again is not None
    again.zero_()
    third = elimination_scores(module, units, moments)
    assert third is not None
    assert torch.equal(third, scores)


class Loop(nn.Module):
    """A recurrent layer whose hidden units are read by itself and by a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.RNN(3, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


def test_a_hidden_unit_that_only_the_recurrence_reads_is_not_the_first_to_go() -> None:
    torch.manual_seed(0)
    module = Loop().eval()
    with torch.no_grad():
        module.head.weight[:, 5] = 0.0
        module.rnn.weight_hh_l0[:, 5] = 3.0
    x = torch.randn(200, 6, 3)
    scores = elimination_scores(
        module, units_of(module, x, "rnn.weight_ih_l0"), moments_of(module, find_structure(module, x[:2]), x)
    )
    assert scores is not None
    assert int(scores.argmax()) == 5


def test_a_unit_that_never_varies_goes_first_however_large_its_weights() -> None:
    module, x = mlp(), correlated(400, 6)
    with torch.no_grad():
        module[0].weight[3], module[0].bias[3] = 0.0, -1.0
        module[2].weight[:, 3] = 100.0
    scores = elimination_scores(module, units_of(module, x, "0"), moments_of(module, find_structure(module, x[:2]), x))
    assert scores is not None
    assert int(scores.argmin()) == 3


def test_a_cut_by_them_loses_less_than_by_magnitude() -> None:
    module, x = mlp(48), correlated(900, 6)
    structure = find_structure(module, x[:2])
    statistics = Statistics({}, moments=moments_of(module, structure, x))
    lost = {}
    for criterion in ("obs", "magnitude"):
        cut = ChannelCut(group="0", keep=8, criterion=criterion)  # type: ignore[arg-type]
        made = cut_channels(module, [cut], structure, statistics, example=x[:2], seed=0)
        lost[criterion] = float((made(x) - module(x)).square().mean().detach())
    assert lost["obs"] < 0.5 * lost["magnitude"], lost
