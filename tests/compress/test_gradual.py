from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compress.gradual import MovingMasks, cubic, update_steps
from autocompress.compress.masks import Masks, masked_weight
from autocompress.records import (
    Adaptive,
    Gradual,
)


@pytest.mark.parametrize(
    ("initial", "final", "progress", "value"),
    [(0.0, 0.8, 0.0, 0.0), (0.0, 0.8, 0.5, 0.7), (0.0, 0.8, 1.0, 0.8), (0.5, 0.9, 0.25, 0.73125), (0.9, 0.5, 0.3, 0.5)],
)
def test_the_cubic_rise_is_its_formula(initial: float, final: float, progress: float, value: float) -> None:
    assert cubic(initial, final, progress) == pytest.approx(value, abs=1e-12)


def test_updates_are_spread_from_begin_to_end() -> None:
    assert update_steps(Gradual(begin=0.2, end=0.6, updates=4), 100) == {
        20: 0.0, 30: pytest.approx(0.25), 40: pytest.approx(0.5), 50: pytest.approx(0.75), 60: 1.0,
    }  # fmt: skip
    adaptive = update_steps(Adaptive(end=0.4, freeze=0.8, updates=4), 100)
    assert adaptive == {0: 0.0, 20: pytest.approx(0.5), 40: 1.0, 60: 1.0, 80: 1.0}


@given(
    begin=st.floats(0.0, 0.9), length=st.floats(0.05, 1.0), updates=st.integers(1, 40), steps=st.integers(1, 60),
    freeze=st.floats(0.05, 1.0),
)  # fmt: skip
def test_the_last_update_is_always_there_and_complete(
    begin: float, length: float, updates: int, steps: int, freeze: float
) -> None:
    end = min(1.0, begin + length)
    for schedule in (
        Gradual(begin=begin, end=end, updates=updates), Adaptive(end=end, freeze=freeze, updates=updates)
    ):  # fmt: skip
        found = update_steps(schedule, steps)
        assert found[max(found)] == 1.0
        assert min(found) >= 0
        assert max(found) <= steps - 1
        assert list(found.values()) == sorted(found.values())


def by_magnitude(zeros: Mapping[float, int]) -> object:
    def choose(module: nn.Module, progress: float) -> Masks:
        weight = masked_weight(module, "0").detach()
        gone = weight.abs().flatten().argsort()[: zeros[progress]]
        kept = torch.ones(weight.numel(), dtype=torch.bool)
        kept[gone] = False
        return Masks({"0": kept.view(weight.shape)})

    return choose


def steps_by_hand(feedback: bool, gradients: list[Tensor]) -> tuple[MovingMasks, nn.Module, list[Tensor]]:
    """Runs the hook around plain SGD steps of rate 1 with given gradients; the weights that each step saw."""
    module = nn.Sequential(nn.Linear(3, 1, bias=False))
    weight = module[0].weight
    weight.data = torch.tensor([[1.0, -2.0, 3.0]])
    hook = MovingMasks(
        by_magnitude({0.0: 1, 1.0: 1}), Gradual(begin=0.0, end=1.0, updates=1), feedback=feedback  # type: ignore[arg-type]
    )  # fmt: skip
    seen = []
    for step, gradient in enumerate(gradients):
        hook.before_forward(module, step, len(gradients))
        seen.append(weight.detach().clone())
        weight.grad = gradient.clone()
        hook.before_update(module, step, len(gradients))
        weight.data -= weight.grad + (0.5 * weight.detach() if step == 0 else 0.0)  # with a weight decay at first
        hook.after_update(module, step, len(gradients))
    hook.finish(module)
    return hook, module, seen


def test_with_feedback_gradients_at_masked_weights_bring_them_back() -> None:
    # Dense 1 -2 3: the first is masked. Gradients -4 0 1 and the decay are applied to the dense weights.
    hook, module, seen = steps_by_hand(True, [torch.tensor([[-4.0, 0.0, 1.0]]), torch.zeros(1, 3)])
    assert seen[0].tolist() == [[0.0, -2.0, 3.0]]
    # 1 - (-4) - .5 = 4.5; -2 + 1 = -1; 3 - 1 - 1.5 = .5, now the smallest.
    assert seen[1].tolist() == [[4.5, -1.0, 0.0]]
    assert module[0].weight.tolist() == [[4.5, -1.0, 0.0]]
    assert hook.masks is not None
    assert hook.masks.kept["0"].tolist() == [[True, True, False]]


def test_without_feedback_masked_weights_keep_their_value_until_others_are_smaller() -> None:
    _, module, seen = steps_by_hand(False, [torch.tensor([[-4.0, 0.0, 1.0]]), torch.zeros(1, 3)])
    assert seen[0].tolist() == [[0.0, -2.0, 3.0]]
    # The first kept its 1; -2 became -1; 3 became .5 and is masked in its place.
    assert seen[1].tolist() == [[1.0, -1.0, 0.0]]
    assert module[0].weight.tolist() == [[1.0, -1.0, 0.0]]
