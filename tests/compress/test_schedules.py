from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autocompress.compress.fit import Hook
from autocompress.compress.fresh import redrawn
from autocompress.compress.gradual import cubic
from autocompress.compress.masks import FixedMasks, Masks, masked_weight
from autocompress.compress.prune import cut_channels
from autocompress.compress.schedules import iterative, recover
from autocompress.compress.state import module_digest
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.compress.train import Trainer
from autocompress.errors import InfeasibleError
from autocompress.records import (
    Adaptive,
    AttentionTransfer,
    ChannelCut,
    Distillation,
    Features,
    FromScratch,
    Gradual,
    Iterative,
    LotteryTicket,
    NoDistillation,
    OneShot,
    Plan,
    Response,
    SparseTraining,
    WeightMask,
)
from autocompress.records.plan import Schedule
from autocompress.task import Recipe, Task


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 4))


def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(4, (96,), generator=generator)
    x = torch.randn(96, 16, generator=generator) * 0.5
    x[torch.arange(96), y] += 3.0
    data = TensorDataset(x, y)
    return Task(
        name="t", model=net, train=data, validation=data, selection=data, test=data,
        recipe=Recipe(epochs=8, batch_size=16, learning_rate=0.1), recovery_learning_rate=0.02,
    )  # fmt: skip


EXAMPLE = torch.zeros(2, 16)
DENSE = net()
STRUCTURE = find_structure(DENSE, EXAMPLE)
MASKS = (
    WeightMask(layer="0", sparsity=0.7, criterion="magnitude"),
    WeightMask(layer="3", sparsity=0.5, criterion="magnitude", pattern="2:4"),
    WeightMask(layer="5", sparsity=0.4, criterion="random", pattern="block:2x2"),
)
ZEROS = {"0": round(0.7 * 384), "3": 96, "5": round(0.4 * 8) * 4}
ELEMENTS = tuple(WeightMask(layer=n, sparsity=0.6, criterion="magnitude") for n in ("0", "3"))


def trainer(epochs: float = 2.0) -> Trainer:
    return Trainer(task=task(), teacher=DENSE, distillation=NoDistillation(), epochs=epochs, seed=0)


def run(schedule: Schedule, masks: tuple[WeightMask, ...] = MASKS, epochs: float = 2.0) -> tuple[nn.Module, Masks]:
    result, found = recover(
        DENSE, Plan(masks=masks, schedule=schedule), STRUCTURE, Statistics({}), trainer(epochs), example=EXAMPLE, seed=0
    )
    assert found is not None
    return result, found


SCHEDULES: list[Schedule] = [
    OneShot(),
    Iterative(rounds=3),
    Gradual(updates=5),
    Gradual(begin=0.3, end=1.0, updates=40, initial=0.2),
    Adaptive(updates=4),
    Adaptive(end=1.0, freeze=0.5, updates=50),
    SparseTraining(method="static"),
    LotteryTicket(rounds=2),
    LotteryTicket(rounds=1, rewind=0.3),
    LotteryTicket(rounds=1, reinitialize=True),
    FromScratch(),
]


