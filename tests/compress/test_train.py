from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autocompress.compress.masks import Masks
from autocompress.compress.prune import cut_channels
from autocompress.compress.state import load_module, module_digest, save_module, save_tensors, tensors_digest
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.compress.structure import evaluate, find_structure
from autocompress.compress.train import batches, distillation_loss, one_cycle, recalibrate_bn, recover, train_base
from autocompress.errors import CompressionError
from autocompress.models.resnet import resnet_cifar
from autocompress.records import ChannelCut, Plan
from autocompress.task import Recipe, Task


def toy(n: int = 160, **change: object) -> Task:
    """Bright quadrants: four classes that a small network learns in seconds."""
    generator = torch.Generator().manual_seed(0)

    def part(size: int) -> TensorDataset:
        y = torch.randint(4, (size,), generator=generator)
        x = torch.randn(size, 1, 8, 8, generator=generator) * 0.5
        for i, k in enumerate(y.tolist()):
            x[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 1.0
        return TensorDataset(x, y)

    def build() -> nn.Module:
        torch.manual_seed(0)
        return resnet_cifar(depth=8, widths=(8, 8, 8), classes=4, channels=1, shortcut="projection")

    fields: dict[str, object] = {
        "name": "toy",
        "model": build,
        "train": part(n),
        "validation": part(40),
        "selection": part(40),
        "test": part(40),
        "recipe": Recipe(epochs=6, learning_rate=0.05, batch_size=32),
        **change,
    }
    return Task(**fields)  # type: ignore[arg-type]


def accuracy(module: nn.Module, task: Task) -> float:
    x, y = task.validation.tensors  # type: ignore[attr-defined]
    return float((evaluate(module, x).argmax(1) == y).float().mean())


@given(size=st.integers(1, 50), batch=st.integers(1, 60), shuffle=st.booleans(), seed=st.integers(0, 2**31 - 1))
def test_a_pass_gives_every_example_once_in_an_order_of_the_seed(
    size: int, batch: int, shuffle: bool, seed: int
) -> None:
    data = TensorDataset(torch.arange(size), torch.arange(size))
    got = [x.tolist() for x, _ in batches(data, batch, shuffle=shuffle, seed=seed)]
    flat = [i for part in got for i in part]
    assert sorted(flat) == list(range(size))
    assert all(len(part) == batch for part in got[:-1])
    assert flat == [i for x, _ in batches(data, batch, shuffle=shuffle, seed=seed) for i in x.tolist()]
    if not shuffle:
        assert flat == list(range(size))


def test_a_batch_size_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1, got 0"):
        next(batches(TensorDataset(torch.zeros(1)), 0, shuffle=False, seed=0))


@given(steps=st.integers(1, 500), peak=st.floats(1e-4, 1.0))
def test_the_cycle_rises_once_to_its_peak_and_falls_to_almost_nothing(steps: int, peak: float) -> None:
    rates = [one_cycle(i, steps, peak) for i in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(peak)
    assert all(0.0 < rate <= peak * (1 + 1e-12) for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    if steps >= 20:
        assert rates[-1] < 0.02 * peak


def test_distillation_is_hintons_formula() -> None:
    s, t = torch.randn(5, 4), torch.randn(5, 4)
    hard = nn.functional.cross_entropy(s, torch.tensor([0, 1, 2, 3, 0]))
    p, q = torch.softmax(t / 3, 1), torch.softmax(s / 3, 1)
    kl = sum(float(p[i, j]) * float((p[i, j] / q[i, j]).log()) for i in range(5) for j in range(4)) / 5
    assert float(distillation_loss(s, t, hard)) == pytest.approx(0.1 * float(hard) + 0.9 * 9 * kl, rel=1e-4)
    assert float(distillation_loss(s, s, torch.tensor(0.0))) == pytest.approx(0.0, abs=1e-6)


def test_outputs_that_are_no_logits_are_compared_by_their_squares() -> None:
    s, t = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    assert float(distillation_loss(s, t, torch.tensor(1.0))) == pytest.approx(0.1 + 0.9 * 2.5)


def test_base_training_learns_repeats_and_leaves_its_input_alone() -> None:
    task = toy()
    module = task.build()
    before, state = module_digest(module), torch.random.get_rng_state()
    seen: list[tuple[int, float]] = []
    first = train_base(task, module, seed=1, on_epoch=lambda epoch, loss: seen.append((epoch, loss)))
    assert module_digest(module) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [epoch for epoch, _ in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1][1] < seen[0][1]
    assert accuracy(first, task) > 0.8
    assert not first.training
    assert all(p.is_contiguous() for p in first.parameters())
    assert module_digest(train_base(task, module, seed=1)) == module_digest(first)
    assert module_digest(train_base(task, module, seed=2)) != module_digest(first)


def test_recovery_brings_back_a_cut_network_and_keeps_its_masks() -> None:
    task = toy()
    teacher = train_base(task, task.build(), seed=0)
    example = task.example_input()
    structure = find_structure(teacher, example)
    cuts = tuple(
        ChannelCut(group=g.name, keep=4, criterion="magnitude") for g in sorted(structure.groups, key=lambda g: g.name)
    )
    cut = cut_channels(teacher, Plan(cuts=cuts), structure, Statistics({}), example=example, seed=0)
    masks = Masks({"body.1.c1": torch.rand(4, 4, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5})
    before = module_digest(teacher), module_digest(cut)
    result = recover(cut.requires_grad_(False), teacher, task, epochs=6.0, seed=0, masks=masks)
    assert (module_digest(teacher), module_digest(cut)) == before
    assert not any(p.requires_grad for p in result.parameters())
    weight = result.get_submodule("body.1.c1").get_parameter("weight")
    assert not weight[~masks.kept["body.1.c1"]].any()
    assert (weight[masks.kept["body.1.c1"]] != 0).all()
    recovered, inherited = (accuracy(recalibrate_bn(m, task), task) for m in (result, cut))
    assert recovered > max(0.6, inherited + 0.1)  # chance is 0.25


def test_every_step_runs_inside_the_guard() -> None:
    task = toy()
    module = task.build()
    entered: Counter[str] = Counter()
    inside = False

    @contextmanager
    def guard() -> Iterator[None]:
        nonlocal inside
        entered["steps"] += 1
        inside = True
        try:
            yield
        finally:
            inside = False

    def watched(outputs: Tensor, targets: Tensor) -> Tensor:
        assert inside
        return nn.functional.cross_entropy(outputs, targets)

    recover(module, module, toy(loss=watched), epochs=0.5, seed=0, guard=guard)
    assert entered["steps"] == 2  # half of five full batches, rounded to even
    recalibrate_bn(module, task, batches=3, batch_size=32, guard=guard)
    assert entered["steps"] == 5


def test_no_epochs_give_an_untrained_copy_with_its_masks() -> None:
    task = toy()
    module = task.build()
    assert module_digest(recover(module, module, task, epochs=0.0, seed=0)) == module_digest(module)
    masks = Masks({"fc": torch.zeros(4, 8, dtype=torch.bool)})
    assert not recover(module, module, task, epochs=0.0, seed=0, masks=masks).get_submodule("fc").weight.any()


def test_a_tiny_fraction_is_still_one_step_and_a_small_split_one_batch() -> None:
    task = toy(n=7)
    module = task.build()
    assert module_digest(recover(module, module, task, epochs=0.01, seed=0)) != module_digest(module)


@pytest.mark.parametrize("epochs", [-1.0, float("nan"), float("inf")])
def test_epochs_out_of_range_are_refused(epochs: float) -> None:
    task = toy()
    with pytest.raises(CompressionError, match="recovery epochs: expected a number >= 0"):
        recover(task.build(), task.build(), task, epochs=epochs, seed=0)


def test_a_loss_that_diverges_stops_with_its_step() -> None:
    task = toy(loss=lambda outputs, targets: outputs.sum() * float("nan"))
    with pytest.raises(
        CompressionError, match=r"expected a finite loss, got nan at step 1 of 30; lower the learning rate"
    ):
        train_base(task, task.build(), seed=0)


def test_recalibrated_statistics_are_the_average_over_the_batches() -> None:
    task = toy(n=64)
    module = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 4))
    result = recalibrate_bn(module, task, batches=2, batch_size=32)
    x = task.train.tensors[0]  # type: ignore[attr-defined]
    norm = result.get_submodule("0")
    torch.testing.assert_close(norm.running_mean[0], x.mean(), rtol=1e-4, atol=1e-5)
    assert float(norm.running_var[0]) == pytest.approx(float(x.var()), rel=0.02)
    assert norm.momentum == 0.1
    assert torch.equal(module.get_submodule("0").running_mean, torch.zeros(1))
    again = recalibrate_bn(result, task, batches=2, batch_size=32)
    assert module_digest(again) == module_digest(result)


def test_without_batch_norm_recalibration_reads_no_data() -> None:
    class Sealed(TensorDataset):
        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            raise AssertionError("the data was read")

    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    task = toy(train=Sealed(torch.zeros(3, 1, 8, 8), torch.zeros(3)))
    assert module_digest(recalibrate_bn(module, task)) == module_digest(module)


def test_volumes_are_trained_too() -> None:
    data = TensorDataset(torch.randn(8, 1, 4, 4, 4), torch.arange(8) % 2)
    module = nn.Sequential(nn.Conv3d(1, 2, 3), nn.BatchNorm3d(2), nn.Flatten(), nn.Linear(16, 2))
    task = toy(train=data, recipe=Recipe(epochs=1, batch_size=4))
    trained = recover(train_base(task, module, seed=0), module, task, epochs=1.0, seed=0)
    assert evaluate(recalibrate_bn(trained, task), data.tensors[0]).shape == (8, 2)


def test_only_the_training_split_is_read() -> None:
    asked: list[str] = []

    class Spied(TensorDataset):
        role = ""

        def __getitem__(self, index: int) -> tuple[Tensor, ...]:
            asked.append(self.role)
            return super().__getitem__(index)

    def spied(role: str) -> Spied:
        data = Spied(torch.rand(64, 1, 8, 8), torch.arange(64) % 2)
        data.role = role
        return data

    splits = {role: spied(role) for role in ("train", "validation", "selection", "test")}
    task = toy(**splits, recipe=Recipe(epochs=1, batch_size=32))
    module = train_base(task, task.build(), seed=0)
    collect_statistics(module, task, batches=1, seed=0)
    recalibrate_bn(recover(module, module, task, epochs=1, seed=0), task)
    assert set(asked) == {"train"}


def test_statistics_are_the_mean_gradient_in_evaluation_mode(tmp_path: Path) -> None:
    task = toy(n=96)
    module = task.build().train().requires_grad_(False)
    before = module_digest(module)
    with torch.no_grad():
        statistics = collect_statistics(module, task, batches=3, batch_size=32, seed=0)
    assert module_digest(module) == before
    naive = copy.deepcopy(module).requires_grad_(True).eval()
    x, y = task.train.tensors  # type: ignore[attr-defined]
    torch.autograd.backward(nn.functional.cross_entropy(naive(x), y))
    for name, parameter in naive.named_parameters():
        torch.testing.assert_close(statistics.gradient(name), parameter.grad, rtol=1e-3, atol=1e-5)
    statistics.save(tmp_path / "s.safetensors")
    back = Statistics.load(tmp_path / "s.safetensors")
    assert tensors_digest(back.gradients) == tensors_digest(statistics.gradients)


def test_statistics_that_are_not_finite_are_refused() -> None:
    task = toy(loss=lambda outputs, targets: outputs.sum() * float("inf"))
    with pytest.raises(CompressionError, match="expected finite gradients, got NaN or infinity in"):
        collect_statistics(task.build(), task, batches=1, seed=0)


def test_a_saved_module_comes_back_bit_for_bit(tmp_path: Path) -> None:
    first, second = toy().build(), resnet_cifar(8, (8, 8, 8), 4, 1, "projection")
    first(torch.randn(4, 1, 8, 8))
    save_module(first, tmp_path / "m.safetensors")
    assert module_digest(second) != module_digest(first)
    assert load_module(second, tmp_path / "m.safetensors") is second
    assert module_digest(second) == module_digest(first)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_digest_is_of_names_shapes_kinds_and_values_but_not_of_order() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3])
    base = tensors_digest({"a": a, "b": b})
    assert tensors_digest({"b": b, "a": a}) == base
    changes = [{"a": a + 1, "b": b}, {"c": a, "b": b}, {"a": a.view(1, 2), "b": b}, {"a": a.double(), "b": b}, {"a": a}]
    assert len({base, *(tensors_digest(change) for change in changes)}) == 6


def test_damaged_foreign_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(CompressionError, match=r"m\.safetensors, which does not exist"):
        load_module(nn.Linear(2, 2), path)
    save_module(nn.Linear(2, 2), path)
    with pytest.raises(CompressionError, match=r"weight: expected shape \(3, 2\), got \(2, 2\)"):
        load_module(nn.Linear(2, 3), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CompressionError, match="the file was changed after it was written"):
        load_module(nn.Linear(2, 2), path)
    path.write_bytes(whole[:-3])
    with pytest.raises(CompressionError, match="cannot be read as safetensors"):
        load_module(nn.Linear(2, 2), path)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "inner").touch()
    with pytest.raises(OSError, match="folder"):  # a folder is in the way of the rename
        save_tensors({"a": torch.zeros(1)}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
