from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from autocompress.compress import stages
from autocompress.compress.artifact import describe
from autocompress.compress.engine import build, check_finite
from autocompress.compress.export import export_onnx, runtime_session
from autocompress.compress.pack import unpack
from autocompress.compress.schedules import recover
from autocompress.compress.stages import calibration_inputs
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.compress.structure import find_structure
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import (
    Adaptive,
    AttentionTransfer,
    BlockDrop,
    ChannelCut,
    Codebook,
    Features,
    FromScratch,
    Gradual,
    Iterative,
    LayerBits,
    LotteryTicket,
    LowRank,
    NoDistillation,
    Plan,
    Quantizer,
    SparseTraining,
    Structure,
    WeightMask,
)
from autocompress.task import Recipe, Task


class Blobs(Dataset[tuple[Tensor, Tensor]]):
    """Noise around one image per class; every read is counted, and draws its own noise like an augmentation."""

    def __init__(self, size: int, seed: int, augment: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.targets = torch.arange(size) % 4
        centres = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        self.inputs = centres[self.targets] + 0.5 * torch.randn(size, 3, 8, 8, generator=generator)
        self.augment = augment
        self.reads = 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.reads += 1
        noise = torch.randn(3, 8, 8) if self.augment else torch.zeros(3, 8, 8)
        return self.inputs[index] + 0.1 * noise, self.targets[index]


class Augmented(Blobs):
    def plain(self) -> Blobs:
        return Blobs(len(self), seed=1, augment=False)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.inner, self.bn1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.outer, self.bn2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn(self.stem(x)))
        x = functional.relu(self.bn2(self.outer(functional.relu(self.bn1(self.inner(x))))) + x)
        return self.fc(x.mean((2, 3)))


LAYERS = ("fc", "inner", "outer", "stem")
ALL_BITS = tuple(LayerBits(layer=name, bits=8) for name in LAYERS)
CUT = ChannelCut(group="inner", keep=8, criterion="taylor")
MASK = WeightMask(layer="outer", sparsity=0.5, criterion="magnitude")


@pytest.fixture(scope="module")
def task() -> Task:
    return Task(
        name="blobs",
        model=Net,
        train=Blobs(96, seed=1),
        validation=Blobs(8, seed=2),
        selection=Blobs(8, seed=3),
        test=Blobs(8, seed=4),
        recipe=Recipe(batch_size=32),
    )


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def structure(dense: nn.Module) -> Structure:
    return find_structure(dense, torch.randn(1, 3, 8, 8))


