from __future__ import annotations

import itertools
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compress.allocate import allocate_cuts, allocate_masks, erk_zeros, lowest_everywhere
from autocompress.compress.criteria import weight_scores
from autocompress.compress.knapsack import allocate_from_sensitivity, choose_levels
from autocompress.compress.ranking import lowest, rank_units, topology
from autocompress.compress.sensitivity import BlockSensitivity, GroupSensitivity, LayerSensitivity
from autocompress.compress.statistics import Statistics
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import ChannelCut, Group, Layer, Plan, Structure, Use

NONE = Statistics({})
EXAMPLE = torch.zeros(1, 1, 4, 4)


class Residual(nn.Module):
    """A stem of 8 channels, two blocks whose inner channels (8 and 16) are free, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.a1, self.b1 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.a2, self.b2 = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = x + self.b1(self.a1(x).relu())
        x = x + self.b2(self.a2(x).relu())
        return self.fc(x.mean(dim=(2, 3)))


def use(parameter: str, axis: int) -> Use:
    return Use(parameter=parameter, axis=axis, per_unit=1)


def inner(a: str, b: str, width: int) -> Group:
    uses = (use(f"{a}.weight", 0), use(f"{a}.bias", 0), use(f"{b}.weight", 1))
    return Group(name=a, width=width, layers=(a,), consumers=(b,), uses=uses)


def residual() -> tuple[nn.Module, Structure]:
    module = Residual()
    ends = tuple(use(f"{n}.{kind}", 0) for n in ("stem", "b1", "b2") for kind in ("weight", "bias"))
    reads = tuple(use(f"{n}.weight", 1) for n in ("a1", "a2", "fc"))
    stem = Group(name="stem", width=8, layers=("stem", "b1", "b2"), consumers=("a1", "a2", "fc"), uses=(*ends, *reads))
    layers = tuple(
        Layer(
            name=name,
            kind="linear" if name == "fc" else "conv2d",
            shape=tuple(module.get_parameter(f"{name}.weight").shape),
            macs=1,
        )
        for name in ("stem", "a1", "b1", "a2", "b2", "fc")
    )
    return module, Structure(groups=(stem, inner("a1", "b1", 8), inner("a2", "b2", 16)), layers=layers)


def cuts(**changes: Any) -> dict[str, int]:
    module, structure = residual()
    arguments: Any = {"sparsity": 0.5, "scope": "global", "criterion": "magnitude", "round_to": 1, "seed": 0, **changes}
    found = allocate_cuts(module, structure, NONE, example=EXAMPLE, **arguments)
    assert Plan(cuts=found).cuts == found
    return {cut.group: cut.keep for cut in found}


def scores_of(module: nn.Module) -> dict[str, list[float]]:
    """Magnitudes per unit: each layer's norms by their mean, averaged over coupled layers."""
    coupled = {"stem": ("stem", "b1", "b2"), "a1": ("a1",), "a2": ("a2",)}
    found = {}
    for group, names in coupled.items():
        norms = [[float(w.norm()) for w in module.get_parameter(f"{n}.weight").detach()] for n in names]
        found[group] = [sum(n[u] / (sum(n) / len(n)) for n in norms) / len(norms) for u in range(len(norms[0]))]
    return found


def test_uniform_cuts_ask_the_same_share_of_every_group_in_the_targets_multiple() -> None:
    assert cuts(scope="uniform") == {"stem": 4, "a1": 4, "a2": 8}
    assert cuts(scope="uniform", sparsity=0.3) == {"stem": 6, "a1": 6, "a2": 11}
    # Of two equally near the larger; never below one multiple, and what is left whole is not named.
    assert cuts(scope="uniform", sparsity=0.25, round_to=4) == {"a2": 12}
    assert cuts(scope="uniform", sparsity=0.9, round_to=8) == {"a2": 8}
    assert cuts(scope="uniform", sparsity=0.0) == {}


