from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from autocompress.compress.checkpoint import Checkpoint, opened
from autocompress.compress.engine import Compressed, build
from autocompress.compress.fit import Trail, fit
from autocompress.compress.masks import Masks
from autocompress.compress.state import module_digest
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.errors import CompressionError
from autocompress.records import (
    ChannelCut,
    Codebook,
    Features,
    FromScratch,
    Gradual,
    LayerBits,
    Plan,
    Quantizer,
    Structure,
    WeightMask,
)
from autocompress.task import Recipe, Task

CUT = ChannelCut(group="inner", keep=8, criterion="magnitude")
MASK = WeightMask(layer="outer", sparsity=0.5, criterion="magnitude")
PLAN = Plan(cuts=(CUT,), masks=(MASK,))
BATCH = 16
PER_EPOCH = 8


class Noisy(Dataset[tuple[Tensor, Tensor]]):
    """Images of four classes, each read with new noise."""

    def __len__(self) -> int:
        return BATCH * PER_EPOCH

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        target = torch.tensor(index % 4)
        return torch.full((3, 6, 6), float(target)) + torch.randn(3, 6, 6), target


class Net(nn.Module):
    """With everything that a training may keep: normalization, dropout, momentum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.outer = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.drop, self.fc = nn.Dropout(0.2), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = functional.relu(self.outer(functional.relu(self.inner(x)))) + x
        out: Tensor = self.fc(self.drop(x.mean((2, 3))))
        return out


class Counted:
    """The task's loss, which every step computes once."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps, self.stop_at = 0, stop_at

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.steps == self.stop_at:
            raise KilledError
        self.steps += 1
        return functional.cross_entropy(outputs, targets)


class KilledError(Exception):
    """Nobody cleans up after it."""


@dataclass
class Bench:
    """What a build needs."""

    dense: nn.Module
    structure: Structure
    optimizer: str = "sgd"

    def task(self, loss: Counted) -> Task:
        data = Noisy()
        return Task(
            name="noisy",
            model=Net,
            train=data,
            validation=data,
            selection=data,
            test=data,
            loss=loss,
            recipe=Recipe(batch_size=BATCH, optimizer=self.optimizer, clip=1.0),  # type: ignore[arg-type]
        )

    def build(
        self,
        plan: Plan,
        epochs: float,
        folder: Path | None = None,
        *,
        seed: int = 3,
        loss: Counted | None = None,
    ) -> tuple[Compressed, int]:
        """The result, and how many steps were taken for it."""
        loss = loss or Counted()
        task, found = self.task(loss), self.structure
        done = build(task, self.dense, plan, found, Statistics({}), epochs=epochs, seed=seed, checkpoint=folder)
        return done, loss.steps


@pytest.fixture(scope="module")
def bench() -> Bench:
    return fresh_bench()


def fresh_bench() -> Bench:
    """The same one in every process."""
    torch.manual_seed(0)
    dense = Net().eval()
    return Bench(dense, find_structure(dense, torch.zeros(1, 3, 6, 6)))


def test_a_promoted_candidate_goes_on(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "candidate"
    first, steps = bench.build(PLAN, 0.5, folder)
    assert (steps, first.epochs_trained, first.epochs_reused, first.warnings) == (4, 0.5, 0.0, ())
    second, steps = bench.build(PLAN, 1.0, folder)
    assert (steps, second.epochs_trained, second.epochs_reused, second.warnings) == (4, 1.0, 0.5, ())
    layers = {layer.name: layer for layer in second.artifact.layers}
    assert layers["inner"].shape[0] == 8
    assert layers["outer"].zeros == layers["outer"].weights // 2
    assert zeros(first) == zeros(second), "the masks are the same ones"
    weights = second.module.get_parameter("stem.weight"), first.module.get_parameter("stem.weight")
    assert not torch.equal(*weights)
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "trained.safetensors"]


def test_as_many_epochs_again_train_nothing_and_give_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    first, _ = bench.build(PLAN, 0.5, tmp_path)
    second, steps = bench.build(PLAN, 0.5, tmp_path)
    assert (steps, second.epochs_reused) == (0, 0.5)
    assert first.model == second.model


def test_without_training_nothing_is_kept(bench: Bench, tmp_path: Path) -> None:
    done, steps = bench.build(PLAN, 0.0, tmp_path / "none")
    assert (steps, done.epochs_trained, done.warnings) == (0, 0.0, ())
    assert not (tmp_path / "none").exists()


