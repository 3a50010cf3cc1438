from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compress.masks import Masks
from autocompress.compress.sparse_training import Rewiring, replaced, rewired, update_steps
from autocompress.records import SparseTraining


def naive_update(kept: Tensor, weight: Tensor, wish: Tensor, count: int) -> set[int]:
    """Positions that are active after an update, by sorting lists: the paper's algorithm for one layer."""
    active = sorted((i for i in range(kept.numel()) if kept.view(-1)[i]), key=lambda i: abs(float(weight.view(-1)[i])))
    stay = active[count:]
    others = [i for i in range(kept.numel()) if i not in stay]
    return {*stay, *sorted(others, key=lambda i: -abs(float(wish.view(-1)[i])))[:count]}


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(4, 40), active=st.floats(0.1, 0.9), share=st.floats(0.0, 1.0), random=st.booleans(),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_an_update_swaps_the_smallest_active_weights_for_the_steepest_of_the_others(
    size: int, active: float, share: float, random: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    count_active = max(1, min(size - 1, round(active * size)))
    kept = torch.zeros(size, dtype=torch.bool)
    kept[torch.randperm(size, generator=generator)[:count_active]] = True
    weight = torch.randn(size, generator=generator) * kept
    gradient = torch.randn(size, generator=generator)
    count = round(share * count_active)
    drawn = torch.Generator().manual_seed(seed + 1)
    new, grown = rewired(kept, weight, None if random else gradient, count, drawn)
    wish = torch.rand(size, generator=torch.Generator().manual_seed(seed + 1)) if random else gradient
    assert {i for i in range(size) if new[i]} == naive_update(kept, weight, wish, count)
    assert int(new.sum()) == count_active
    assert torch.equal(new & ~kept, grown)


def test_a_weight_that_would_go_but_is_steep_stays_as_it_is() -> None:
    kept, weight = torch.tensor([True, True, True, False, False]), torch.tensor([0.5, 0.1, 0.2, 0.0, 0.0])
    new, grown = rewired(kept, weight, torch.tensor([0.0, 0.9, 0.1, 0.3, 0.2]), 2, torch.Generator())
    assert new.tolist() == [True, True, False, True, False]
    assert grown.tolist() == [False, False, False, True, False]


def test_the_replaced_share_decays_as_a_cosine() -> None:
    schedule = SparseTraining(fraction=0.4, updates=4)
    got = [replaced(schedule, k, active=1000) for k in range(4)]
    assert got == [round(200 * (1 + math.cos(math.pi * k / 4))) for k in range(4)] == [400, 341, 200, 59]


@given(updates=st.integers(1, 50), begin=st.floats(0.0, 0.9), length=st.floats(0.01, 1.0), steps=st.integers(1, 80))
def test_updates_are_spread_from_their_begin_to_their_end(
    updates: int, begin: float, length: float, steps: int
) -> None:
    until = min(1.0, begin + length)
    found = update_steps(SparseTraining(updates=updates, begin=begin, until=until), steps)
    assert all(
        min(steps - 1, math.floor(begin * steps)) <= step <= min(steps - 1, math.ceil(until * steps)) for step in found
    )
    assert list(found.values()) == sorted(found.values())
    assert found[min(found)] == 0
    if (until - begin) * steps >= 2 * updates and until < 1.0:
        assert list(found.values()) == list(range(updates))


def test_updates_wait_for_the_learning_rate_to_have_risen() -> None:
    assert update_steps(SparseTraining(begin=0.2, until=0.6, updates=4), 100) == {30: 0, 40: 1, 50: 2, 60: 3}
    with pytest.raises(ValueError, match=r"until: expected more than begin 0.5, got 0.5"):
        SparseTraining(begin=0.5, until=0.5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_density_is_constant_and_grown_weights_start_at_zero_without_momentum(method: str, optimizer: str) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 10, bias=False))
    weight = module[0].weight
    schedule = SparseTraining.model_validate({"method": method, "fraction": 0.5, "until": 0.8, "updates": 4})
    start = Masks({"0": torch.rand(10, 12) < 0.3})
    active = int(start.kept["0"].sum())
    hook = Rewiring(start, schedule, seed=0)
    steps: torch.optim.Optimizer = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.1)
    if optimizer == "sgd":
        steps = torch.optim.SGD([weight], lr=0.01, momentum=0.9, nesterov=True, weight_decay=0.1)
    x, y = torch.randn(20, 12), torch.randn(20, 10)
    hook.begin(module, steps)
    changes = 0
    for step in range(20):
        steps.zero_grad()
        hook.before_forward(module, step, 20)
        assert int((weight != 0).sum()) == active
        torch.autograd.backward((module(x) - y).square().sum())
        assert weight.grad is not None
        dense, old = weight.grad.clone(), hook.masks.kept["0"]
        hook.before_update(module, step, 20)
        new = hook.masks.kept["0"]
        assert int(new.sum()) == active
        grown = new & ~old
        if grown.any():
            changes += 1
            assert not weight[grown].any()
            for state in steps.state[weight].values():
                if isinstance(state, Tensor) and state.shape == weight.shape:
                    assert not state[grown].any()
                    assert state[new & old].any()
        assert torch.equal(weight.grad, dense * new)  # inactive weights get no gradient
        steps.step()
        hook.after_update(module, step, 20)
        assert not weight[~new].any()
    hook.finish(module)
    hook.masks.check(module)
    assert changes == (0 if method == "static" else 4)


@pytest.mark.parametrize("batches", [1, 3, 50])
def test_rigl_grows_by_the_gradient_of_the_batches_since_the_last_update(batches: int) -> None:
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(9, 7, bias=False), nn.Tanh(), nn.Linear(7, 5, bias=False))
    kept = {name: torch.rand(module.get_parameter(f"{name}.weight").shape) < 0.4 for name in ("0", "2")}
    schedule = SparseTraining(fraction=0.6, begin=0.2, until=0.8, updates=3, batches=batches)
    assert update_steps(schedule, 20) == {8: 0, 12: 1, 16: 2}
    hook = Rewiring(Masks(kept), schedule, seed=0)
    steps = torch.optim.SGD(module.parameters(), lr=0.05)
    hook.begin(module, steps)
    seen: dict[str, list[Tensor]] = {"0": [], "2": []}
    for step in range(20):
        steps.zero_grad()
        hook.before_forward(module, step, 20)
        torch.autograd.backward((module(torch.randn(4, 9)) - torch.randn(4, 5)).square().sum())
        old = hook.masks.kept
        weights = {name: module.get_parameter(f"{name}.weight").detach().clone() for name in old}
        for name, gradients in seen.items():
            gradient = module.get_parameter(f"{name}.weight").grad
            assert gradient is not None
            gradients.append(gradient.clone())
        hook.before_update(module, step, 20)
        for name, new in hook.masks.kept.items():
            if step in (8, 12, 16):
                mean = torch.stack(seen[name][-batches:]).mean(0)
                count = replaced(schedule, (step - 8) // 4, int(old[name].sum()))
                expected = naive_update(old[name], weights[name], mean, count)
                assert {i for i, active in enumerate(new.flatten().tolist()) if active} == expected
                seen[name].clear()
            else:
                assert torch.equal(new, old[name])
        steps.step()
        hook.after_update(module, step, 20)


def test_random_growth_follows_its_seed() -> None:
    def grown(seed: int) -> Tensor:
        kept = torch.arange(100) < 50
        return rewired(kept, torch.arange(100.0), None, 20, torch.Generator().manual_seed(seed))[0]

    assert torch.equal(grown(0), grown(0))
    assert not torch.equal(grown(0), grown(1))