@pytest.mark.parametrize("epochs", [2.0, 0.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.kind)
def test_every_schedule_ends_with_exactly_the_asked_zeros(schedule: Schedule, epochs: float) -> None:
    before, state = module_digest(DENSE), torch.random.get_rng_state()
    result, masks = run(schedule, epochs=epochs)
    assert module_digest(DENSE) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not result.training
    assert masks.counts() == ZEROS
    for name, kept in masks.kept.items():
        weight = masked_weight(result, name)
        assert int((weight == 0).sum()) == ZEROS[name]
        assert weight[kept].all()
    again, _ = run(schedule, epochs=epochs)
    assert module_digest(again) == module_digest(result)


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_sparse_training_of_single_weights_ends_with_the_asked_zeros(method: str) -> None:
    schedule = SparseTraining.model_validate({"method": method, "updates": 4})
    result, masks = run(schedule, ELEMENTS)
    assert masks.counts() == {"0": round(0.6 * 384), "3": round(0.6 * 192)}
    masks.check(result)
    start = run(SparseTraining(method="static"), ELEMENTS, epochs=0.0)[1]
    moved = any(not torch.equal(masks.kept[n], start.kept[n]) for n in start.kept)
    assert moved == (method != "static")


def test_without_masks_one_shot_and_from_scratch_just_train() -> None:
    plan = Plan()
    result, masks = recover(DENSE, plan, STRUCTURE, Statistics({}), trainer(), example=EXAMPLE, seed=0)
    assert masks is None
    assert module_digest(result) == module_digest(trainer().train(DENSE, key="recover"))
    fresh, masks = recover(
        DENSE, Plan(schedule=FromScratch()), STRUCTURE, Statistics({}), trainer(0.0), example=EXAMPLE, seed=0
    )
    assert masks is None
    assert not torch.equal(fresh.get_parameter("0.weight"), DENSE.get_parameter("0.weight"))


@pytest.mark.parametrize("schedule", [Gradual(), Adaptive(), SparseTraining(), LotteryTicket()], ids=lambda s: s.kind)
def test_schedules_of_masks_need_masks(schedule: Schedule) -> None:
    with pytest.raises(InfeasibleError, match=f"'{schedule.kind}' needs masks, plan.masks is empty"):
        recover(DENSE, Plan(schedule=schedule), STRUCTURE, Statistics({}), trainer(), example=EXAMPLE, seed=0)


def test_what_cannot_be_built_is_refused_before_any_training() -> None:
    bad = (WeightMask(layer="0", sparsity=0.5, criterion="magnitude", pattern="3:6"),)
    for schedule in (OneShot(), Iterative(), Gradual()):
        with pytest.raises(InfeasibleError, match="3:6 needs inputs in multiples of 6, '0' has 16; m may be 2, 4,"):
            run(schedule, bad)
    with pytest.raises(InfeasibleError, match="rigl moves single weights, expected pattern 'element', got '2:4'"):
        run(SparseTraining(method="rigl"))
    unknown = (WeightMask(layer="nowhere", sparsity=0.5, criterion="magnitude"),)
    for schedule in (OneShot(), Iterative(), Gradual()):
        with pytest.raises(InfeasibleError, match="expected a layer of the network, got 'nowhere'"):
            run(schedule, unknown)
    with pytest.raises(InfeasibleError, match="expected an iterative one, got 'one-shot'"):
        iterative(DENSE, Plan(), STRUCTURE, Statistics({}), trainer(), example=EXAMPLE, seed=0)


# --- iterative ----------------------------------------------------------------------------------------------------


def seen_widths(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int, int]]:
    """What every training was asked: its key and share, the width of the first layer, and the masked of the second."""
    found: list[tuple[str, float, int, int]] = []
    train = Trainer.train

    def watched(
        self: Trainer, module: nn.Module, *, key: str, share: float, hooks: list[FixedMasks], peak: float | None
    ) -> nn.Module:
        result = train(self, module, key=key, share=share, hooks=hooks, peak=peak)
        hooks[0].masks.check(result)
        found.append((key, share, len(masked_weight(result, "0")), hooks[0].masks.counts().get("3", 0)))
        return result

    monkeypatch.setattr(Trainer, "train", watched)
    return found