def test_fewer_epochs_train_anew_and_leave_the_longer_training(bench: Bench, tmp_path: Path) -> None:
    bench.build(PLAN, 1.0, tmp_path)
    kept = (tmp_path / "trained.safetensors").read_bytes()
    shorter, steps = bench.build(PLAN, 0.5, tmp_path)
    assert (steps, shorter.epochs_reused, shorter.warnings) == (4, 0.0, ())
    assert shorter.model == bench.build(PLAN, 0.5)[0].model
    assert (tmp_path / "trained.safetensors").read_bytes() == kept


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(("harm", "reason"), [(damage, "expected content with sha256"), (cut_off, "cannot be read")])
def test_a_damaged_checkpoint_is_named_and_not_used(
    bench: Bench, tmp_path: Path, harm: Callable[[Path], None], reason: str
) -> None:
    bench.build(PLAN, 0.25, tmp_path)
    harm(tmp_path / "trained.safetensors")
    done, steps = bench.build(PLAN, 0.5, tmp_path)
    assert (steps, done.epochs_reused) == (4, 0.0)
    (warning,) = done.warnings
    assert "trained.safetensors is not used, training starts again" in warning
    assert reason in warning
    assert bench.build(PLAN, 0.5, tmp_path)[0].warnings == (), "a good one took its place"


def test_the_checkpoint_of_another_candidate_is_named_and_not_used(bench: Bench, tmp_path: Path) -> None:
    bench.build(PLAN, 0.25, tmp_path)
    other, steps = bench.build(PLAN, 0.25, tmp_path, seed=4)
    assert steps == 2
    assert "expected seed 4, got 3" in other.warnings[0]
    wider = PLAN.model_copy(update={"cuts": ()})
    another, steps = bench.build(wider, 0.25, tmp_path, seed=4)
    assert steps == 2
    assert f"expected plan {wider.key}, got {PLAN.key}" in another.warnings[0]


@pytest.mark.parametrize(
    "change",
    [
        {"codebooks": (Codebook(layer="fc", clusters=4),)},
        {"bits": (LayerBits(layer="inner", bits=8),), "quantizer": Quantizer(training="aware")},
        {"schedule": FromScratch()},
    ],
    ids=["codebooks", "aware", "from scratch"],
)
def test_plans_that_gain_nothing_from_more_of_the_same_start_again(
    bench: Bench, tmp_path: Path, change: dict[str, object]
) -> None:
    plan = Plan.model_validate({**PLAN.model_dump(), **change})
    bench.build(plan, 0.5, tmp_path)
    longer, _ = bench.build(plan, 1.0, tmp_path)
    assert (longer.epochs_reused, longer.epochs_trained, longer.warnings) == (0.0, 1.0, ())
    again, _ = bench.build(plan, 1.0, tmp_path)
    assert again.epochs_reused > 0.0, "but as many epochs are not trained twice"
    assert again.model == longer.model


def test_a_gradual_schedule_neither_reads_nor_writes_a_checkpoint(bench: Bench, tmp_path: Path) -> None:
    plan = PLAN.model_copy(update={"schedule": Gradual()})
    done, steps = bench.build(plan, 0.5, tmp_path / "gradual")
    assert (steps, done.epochs_reused, done.epochs_trained) == (4, 0.0, 0.5)
    assert not (tmp_path / "gradual").exists()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("helped", [False, True], ids=["response", "features"])
def test_a_training_that_was_cut_short_ends_with_the_same_bits(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, helped: bool
) -> None:
    monkeypatch.setattr("autocompress.compress.checkpoint.INTERVAL_S", 0.0)
    own = Bench(bench.dense, bench.structure, optimizer)
    plan = PLAN.model_copy(update={"distillation": Features()}) if helped else PLAN
    whole, steps = own.build(plan, 1.5)
    assert steps == 12
    for stop in (5, 6):  # of 12 in all, over the end of an epoch: 5, then 6 more, then the last
        with pytest.raises(KilledError):
            own.build(plan, 1.5, tmp_path, loss=Counted(stop))
        assert (tmp_path / "progress.safetensors").is_file()
    rest, steps = own.build(plan, 1.5, tmp_path)
    assert steps == 1
    assert rest.epochs_trained == 1.5
    assert rest.warnings == ()
    assert module_digest(rest.module) == module_digest(whole.module)
    assert rest.model == whole.model
    assert not (tmp_path / "progress.safetensors").exists()


