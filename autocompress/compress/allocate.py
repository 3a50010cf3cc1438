"""From one number to a request for every group or layer: how much each gives so that the whole gives its share.

References:
    Evci et al., 2020, "Rigging the Lottery: Making All Tickets Winners" (ERK);
    Lee et al., 2021, "Layer-adaptive Sparsity for the Magnitude-based Pruning" (LAMP);
    Fang et al., 2024, "Isomorphic Pruning for Vision Models" (isomorphic).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from autocompress.compress.criteria import weight_scores
from autocompress.compress.patterns import as_matrix, check_fits
from autocompress.compress.ranking import rank_units
from autocompress.compress.statistics import Statistics
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Inputs
from autocompress.records import ChannelCut, Criterion, CutScope, Layer, Reduction, Structure, WeightMask
from autocompress.rng import derive_seed

MaskScope = Literal["uniform", "global", "lamp", "erk"]


def allocate_cuts(
    module: nn.Module,
    structure: Structure,
    statistics: Statistics,
    *,
    example: Inputs,
    sparsity: float,
    scope: CutScope,
    criterion: Criterion,
    reduction: Reduction = "mean",
    round_to: int = 8,
    max_sparsity: float = 0.9,
    seed: int,
) -> tuple[ChannelCut, ...]:
    """How many units each group keeps, so that the share `sparsity` of all units goes.

    A unit counts as one, whatever its weights or multiply-adds. Widths are rounded to the target's multiple (the
    nearest, of two the larger) after the shares are found, so the total is met up to that rounding; what was reached is
    1 - Σ keep / Σ width.

    Args:
        module: the network as it is now; left alone.
        structure: of the dense network. Groups that are gone from `module`, with a block or down to a single unit, are
            passed over.
        statistics: of the same network as `module`.
        example: one input batch.
        sparsity: share of units to remove, in [0, 1).
        scope: ``"uniform"``: the same share of every group; ``"global"``: the lowest of one ranking of all groups'
            units by `channel_scores`; ``"isomorphic"``: such a ranking within each class of groups of the same
            `topology`, which each give the share, as scores compare best there.
        criterion: for channels.
        reduction: over coupled layers. With ``"mean"`` every group's scores have the mean 1.
        round_to: the target's multiple of channels, see `Group.multiple`; a group too narrow for it stays as it is.
        max_sparsity: largest share that any one group gives, in (0, 1].
        seed: of the random criterion.

    Returns:
        Sorted by group, without those that keep all.

    Raises:
        InfeasibleError: a share is out of range, or the one ranking of ``"global"`` cannot give that many units. With
            ``"isomorphic"`` a class that cannot gives what it can, and the whole less than `sparsity`: compare what was
            reached. A search space says so in `describe`.
        CompressionError: scores cannot be computed, or the module has none of the groups.
    """
    ranking = rank_units(
        module, structure, statistics, example=example, criterion=criterion, reduction=reduction, seed=seed
    )
    keeps = ranking.keeps(sparsity=sparsity, scope=scope, round_to=round_to, max_sparsity=max_sparsity)
    return tuple(
        ChannelCut(group=name, keep=keep, criterion=criterion, reduction=reduction)
        for name, keep in sorted(keeps.items())
        if keep < ranking.widths[name]
    )


def allocate_masks(
    module: nn.Module,
    structure: Structure,
    *,
    sparsity: float,
    scope: MaskScope,
    criterion: Criterion,
    pattern: str = "element",
    statistics: Statistics | None = None,
    exclude: Iterable[str] = (),
    seed: int = 0,
) -> tuple[WeightMask, ...]:
    """What share of each layer's weights is zero, so that the share `sparsity` of all weights is.

    Args:
        module: the network as it is now; left alone.
        structure: its layers.
        sparsity: share of zeros, in [0, 1); of all weights of the layers that are not excluded.
        scope: ``"uniform"``: in every layer; ``"global"``: where one ranking of all weights (or blocks) by `criterion`
            has its lowest; ``"lamp"``: the same by LAMP scores; ``"erk"``: see `erk_zeros`.
        criterion: for weights; chooses them within the layers.
        pattern: of all masks. ``"n:m"`` has the same share everywhere, so it goes with ``"uniform"`` only.
        statistics: of the same network; the criteria taylor and hessian need them.
        exclude: layers that stay dense.
        seed: of the random criterion.

    Returns:
        Sorted by layer, without those that stay dense. With single weights and any scope but ``"uniform"`` the zeros
        are ``round(sparsity * n)`` of all n weights, exactly; each layer keeps a weight, or block.

    Raises:
        InfeasibleError: the share is out of range, a layer is unknown or its shape does not fit the pattern, the scope
            does not go with the pattern, or every layer would have to lose its last weight.
        CompressionError: a weight is not finite, or statistics are missing.
    """
    _check_share("sparsity", sparsity)
    left_out = set(exclude)
    unknown = sorted(left_out - {layer.name for layer in structure.layers})
    if unknown:
        known = [layer.name for layer in structure.layers]
        raise InfeasibleError(f"allocate: exclude: expected layers of the network, got {unknown[0]!r}; it has {known}")
    layers = [layer for layer in structure.layers if layer.name not in left_out]
    if sparsity == 0.0 or not layers:
        return ()
    weights = {layer.name: module.get_parameter(layer.parameter).detach() for layer in layers}
    asked = {
        layer.name: WeightMask(layer=layer.name, sparsity=sparsity, criterion=criterion, pattern=pattern)
        for layer in layers
    }
    sample = asked[layers[0].name]
    if scope != "uniform" and sample.n_m is not None:
        raise InfeasibleError(
            f"allocate: scope: expected 'uniform' with pattern {pattern!r}, whose share is fixed, got {scope!r}"
        )
    for layer in layers:
        # With another scope a layer's own share is not known yet: only the pattern is checked, at a share of nothing.
        mask = asked[layer.name] if scope == "uniform" else sample.model_copy(update={"sparsity": 1e-12})
        check_fits(mask, layer, tuple(weights[layer.name].shape))
    if scope == "uniform":
        return tuple(asked[name] for name in sorted(asked))
    rows, columns = sample.block or (1, 1)
    counts = {name: weight.numel() // (rows * columns) for name, weight in weights.items()}
    wanted = round(sparsity * sum(counts.values()))
    possible = sum(counts.values()) - len(counts)
    if wanted > possible:
        raise InfeasibleError(
            f"allocate: sparsity: expected at most {possible / sum(counts.values()):.6f}, which leaves every layer a "
            f"weight or block, got {sparsity:g}"
        )
    if scope == "erk":
        zeros = erk_zeros({name: tuple(weight.shape) for name, weight in weights.items()}, counts, wanted)
    else:
        word: Criterion = "lamp" if scope == "lamp" else criterion
        scores = {
            layer.name: _unit_scores(layer, weights[layer.name], word, statistics, (rows, columns), seed)
            for layer in layers
        }
        zeros = lowest_everywhere(scores, wanted)
    return tuple(
        asked[name].model_copy(update={"sparsity": count / counts[name]})
        for name, count in sorted(zeros.items())
        if count
    )


def lowest_everywhere(scores: dict[str, Tensor], wanted: int) -> dict[str, int]:
    """How many of each layer's scores are among the `wanted` lowest of all; the largest of each layer never is.

    Equal scores: the earlier layer's first.

    Args:
        scores: layer -> shape (n,).
        wanted: in all; at most the sum of n - 1.
    """
    if wanted == 0:
        return dict.fromkeys(scores, 0)
    pools = {name: _without_largest(values) for name, values in scores.items()}
    threshold = torch.cat(list(pools.values())).kthvalue(wanted).values
    zeros = {name: int((values < threshold).sum()) for name, values in pools.items()}
    for name, values in pools.items():
        zeros[name] += min(int((values == threshold).sum()), wanted - sum(zeros.values()))
    return zeros


def erk_zeros(shapes: dict[str, tuple[int, ...]], counts: dict[str, int], wanted: int) -> dict[str, int]:
    r"""Zeros per layer by the Erdős-Rényi-Kernel rule: density :math:`\propto \sum_d s_d / \prod_d s_d`, at most 1.

    What layers at density 1 cannot take goes to the others, in the same proportions. Counts are rounded by largest
    remainders, so each is within 1 of its exact value (2 where a layer would lose its last weight) and their sum is
    `wanted`.

    Args:
        shapes: layer -> shape of its weight, dimensions :math:`s_d`.
        counts: layer -> its weights (or blocks).
        wanted: zeros in all; at most the sum of counts - 1.

    Returns:
        Layer -> number of zeros, below its count.
    """
    raw = {name: sum(shape) / torch.Size(shape).numel() for name, shape in shapes.items()}
    dense: set[str] = set()
    factor = 0.0
    while len(dense) < len(raw):
        left = sum(counts.values()) - wanted - sum(counts[name] for name in dense)
        factor = left / sum(raw[name] * counts[name] for name in raw if name not in dense)
        over = {name for name in raw if name not in dense and factor * raw[name] >= 1.0}
        if not over:
            break
        dense |= over
    exact = {name: 0.0 if name in dense else counts[name] * (1.0 - factor * raw[name]) for name in raw}
    zeros = {name: min(int(value), counts[name] - 1) for name, value in exact.items()}
    while sum(zeros.values()) < wanted:
        open_ = [name for name in zeros if zeros[name] < counts[name] - 1]
        zeros[max(open_, key=lambda name: exact[name] - zeros[name])] += 1
    return zeros


def _without_largest(values: Tensor) -> Tensor:
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[values.argmax()] = False
    return values[kept]


def _unit_scores(
    layer: Layer,
    weight: Tensor,
    criterion: Criterion,
    statistics: Statistics | None,
    block: tuple[int, int],
    seed: int,
) -> Tensor:
    """Scores of a layer's weights, or means of its blocks', shape (n,)."""
    if statistics is None:
        if criterion in ("taylor", "hessian"):
            raise CompressionError(f"allocate: criterion {criterion} needs statistics of the network, got none")
        statistics = Statistics({})
    scores = weight_scores(
        criterion,
        weight,
        gradient=statistics.gradient(layer.parameter) if criterion == "taylor" else None,
        fisher=statistics.fisher(layer.parameter) if criterion == "hessian" else None,
        generator=torch.Generator().manual_seed(derive_seed(seed, "mask", layer.name)),
        name=layer.name,
    ).masked_fill(weight == 0, 0.0)
    if block == (1, 1):
        return scores.flatten()
    matrix = as_matrix(scores, layer.kind)
    tiles = matrix.reshape(len(matrix) // block[0], block[0], -1, block[1])
    return tiles.double().mean(dim=(1, 3)).flatten()


def _check_share(key: str, share: float) -> None:
    if not 0.0 <= share < 1.0:
        raise InfeasibleError(f"allocate: {key}: expected a share in [0, 1), got {share:g}; at 1 nothing would be left")
