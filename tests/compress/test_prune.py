from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from toy_networks import ALL_CUT, TwoWays

from autocompress.compress.coupling import Units, find_units
from autocompress.compress.criteria import channel_scores
from autocompress.compress.layers import outputs
from autocompress.compress.prune import cut_channels, drop_blocks, follow_statistics, origin
from autocompress.compress.state import module_digest
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import evaluate, find_structure, layer_calls
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Inputs
from autocompress.models.resnet import resnet_cifar
from autocompress.records import BlockDrop, ChannelCut, Criterion, Structure
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


Cuts = tuple[ChannelCut, ...]


def plan(keep: dict[str, int], criterion: Criterion = "magnitude") -> Cuts:
    return tuple(ChannelCut(group=g, keep=keep[g], criterion=criterion) for g in sorted(keep))


def cut(the_plan: Cuts, seed: int = 0) -> nn.Module:
    module, structure, statistics = network()
    return cut_channels(module, the_plan, structure, statistics, example=EXAMPLE, seed=seed)


def kept_channels(the_plan: Cuts, group: str, seed: int) -> list[int]:
    """The naive oracle: sort the dense scores."""
    module, _, statistics = network()
    asked = next(c for c in the_plan if c.group == group)
    generator = torch.Generator().manual_seed(derive_seed(seed, "cut", group))
    units = find_units(module, EXAMPLE)[group]
    scores = channel_scores(asked.criterion, "mean", module, units, statistics, generator).tolist()
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: asked.keep])


def masked(the_plan: Cuts, seed: int) -> nn.Module:
    """The dense network whose consumers do not read the channels that are cut."""
    module, structure, _ = network()
    result = copy.deepcopy(module)
    for asked in the_plan:
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
    for the_plan in ((), plan({"stem.0": 8})):
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