def test_the_continuation_itself_may_be_cut_short(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.build(PLAN, 0.5, tmp_path / "whole")
    whole, _ = bench.build(PLAN, 1.5, tmp_path / "whole")
    bench.build(PLAN, 0.5, tmp_path / "cut")
    monkeypatch.setattr("autocompress.compress.checkpoint.INTERVAL_S", 0.0)
    with pytest.raises(KilledError):
        bench.build(PLAN, 1.5, tmp_path / "cut", loss=Counted(3))
    rest, steps = bench.build(PLAN, 1.5, tmp_path / "cut")
    assert (steps, rest.epochs_reused, rest.epochs_trained) == (5, 0.5, 1.5)
    assert rest.model == whole.model


def test_progress_towards_another_length_is_named_and_not_used(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autocompress.compress.checkpoint.INTERVAL_S", 0.0)
    with pytest.raises(KilledError):
        bench.build(PLAN, 1.0, tmp_path, loss=Counted(3))
    done, steps = bench.build(PLAN, 0.5, tmp_path)
    assert steps == 4
    assert "progress.safetensors is not used, training starts again: expected steps 4, got 8" in done.warnings[0]


_TRAINING = """
import os, signal, sys
sys.path.insert(0, {folder!r})
import torch
from pathlib import Path
from autocompress.compress import checkpoint
checkpoint.INTERVAL_S = 0.0
from test_checkpoint import PLAN, Counted, fresh_bench

class Deadly(Counted):
    def __call__(self, outputs, targets):
        if self.steps == self.stop_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.steps += 1
        return torch.nn.functional.cross_entropy(outputs, targets)

fresh_bench().build(PLAN, 1.5, Path({checkpoint!r}), loss=Deadly(9))
"""


@pytest.mark.slow
def test_a_killed_process_is_taken_up_by_the_next(bench: Bench, tmp_path: Path) -> None:
    script = _TRAINING.format(folder=str(Path(__file__).parent), checkpoint=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    rest, steps = bench.build(PLAN, 1.5, tmp_path)
    assert steps == 3
    assert rest.model == bench.build(PLAN, 1.5)[0].model


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".trained.safetensors.abc123").write_bytes(b"half")
    with opened(tmp_path, {}, continues=True, warn=pytest.fail):
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_a_second_process_trains_without(tmp_path: Path) -> None:
    said: list[str] = []
    with (
        opened(tmp_path, {}, continues=True, warn=pytest.fail) as first,
        opened(tmp_path, {}, continues=True, warn=said.append) as second,
    ):
        assert isinstance(first, Checkpoint)
        assert second is None
    assert said == [f"checkpoint {tmp_path} is in use by another process; this training neither reads nor writes it"]
    with opened(tmp_path, {}, continues=True, warn=pytest.fail) as third:
        assert isinstance(third, Checkpoint)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(CompressionError, match="expected an absolute path of a folder, got 'here'"),
        opened(Path("here"), {}, continues=True, warn=pytest.fail),
    ):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(CompressionError, match=r"expected a folder that can be written, got .*file"),
        opened(tmp_path / "file", {}, continues=True, warn=pytest.fail),
    ):
        pass


def test_a_full_disk_costs_the_checkpoint_not_the_candidate(bench: Bench, tmp_path: Path) -> None:
    said: list[str] = []
    checkpoint = Checkpoint(tmp_path / "gone", {}, continues=True, warn=said.append, interval_s=0.0)
    task = bench.task(Counted())

    def loss(student: nn.Module, inputs: object, targets: Tensor) -> Tensor:
        return functional.cross_entropy(student(inputs), targets)

    fitted = fit(task, bench.dense, loss, steps=2, peak=0.01, seed=0, trail=Trail(checkpoint, 0, 2))
    assert fitted.taken == 2
    assert len(said) == 2
    assert "progress.safetensors could not be written" in said[0]


def zeros(done: Compressed) -> list[bool]:
    """Where the masked layer has them, as a plain list, which compares."""
    return [value == 0.0 for value in done.module.get_parameter("outer.weight").flatten().tolist()]


def test_masks_hold_through_a_continuation_bit_by_bit(bench: Bench, tmp_path: Path) -> None:
    done, _ = bench.build(PLAN, 0.25, tmp_path)
    kept = done.module.get_parameter("outer.weight") != 0
    longer, _ = bench.build(PLAN, 0.5, tmp_path)
    Masks({"outer": kept}).check(longer.module)
