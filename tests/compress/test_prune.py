from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.criteria import channel_criterion
from autocompress.compress.masks import Masks
from autocompress.compress.prune import cut_channels, make_masks, origin, zeros_asked
from autocompress.compress.state import module_digest
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import evaluate, find_structure, layer_calls
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.models.resnet import resnet_cifar
from autocompress.records import ChannelCut, Criterion, Plan, Structure, WeightMask
from autocompress.rng import derive_seed

EXAMPLE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@cache
def network() -> tuple[nn.Module, Structure, Statistics]:
    torch.manual_seed(0)
    module = resnet_cifar(depth=8, widths=(8, 12, 16), shortcut="projection").eval()
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias)
    gradients = {name: torch.randn(p.shape) for name, p in module.named_parameters()}
    return module, find_structure(module, EXAMPLE), Statistics(gradients)


def plan(keep: dict[str, int], criterion: Criterion = "magnitude") -> Plan:
    return Plan(cuts=tuple(ChannelCut(group=g, keep=keep[g], criterion=criterion) for g in sorted(keep)))


def cut(the_plan: Plan, seed: int = 0) -> nn.Module:
    module, structure, statistics = network()
    return cut_channels(module, the_plan, structure, statistics, example=EXAMPLE, seed=seed)


def kept_channels(the_plan: Plan, group: str, seed: int) -> list[int]:
    """The naive oracle: sort the dense scores."""
    module, structure, statistics = network()
    asked = next(c for c in the_plan.cuts if c.group == group)
    generator = torch.Generator().manual_seed(derive_seed(seed, "cut", group))
    scores = channel_criterion(asked.criterion)(module, structure.group(group), statistics, generator).tolist()
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: asked.keep])


def masked(the_plan: Plan, seed: int) -> nn.Module:
    """The dense network whose consumers do not read the channels that are cut."""
    module, structure, _ = network()
    result = copy.deepcopy(module)
    for asked in the_plan.cuts:
        group = structure.group(asked.group)
        gone = sorted(set(range(group.width)) - set(kept_channels(the_plan, asked.group, seed)))
        for name in group.consumers:
            result.get_submodule(name).weight.data[:, gone] = 0.0
    return result


@settings(max_examples=25, deadline=None)
@given(data=st.data(), criterion=st.sampled_from(["magnitude", "taylor", "random"]), seed=st.integers(0, 3))
def test_any_cut_has_the_exact_widths_and_computes_what_the_masked_network_does(
    data: st.DataObject, criterion: Criterion, seed: int
) -> None:
    _, structure, _ = network()
    keep = data.draw(
        st.fixed_dictionaries({}, optional={g.name: st.integers(1, g.width - 1) for g in structure.groups})
    )
    the_plan = plan(keep, criterion)
    result = cut(the_plan, seed)
    for group in structure.groups:
        width = keep.get(group.name, group.width)
        assert {len(result.get_submodule(n).weight) for n in group.layers} == {width}
        assert {result.get_submodule(n).weight.shape[1] for n in group.consumers} == {width}
        assert {result.get_submodule(n).num_features for n in group.norms} == {width}
    torch.testing.assert_close(
        evaluate(result, EXAMPLE), evaluate(masked(the_plan, seed), EXAMPLE), rtol=1e-3, atol=1e-4
    )


def test_a_cut_changes_nothing_of_what_it_is_given() -> None:
    module, structure, statistics = network()
    frozen = copy.deepcopy(module).requires_grad_(False).train()
    before = module_digest(frozen)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        result = cut_channels(frozen, plan({"stem.0": 3}), structure, statistics, example=EXAMPLE, seed=0)
    assert module_digest(frozen) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(p.requires_grad for p in result.parameters())
    assert all(part.training for part in result.modules())
    assert result.get_submodule("stem.0").weight.dtype == torch.float32
    assert sum(layer_calls(result, EXAMPLE).values()) < sum(layer_calls(frozen, EXAMPLE).values())


def test_the_same_seed_gives_the_same_cut_and_another_seed_another() -> None:
    the_plan = plan({"body.1.c1": 6, "body.2.c1": 8}, "random")
    assert module_digest(cut(the_plan, 1)) == module_digest(cut(the_plan, 1))
    assert module_digest(cut(the_plan, 1)) != module_digest(cut(the_plan, 2))


def test_an_empty_plan_and_a_full_width_give_an_equal_copy() -> None:
    module, _, _ = network()
    for the_plan in (Plan(), plan({"stem.0": 8})):
        result = cut(the_plan)
        assert result is not module
        assert module_digest(result) == module_digest(module)


def test_equal_scores_keep_the_lower_channels() -> None:
    module, structure, statistics = network()
    flat = copy.deepcopy(module)
    nn.init.ones_(flat.get_submodule("body.1.c1").weight)
    result = cut_channels(flat, plan({"body.1.c1": 5}), structure, statistics, example=EXAMPLE, seed=0)
    assert torch.equal(result.get_submodule("body.1.b1").bias, flat.get_submodule("body.1.b1").bias[:5])


