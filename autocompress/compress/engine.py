"""From a plan to a file: cut, mask, recover, recalibrate, export, quantize, verify."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from autocompress.compress.artifact import describe, verify
from autocompress.compress.export import export_onnx
from autocompress.compress.prune import cut_channels, make_masks
from autocompress.compress.quantize import quantize_static
from autocompress.compress.statistics import Statistics
from autocompress.compress.train import Guard, recalibrate_bn, recover
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import Artifact, Plan, Structure
from autocompress.rng import derive_seed
from autocompress.task import Task, fetch, fixed_randomness, plain, size

#: Training examples that the ranges of 8-bit activations are taken from.
CALIBRATION_EXAMPLES = 256
#: An agreement above this is worth a warning: far beyond rounding, within what the exporter accepts.
_DISAGREEMENT = 1e-3


@dataclass(frozen=True)
class Compressed:
    """A compressed network in both forms, and how it came about.

    Attributes:
        module: the network before quantization, as it was exported.
        model: the bytes to deploy, a quantized ONNX model where the plan asks for it.
        artifact: what `model` is, read from the bytes.
        agreement: largest absolute difference between torch's and the runtime's outputs before quantization.
        seconds: wall time of ``"compress"``, ``"recover"``, ``"export"`` and ``"quantize"``.
        warnings: what a reader should know, in words.
    """

    module: nn.Module
    model: bytes
    artifact: Artifact
    agreement: float
    seconds: dict[str, float]
    warnings: tuple[str, ...]


def compress(
    task: Task,
    dense: nn.Module,
    plan: Plan,
    structure: Structure,
    statistics: Statistics,
    *,
    epochs: float,
    seed: int,
    guard: Guard = nullcontext,
) -> Compressed:
    """Build what `plan` asks for and prove that the file is it.

    Channels are cut first and weights masked in what is left; the network recovers with the dense one as its teacher,
    if anything was cut or masked, and its normalization statistics are taken anew from training data. A plan that
    only quantizes, or asks for nothing, leaves the weights as they are. Only the training split is read.

    Args:
        task: brings the training data; no other split is touched.
        dense: the trained network; not changed.
        plan: the request.
        structure: of `dense`.
        statistics: of `dense`.
        epochs: of recovery; 0 recalibrates the normalization statistics only.
        seed: of everything random: ties, masks, shuffling, calibration inputs.
        guard: opened around every stretch of computation, such as a training step, so that a measurement elsewhere
            on the machine can wait for a gap.

    Raises:
        InfeasibleError: the plan names a group or layer that the network lacks.
        CompressionError: a pass failed, or the file is not what the plan asked for.
        ExportError: the network cannot be written as ONNX.
    """
    if not epochs >= 0.0:
        raise CompressionError(f"compress: expected epochs >= 0, got {epochs}")
    _check_names(plan, structure)
    seconds: dict[str, float] = {}
    example = torch.from_numpy(calibration_inputs(task, count=1, seed=seed))
    module = dense
    with _timed(seconds, "compress"), guard():
        if plan.cuts:
            module = cut_channels(
                module, plan, structure, statistics, example=example, seed=derive_seed(seed, "cut", plan.key)
            )
        masks = make_masks(module, plan, statistics, seed=derive_seed(seed, "mask", plan.key)) if plan.masks else None
    if plan.cuts or plan.masks:
        with _timed(seconds, "recover"):
            module = recover(
                module,
                dense,
                task,
                epochs=epochs,
                seed=derive_seed(seed, "recover", plan.key),
                masks=masks,
                guard=guard,
            )
            module = recalibrate_bn(module, task, guard=guard)
    with _timed(seconds, "export"), guard():
        exported = export_onnx(module, example)
    model = exported.model
    if plan.bits:
        with _timed(seconds, "quantize"), guard():
            inputs = calibration_inputs(task, seed=seed)
            model = quantize_static(model, [entry.layer for entry in plan.bits], inputs)
    artifact = describe(model)
    verify(plan, structure, artifact)
    _check_shapes(module, structure, artifact)
    warnings: tuple[str, ...] = ()
    if exported.agreement > _DISAGREEMENT:
        warnings = (f"torch and the runtime differ by up to {exported.agreement:.2g} before quantization",)
    return Compressed(
        module=module,
        model=model,
        artifact=artifact,
        agreement=exported.agreement,
        seconds=seconds,
        warnings=warnings,
    )


def calibration_inputs(task: Task, *, count: int = CALIBRATION_EXAMPLES, seed: int) -> np.ndarray:
    """Inputs from the training split, without augmentation where the dataset can do without (`plain()`).

    Args:
        task: brings the training split.
        count: how many; all of them if the split has fewer.
        seed: of the choice. The same seed gives the same inputs for every plan of a study.

    Returns:
        Shape (n, ...), float32.
    """
    generator = torch.Generator().manual_seed(derive_seed(seed, "calibration"))
    chosen = torch.randperm(size(task.train), generator=generator)[:count].sort().values
    # A dataset that cannot do without augmentation draws the same one every time, and leaves no trace.
    with fixed_randomness(derive_seed(seed, "calibration", "augment")):
        inputs, _ = fetch(plain(task.train), chosen)
    return inputs.to(torch.float32).numpy()


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[part] = time.perf_counter() - start


def _check_names(plan: Plan, structure: Structure) -> None:
    """Refuse a plan for another network before anything is computed."""
    groups = {group.name for group in structure.groups}
    layers = {layer.name for layer in structure.layers}
    for field, asked, known in (
        ("cuts", [cut.group for cut in plan.cuts], groups),
        ("masks", [mask.layer for mask in plan.masks], layers),
        ("bits", [entry.layer for entry in plan.bits], layers),
    ):
        unknown = [name for name in asked if name not in known]
        if unknown:
            raise InfeasibleError(
                f"plan.{field}: expected names of the network, got {unknown[0]!r}; it has {', '.join(sorted(known))}"
            )


def _check_shapes(module: nn.Module, structure: Structure, artifact: Artifact) -> None:
    """Every compressible layer of the file has the shape of the module's, input channels included."""
    names = {layer.name for layer in structure.layers}
    for layer in artifact.layers:
        if layer.name not in names:
            continue
        shape = tuple(module.get_submodule(layer.name).get_parameter("weight").shape)
        if layer.shape != shape:
            raise CompressionError(f"artifact: layer {layer.name!r}: expected weights of {shape}, got {layer.shape}")
