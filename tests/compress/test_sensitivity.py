from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator
from typing import Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autocompress.compress.export import export_onnx
from autocompress.compress.prune import cut_channels, drop_blocks
from autocompress.compress.quantize import quantize
from autocompress.compress.reference import divergence
from autocompress.compress.rounding import round_weights
from autocompress.compress.sensitivity import measure_sensitivity
from autocompress.compress.state import module_digest
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.compress.train import recalibrate_bn
from autocompress.errors import CompressionError
from autocompress.models.resnet import resnet_cifar
from autocompress.records import BlockDrop, ChannelCut, LayerBits, Quantizer, Structure
from autocompress.task import Task

NONE = Statistics({})


def toy(**changes: Any) -> Task:
    g = torch.Generator().manual_seed(0)
    x, y = torch.rand(96, 1, 8, 8, generator=g), torch.arange(96) % 4
    x += y.view(-1, 1, 1, 1) * 0.2
    roles = dict.fromkeys(("train", "validation", "selection", "test"), TensorDataset(x, y))
    return Task(**{"name": "toy", "model": lambda: resnet_cifar(8, (8, 8, 8), 4, 1, "projection"), **roles, **changes})


@pytest.fixture(scope="module")
def network() -> tuple[Task, nn.Module, Structure]:
    task = toy()
    torch.manual_seed(0)
    module = recalibrate_bn(task.build(), task, batch_size=32)
    return task, module, find_structure(module, task.example_input())


def naive(task: Task, dense: nn.Module, other: nn.Module, n: int) -> tuple[float, float]:
    """Increase of the loss, and KL by loops, over the first n validation examples."""
    x, y = (tensor[:n] for tensor in task.validation.tensors)  # type: ignore[attr-defined]
    with torch.no_grad():
        p, q = (torch.softmax(m.eval()(x).double(), dim=1).tolist() for m in (dense, other))
        losses = [float(nn.functional.cross_entropy(m(x), y)) for m in (dense, other)]
    kl = sum(a * (math.log(a) - math.log(b)) for u, v in zip(p, q, strict=True) for a, b in zip(u, v, strict=True)) / n
    return losses[1] - losses[0], kl


def test_every_group_layer_and_block_is_measured_as_if_compressed_alone(network: Any) -> None:
    task, dense, whole = network
    structure = whole.model_copy(update={"groups": whole.groups[:2]})
    before, progress = module_digest(dense), []
    found = measure_sensitivity(
        task,
        dense,
        structure,
        NONE,
        round_to=2,
        bits=(8, 2),
        blocks=True,
        examples=64,
        batches=1,
        seed=0,
        on_done=lambda done, total: progress.append((done, total)),
    )
    assert module_digest(dense) == before
    assert [(e.group, e.keep) for e in found.groups] == [(g.name, k) for g in structure.groups for k in (6, 4, 2)]
    assert [(e.layer, e.bits) for e in found.layers] == [(x.name, b) for x in structure.layers for b in (8, 2)]
    assert [e.block for e in found.blocks] == [b.name for b in structure.blocks]
    assert found.blocks
    assert not found.pairs
    total = len(found.groups) + len(found.layers) + len(found.blocks)
    assert progress == [(i + 1, total) for i in range(total)]

    example = task.example_input()
    first = found.groups[1]
    cut = (ChannelCut(group=first.group, keep=first.keep, criterion="magnitude"),)
    module = cut_channels(dense, cut, structure, NONE, example=example, seed=0)
    expected = naive(task, dense, recalibrate_bn(module, task, batches=1), 64)
    assert (first.loss, first.kl) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    dropped = found.blocks[0]
    module = drop_blocks(dense, (BlockDrop(block=dropped.block),), structure, example=example)
    expected = naive(task, dense, recalibrate_bn(module, task, batches=1), 64)
    assert (dropped.loss, dropped.kl) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    for entry in found.layers[-2:]:
        module = copy.deepcopy(dense)
        weight = module.get_parameter(f"{entry.layer}.weight").data
        weight.copy_(round_weights(weight, entry.bits, 0))
        assert (entry.loss, entry.kl) == pytest.approx(naive(task, dense, module, 64), rel=1e-3, abs=1e-5)
    # Two bits hurt more than eight, in every layer.
    assert all(coarse.kl > fine.kl for fine, coarse in zip(found.layers[::2], found.layers[1::2], strict=True))
    assert all(math.isfinite(e.loss) and e.kl >= 0 for e in found.groups)


