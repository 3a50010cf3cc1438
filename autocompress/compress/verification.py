"""The proof that a model file is what its plan asked for."""

from __future__ import annotations

from collections.abc import Mapping

from autocompress.compress.names import check_names
from autocompress.compress.patterns import zeros_asked
from autocompress.errors import CompressionError
from autocompress.records import Artifact, LayerBits, LayerReport, LowRank, Plan, Structure, WeightMask

Shape = tuple[int, ...]


def verify(plan: Plan, structure: Structure, artifact: Artifact, distinct: Mapping[str, int] | None = None) -> None:
    """Check that a model file is what its plan asked for.

    Layers of blocks that are left out are gone; every other layer is there with the shape that its cuts leave, inputs
    included, or as the parts of its factorization with the ranks asked for; no layer has fewer zeros, more shared
    values or more bits than asked, and none that was not asked to has fewer than 32 bits.

    Args:
        plan: the request.
        structure: of the dense network that the plan is for.
        artifact: what `describe` read from the file.
        distinct: what `distinct_values` read from the file; needed for a plan with codebooks.

    Raises:
        InfeasibleError: the plan names what the network lacks.
        CompressionError: naming the layer, what was expected of it, and what the file has.
    """
    check_names(plan, structure)
    layers = {layer.name: layer for layer in artifact.layers}
    gone = {layer: drop.block for drop in plan.drops for layer in structure.block(drop.block).layers}
    shapes = structure.shapes((cut.group, cut.keep) for cut in plan.cuts)
    ranks = {entry.layer: entry for entry in plan.ranks}
    masks = {entry.layer: entry for entry in plan.masks}
    bits = {entry.layer: entry for entry in plan.bits}
    for asked in structure.layers:
        name = asked.name
        if name in gone:
            if name in layers:
                raise CompressionError(
                    f"artifact: layer {name!r}: expected none, as block {gone[name]!r} is left out, got one of shape "
                    f"{layers[name].shape}"
                )
            continue
        parts = {name: shapes[name]}
        if name in ranks:
            parts = part_shapes(ranks[name], shapes[name])
            if name in layers:
                raise CompressionError(f"artifact: layer {name!r}: expected it in factors, got it whole")
        for part, shape in parts.items():
            layer = layers.get(part)
            if layer is None:
                raise CompressionError(
                    f"artifact: layer {part!r} is not in the model; it has {', '.join(layers) or 'none'}"
                )
            if layer.shape != shape:
                raise CompressionError(f"artifact: layer {part!r}: expected shape {shape}, got {layer.shape}")
            _check_bits(layer, bits.get(name))
        if name in masks:
            _check_zeros(layers[name], masks[name])
    for book in plan.codebooks:
        if distinct is None:
            raise CompressionError("verify: expected the file's distinct values for a plan with codebooks, got none")
        # Masked weights are zero beside the clusters; `distinct` does not count zero.
        if distinct.get(book.layer, 0) > book.clusters:
            raise CompressionError(
                f"artifact: layer {book.layer!r}: expected at most {book.clusters} different values, got "
                f"{distinct[book.layer]}"
            )


def part_shapes(entry: LowRank, shape: Shape) -> dict[str, Shape]:
    """Names and shapes of the layers that a factorized one becomes.

    Args:
        entry: what is asked.
        shape: of the layer's weight, (out, in) or (out, in, positions...), after any cut.

    Examples:
        >>> part_shapes(LowRank(layer="fc", ranks=(4,)), (10, 20))
        {'fc.0': (4, 20), 'fc.1': (10, 4)}
        >>> part_shapes(LowRank(layer="c", ranks=(4, 3)), (8, 6, 3, 3))
        {'c.0': (3, 6, 1, 1), 'c.1': (4, 3, 3, 3), 'c.2': (8, 4, 1, 1)}
    """
    out, inputs, *positions = shape
    ones = (1,) * len(positions)
    if len(entry.ranks) == 1:
        rank = entry.ranks[0]
        return {f"{entry.layer}.0": (rank, inputs, *positions), f"{entry.layer}.1": (out, rank, *ones)}
    left, right = entry.ranks
    return {
        f"{entry.layer}.0": (right, inputs, *ones),
        f"{entry.layer}.1": (left, right, *positions),
        f"{entry.layer}.2": (out, left, *ones),
    }


def _check_bits(layer: LayerReport, asked: LayerBits | None) -> None:
    if asked is None:
        if layer.bits != 32:
            raise CompressionError(f"artifact: layer {layer.name!r}: expected 32 bits, got {layer.bits}")
        return
    # Integers may happen to lie on a coarser grid than the one they are on.
    if layer.bits > asked.bits or (asked.bits == 16) != (layer.bits == 16):
        raise CompressionError(f"artifact: layer {layer.name!r}: expected {asked.bits} bits, got {layer.bits}")
    if asked.weights_only and layer.compute == "integer":
        raise CompressionError(
            f"artifact: layer {layer.name!r}: expected float activations (plan.bits weights_only), got integers"
        )


def _check_zeros(layer: LayerReport, mask: WeightMask) -> None:
    # The weights that are there after the cuts, as masks count them.
    zeros = zeros_asked(mask, layer.shape)
    if layer.zeros < zeros:
        raise CompressionError(
            f"artifact: layer {layer.name!r}: expected at least {zeros} zeros of {layer.weights} weights, "
            f"got {layer.zeros}"
        )
