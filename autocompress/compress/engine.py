"""From a plan to a file: every pass in its order, then recovery, export, quantization and proof.

The order is: leave blocks out, cut units, factorize, mask while training by the plan's schedule, recalibrate batch
normalization; then, on the network with its normalization folded, share weights and train through the integer grids;
then export, quantize, count, pack. A network that is built instead of the dense one begins where the others train.
Folding comes before sharing and quantization-aware training because the file's weights are the folded ones: a codebook
or grid found earlier would not be the one that ships.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from autocompress.compress.architecture import build_network
from autocompress.compress.artifact import describe, distinct_values
from autocompress.compress.checkpoint import Checkpoint, opened
from autocompress.compress.export import export_onnx
from autocompress.compress.factorize import factorize
from autocompress.compress.fit import Guard, Hook, steps_per_epoch
from autocompress.compress.fold import fold_batch_norm
from autocompress.compress.grids import Grid
from autocompress.compress.masks import FixedMasks, Masks
from autocompress.compress.names import check_names
from autocompress.compress.pack import pack
from autocompress.compress.patience import Patience
from autocompress.compress.prune import cut_channels, drop_blocks
from autocompress.compress.qat import train_quantized
from autocompress.compress.quantize import quantize
from autocompress.compress.schedules import iterative, recover
from autocompress.compress.share import fit_codebooks
from autocompress.compress.state import module_digest
from autocompress.compress.statistics import Statistics
from autocompress.compress.train import Trainer, Training, recalibrate_bn
from autocompress.compress.verification import verify
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Inputs
from autocompress.records import (
    Adaptive,
    Artifact,
    FromScratch,
    Gradual,
    Iterative,
    LotteryTicket,
    OneShot,
    Plan,
    SparseTraining,
    Structure,
)
from autocompress.rng import derive_seed
from autocompress.space.draft import effective
from autocompress.space.ranks import saves
from autocompress.task import Task, fetch, fixed_randomness, plain, size

#: Training examples that the ranges of 8-bit activations are taken from.
CALIBRATION_EXAMPLES = 256
#: An agreement above this is worth a warning: far beyond rounding, within what the exporter accepts.
_DISAGREEMENT = 1e-3
#: Schedules that begin with freshly drawn weights.
_ANEW = (FromScratch, LotteryTicket, SparseTraining)
#: What the first training is worth beside the fine-tuning of shared or quantized weights that follows it.
_MAIN_WEIGHT = 2.0


@dataclass(frozen=True)
class Compressed:
    """A compressed network in every form, and how it came about.

    Attributes:
        module: the network before quantization, as it was exported.
        model: the bytes to deploy, a quantized ONNX model where the plan asks for it.
        artifact: what `model` is, read from the bytes.
        agreement: largest absolute difference between torch's and the runtime's outputs before quantization.
        seconds: wall time of ``"compress"``, ``"recover"``, ``"export"``, ``"quantize"`` and ``"pack"``.
        warnings: what a reader should know, in words.
        packed: the packed form of `model`; empty if it was not asked for.
        epochs_trained: passes over the training split that its weights have had; fewer than asked if it stopped by
            itself, more for a lottery ticket.
        epochs_reused: those of them that were not trained now but by an earlier build, taken from its checkpoint.
    """

    module: nn.Module
    model: bytes
    artifact: Artifact
    agreement: float
    seconds: dict[str, float]
    warnings: tuple[str, ...]
    packed: bytes = b""
    epochs_trained: float = 0.0
    epochs_reused: float = 0.0


def build(
    task: Task,
    dense: nn.Module,
    plan: Plan,
    structure: Structure,
    statistics: Statistics,
    *,
    epochs: float,
    seed: int,
    guard: Guard = nullcontext,
    packed: bool = False,
    checkpoint: Path | None = None,
    patience: Patience | None = None,
) -> Compressed:
    """Build what `plan` asks for and prove that the file is it.

    A plan that quantizes after training only, or asks for nothing, leaves the weights as they are. One with an
    architecture takes nothing of the dense network but what it teaches. Settings that change nothing in the plan, such
    as a schedule without anything to schedule, are left out. Only the training split is read.

    Args:
        task: brings the training data; no other split is touched.
        dense: the trained network; not changed.
        plan: the request.
        structure: of `dense`.
        statistics: of `dense`.
        epochs: of training in all, divided among the plan's stages; 0 recalibrates the normalization statistics only.
        seed: of everything random: ties, masks, shuffling, calibration inputs.
        guard: opened around every stretch of computation, such as a training step, so that a measurement elsewhere
            on the machine can wait for a gap.
        packed: also make the packed form; always made for a plan with codebooks.
        checkpoint: a folder, absolute, that belongs to this candidate; made if it is missing. What an earlier build
            of the same plan, network and seed was trained is taken up from it, and what this one is trained is kept
            in it. A plan that trains once (one-shot or from-scratch, no mask before a cut) takes up a training of as
            many epochs, finished or cut short. One that also gains from more of the same, one-shot without codebooks
            and without training through grids, goes on from fewer epochs: the missing ones are a cycle of their own.
            All others train anew. What cannot be used is named in the warnings.
        patience: ends the main training of a one-shot plan when its loss falls no more; None trains to the end.

    Raises:
        InfeasibleError: the plan names what the network lacks, or asks for what cannot be.
        TaskError: the task cannot build the architecture that the plan asks for.
        CompressionError: a pass failed, a weight is not finite, or the file is not what the plan asked for.
        ExportError: the network cannot be written as ONNX.
    """
    if not epochs >= 0.0:
        raise CompressionError(f"compress: expected epochs >= 0, got {epochs}")
    check_names(plan, structure)
    check_finite(dense)
    plan = effective(plan)
    if plan.order == "mask-cut" and isinstance(plan.schedule, _ANEW):
        raise InfeasibleError(
            f"plan.order: expected 'cut-mask' with schedule {plan.schedule.kind!r}, which draws the weights anew after "
            "the cut, got 'mask-cut'"
        )
    asked = plan.key
    warnings: tuple[str, ...] = ()
    fresh: nn.Module | None = None
    if plan.architecture is not None:
        with guard():
            built = build_network(task, plan, structure, seed=seed)
        fresh, plan, structure, warnings = built.module, built.plan, built.structure, built.warnings
    run = _Run(task, dense, plan, structure, statistics, epochs, seed, guard, fresh, patience)
    with run.kept(checkpoint, asked) as kept:
        module, masks = run.shrink_and_train(kept)
    module, grids = run.refine(module, masks)
    with _timed(run.seconds, "export"), guard():
        exported = export_onnx(module, run.example)
    model = exported.model
    if plan.bits:
        with _timed(run.seconds, "quantize"), guard():
            model = quantize(model, plan.bits, plan.quantizer, run.calibration(), grids)
    artifact = describe(model)
    verify(plan, structure, artifact, distinct_values(model) if plan.codebooks else None)
    small = b""
    if packed or plan.codebooks:
        with _timed(run.seconds, "pack"), guard():
            small = pack(model)
        artifact = artifact.model_copy(update={"packed_bytes": len(small)})
    warnings += (*run.warnings, *run.stops())
    if exported.agreement > _DISAGREEMENT:
        warnings += (f"torch and the runtime differ by up to {exported.agreement:.2g} before quantization",)
    shapes = structure.shapes((cut.group, cut.keep) for cut in plan.cuts)
    larger = [entry.layer for entry in plan.ranks if not saves(shapes[entry.layer], entry.ranks)]
    if larger:
        warnings += (f"the factors have no fewer weights than the layer in {_some(larger)}",)
    folded = [layer.name for layer in artifact.layers if layer.storage_only]
    if folded:
        warnings += (f"fewer bits save storage only, the runtime computes floats, in {_some(folded)}",)
    return Compressed(
        module=module,
        model=model,
        artifact=artifact,
        agreement=exported.agreement,
        seconds=run.seconds,
        warnings=warnings,
        packed=small,
        epochs_trained=sum(training.taken for training in run.trainings) / steps_per_epoch(task),
        epochs_reused=sum(training.reused for training in run.trainings) / steps_per_epoch(task),
    )


@dataclass(frozen=True)
class _Run:
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
        with _timed(self.seconds, "compress"), self.guard():
            module = drop_blocks(self.dense, plan.drops, self.structure, example=example)
        masks: Masks | None
        if isinstance(plan.schedule, Iterative):
            with _timed(self.seconds, "recover"):
                module, masks = iterative(
                    module, plan, self.structure, self.statistics, trainer, example=example, seed=self._cut_seed
                )
        else:
            if plan.order == "mask-cut" and plan.cuts and plan.masks:
                # Half of the training goes to the masked network, before its channels are ranked.
                with _timed(self.seconds, "recover"):
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
            with _timed(self.seconds, "compress"), self.guard():
                module = cut_channels(
                    module, plan.cuts, self.structure, self.statistics, example=example, seed=self._cut_seed
                )
                module = factorize(module, plan.ranks)
            with _timed(self.seconds, "recover"):
                module, masks = recover(
                    module,
                    self._second_half,
                    self.structure,
                    self.statistics,
                    trainer,
                    example=example,
                    seed=self._mask_seed,
                )
        with _timed(self.seconds, "recover"):
            module = recalibrate_bn(module, self.task, guard=self.guard)
        return module, masks

    def _trained_anew(self, fresh: nn.Module, trainer: Trainer) -> nn.Module:
        """A network that was built, trained at the rate that the dense one was trained at."""
        with _timed(self.seconds, "recover"):
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
        with _timed(self.seconds, "compress"), self.guard():
            folded = fold_batch_norm(module, self.example)
        peak = None if folded is module else self.trainer.folded_peak
        module = folded
        hooks: list[Hook] = [FixedMasks(masks)] if masks else []
        grids: dict[str, Grid] = {}
        if plan.codebooks:
            with _timed(self.seconds, "recover"):
                books = fit_codebooks(module, plan.codebooks, seed=derive_seed(self.seed, "codebooks", plan.key))
                hooks.append(books.hook())
                share = self.share("codebooks")
                module = self.trainer.train(module, key="codebooks", share=share, hooks=hooks, peak=peak)
        if self._aware:
            with _timed(self.seconds, "recover"):
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


def check_finite(module: nn.Module) -> None:
    """Refuse a network with a weight or buffer that is NaN or infinite; a buffer may hold -inf, as attention masks do.

    Raises:
        CompressionError: naming it, and how many of its values are not finite.
    """
    buffers = {name for name, _ in module.named_buffers()}
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        good = torch.isfinite(tensor) | ((tensor == -torch.inf) if name in buffers else False)
        if not bool(good.all()):
            bad = int((~good).sum())
            raise CompressionError(
                f"{name}: expected finite weights, got NaN or infinity in {bad} of {tensor.numel()}; "
                "train the dense model again, at a lower learning rate, before it is compressed"
            )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more layers"


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - start