def test_neighbouring_blocks_are_left_out_together() -> None:
    task = toy()
    torch.manual_seed(0)
    dense = resnet_cifar(depth=20, widths=(4, 4, 4), classes=4, channels=1, shortcut="projection")
    structure = find_structure(dense, task.example_input())
    ask: Any = {"round_to": 2, "groups": (), "blocks": True, "examples": 64, "batches": 1, "seed": 0}
    found = measure_sensitivity(task, dense, structure, NONE, pairs=True, **ask)
    assert len(found.blocks) >= 3
    assert [e.blocks for e in found.pairs] == list(itertools.pairwise(e.block for e in found.blocks))
    both, example = found.pairs[0], task.example_input()
    module = drop_blocks(dense, [BlockDrop(block=name) for name in both.blocks], structure, example=example)
    expected = naive(task, dense, recalibrate_bn(module, task, batches=1), 64)
    assert (both.loss, both.kl) == pytest.approx(expected, rel=1e-3, abs=1e-5)
    outer = structure.blocks[0].model_copy(update={"name": "body"})
    nested = structure.model_copy(update={"blocks": (outer, *structure.blocks[:1])})
    assert not measure_sensitivity(task, dense, nested, NONE, pairs=True, **ask).pairs


def test_by_default_groups_are_halved_and_narrow_ones_left_out(network: Any) -> None:
    task, dense, structure = network
    entries = measure_sensitivity(task, dense, structure, NONE, round_to=4, levels=(0.5,), examples=32, seed=0).groups
    assert [(e.group, e.width, e.keep) for e in entries] == [(g.name, 8, 4) for g in structure.groups]
    assert (
        measure_sensitivity(task, dense, structure, NONE, round_to=8, levels=(0.5,), examples=32, seed=0).groups == ()
    )


def test_every_piece_of_work_is_guarded(network: Any) -> None:
    task, dense, structure = network
    entered = 0

    @contextlib.contextmanager
    def guard() -> Iterator[None]:
        nonlocal entered
        entered += 1
        yield

    one = structure.model_copy(update={"groups": structure.groups[:1]})
    measure_sensitivity(task, dense, one, NONE, round_to=4, levels=(0.5,), examples=32, batches=1, seed=0, guard=guard)
    # The dense answers, the cut, the recalibration's pass, the cut network's answers.
    assert entered == 4


def test_outputs_that_are_no_class_scores_have_a_loss_alone(network: Any) -> None:
    _, dense, structure = network
    x = torch.rand(96, 1, 8, 8)
    data = TensorDataset(x, torch.rand(96, 4))
    roles: Any = dict.fromkeys(("train", "validation", "selection", "test"), data)
    task = toy(**roles, loss=nn.functional.mse_loss)
    one = structure.model_copy(update={"groups": structure.groups[:1]})
    (entry,) = measure_sensitivity(
        task, dense, one, NONE, round_to=4, levels=(0.5,), examples=32, batches=1, seed=0
    ).groups
    assert entry.kl is None
    assert entry.loss != 0.0