@pytest.mark.parametrize("order", ["cut-mask", "mask-cut"])
def test_an_iterative_schedule_leaves_an_equal_share_each_round(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    found = seen_widths(monkeypatch)
    plan = Plan.model_validate(
        {
            "cuts": (ChannelCut(group="0", keep=3, criterion="magnitude"),),
            "masks": (WeightMask(layer="3", sparsity=0.875, criterion="random"),),
            "schedule": Iterative(rounds=3),
            "order": order,
        }
    )
    result, masks = iterative(DENSE, plan, STRUCTURE, Statistics({}), trainer(), example=EXAMPLE, seed=0)
    assert masks is not None
    widths = [12, 6, 3]  # 24 units, half of them each time
    zeros = [round((1 - 0.5**r) * 8 * w) for r, w in enumerate(widths, 1)]
    assert found == [(f"round {r}", 1 / 3, w, z) for r, (w, z) in enumerate(zip(widths, zeros, strict=True), 1)]
    assert result(EXAMPLE).shape == (2, 4)


def test_a_pattern_that_does_not_fit_on_the_way_waits_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    found = seen_widths(monkeypatch)
    plan = Plan(
        cuts=(ChannelCut(group="0", keep=8, criterion="magnitude"),),
        masks=(WeightMask(layer="3", sparsity=0.5, criterion="magnitude", pattern="2:4"),),
        schedule=Iterative(rounds=2),
    )
    iterative(DENSE, plan, STRUCTURE, Statistics({}), trainer(), example=EXAMPLE, seed=0)
    assert found == [("round 1", 0.5, 14, 0), ("round 2", 0.5, 8, 32)]  # 14 is no multiple of 4


# --- gradual and adaptive -----------------------------------------------------------------------------------------


def test_sparsity_rises_as_the_formula_says_while_training() -> None:
    zeros: list[int] = []

    class Count:
        def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
            zeros.append(int((masked_weight(module, "0") == 0).sum()))

        def before_update(self, module: nn.Module, step: int, steps: int) -> None: ...

        def after_update(self, module: nn.Module, step: int, steps: int) -> None: ...

        def finish(self, module: nn.Module) -> None: ...

    train = Trainer.train
    teach = trainer(2.0)  # twelve steps

    def counted(self: Trainer, module: nn.Module, *, key: str, hooks: list[Hook], **rest: object) -> nn.Module:
        return train(self, module, key=key, hooks=[*hooks, Count()], **rest)  # type: ignore[arg-type]

    plan = Plan(masks=MASKS[:1], schedule=Gradual(begin=0.25, end=0.75, updates=3, initial=0.1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train", counted)
        recover(DENSE, plan, STRUCTURE, Statistics({}), teach, example=EXAMPLE, seed=0)
    level = {0: 0.1, 1: cubic(0.1, 0.7, 1 / 3), 2: cubic(0.1, 0.7, 2 / 3), 3: 0.7}
    by_step = [None] * 3 + [0, 0, 1, 1, 2, 2, 3, 3, 3]
    assert zeros == [0 if update is None else round(level[update] * 384) for update in by_step]


# --- from fresh weights -------------------------------------------------------------------------------------------


def test_redrawn_weights_depend_on_the_seed_alone_and_keep_nothing() -> None:
    class Free(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.arange(50.0))
            self.norm, self.attention = nn.BatchNorm1d(4), nn.MultiheadAttention(4, 2)

    torch.manual_seed(0)
    module = Free()
    module.norm.running_mean.fill_(3.0)
    before, state = module_digest(module), torch.random.get_rng_state()
    first, again, other = redrawn(module, seed=1), redrawn(module, seed=1), redrawn(module, seed=2)
    assert module_digest(module) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert module_digest(first) == module_digest(again) != module_digest(other)
    assert not first.norm.running_mean.any()
    assert sorted(first.token.tolist()) == module.token.tolist() != first.token.tolist()
    for name in ("attention.in_proj_weight", "attention.out_proj.weight"):
        assert not torch.equal(first.get_parameter(name), module.get_parameter(name))


def starts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None, nn.Module]]:
    """Key, peak rate and first weights of every training."""
    found: list[tuple[str, float | None, nn.Module]] = []
    train = Trainer.train

    def watched(self: Trainer, module: nn.Module, *, key: str, peak: float | None = None, **rest: object) -> nn.Module:
        found.append((key, peak, copy.deepcopy(module)))
        return train(self, module, key=key, peak=peak, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train", watched)
    return found


def test_a_ticket_goes_back_to_where_it_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    found = starts(monkeypatch)
    result, masks = run(LotteryTicket(rounds=2), ELEMENTS)
    assert [(key, peak) for key, peak, _ in found] == [("round 0", 0.1), ("round 1", 0.1), ("round 2", 0.1)]
    assert len({module_digest(module) for *_, module in found}) == 1
    assert module_digest(found[0][2]) != module_digest(DENSE)
    masks.check(result)


@pytest.mark.parametrize(("rewind", "step"), [(0.5, 6), (0.99, 11)])
def test_a_rewound_ticket_starts_at_an_early_step_of_the_first_training(
    rewind: float, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = starts(monkeypatch)
    run(LotteryTicket(rounds=2, rewind=rewind), ELEMENTS)
    digests = [module_digest(module) for *_, module in found]
    assert digests[1] == digests[2] != digests[0]
    # Twelve steps: the weights before that one, which a training with a look at them shows.
    seen: dict[int, str] = {}

    class Look:
        def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
            seen[step] = module_digest(module)

        def before_update(self, module: nn.Module, step: int, steps: int) -> None: ...

        def after_update(self, module: nn.Module, step: int, steps: int) -> None: ...

        def finish(self, module: nn.Module) -> None: ...

    trainer().train(found[0][2], key="round 0", peak=0.1, hooks=[Look()])
    assert digests[1] == seen[step]


def test_the_control_of_a_ticket_starts_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = starts(monkeypatch)
    run(LotteryTicket(rounds=2, reinitialize=True), ELEMENTS)
    assert len({module_digest(module) for *_, module in found}) == 3


def test_tickets_are_pruned_by_gradients_of_the_network_that_was_trained() -> None:
    # The dense network's statistics, of which there are none here, are not asked.
    masks = (
        WeightMask(layer="0", sparsity=0.5, criterion="taylor"),
        WeightMask(layer="3", sparsity=0.5, criterion="hessian"),
    )
    assert run(LotteryTicket(rounds=1), masks)[1].counts() == {"0": 192, "3": 96}


def test_from_scratch_keeps_the_masks_of_the_trained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    found = starts(monkeypatch)
    _, masks = run(FromScratch(), ELEMENTS)
    _, one_shot = run(OneShot(), ELEMENTS)
    assert all(torch.equal(masks.kept[name], one_shot.kept[name]) for name in one_shot.kept)
    assert [(peak, module_digest(module) == module_digest(DENSE)) for _, peak, module in found] == [
        (0.1, False), (None, True),
    ]  # fmt: skip


# --- other networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule", [FromScratch(), LotteryTicket(rounds=1), Adaptive(updates=3)], ids=lambda s: s.kind
)
def test_a_cut_network_is_masked_by_its_own_gradients_where_it_was_trained_anew(schedule: Schedule) -> None:
    cuts = [ChannelCut(group="0", keep=10, criterion="magnitude")]
    gradients = {name: torch.randn(p.shape) for name, p in DENSE.named_parameters()}
    cut = cut_channels(DENSE, cuts, STRUCTURE, Statistics(gradients), example=EXAMPLE, seed=0)
    masks = tuple(WeightMask(layer=layer, sparsity=0.5, criterion="taylor") for layer in ("0", "3"))
    plan = Plan(cuts=tuple(cuts), masks=masks, schedule=schedule)
    result, found = recover(cut, plan, STRUCTURE, Statistics(gradients), trainer(), example=EXAMPLE, seed=0)
    assert found is not None
    assert found.counts() == {"0": 80, "3": 40}
    assert masked_weight(result, "3").shape == (8, 10)


class Speaks(nn.Module):
    """Token ids through an LSTM to logits for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm, self.out = nn.Embedding(5, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.lstm(self.embed(ids))[0])


@pytest.mark.parametrize("schedule", [Gradual(updates=3), SparseTraining(updates=3), Adaptive(updates=3)])
@pytest.mark.parametrize("way", [Response(), Features(), AttentionTransfer()], ids=lambda w: w.kind)
def test_matrices_of_a_recurrent_layer_are_masked_by_their_names(schedule: Schedule, way: Distillation) -> None:
    torch.manual_seed(0)
    dense = Speaks()
    ids = torch.randint(5, (32, 7), generator=torch.Generator().manual_seed(0))
    data = TensorDataset(ids, ids.roll(1, dims=1))
    job = Task(
        name="s", model=Speaks, train=data, validation=data, selection=data, test=data,
        loss=lambda outputs, targets: nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten()),
        recipe=Recipe(optimizer="adamw", learning_rate=0.01, clip=1.0, batch_size=8), recovery_learning_rate=0.01,
    )  # fmt: skip
    names = ("embed", "lstm.weight_hh_l0", "lstm.weight_ih_l0", "out")
    plan = Plan(
        masks=tuple(WeightMask(layer=name, sparsity=0.5, criterion="magnitude") for name in names), schedule=schedule
    )
    structure = find_structure(dense, ids[:1])
    teach = Trainer(task=job, teacher=dense, distillation=way, epochs=2.0, seed=0)
    result, masks = recover(dense, plan, structure, Statistics({}), teach, example=ids[:1], seed=0)
    assert masks is not None
    assert masks.counts() == {"embed": 20, "lstm.weight_hh_l0": 72, "lstm.weight_ih_l0": 96, "out": 15}
    assert int((result.get_parameter("lstm.weight_hh_l0") == 0).sum()) == 72
    assert result(ids).shape == (32, 7, 5)
