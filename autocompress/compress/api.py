"""Compression from Python alone: a network, a plan and training data in; a proven file out."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from autocompress.compress.engine import Compressed, build, check_finite
from autocompress.compress.factorize import rank_for_energy
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.compress.structure import find_structure
from autocompress.errors import ConfigError, TaskError
from autocompress.records import Plan, Structure, starts_untrained
from autocompress.rng import derive_seed
from autocompress.space.plan_file import load_plan
from autocompress.task import Recipe, Task

if TYPE_CHECKING:
    from autocompress.inputs import Inputs

#: Criteria that look at data.
_OF_DATA = frozenset({"taylor", "taylor_activation", "hessian", "f_statistic", "obs"})


def compress(
    module: nn.Module,
    plan: Plan | str | Path,
    data: Task | Dataset[Any],
    *,
    epochs: float = 1.0,
    loss: Callable[[Any, Tensor], Tensor] = functional.cross_entropy,
    recipe: Recipe | None = None,
    learning_rate: float | None = None,
    seed: int = 0,
    structure: Structure | None = None,
    statistics: Statistics | None = None,
    packed: bool = False,
) -> Compressed:
    """Compress a trained network by one plan, and prove from the bytes that the file is what was asked for.

    Args:
        module: the trained network; not changed.
        plan: a plan, or the path of one in YAML (see `autocompress.space.plan_file`).
        data: training examples, a map-style dataset of ``(input, target)``, or a `Task`, of which the training split
            alone is read.
        epochs: passes over the training data; 0 recalibrates the normalization statistics only.
        loss: ``(outputs, targets) -> scalar``; ignored where `data` is a task, which has its own.
        recipe: batch size, weight decay and optimizer; likewise.
        learning_rate: peak while the compressed network recovers; likewise. None: 0.02 under SGD, 1e-4 under AdamW.
        seed: of everything random.
        structure: of `module`, if it is known; found otherwise, which takes seconds.
        statistics: of `module`, likewise.
        packed: also make the packed form of the file.

    Returns:
        The compressed module, the ONNX bytes and what they are.

    Raises:
        ConfigError: the plan's file is wrong; file, line and key are named.
        TaskError: the plan asks for another architecture, and there is no task that can build it.
        InfeasibleError: the plan asks for what the network lacks or cannot have.
        CompressionError: a pass failed, or the file is not what the plan asked for.
        ExportError: the network cannot be written as ONNX.

    Examples:
        Half of every group, and 8-bit integers in every layer::

            structure = find_structure(net, example)
            plan = Plan(
                cuts=tuple(
                    ChannelCut(group=g.name, keep=g.width // 2, criterion="magnitude")
                    for g in sorted(structure.groups, key=lambda g: g.name)
                ),
                bits=tuple(LayerBits(layer=x.name, bits=8) for x in sorted(structure.layers, key=lambda x: x.name)),
            )
            small = compress(net, plan, train_set, epochs=2)
            Path("net.onnx").write_bytes(small.model)
    """
    if not isinstance(plan, Plan | str | Path):
        raise ConfigError(f"plan: expected a Plan or the path of one in YAML, got a {type(plan).__name__}")
    task = data if isinstance(data, Task) else _task(module, data, loss, recipe or Recipe(), learning_rate)
    check_finite(module)
    example: Inputs = task.example_input()
    structure = structure or find_structure(module, example)
    asked = (
        plan
        if isinstance(plan, Plan)
        else load_plan(Path(plan), structure, energies=lambda layer, energy: rank_for_energy(module, layer, energy))
    )
    if asked.architecture is not None and not isinstance(data, Task):
        raise TaskError(
            "plan.architecture: expected a Task as data, whose model function builds networks of other sizes, got a "
            "dataset"
        )
    if statistics is None:
        criteria = {cut.criterion for cut in asked.cuts} | {mask.criterion for mask in asked.masks}
        refits = bool(asked.cuts) and asked.reconstruction != "none" and not starts_untrained(asked)
        statistics = Statistics({})
        if refits or not _OF_DATA.isdisjoint(criteria):
            statistics = collect_statistics(module, task, structure, seed=derive_seed(seed, "statistics"))
    return build(task, module, asked, structure, statistics, epochs=epochs, seed=seed, packed=packed)


def _task(
    module: nn.Module,
    data: Dataset[Any],
    loss: Callable[[Any, Tensor], Tensor],
    recipe: Recipe,
    learning_rate: float | None,
) -> Task:
    if not isinstance(data, Sized) or len(data) == 0:
        got = "one without examples" if isinstance(data, Sized) else f"a {type(data).__name__}"
        raise TaskError(f"data: expected a task, or a dataset with at least one example, got {got}")
    if learning_rate is None:
        learning_rate = 0.02 if recipe.optimizer == "sgd" else 1e-4
    sealed = _Sealed()
    return Task(
        name="data",
        model=lambda: copy.deepcopy(module),
        train=data,
        validation=sealed,
        selection=sealed,
        test=sealed,
        loss=loss,
        trained=True,
        recipe=recipe,
        recovery_learning_rate=learning_rate,
    )


class _Sealed(Dataset[Any]):
    """Stands for the splits that compression never reads."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        raise TaskError("expected training data alone to be read, got a read of another split")