def test_arguments_out_of_range_and_a_broken_dense_model_are_refused_by_key(network: Any) -> None:
    task, dense, structure = network
    ask: Any = {"round_to": 4, "seed": 0}
    with pytest.raises(CompressionError, match=r"levels: expected shares to keep in \(0, 1\), got 1\.0"):
        measure_sensitivity(task, dense, structure, NONE, levels=(0.5, 1.0), **ask)
    with pytest.raises(CompressionError, match="bits: expected 16, or 2 to 8, got 1"):
        measure_sensitivity(task, dense, structure, NONE, bits=(8, 1), **ask)
    with pytest.raises(CompressionError, match="expected examples and batches >= 1, got 0 and 8"):
        measure_sensitivity(task, dense, structure, NONE, examples=0, **ask)
    broken = copy.deepcopy(dense)
    next(broken.parameters()).data.fill_(float("nan"))
    with pytest.raises(CompressionError, match="expected a finite validation loss of the dense model, got nan"):
        measure_sensitivity(task, broken, structure, NONE, **ask)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_weights_are_rounded_to_the_grid_that_ships(bits: int) -> None:
    layer = nn.Linear(32, 6, bias=False)
    with torch.no_grad():
        layer.weight[1] = 0.0
        layer.weight[2, 0] = 9.0
    x = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    asked = [LayerBits(layer="0", bits=bits)]
    file = quantize(export_onnx(nn.Sequential(layer).eval(), x).model, asked, Quantizer(), x)
    stored = {t.name: numpy_helper.to_array(t).copy() for t in onnx.load_model_from_string(file).graph.initializer}
    shipped = torch.from_numpy(stored["0.weight_quantized"]).float()
    shipped = (shipped if shipped.shape == (6, 32) else shipped.T) * torch.from_numpy(stored["0.weight_scale"])[:, None]
    rounded = round_weights(layer.weight, bits, 0)
    assert torch.equal(rounded, shipped)
    assert torch.equal(round_weights(layer.weight.T, bits, 1), rounded.T)


def test_sixteen_bits_are_half_precision() -> None:
    weight = torch.tensor([[0.7, -0.32, 0.0], [10.0, 3.0, -7.0]])
    assert torch.equal(round_weights(weight, 16, 0), weight.half().float())


def test_divergence_is_kl_over_examples_and_positions_along_either_class_axis() -> None:
    g = torch.Generator().manual_seed(0)
    p, q = torch.randn(3, 5, 4, generator=g), torch.randn(3, 5, 4, generator=g)
    a, b = torch.softmax(p.double(), -1).tolist(), torch.softmax(q.double(), -1).tolist()
    expected = (
        sum(a[i][t][c] * math.log(a[i][t][c] / b[i][t][c]) for i in range(3) for t in range(5) for c in range(4)) / 15
    )
    targets = torch.zeros(3, 5, dtype=torch.int64)
    assert divergence(p, q, targets) == pytest.approx(expected)
    assert divergence(p.transpose(1, 2), q.transpose(1, 2), targets) == pytest.approx(expected)
    assert divergence(p, p, targets) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "targets"),
    [
        (torch.randn(4, 3), torch.randn(4, 3)),
        (torch.randn(4), torch.zeros(4, dtype=torch.int64)),
        (torch.randn(4, 1), torch.zeros(4, dtype=torch.int64)),
        (torch.randn(4, 3), torch.zeros(4, 3, dtype=torch.int64)),
    ],
    ids=["regression", "no classes", "one class", "several labels"],
)
def test_where_targets_are_no_class_indices_there_is_no_divergence(scores: Tensor, targets: Tensor) -> None:
    assert divergence(scores, scores + 1.0, targets) is None


def test_fast_roundings_are_told_apart_only_where_they_matter(network: Any) -> None:
    task, dense, structure = network
    before, progress = module_digest(dense), []
    found = measure_sensitivity(
        task, dense, structure, NONE, round_to=2, groups=(), bits=(8, 2), examples=256, fast=True, seed=0,
        on_done=lambda done, total: progress.append((done, total)),
    )  # fmt: skip
    assert module_digest(dense) == before
    assert [(e.layer, e.bits) for e in found.layers] == [(x.name, b) for x in structure.layers for b in (8, 2)]
    assert progress == [(i + 1, len(found.layers)) for i in range(len(found.layers))]

    def together(number: int, *names: str) -> tuple[float, float]:
        module = copy.deepcopy(dense)
        for name in names:
            weight = module.get_parameter(f"{name}.weight").data
            weight.copy_(round_weights(weight, number, 0))
        return naive(task, dense, module, 64)

    eight, two = found.layers[::2], found.layers[1::2]
    names = [layer.name for layer in structure.layers]
    assert len({(e.loss, e.kl) for e in eight}) == 1
    shares = sum(e.loss for e in eight), sum(e.kl for e in eight)
    assert shares == pytest.approx(together(8, *names), rel=1e-3, abs=1e-5)
    assert shares[1] <= 0.002
    for entry in two:
        assert (entry.loss, entry.kl) == pytest.approx(together(2, entry.layer), rel=1e-3, abs=1e-5)
