"""The stages of one candidate: what is removed and trained, then shared weights and integer grids."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from autocompress.compress.checkpoint import Checkpoint, opened
from autocompress.compress.factorize import factorize
from autocompress.compress.fit import Guard, Hook
from autocompress.compress.fold import fold_batch_norm
from autocompress.compress.grids import Grid
from autocompress.compress.masks import FixedMasks, Masks
from autocompress.compress.patience import Patience
from autocompress.compress.prune import cut_channels, drop_blocks
from autocompress.compress.qat import train_quantized
from autocompress.compress.schedules import iterative, recover
from autocompress.compress.share import fit_codebooks
from autocompress.compress.state import module_digest
from autocompress.compress.statistics import Statistics
from autocompress.compress.train import Trainer, Training, recalibrate_bn
from autocompress.inputs import Inputs
from autocompress.records import (
    Adaptive,
    FromScratch,
    Gradual,
    Iterative,
    LotteryTicket,
    OneShot,
    Plan,
    SparseTraining,
    Structure,
    starts_untrained,
)
from autocompress.rng import derive_seed
from autocompress.task import Task, fetch, fixed_randomness, plain, size

#: Training examples that the ranges of 8-bit activations are taken from.
CALIBRATION_EXAMPLES = 256
#: Schedules that begin with freshly drawn weights.
ANEW = (FromScratch, LotteryTicket, SparseTraining)
#: What the first training is worth beside the fine-tuning of shared or quantized weights that follows it.
_MAIN_WEIGHT = 2.0


@dataclass(frozen=True)
class Stages:
    """One candidate on its way from the dense network, or a fresh one in its place, to what is exported."""

    task: Task
    dense: nn.Module
    plan: Plan
    structure: Structure
    statistics: Statistics
    epochs: float
    seed: int
    guard: Guard
    fresh: nn.Module | None = None
    patience: Patience | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    trainings: list[Training] = field(default_factory=list)

    @property
    def example(self) -> Inputs:
        """One training example."""
        return calibration_inputs(self.task, count=1, seed=self.seed)

    def calibration(self) -> Inputs:
        """Training examples that ranges are taken from."""
        return calibration_inputs(self.task, seed=self.seed)

    @property
    def trainer(self) -> Trainer:
        """Trains against the dense network, as the plan distils."""
        return Trainer(
            task=self.task,
            teacher=self.dense,
            distillation=self.plan.distillation,
            epochs=self.epochs,
            seed=derive_seed(self.seed, "recover", self.plan.key),
            guard=self.guard,
            report=self.trainings.append,
        )

    @contextmanager
    def kept(self, folder: Path | None, key: str) -> Iterator[Checkpoint | None]:
        """The checkpoint of the main training, if it is one that can be taken up; `key` is the candidate's."""
        if folder is None or not (self.epochs and self.share("main") and self._trains_once):
            yield None
            return
        task, refined = self.task, bool(self.plan.codebooks or self._aware)
        owner = {
            "plan": key,
            "network": module_digest(self.dense),
            "seed": str(self.seed),
            "training": f"{task.recipe}, {task.recovery_learning_rate}, {size(task.train)} examples, {self.patience}",
        }
        continues = self._one_shot and not refined
        with opened(folder, owner, continues=continues, warn=self.warnings.append) as checkpoint:
            yield checkpoint

    def stops(self) -> list[str]:
        """What to say of trainings that ended early."""
        return [
            f"recovery stopped by itself after {training.taken} of {training.planned} steps: its loss fell no more"
            for training in self.trainings
            if training.stopped
        ]

    @property
    def _one_shot(self) -> bool:
        return self.fresh is None and isinstance(self.plan.schedule, OneShot) and self._trains_once

    @property
    def _trains_once(self) -> bool:
        """The main training is a single one, under masks that stay."""
        plan = self.plan
        halves = plan.order == "mask-cut" and plan.cuts and plan.masks
        return self.fresh is not None or (isinstance(plan.schedule, OneShot | FromScratch) and not halves)

    @property
    def _aware(self) -> bool:
        return bool(self.plan.bits) and self.plan.quantizer.training == "aware"

    def share(self, stage: str) -> float:
        """Share of the epochs that a stage gets: the main one twice as much as each that refines its result."""
        plan = self.plan
        removes = bool(plan.drops or plan.cuts or plan.ranks or plan.masks)
        weights = {
            "main": _MAIN_WEIGHT if self.fresh is not None or removes else 0.0,
            "codebooks": 1.0 if plan.codebooks else 0.0,
            "aware": 1.0 if self._aware else 0.0,
        }
        return weights[stage] / max(1.0, sum(weights.values()))

    def shrink_and_train(self, checkpoint: Checkpoint | None) -> tuple[nn.Module, Masks | None]:
        """Everything that removes or replaces weights, recovered and with fresh normalization statistics."""
        plan, example = self.plan, self.example
        trainer = replace(self.trainer.scaled(self.share("main")), checkpoint=checkpoint)
        if self.fresh is not None:
            return self._trained_anew(self.fresh, trainer), None
        if not (plan.drops or plan.cuts or plan.ranks or plan.masks):
            return self.dense, None
        if self._one_shot:
            trainer = replace(trainer, patience=self.patience)
        with timed(self.seconds, "compress"), self.guard():
            module = drop_blocks(self.dense, plan.drops, self.structure, example=example)
        masks: Masks | None
        if isinstance(plan.schedule, Iterative):
            with timed(self.seconds, "recover"):
                module, masks = iterative(
                    module, plan, self.structure, self.statistics, trainer, example=example, seed=self._cut_seed
                )
        else:
            if plan.order == "mask-cut" and plan.cuts and plan.masks:
                # Half of the training goes to the masked network, before its channels are ranked.
                with timed(self.seconds, "recover"):
                    first = plan.model_copy(update={"cuts": (), "ranks": ()})
                    module, _ = recover(
                        module,
                        first,
                        self.structure,
                        self.statistics,
                        trainer.scaled(0.5),
                        example=example,
                        seed=self._mask_seed,
                    )
                trainer = trainer.scaled(0.5)
            with timed(self.seconds, "compress"), self.guard():
                module = cut_channels(
                    module,
                    plan.cuts,
                    self.structure,
                    self.statistics,
                    example=example,
                    seed=self._cut_seed,
                    reconstruction="none" if starts_untrained(plan) else plan.reconstruction,
                )
                module = factorize(module, plan.ranks)
            with timed(self.seconds, "recover"):
                module, masks = recover(
                    module,
                    self._second_half,
                    self.structure,
                    self.statistics,
                    trainer,
                    example=example,
                    seed=self._mask_seed,
                )
        with timed(self.seconds, "recover"):
            module = recalibrate_bn(module, self.task, guard=self.guard)
        return module, masks

    def _trained_anew(self, fresh: nn.Module, trainer: Trainer) -> nn.Module:
        """A network that was built, trained at the rate that the dense one was trained at."""
        with timed(self.seconds, "recover"):
            module = trainer.train(fresh, key="recover", peak=self.task.recipe.learning_rate)
            return recalibrate_bn(module, self.task, guard=self.guard)

    @property
    def _second_half(self) -> Plan:
        """The plan as training sees it after the cut: masks that were there before it grow no more by degrees."""
        plan = self.plan
        if plan.order == "mask-cut" and plan.cuts and isinstance(plan.schedule, Gradual | Adaptive):
            return plan.model_copy(update={"schedule": type(plan).model_fields["schedule"].default})
        return plan

    @property
    def _cut_seed(self) -> int:
        return derive_seed(self.seed, "cut", self.plan.key)

    @property
    def _mask_seed(self) -> int:
        return derive_seed(self.seed, "mask", self.plan.key)

    def refine(self, module: nn.Module, masks: Masks | None) -> tuple[nn.Module, dict[str, Grid]]:
        """Shared weights and trained grids, on the network with its normalization folded."""
        plan = self.plan
        if not (plan.codebooks or self._aware):
            return module, {}
        with timed(self.seconds, "compress"), self.guard():
            folded = fold_batch_norm(module, self.example)
        peak = None if folded is module else self.trainer.folded_peak
        module = folded
        hooks: list[Hook] = [FixedMasks(masks)] if masks else []
        grids: dict[str, Grid] = {}
        if plan.codebooks:
            with timed(self.seconds, "recover"):
                books = fit_codebooks(module, plan.codebooks, seed=derive_seed(self.seed, "codebooks", plan.key))
                hooks.append(books.hook())
                share = self.share("codebooks")
                module = self.trainer.train(module, key="codebooks", share=share, hooks=hooks, peak=peak)
        if self._aware:
            with timed(self.seconds, "recover"):
                module, grids = train_quantized(
                    module,
                    plan.bits,
                    plan.quantizer,
                    self.trainer,
                    calibration=self.calibration(),
                    share=self.share("aware"),
                    seed=derive_seed(self.seed, "aware", plan.key),
                    hooks=hooks,
                )
        return module, grids


def calibration_inputs(task: Task, *, count: int = CALIBRATION_EXAMPLES, seed: int) -> Inputs:
    """Inputs from the training split, without augmentation where the dataset can do without (`plain()`).

    Args:
        task: brings the training split.
        count: how many; all of them if the split has fewer.
        seed: of the choice. The same seed gives the same inputs for every plan of a study.

    Returns:
        Tensors of shape (n, ...), of the dataset's own kind of number.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "calibration"))
    chosen = torch.randperm(size(task.train), generator=generator)[:count].sort().values
    # A dataset that cannot do without augmentation draws the same one every time, and leaves no trace.
    with fixed_randomness(derive_seed(seed, "calibration", "augment")):
        inputs, _ = fetch(plain(task.train), chosen)
    return inputs


@contextmanager
def timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    """Add the wall time of the block to a part's."""
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start