@pytest.mark.parametrize("sparsity", [0.1, 0.25, 0.5, 0.7])
def test_global_cuts_remove_the_lowest_of_one_ranking(sparsity: float) -> None:
    scores = scores_of(Residual())
    everything = sorted((value, group) for group, values in scores.items() for value in values)
    gone = [group for _, group in everything[: round(sparsity * 32)]]
    expected = {g: len(v) - gone.count(g) for g, v in scores.items() if gone.count(g)}
    assert cuts(sparsity=sparsity) == expected


def test_isomorphic_cuts_rank_among_groups_of_the_same_topology() -> None:
    scores = scores_of(Residual())
    alike = sorted((value, group) for group in ("a1", "a2") for value in scores[group])
    gone = [group for _, group in alike[:12]]
    assert cuts(scope="isomorphic") == {"stem": 4, "a1": 8 - gone.count("a1"), "a2": 16 - gone.count("a2")}
    _, structure = residual()
    stem, a1, a2 = structure.groups
    assert topology(structure, a1) == topology(structure, a2) != topology(structure, stem)
    assert topology(structure, a1) == (("group", 0, "channels"), ("conv2d", 0, "output"), ("conv2d", 1, "input"))


def test_a_group_gives_at_most_max_sparsity_and_the_others_take_over() -> None:
    assert all(keep >= 4 for keep in cuts(sparsity=0.45, max_sparsity=0.5).values())
    found = cuts(sparsity=0.5, max_sparsity=0.5)
    assert found == {"stem": 4, "a1": 4, "a2": 8}
    with pytest.raises(InfeasibleError, match=r"at most 0\.2500, .* round_to 8 and max_sparsity 0\.9, got 0\.5"):
        cuts(round_to=8)
    # Classes of narrow groups give what they can: 8 of 32 units in all.
    assert cuts(scope="isomorphic", round_to=8) == {"a2": 8}


def test_one_ranking_answers_for_every_share() -> None:
    module, structure = residual()
    ranking = rank_units(module, structure, NONE, example=EXAMPLE, criterion="magnitude", seed=0)
    for scope, sparsity in itertools.product(("uniform", "global", "isomorphic"), (0.0, 0.3, 0.6)):
        keeps = ranking.keeps(sparsity=sparsity, scope=scope, round_to=1)  # type: ignore[arg-type]
        assert list(keeps) == ["stem", "a1", "a2"]
        cut = {name: keep for name, keep in keeps.items() if keep < ranking.widths[name]}
        assert cut == cuts(scope=scope, sparsity=sparsity)


@pytest.mark.parametrize("scope", ["uniform", "global", "isomorphic"])
def test_random_cuts_depend_on_the_seed_and_the_module_stays_as_it_is(scope: str) -> None:
    assert cuts(scope=scope, criterion="random", seed=1) == cuts(scope=scope, criterion="random", seed=1)
    module, structure = residual()
    before = {name: p.clone() for name, p in module.named_parameters()}
    state = torch.random.get_rng_state()
    found = (
        allocate_cuts(
            module, structure, NONE, example=EXAMPLE, sparsity=0.5, scope=scope, criterion="l1", reduction="max", seed=0
        )
        if scope != "global"
        else ()
    )
    assert all(isinstance(cut, ChannelCut) and cut.reduction == "max" for cut in found)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())


def test_groups_that_are_gone_are_passed_over_but_not_all_of_them() -> None:
    module, structure = residual()
    ask: Any = {"example": EXAMPLE, "sparsity": 0.5, "scope": "uniform", "criterion": "l1", "round_to": 1, "seed": 0}
    more = structure.model_copy(update={"groups": (*structure.groups, inner("gone", "b1", 8))})
    assert allocate_cuts(module, more, NONE, **ask) == allocate_cuts(module, structure, NONE, **ask)
    with pytest.raises(CompressionError, match=r"expected a network with groups \['gone'\], got one with \['stem'"):
        allocate_cuts(module, structure.model_copy(update={"groups": more.groups[3:]}), NONE, **ask)


