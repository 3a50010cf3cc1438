"""Sensitivity: how much the network's outputs change when one group alone is cut."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.prune import cut_channels
from autocompress.compress.statistics import Statistics
from autocompress.compress.train import recalibrate_bn
from autocompress.records import ChannelCut, Plan, Record, Structure
from autocompress.task import Task, fetch, plain, size


class GroupSensitivity(Record):
    """Effect of cutting one group.

    Attributes:
        group: its name.
        width, keep: channels before and after.
        kl: mean KL divergence from the dense model's predictions, in nats; 0 is no change.
    """

    group: str
    width: int
    keep: int
    kl: float


def group_sensitivity(
    task: Task,
    dense: nn.Module,
    structure: Structure,
    statistics: Statistics,
    *,
    round_to: int,
    examples: int = 512,
    seed: int,
    guard: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> list[GroupSensitivity]:
    """Cut each group to half its width, alone, recalibrate BN, and compare with the dense model.

    KL(p ‖ q) = Σ_c p_c (log p_c - log q_c), p the dense model's class probabilities, averaged over validation
    examples. Divergence is used rather than accuracy, which is too coarse to order groups by.

    Args:
        task: its validation split is compared on, its training split recalibrates.
        dense: in eval or train mode; never changed.
        structure: the groups.
        statistics: for the criteria.
        round_to: the target's multiple of channels; a group too narrow to be halved is left out.
        examples: how many validation examples, at most.
        seed: of the recalibration batches.
        guard: entered around each piece of work.

    Returns:
        One entry per group, in the structure's order.
    """
    data = plain(task.validation)
    inputs, _ = fetch(data, torch.arange(min(examples, size(task.validation))))
    reference = _log_probabilities(dense, inputs)
    found = []
    for group in structure.groups:
        keep = max(round_to, group.width // 2 // round_to * round_to)
        if keep >= group.width:
            continue
        plan = Plan(cuts=(ChannelCut(group=group.name, keep=keep, criterion="magnitude"),))
        with guard():
            cut = cut_channels(dense, plan, structure, statistics, example=task.example_input(), seed=seed)
        cut = recalibrate_bn(cut, task, batches=8, guard=guard)
        change = functional.kl_div(_log_probabilities(cut, inputs), reference, log_target=True, reduction="batchmean")
        found.append(GroupSensitivity(group=group.name, width=group.width, keep=keep, kl=float(change)))
    return found


def _log_probabilities(module: nn.Module, inputs: Tensor) -> Tensor:
    was_training = module.training
    module.eval()
    with torch.inference_mode():
        outputs = torch.cat([functional.log_softmax(module(part), dim=-1) for part in torch.split(inputs, 128)])
    module.train(was_training)
    return outputs