@pytest.fixture(scope="module")
def statistics(dense: nn.Module, task: Task, structure: Structure) -> Statistics:
    return collect_statistics(dense, task, structure, batches=2, batch_size=16, seed=0)


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(bits=ALL_BITS),
        Plan(cuts=(CUT,)),
        Plan(masks=(MASK,)),
        Plan(cuts=(CUT,), masks=(MASK,), bits=ALL_BITS[1:3]),
    ],
    ids=["dense", "bits", "cut", "mask", "joint"],
)
@pytest.mark.parametrize("epochs", [0.0, 0.7])
def test_the_file_is_what_the_plan_asked_for(
    plan: Plan, epochs: float, task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    before = {name: value.clone() for name, value in dense.state_dict().items()}
    result = build(task, dense, plan, structure, statistics, epochs=epochs, seed=3)
    assert describe(result.model) == result.artifact
    layers = {layer.name: layer for layer in result.artifact.layers}
    assert layers["inner"].shape[0] == layers["outer"].shape[1] == (8 if plan.cuts else 16)
    assert {name for name, layer in layers.items() if layer.bits == 8} == {entry.layer for entry in plan.bits}
    if plan.masks:
        assert layers["outer"].zeros >= layers["outer"].weights // 2
    assert result.agreement < 1e-4
    assert result.warnings == ()
    changed = bool(plan.cuts or plan.masks)
    assert set(result.seconds) - {"quantize"} == ({"compress", "recover", "export"} if changed else {"export"})
    assert ("quantize" in result.seconds) == bool(plan.bits)
    assert all(torch.equal(before[name], value) for name, value in dense.state_dict().items())
    inputs = torch.randn(5, 3, 8, 8)
    got = runtime_session(result.model).run(None, {"input": inputs.numpy()})[0]
    want = result.module(inputs).detach().numpy()
    np.testing.assert_allclose(got, want, atol=0.1 * float(np.abs(want).max()) if plan.bits else 1e-4)


def test_dense_plan_exports_the_module_as_it_is(
    task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    result = build(task, dense, Plan(), structure, statistics, epochs=5.0, seed=0)
    assert result.module is dense
    assert result.model == export_onnx(dense, torch.zeros(1, 3, 8, 8)).model


def test_same_arguments_give_same_bytes_and_leave_the_global_random_state(
    task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    plan = Plan(cuts=(CUT,), masks=(MASK,), bits=ALL_BITS)
    state = torch.random.get_rng_state()
    first = build(task, dense, plan, structure, statistics, epochs=0.4, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(99)
    second = build(task, dense, plan, structure, statistics, epochs=0.4, seed=0)
    assert first.model == second.model
    assert first.agreement == second.agreement


def test_only_the_training_split_is_read(
    task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    build(task, dense, Plan(cuts=(CUT,), bits=ALL_BITS), structure, statistics, epochs=0.4, seed=0)
    assert task.train.reads > 0  # type: ignore[attr-defined]
    assert [getattr(task, role).reads for role in ("validation", "selection", "test")] == [0, 0, 0]


def test_everything_heavy_runs_inside_the_guard_and_never_nested(
    task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    depth, most, entered = 0, 0, 0

    @contextmanager
    def guard() -> Iterator[None]:
        nonlocal depth, most, entered
        depth, entered = depth + 1, entered + 1
        most = max(most, depth)
        yield
        depth -= 1

    build(task, dense, Plan(cuts=(CUT,), bits=ALL_BITS), structure, statistics, epochs=1.0, seed=0, guard=guard)
    # Three training steps, at least one recalibration batch, and cut, export and quantize in one piece each.
    assert most == 1
    assert entered >= 7


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Plan(cuts=(ChannelCut(group="none", keep=8, criterion="random"),)), r"plan.cuts: .* got 'none'"),
        (Plan(masks=(WeightMask(layer="none", sparsity=0.5, criterion="random"),)), r"plan.masks: .* got 'none'"),
        (Plan(bits=(LayerBits(layer="none", bits=8),)), r"plan.bits: .* got 'none'; it has fc, inner, outer, stem"),
    ],
)
def test_plan_for_another_network_is_refused(
    plan: Plan, message: str, task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    with pytest.raises(InfeasibleError, match=message):
        build(task, dense, plan, structure, statistics, epochs=0.0, seed=0)


@pytest.mark.parametrize("epochs", [-1.0, float("nan")])
def test_bad_epochs_are_refused(
    epochs: float, task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    with pytest.raises(CompressionError, match="expected epochs >= 0, got"):
        build(task, dense, Plan(), structure, statistics, epochs=epochs, seed=0)


def test_calibration_inputs_are_chosen_by_seed_and_without_augmentation_if_possible(task: Task) -> None:
    first = calibration_inputs(task, count=20, seed=0)
    assert isinstance(first, Tensor)
    assert first.shape == (20, 3, 8, 8)
    assert first.dtype == torch.float32
    assert torch.equal(first, calibration_inputs(task, count=20, seed=0))
    assert not torch.equal(first, calibration_inputs(task, count=20, seed=1))
    assert len(calibration_inputs(task, seed=0)) == 96
    plain = Task(
        name="plain", model=Net, train=Augmented(96, seed=1), validation=task.validation,
        selection=task.selection, test=task.test,
    )  # fmt: skip
    source = Blobs(96, seed=1).inputs.numpy()
    for row in calibration_inputs(plain, count=5, seed=0):
        assert np.any(np.all(source == row.numpy(), axis=(1, 2, 3)))


MASKS = (
    WeightMask(layer="inner", sparsity=0.75, criterion="magnitude"),
    WeightMask(layer="outer", sparsity=0.5, criterion="magnitude"),
)
KINDS = {
    "depth": Plan(drops=(BlockDrop(block="blocks.1"),)),
    "low rank": Plan(ranks=(LowRank(layer="blocks.0.first", ranks=(8, 8)), LowRank(layer="fc", ranks=(2,)))),
    "n:m": Plan(masks=(WeightMask(layer="blocks.0.first", sparsity=0.5, criterion="magnitude", pattern="2:4"),)),
    "block": Plan(masks=(WeightMask(layer="blocks.0.first", sparsity=0.5, criterion="taylor", pattern="block:4x4"),)),
    "codebook": Plan(codebooks=(Codebook(layer="blocks.0.first", clusters=8), Codebook(layer="fc", clusters=4))),
    "4 bits": Plan(bits=(LayerBits(layer="blocks.0.first", bits=4), LayerBits(layer="blocks.0.second", bits=8))),
    "aware": Plan(bits=(LayerBits(layer="blocks.0.first", bits=3),), quantizer=Quantizer(training="aware")),
    "half": Plan(bits=(LayerBits(layer="blocks.0.first", bits=16),)),
    "weights only": Plan(bits=(LayerBits(layer="fc", bits=4, weights_only=True),)),
    "percentile": Plan(bits=(LayerBits(layer="blocks.0.first", bits=8),), quantizer=Quantizer(calibrator="percentile")),
    "everything": Plan(
        drops=(BlockDrop(block="blocks.1"),),
        cuts=(ChannelCut(group="blocks.0.first", keep=8, criterion="taylor", reduction="max"),),
        masks=(WeightMask(layer="blocks.0.second", sparsity=0.5, criterion="magnitude"),),
        codebooks=(Codebook(layer="blocks.0.second", clusters=16),),
        bits=(LayerBits(layer="blocks.0.first", bits=8),),
        schedule=Gradual(),
    ),
}


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.second, self.norm2 = nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.norm2(self.second(functional.relu(self.norm1(self.first(x))))) + x)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Residual(), Residual())
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(functional.relu(self.stem(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def deep(task: Task) -> tuple[nn.Module, Structure, Statistics]:
    torch.manual_seed(1)
    module = Deep().eval()
    structure = find_structure(module, torch.randn(1, 3, 8, 8))
    return module, structure, collect_statistics(module, task, structure, batches=2, seed=0)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_compression_is_proven_from_the_bytes(
    kind: str, task: Task, deep: tuple[nn.Module, Structure, Statistics]
) -> None:
    plan, (dense, structure, statistics) = KINDS[kind], deep
    result = build(task, dense, plan, structure, statistics, epochs=1.0, seed=0)
    layers = {layer.name: layer for layer in result.artifact.layers}
    for drop in plan.drops:
        assert not [name for name in layers if name.startswith(f"{drop.block}.")]
    for entry in plan.bits:
        assert layers[entry.layer].bits == entry.bits
        assert layers[entry.layer].compute == {8: "integer"}.get(
            entry.bits, "weights" if entry.weights_only else layers[entry.layer].compute
        )
    for mask in plan.masks:
        assert layers[mask.layer].zeros >= round(mask.sparsity * layers[mask.layer].weights)
    for rank in plan.ranks:
        assert layers[f"{rank.layer}.0"].shape[0] == rank.ranks[-1]
    for book in plan.codebooks:
        weight = result.module.get_submodule(book.layer).get_parameter("weight")
        assert len(weight[weight != 0].unique()) <= book.clusters
        assert unpack(result.packed) == result.model
        assert result.artifact.packed_bytes == len(result.packed) < len(result.model)


SCHEDULES = (
    Iterative(rounds=2),
    Gradual(updates=3),
    Adaptive(updates=3),
    SparseTraining(method="rigl", updates=3),
    SparseTraining(method="set", updates=3),
    SparseTraining(method="static"),
    LotteryTicket(rounds=2, rewind=0.3),
    FromScratch(),
)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: getattr(s, "method", s.kind))
def test_every_schedule_ends_with_the_zeros_and_channels_that_were_asked(
    schedule: object, task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    plan = Plan(cuts=(CUT,), masks=MASKS, schedule=schedule, distillation=NoDistillation())
    result = build(task, dense, plan, structure, statistics, epochs=2.0, seed=0)
    layers = {layer.name: layer for layer in result.artifact.layers}
    assert layers["inner"].shape[0] == 8
    for mask in MASKS:
        assert layers[mask.layer].zeros == round(mask.sparsity * layers[mask.layer].weights)


@pytest.mark.parametrize("order", ["cut-mask", "mask-cut"])
@pytest.mark.parametrize("distillation", [Features(), AttentionTransfer()], ids=lambda d: d.kind)
def test_hybrid_chains_in_both_orders(
    order: str, distillation: object, task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    plan = Plan(cuts=(CUT,), masks=MASKS, order=order, distillation=distillation)
    result = build(task, dense, plan, structure, statistics, epochs=1.0, seed=0)
    layers = {layer.name: layer for layer in result.artifact.layers}
    assert (layers["inner"].shape, layers["outer"].shape) == ((8, 16, 3, 3), (16, 8, 3, 3))
    assert [layers[m.layer].zeros for m in MASKS] == [round(m.sparsity * 8 * 16 * 9) for m in MASKS]


def test_weights_that_are_not_finite_are_refused_by_name(
    task: Task, structure: Structure, statistics: Statistics
) -> None:
    broken = Net().eval()
    with torch.no_grad():
        broken.inner.weight[3, 2, 1, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"inner.weight: expected finite weights, got NaN or infinity in 1 of"):
        build(task, broken, Plan(), structure, statistics, epochs=0.0, seed=0)


def test_a_buffer_may_mask_with_minus_infinity() -> None:
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
    module.register_buffer("count", torch.tensor(3))
    check_finite(module)
    for bad in (torch.inf, torch.nan):
        module.register_buffer("mask", torch.full((3, 3), bad).triu(1))
        with pytest.raises(CompressionError, match="mask: expected finite weights, got NaN or infinity in 3 of 9"):
            check_finite(module)
    with torch.no_grad():
        module.bias[0] = -torch.inf
    with pytest.raises(CompressionError, match="bias: expected finite weights"):
        check_finite(module)


@pytest.mark.parametrize("schedule", [Gradual(updates=3), Adaptive(updates=3)], ids=lambda s: s.kind)
def test_masks_chosen_before_a_cut_do_not_grow_again_by_degrees(
    schedule: object, task: Task, dense: nn.Module, structure: Structure, statistics: Statistics,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[str] = []

    def watched(module: nn.Module, plan: Plan, *rest: Any, **named: Any) -> Any:
        seen.append(plan.schedule.kind)
        return recover(module, plan, *rest, **named)

    monkeypatch.setattr(stages, "recover", watched)
    plan = Plan(cuts=(CUT,), masks=MASKS, schedule=schedule, order="mask-cut", distillation=NoDistillation())
    build(task, dense, plan, structure, statistics, epochs=1.0, seed=0)
    assert seen == [schedule.kind, "one-shot"]  # type: ignore[attr-defined]


def test_a_layer_of_a_block_that_is_left_out_cannot_be_quantized(
    task: Task, deep: tuple[nn.Module, Structure, Statistics]
) -> None:
    dense, structure, statistics = deep
    plan = Plan(drops=(BlockDrop(block="blocks.1"),), bits=(LayerBits(layer="blocks.1.first", bits=8),))
    with pytest.raises(InfeasibleError, match=r"plan.bits: expected layers that stay, got 'blocks.1.first'"):
        build(task, dense, plan, structure, statistics, epochs=0.0, seed=0)


def test_settings_without_effect_are_the_plan_without_them(
    task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    idle = Plan(schedule=LotteryTicket(), distillation=Features())
    assert build(task, dense, idle, structure, statistics, epochs=1.0, seed=0).module is dense


def test_weights_are_not_masked_and_trained_only_to_be_drawn_anew(
    task: Task, dense: nn.Module, structure: Structure, statistics: Statistics
) -> None:
    plan = Plan(cuts=(CUT,), masks=MASKS, order="mask-cut", schedule=FromScratch())
    with pytest.raises(InfeasibleError, match=r"plan.order: expected 'cut-mask' with schedule 'from-scratch'"):
        build(task, dense, plan, structure, statistics, epochs=1.0, seed=0)


def test_factors_that_save_nothing_are_told(task: Task, deep: tuple[nn.Module, Structure, Statistics]) -> None:
    dense, structure, statistics = deep
    plan = Plan(ranks=(LowRank(layer="fc", ranks=(4,)),))
    result = build(task, dense, plan, structure, statistics, epochs=0.0, seed=0)
    assert result.warnings == ("the factors have no fewer weights than the layer in fc",)