def test_statistics_follow_the_surviving_weights() -> None:
    module, structure, statistics = network()
    first = cut(plan({g.name: g.width // 2 for g in structure.groups}, "taylor"))
    followed = follow_statistics(statistics, first)
    for name, parameter in first.named_parameters():
        dense = module.get_parameter(name).detach()
        assert torch.equal(origin(first).follow(name, dense), parameter)
        assert torch.equal(followed.gradient(name), origin(first).follow(name, statistics.gradient(name)))
    second = cut_channels(first, plan({"body.1.c1": 3}, "taylor"), structure, statistics, example=EXAMPLE, seed=0)
    # Scales and shifts of the normalization behind it silence a channel: their share of the loss is its score.
    norm = first.get_submodule("body.1.b1")
    changes = norm.weight * followed.gradient("body.1.b1.weight") + norm.bias * followed.gradient("body.1.b1.bias")
    keep = sorted(changes.square().argsort(descending=True)[:3].tolist())
    assert torch.equal(second.get_submodule("body.1.b1").weight, norm.weight[keep])


def test_cutting_in_two_steps_by_a_score_that_stays_is_cutting_at_once() -> None:
    module, structure, statistics = network()
    once, half = cut(plan({"body.2.c1": 3})), cut(plan({"body.2.c1": 7}))
    twice = cut_channels(half, plan({"body.2.c1": 3}), structure, statistics, example=EXAMPLE, seed=0)
    assert module_digest(once) == module_digest(twice)
    assert origin(twice).widths == {"body.2.c1": 3}
    assert set(origin(once).positions) == set(origin(twice).positions)
    for name, positions in origin(once).positions.items():
        assert torch.equal(origin(twice).positions[name], positions)
    variance = "body.2.b1.running_var"
    assert torch.equal(origin(twice).follow(variance, module.get_buffer(variance)), twice.get_buffer(variance))


def test_a_group_of_one_unit_is_still_known_by_its_width() -> None:
    _, structure, statistics = network()
    single = cut(plan({"stem.0": 1}))
    again = cut_channels(single, plan({"stem.0": 1}), structure, statistics, example=EXAMPLE, seed=0)
    assert module_digest(again) == module_digest(single)
    with pytest.raises(InfeasibleError, match=r"'stem\.0' has 1 channels, expected at most as many to keep, got 2"):
        cut_channels(single, plan({"stem.0": 2}), structure, statistics, example=EXAMPLE, seed=0)


def silenced(module: nn.Module, units: dict[str, Units], cuts: Cuts) -> nn.Module:
    """The oracle: the dense network in which no layer reads the units that go."""
    result = copy.deepcopy(module)
    parts = dict(result.named_modules())
    for asked in cuts:
        group = units[asked.group].group
        generator = torch.Generator().manual_seed(derive_seed(0, "cut", asked.group))
        scores = channel_scores("magnitude", "mean", module, units[asked.group], Statistics({}), generator).tolist()
        gone = sorted(range(group.width), key=lambda i: (-scores[i], i))[asked.keep :]
        for (parameter, axis), positions in units[asked.group].positions.items():
            owner = parts.get(parameter.removesuffix(".weight"))
            reads = 0 if isinstance(owner, nn.ConvTranspose2d) else 1
            if axis == reads:
                result.get_parameter(parameter).data.index_fill_(axis, positions[gone].flatten(), 0.0)
    return result


@pytest.mark.parametrize("name", ALL_CUT)
def test_every_form_of_network_has_the_asked_widths_and_computes_what_the_masked_one_does(name: str) -> None:
    build, example = ALL_CUT[name]
    torch.manual_seed(0)
    module = build().eval()
    structure, units, nothing = find_structure(module, example), find_units(module, example), Statistics({})
    for share in (1.0, 0.5, 0.0):
        cuts = plan({g.name: max(1, int(g.width * share)) for g in structure.groups})
        result = cut_channels(module, cuts, structure, nothing, example=example, seed=0)
        shapes = structure.shapes((c.group, c.keep) for c in cuts)
        for layer in structure.layers:
            assert tuple(result.get_parameter(layer.parameter).shape) == shapes[layer.name]
        expected = outputs(silenced(module, units, cuts), example)
        for got, want in zip(outputs(result, example), expected, strict=True):
            if share == 1.0:
                assert torch.equal(got, want)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
        if share == 0.5:
            least = plan({g.name: 1 for g in structure.groups})
            again = cut_channels(result, least, structure, nothing, example=example, seed=0)
            smallest = structure.shapes((c.group, 1) for c in least)
            for layer in structure.layers:
                assert tuple(again.get_parameter(layer.parameter).shape) == smallest[layer.name]


class Chain(nn.Module):
    """A random small convolutional network."""

    def __init__(self, kinds: list[str]) -> None:
        super().__init__()
        self.kinds = kinds
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.parts = nn.ModuleList()
        width = 6
        for kind in kinds:
            if kind == "norm":
                self.parts.append(nn.BatchNorm2d(width))
                nn.init.normal_(self.parts[-1].bias)
            else:
                made = {"cat": 4, "halves": 2 * width}.get(kind, width)
                groups = width if kind == "depthwise" else 1
                self.parts.append(nn.Conv2d(width, made, 3, padding=1, groups=groups))
            width = width + 4 if kind == "cat" else width
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for kind, part in zip(self.kinds, self.parts, strict=True):
            y = part(x)
            if kind == "add":
                x = x + y.relu()
            elif kind == "cat":
                x = torch.cat([x, y], dim=1)
            elif kind == "halves":
                a, b = y.chunk(2, dim=1)
                x = a * b.sigmoid()
            elif kind == "gate":
                x = x * y.mean((2, 3), keepdim=True).sigmoid()
            else:
                x = y.relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_random_small_networks_are_cut_as_they_are_masked(data: st.DataObject) -> None:
    step = st.sampled_from(["conv", "add", "cat", "depthwise", "norm", "halves", "gate"])
    torch.manual_seed(data.draw(st.integers(0, 5)))
    module = Chain(data.draw(st.lists(step, max_size=6))).eval()
    example = torch.randn(2, 3, 6, 6)
    structure, units = find_structure(module, example), find_units(module, example)
    assert {entry.name for entry in structure.left_dense} == {"head"}
    cuts = plan({g.name: data.draw(st.integers(1, g.width), label=g.name) for g in structure.groups})
    result = cut_channels(module, cuts, structure, Statistics({}), example=example, seed=0)
    shapes = structure.shapes((c.group, c.keep) for c in cuts)
    assert {x.name: tuple(result.get_parameter(x.parameter).shape) for x in structure.layers} == shapes
    torch.testing.assert_close(
        evaluate(result, example), evaluate(silenced(module, units, cuts), example), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float) -> None:
    module, structure, statistics = network()
    broken = copy.deepcopy(module)
    broken.get_submodule("body.1.c1").weight.data[0, 0, 0, 0] = bad
    with pytest.raises(CompressionError, match=r"finite weights, got NaN or infinity in 'body\.1\.c1\.weight'"):
        cut_channels(broken, plan({"body.1.c1": 3}), structure, statistics, example=EXAMPLE, seed=0)


def test_a_network_that_no_longer_runs_is_refused_with_its_own_words() -> None:
    class Picky(nn.Module):
        """Runs with half its width, as it was tried, and with no less."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            if self.a.out_features < 4:
                raise ValueError("too thin")
            out: Tensor = self.b(self.a(x).relu())
            return out

    module, example = Picky(), torch.randn(2, 4)
    structure = find_structure(module, example)
    with pytest.raises(CompressionError, match=r"cutting 'a' failed: Picky does not run.*ValueError: too thin"):
        cut_channels(module, plan({"a": 3}), structure, Statistics({}), example=example, seed=0)


def test_what_a_criterion_lacks_and_a_group_asked_twice_are_errors() -> None:
    module, structure, _ = network()
    with pytest.raises(CompressionError, match="expected a gradient of"):
        cut_channels(module, plan({"stem.0": 3}, "taylor"), structure, Statistics({}), example=EXAMPLE, seed=0)
    with pytest.raises(InfeasibleError, match=r"expected each group once, got 'stem\.0' twice"):
        cut_channels(module, plan({"stem.0": 3}) * 2, structure, Statistics({}), example=EXAMPLE, seed=0)


def test_inputs_of_any_form_are_cut() -> None:
    example: Inputs = {"a": torch.randn(2, 6), "b": torch.randn(2, 6)}
    module = TwoWays()
    structure = find_structure(module, example)
    result = cut_channels(module, plan({"left": 2}), structure, Statistics({}), example=example, seed=0)
    assert result.get_parameter("right.weight").shape == (2, 6)
    assert [tuple(o.shape) for o in outputs(result, example)] == [(2, 3), (2, 2)]


# --- blocks --------------------------------------------------------------------------------------------------------


def drop(names: list[str], module: nn.Module | None = None) -> nn.Module:
    dense, structure, _ = network()
    return drop_blocks(module or dense, [BlockDrop(block=n) for n in names], structure, example=EXAMPLE)


def test_a_dropped_block_passes_its_input_on() -> None:
    module, structure, _ = network()
    assert [block.name for block in structure.blocks] == ["body.0"]
    before = module_digest(module)
    result = drop(["body.0"])
    assert module_digest(module) == before
    stem = module.get_submodule("stem")(EXAMPLE)
    rest = nn.Sequential(*list(module.get_submodule("body").children())[1:])(stem).mean((2, 3))
    assert torch.equal(evaluate(result, EXAMPLE), module.get_submodule("fc")(rest))
    assert "body.0.c1" not in layer_calls(result, EXAMPLE)
    assert module_digest(drop(["body.0"], result)) == module_digest(result)


def test_cuts_and_drops_go_together_in_either_order() -> None:
    _, structure, statistics = network()
    asked = plan({"stem.0": 5, "body.2.c1": 6})
    one = cut_channels(drop(["body.0"]), asked, structure, statistics, example=EXAMPLE, seed=0)
    assert one.get_parameter("stem.0.weight").shape[0] == 5
    assert find_units(one, EXAMPLE)["stem.0"].group.layers == ("stem.0",)
    other = drop(["body.0"], cut(asked))
    # The order decides which channels are kept, as a dropped layer has no say; not how many.
    assert {n: p.shape for n, p in one.named_parameters()} == {n: p.shape for n, p in other.named_parameters()}
    with pytest.raises(InfeasibleError, match=r"'body\.0\.c1' is no longer in the network"):
        cut_channels(drop(["body.0"]), plan({"body.0.c1": 2}), structure, statistics, example=EXAMPLE, seed=0)


def test_an_unknown_block_is_infeasible() -> None:
    with pytest.raises(InfeasibleError, match=r"expected a block of the network, got 'body.1'; it has \['body.0'\]"):
        drop(["body.1"])


class Block(nn.Module):
    """Returns a tuple of a hidden state and nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, hidden: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        return hidden + self.inner(hidden).tanh(), mask


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x, nothing = layer(hidden=x, mask=None)
            assert nothing is None
        out: Tensor = self.head(x)
        return out


def test_a_dropped_block_returns_what_the_block_returned() -> None:
    module, example = Wrapped(), torch.randn(2, 5, 6)
    structure = find_structure(module, example)
    assert [block.name for block in structure.blocks] == ["layers.0", "layers.1", "layers.2"]
    drops = [BlockDrop(block=block.name) for block in structure.blocks]
    result = drop_blocks(module, drops, structure, example=example)
    assert torch.equal(evaluate(result, example), module.head(module.stem(example)))


def test_a_cut_modules_origin_is_copied_with_it_but_is_no_weight() -> None:
    result = cut(plan({"stem.0": 4}))
    assert set(origin(copy.deepcopy(result)).positions) == set(origin(result).positions)
    assert "stem.0.weight" in origin(result).positions
    assert set(result.state_dict()) == set(network()[0].state_dict())