def test_channels_behind_a_flatten_take_all_their_positions_along() -> None:
    torch.manual_seed(0)

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3)
            self.head = nn.Linear(6 * 36, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(functional.silu(self.conv(x)).flatten(1))
            return out

    module, example = Flat(), torch.randn(2, 3, 8, 8)
    structure = find_structure(module, example)
    result = cut_channels(module, plan({"conv": 2}), structure, Statistics({}), example=example, seed=0)
    keep = sorted(module.conv.weight.flatten(1).norm(dim=1).argsort(descending=True)[:2].tolist())
    expected = module.head.weight.view(4, 6, 36)[:, keep].reshape(4, -1)
    assert torch.equal(result.get_submodule("head").weight, expected)
    assert torch.equal(result.get_submodule("conv").bias, module.conv.bias[keep])


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"nowhere": 4}, "expected a group of the network, got 'nowhere'"),
        ({"stem.0": 9}, "'stem.0' has 8 channels, expected at most as many to keep, got 9"),
    ],
)
def test_a_cut_that_cannot_be_is_infeasible(keep: dict[str, int], message: str) -> None:
    with pytest.raises(InfeasibleError, match=message):
        cut(plan(keep))


def masks_of(sparsity: dict[str, float], criterion: Criterion = "magnitude") -> Plan:
    return Plan(
        masks=tuple(WeightMask(layer=n, sparsity=sparsity[n], criterion=criterion) for n in sorted(sparsity)),
    )


@settings(max_examples=25, deadline=None)
@given(
    sparsity=st.floats(0.001, 0.999),
    criterion=st.sampled_from(["magnitude", "taylor", "random"]),
    seed=st.integers(0, 3),
)
def test_a_mask_takes_exactly_the_asked_number_of_lowest_scores(
    sparsity: float, criterion: Criterion, seed: int
) -> None:
    module, _, statistics = network()
    the_plan = masks_of({"body.1.c2": sparsity, "fc": sparsity}, criterion)
    masks = make_masks(module, the_plan, statistics, seed=seed)
    for mask in the_plan.masks:
        weight = module.get_submodule(mask.layer).weight.detach()
        kept = masks.kept[mask.layer]
        count = zeros_asked(mask, weight.numel())
        assert masks.counts()[mask.layer] == count == int((~kept).sum())
        if criterion != "random" and 0 < count < weight.numel():
            factor = statistics.gradient(f"{mask.layer}.weight") if criterion == "taylor" else 1.0
            scores = (weight * factor).abs()
            assert scores[kept].min() >= scores[~kept].max()


def test_taylor_masks_after_a_cut_use_the_surviving_weights_own_gradients() -> None:
    module, structure, statistics = network()
    cuts = plan({g.name: g.width // 2 for g in structure.groups}, "taylor")
    result = cut(cuts)
    the_plan = masks_of({"body.1.c2": 0.5, "stem.0": 0.25, "fc": 0.5}, "taylor")
    masks = make_masks(result, the_plan, statistics, seed=0)
    outputs = kept_channels(cuts, "body.1.c2", 0)
    inputs = kept_channels(cuts, "body.1.c1", 0)
    dense = module.get_submodule("body.1.c2").weight.detach()
    score = (dense * statistics.gradient("body.1.c2.weight")).square()[outputs][:, inputs]
    assert torch.equal(result.get_submodule("body.1.c2").weight, dense[outputs][:, inputs])
    cutoff = score.flatten().sort().values[score.numel() // 2]
    assert torch.equal(masks.kept["body.1.c2"], score >= cutoff)
    # The stem loses outputs only, the classifier inputs only.
    assert torch.equal(
        origin(result).follow("fc.weight", module.get_submodule("fc").weight), result.get_submodule("fc").weight
    )
    masks.apply(result)
    assert int((result.get_submodule("stem.0").weight == 0).sum()) == round(0.25 * 4 * 27)


def test_a_cut_modules_origin_is_copied_with_it_but_is_no_weight() -> None:
    result = cut(plan({"stem.0": 4}))
    assert set(origin(copy.deepcopy(result)).positions) == set(origin(result).positions)
    assert "stem.0.weight" in origin(result).positions
    assert set(result.state_dict()) == set(network()[0].state_dict())


def test_applying_a_mask_zeroes_even_what_is_not_finite() -> None:
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].weight.data = torch.tensor([[float("inf"), -1.0], [2.0, float("nan")]])
    Masks({"0": torch.tensor([[False, False], [True, False]])}).apply(module)
    assert module[0].weight.tolist() == [[0.0, 0.0], [2.0, 0.0]]
    assert not torch.signbit(module[0].weight).any()


def test_masks_that_do_not_belong_to_the_network_are_refused() -> None:
    module, _, statistics = network()
    with pytest.raises(InfeasibleError, match="expected a layer of the network, got 'nowhere'"):
        make_masks(module, masks_of({"nowhere": 0.5}), statistics, seed=0)
    with pytest.raises(CompressionError, match=r"mask of 'fc': expected a weight of shape \(3, 3\), got \(10, 16\)"):
        Masks({"fc": torch.ones(3, 3, dtype=torch.bool)}).apply(module)
    with pytest.raises(CompressionError, match=r"expected a gradient of 'fc\.weight'"):
        make_masks(module, masks_of({"fc": 0.5}, "taylor"), Statistics({}), seed=0)
    foreign = Statistics({"fc.weight": torch.ones(1, 1)})
    with pytest.raises(CompressionError, match="mask of 'fc': taylor: expected a gradient of shape"):
        make_masks(module, masks_of({"fc": 0.5}, "taylor"), foreign, seed=0)


def test_no_masks_is_false_and_applies_to_anything() -> None:
    masks = make_masks(nn.Identity(), Plan(), Statistics({}), seed=0)
    assert not masks
    assert masks.counts() == {}
    masks.apply(nn.Identity())
