"""From a plan to a file: every pass in its order, then recovery, export, quantization and proof.

The order is: leave blocks out, cut units, factorize, mask while training by the plan's schedule, recalibrate batch
normalization; then, on the network with its normalization folded, share weights and train through the integer grids;
then export, quantize, count, pack. A network that is built instead of the dense one begins where the others train.
Folding comes before sharing and quantization-aware training because the file's weights are the folded ones: a codebook
or grid found earlier would not be the one that ships.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autocompress.compress.architecture import build_network
from autocompress.compress.artifact import describe, distinct_values
from autocompress.compress.export import export_onnx
from autocompress.compress.fit import Guard, steps_per_epoch
from autocompress.compress.names import check_names
from autocompress.compress.pack import pack
from autocompress.compress.patience import Patience
from autocompress.compress.quantize import quantize
from autocompress.compress.stages import ANEW, Stages, timed
from autocompress.compress.statistics import Statistics
from autocompress.compress.verification import verify
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import (
    Artifact,
    Plan,
    Structure,
)
from autocompress.space.draft import effective
from autocompress.space.ranks import saves
from autocompress.task import Task

#: An agreement above this is worth a warning: far beyond rounding, within what the exporter accepts.
_DISAGREEMENT = 1e-3


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
    if plan.order == "mask-cut" and isinstance(plan.schedule, ANEW):
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
    run = Stages(task, dense, plan, structure, statistics, epochs, seed, guard, fresh, patience)
    with run.kept(checkpoint, asked) as kept:
        module, masks = run.shrink_and_train(kept)
    module, grids = run.refine(module, masks)
    with timed(run.seconds, "export"), guard():
        exported = export_onnx(module, run.example)
    model = exported.model
    if plan.bits:
        with timed(run.seconds, "quantize"), guard():
            model = quantize(model, plan.bits, plan.quantizer, run.calibration(), grids)
    artifact = describe(model)
    verify(plan, structure, artifact, distinct_values(model) if plan.codebooks else None)
    small = b""
    if packed or plan.codebooks:
        with timed(run.seconds, "pack"), guard():
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
