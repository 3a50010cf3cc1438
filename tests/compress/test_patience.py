from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from autocompress.compress.fit import fit, one_cycle
from autocompress.compress.patience import Patience
from autocompress.compress.train import Trainer, Training
from autocompress.errors import CompressionError
from autocompress.records import NoDistillation
from autocompress.task import Recipe, Task

STEPS = 200  # 20 blocks of 10
SOON = Patience(improvement=0.01, wait=4, tail_share=0.1)


def test_it_ends_after_as_many_blocks_without_gain_as_the_formula_says() -> None:
    # Falls from 1 to 0 until the end of block 6 (step 70), then stays.
    losses = [max(0.0, 1.0 - step / 70) for step in range(STEPS)]
    # m_0 = 1 - 4.5 / 70. Block 7 and all after it are 0, block 6 is (step 64.5) 5.5 / 70: the last four blocks gain
    # that, 8%, at the end of block 10, and nothing at the end of block 11.
    assert SOON.tail(losses, STEPS) == 120
    assert Patience(improvement=0.1, wait=4, tail_share=0.1).tail(losses, STEPS) == 110
    assert SOON.tail(losses[:119], STEPS) is None


def test_a_gain_in_time_keeps_it_going() -> None:
    steadily = [1.0 - step / STEPS for step in range(STEPS)]
    assert SOON.tail(steadily, STEPS) is None
    stairs = [1.0 - 0.1 * (step // 30) for step in range(STEPS)]
    assert SOON.tail(stairs, STEPS) is None


def test_the_warm_up_is_not_looked_at() -> None:
    # A jump while the learning rate rises would make every later block look like no gain.
    losses = [0.0 if 10 <= step < 30 else 1.0 - 0.5 * step / STEPS for step in range(STEPS)]
    assert SOON.tail(losses, STEPS) is None


def test_a_cycle_about_to_end_goes_on_as_planned() -> None:
    late = [max(0.0, 1.0 - step / 140) for step in range(STEPS)]
    # Without gain from block 14 on, it would end after block 18 (step 190), and the tail takes 20 more.
    assert SOON.tail(late, STEPS) is None


def test_too_few_steps_say_nothing() -> None:
    assert SOON.tail([1.0] * 19, 19) is None


@given(
    losses=st.lists(st.floats(0.0, 10.0), max_size=120),
    steps=st.integers(1, 120),
    seen=st.integers(0, 120),
)
def test_an_answer_never_changes_with_more_losses(losses: list[float], steps: int, seen: int) -> None:
    patience = Patience(improvement=0.05, blocks=10, wait=2)
    early = patience.tail(losses[:seen], steps)
    late = patience.tail(losses, steps)
    if early is not None:
        assert late == early
        assert early <= seen
    if late is not None:
        assert late + patience.tail_steps(steps) < steps


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"improvement": 1.0}, r"patience.improvement: expected a share in \[0, 1\), got 1.0"),
        ({"blocks": 1}, "patience.blocks: expected at least 2, got 1"),
        ({"wait": 20}, "patience.wait: expected 1 to 19 blocks, got 20"),
        ({"warmup": -0.1}, r"patience.warmup: expected a share in \[0, 1\), got -0.1"),
        ({"tail_share": 0.0}, r"patience.tail_share: expected a share in \(0, 1\), got 0.0"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        Patience(**change)  # type: ignore[arg-type]


def task() -> Task:
    data = TensorDataset(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)), torch.arange(100) % 2)
    return Task(
        name="points",
        model=lambda: nn.Linear(4, 2),
        train=data,
        validation=data,
        selection=data,
        test=data,
        recipe=Recipe(batch_size=10),
    )


class Rates:
    """Notes the learning rate of every step, as a hook."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def begin(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
        self.seen.append(self.optimizer.param_groups[0]["lr"])

    def before_update(self, module: nn.Module, step: int, steps: int) -> None:
        pass

    def after_update(self, module: nn.Module, step: int, steps: int) -> None:
        pass

    def finish(self, module: nn.Module) -> None:
        pass


def test_a_training_without_gain_ends_with_a_falling_rate() -> None:
    def flat(student: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return 0.0 * functional.cross_entropy(student(inputs), targets) + 1.0

    rates = Rates()
    fitted = fit(task(), nn.Linear(4, 2), flat, steps=STEPS, peak=0.1, seed=0, hooks=[rates], patience=SOON)
    # Blocks 4 to 7 are looked at, and 8 is the first with four behind it; the tail then takes 20 steps.
    assert (fitted.taken, fitted.stopped) == (110, True)
    assert rates.seen[:90] == [one_cycle(step, STEPS, 0.1) for step in range(90)]
    start = one_cycle(90, STEPS, 0.1)
    assert rates.seen[90:] == pytest.approx([start * (1.0 - (step + 1) / 21) for step in range(20)])
    assert math.isclose(rates.seen[-1], start / 21)


def test_a_trainer_tells_that_it_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Training] = []
    trainer = Trainer(
        task=task(),
        teacher=nn.Linear(4, 2),
        distillation=NoDistillation(),
        epochs=20,
        seed=0,
        patience=Patience(improvement=0.9, wait=1),
        report=told.append,
    )
    trainer.train(nn.Linear(4, 2), key="recover")
    (training,) = told
    assert training.planned == STEPS
    assert training.stopped
    assert training.taken < STEPS