def test_shares_out_of_range_are_refused() -> None:
    with pytest.raises(InfeasibleError, match=r"sparsity: expected a share in \[0, 1\), got 1; at 1 nothing"):
        cuts(sparsity=1.0)
    with pytest.raises(InfeasibleError, match=r"max_sparsity: .*at least sparsity 0\.5, got 0\.4"):
        cuts(max_sparsity=0.4)


@given(
    widths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_the_lowest_go_one_by_one_until_their_group_has_given_its_most(
    widths: list[int], share: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    scores = {str(i): torch.randint(4, (w,), generator=g).float() for i, w in enumerate(widths)}
    most = {str(i): int(torch.randint(w, (1,), generator=g)) for i, w in enumerate(widths)}
    wanted = round(share * sum(widths))
    given_ = dict.fromkeys(scores, 0)
    for _, name in sorted(((float(v), n) for n, values in scores.items() for v in values), key=lambda pair: pair[0]):
        if sum(given_.values()) < wanted and given_[name] < most[name]:
            given_[name] += 1
    assert lowest(scores, most, wanted) == given_


# --- masks -----------------------------------------------------------------------------------------------------------


def masks(**changes: Any) -> dict[str, float]:
    module, structure = residual()
    arguments: Any = {"sparsity": 0.6, "scope": "global", "criterion": "magnitude", **changes}
    found = allocate_masks(module, structure, **arguments)
    assert Plan(masks=found).masks == found
    assert all(mask.criterion == arguments["criterion"] for mask in found)
    return {mask.layer: mask.sparsity for mask in found}


def flat_weights() -> dict[str, Tensor]:
    module, structure = residual()
    return {layer.name: module.get_parameter(layer.parameter).detach().flatten() for layer in structure.layers}


@pytest.mark.parametrize("scope", ["global", "lamp"])
@pytest.mark.parametrize("sparsity", [0.05, 0.6, 0.95])
def test_one_ranking_of_all_weights_gives_each_layer_its_zeros(scope: str, sparsity: float) -> None:
    ranked = []
    for name, w in flat_weights().items():
        for value in w.tolist():
            score = abs(value)
            if scope == "lamp":
                score = value**2 / float(w.square()[w.square() >= value**2].sum())
            ranked.append((score, name))
    total = len(ranked)
    counts = {name: len(w) for name, w in flat_weights().items()}
    gone: list[str] = []
    for _, name in sorted(ranked):
        if len(gone) < round(sparsity * total) and gone.count(name) < counts[name] - 1:
            gone.append(name)
    found = masks(scope=scope, sparsity=sparsity)
    zeros = {name: round(share * counts[name]) for name, share in found.items()}
    assert sum(zeros.values()) == round(sparsity * total)
    for name in counts:
        # LAMP in float32 against doubles: a weight at the threshold may fall to the other side.
        assert zeros.get(name, 0) == pytest.approx(gone.count(name), abs=0 if scope == "global" else 1)


def test_uniform_masks_are_the_same_everywhere_but_in_what_is_excluded() -> None:
    assert masks(scope="uniform", exclude=("stem", "fc")) == dict.fromkeys(("a1", "a2", "b1", "b2"), 0.6)
    assert masks(scope="uniform", sparsity=0.5, pattern="2:4", exclude=("stem",)) == dict.fromkeys(
        ("a1", "a2", "b1", "b2", "fc"), 0.5
    )
    assert masks(sparsity=0.0) == {}


def test_blocks_are_ranked_by_their_means_and_leave_whole_blocks() -> None:
    found = masks(pattern="block:2x4", exclude=("stem", "fc"), sparsity=0.5)
    module, _ = residual()
    ranked = []
    for name in ("a1", "b1", "a2", "b2"):
        w = module.get_parameter(f"{name}.weight").detach().abs()
        for r, c, i, j in itertools.product(range(0, len(w), 2), range(0, w.shape[1], 4), range(3), range(3)):
            ranked.append((float(w[r : r + 2, c : c + 4, i, j].double().mean()), name))
    gone = [name for _, name in sorted(ranked)[: len(ranked) // 2]]
    counts = {name: module.get_parameter(f"{name}.weight").numel() // 8 for name in found}
    assert {n: round(s * counts[n]) for n, s in found.items()} == {n: gone.count(n) for n in counts}


def test_every_layer_keeps_a_weight() -> None:
    weights = {"a": torch.zeros(3), "b": torch.arange(1.0, 6.0)}
    assert lowest_everywhere(weights, 6) == {"a": 2, "b": 4}
    assert lowest_everywhere(weights, 1) == {"a": 1, "b": 0}
    with pytest.raises(
        InfeasibleError, match=r"sparsity: expected at most 0\.99\d+, which leaves every layer a weight"
    ):
        masks(sparsity=0.9999)


def test_criteria_with_statistics_rank_by_them() -> None:
    module, structure = residual()
    ones = {n: torch.ones_like(p) * (5.0 if n.startswith("a1") else 1.0) for n, p in module.named_parameters()}
    for criterion in ("taylor", "hessian"):
        found = masks(criterion=criterion, statistics=Statistics(ones, ones), sparsity=0.5)
        pool = []
        for layer in structure.layers:
            w, s = module.get_parameter(layer.parameter), ones[layer.parameter]
            score = weight_scores(criterion, w, gradient=s, fisher=s, generator=torch.Generator())  # type: ignore[arg-type]
            pool += [(float(v), layer.name) for v in score.flatten()]
        gone = [name for _, name in sorted(pool)[: round(0.5 * len(pool))]]
        counts = {layer.name: prod(layer.shape) for layer in structure.layers}
        assert {n: round(s * counts[n]) for n, s in found.items()} == {n: gone.count(n) for n in counts if n in gone}
        with pytest.raises(CompressionError, match=f"criterion {criterion} needs statistics"):
            masks(criterion=criterion)


def test_masks_that_cannot_be_are_refused_by_key() -> None:
    with pytest.raises(InfeasibleError, match=r"sparsity: expected a share in \[0, 1\), got 1"):
        masks(sparsity=1.0)
    with pytest.raises(InfeasibleError, match="exclude: expected layers of the network, got 'nowhere'; it has"):
        masks(exclude=("nowhere",))
    with pytest.raises(InfeasibleError, match=r"scope: expected 'uniform' with pattern '2:4', .*got 'erk'"):
        masks(pattern="2:4", sparsity=0.5, scope="erk", exclude=("stem",))
    with pytest.raises(InfeasibleError, match="pattern 2:4 needs inputs in multiples of 4, 'stem' has 1"):
        masks(pattern="2:4", sparsity=0.5, scope="uniform")


@settings(max_examples=200)
@given(
    shapes=st.lists(st.lists(st.integers(1, 9), min_size=2, max_size=4).map(tuple), min_size=1, max_size=6),
    sparsity=st.floats(0.05, 0.98),
)
def test_erk_is_the_clipped_proportion_found_by_bisection(shapes: list[tuple[int, ...]], sparsity: float) -> None:
    named = {str(i): shape for i, shape in enumerate(shapes)}
    counts = {name: prod(shape) for name, shape in named.items()}
    wanted = round(sparsity * sum(counts.values()))
    assume(0 < wanted <= sum(counts.values()) - len(counts))
    low, high = 0.0, 1e9
    for _ in range(200):
        factor = (low + high) / 2
        density = {n: min(1.0, factor * sum(s) / prod(s)) for n, s in named.items()}
        kept = sum(density[n] * counts[n] for n in named)
        low, high = (factor, high) if kept < sum(counts.values()) - wanted else (low, factor)
    zeros = erk_zeros(named, counts, wanted)
    assert sum(zeros.values()) == wanted
    # Where the rule would leave less than one weight of a layer, the others give more.
    tight = any(counts[n] * density[n] < 1.0 for n in named)
    for name, got in zeros.items():
        assert 0 <= got < counts[name]
        if not tight:
            assert abs(got - counts[name] * (1.0 - density[name])) < 1.0 + 1e-6


def test_erk_masks_meet_the_total_and_spare_small_layers() -> None:
    found = masks(scope="erk", sparsity=0.8)
    counts = {name: len(w) for name, w in flat_weights().items()}
    assert sum(round(s * counts[n]) for n, s in found.items()) == round(0.8 * sum(counts.values()))
    assert found["a2"] > found.get("stem", 0.0)


# --- levels from sensitivities ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_chosen_levels_are_as_good_as_the_best_of_all_combinations(data: Any) -> None:
    names = [f"g{i}" for i in range(data.draw(st.integers(1, 4)))]
    levels = {n: list(range(data.draw(st.integers(1, 4)))) for n in names}
    number = st.integers(-20, 100).map(lambda v: v / 7)
    losses = {n: {k: data.draw(number) for k in levels[n]} for n in names}
    costs = {n: {k: data.draw(st.integers(0, 1000).map(float)) for k in levels[n]} for n in names}
    budget = float(data.draw(st.integers(0, 3000)))
    combinations = [
        (sum(losses[n][k] for n, k in zip(names, chosen, strict=True)), chosen)
        for chosen in itertools.product(*levels.values())
        if sum(costs[n][k] for n, k in zip(names, chosen, strict=True)) <= budget
    ]
    if not combinations:
        least = sum(min(costs[n].values()) for n in names)
        with pytest.raises(InfeasibleError, match=rf"expected at least {least:g}, .* got {budget:g}"):
            choose_levels(losses, costs, budget)
        return
    found = choose_levels(losses, costs, budget)
    assert sum(costs[n][found[n]] for n in names) <= budget
    assert sum(losses[n][found[n]] for n in names) == pytest.approx(min(combinations)[0], abs=1e-9)


def test_levels_come_from_measured_entries_and_doing_nothing_is_free() -> None:
    entries = [
        GroupSensitivity(group=name, width=8, keep=keep, loss=loss)
        for name, keep, loss in (("a", 4, 0.1), ("a", 2, 0.5), ("b", 4, 0.3))
    ]
    costs = {"a": {8: 80.0, 4: 40.0, 2: 20.0}, "b": {8: 100.0, 4: 50.0}}
    assert allocate_from_sensitivity(entries, costs, 180.0) == {"a": 8, "b": 8}
    assert allocate_from_sensitivity(entries, costs, 140.0) == {"a": 4, "b": 8}
    assert allocate_from_sensitivity(entries, costs, 90.0) == {"a": 4, "b": 4}
    assert allocate_from_sensitivity(entries, costs, 70.0) == {"a": 2, "b": 4}
    with pytest.raises(InfeasibleError, match="budget: expected at least 70, the cheapest levels' cost, got 69"):
        allocate_from_sensitivity(entries, costs, 69.0)
    assert allocate_from_sensitivity([], {}, 1.0) == {}
    bits = [LayerSensitivity(layer="fc", bits=4, loss=0.2)]
    assert allocate_from_sensitivity(bits, {"fc": {32: 320.0, 4: 40.0}}, 100.0) == {"fc": 4}
    block = [BlockSensitivity(block="x", loss=-0.1)]
    assert allocate_from_sensitivity(block, {"x": {1: 1.0, 0: 0.0}}, 1.0) == {"x": 0}
    with pytest.raises(CompressionError, match=r"of one kind, .* got BlockSensitivity and LayerSensitivity"):
        allocate_from_sensitivity([*bits, *block], {}, 1.0)


def test_levels_without_a_cost_and_numbers_that_are_none_are_refused() -> None:
    with pytest.raises(CompressionError, match=r"'a': expected a cost for each measured level \[4, 8\], got \[8\]"):
        choose_levels({"a": {8: 0.0, 4: 0.1}}, {"a": {8: 1.0}}, 1.0)
    with pytest.raises(CompressionError, match=r"'a' at level 8: expected finite numbers, got loss nan and cost 1\.0"):
        choose_levels({"a": {8: float("nan")}}, {"a": {8: 1.0}}, 1.0)
