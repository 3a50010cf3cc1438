"""How labels pass recurrent modules, which run as one fused operator.

All layers and directions of a module share its hidden size, so that its hidden units are one group: a unit owns one row
per gate of every matrix and bias, and one column wherever the state is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_leaves

from autocompress.compress.labels import Slot
from autocompress.compress.trace import Tracer

_PROJECTED = "its hidden units are projected (proj_size)"


def gates(part: nn.Module) -> int:
    """Rows of a matrix that one hidden unit owns."""
    if isinstance(part, nn.LSTM | nn.LSTMCell):
        return 4
    return 3 if isinstance(part, nn.GRU | nn.GRUCell) else 1


def follow(tracer: Tracer, part: nn.Module, args: Sequence[Any], output: Any) -> None:
    """Label the output of one call of a recurrent module.

    Args:
        tracer: that watches the pass; not following operators now.
        part: nn.RNNBase or nn.RNNCellBase.
        args: input and, if given, state.
        output: what it returned.
    """
    given = _sequence(args[0])
    state = [leaf for leaf in tree_leaves(list(args[1:])) if isinstance(leaf, Tensor)]
    if isinstance(part, nn.RNNBase):
        suffixes = [
            (layer, f"_l{layer}{reverse}")
            for layer in range(part.num_layers)
            for reverse in (("", "_reverse") if part.bidirectional else ("",))
        ]
        hidden = _tie_layers(tracer, part, suffixes, given, projected=part.proj_size > 0)
        made = [_sequence(output[0]), *(leaf for leaf in tree_leaves(output[1]) if isinstance(leaf, Tensor))]
    else:
        hidden = _tie_layers(tracer, part, [(0, "")], given, projected=False)
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    if hidden is None:
        return
    for tensor in state:
        _tie_features(tracer, tensor, hidden)
    for tensor in made:
        wide = hidden.repeat(tensor.shape[-1] // len(hidden)) if tensor.shape[-1] % len(hidden) == 0 else None
        if wide is not None and not (isinstance(part, nn.RNNBase) and part.proj_size):
            tracer.put(tensor, [Slot(wide.view(*[1] * (tensor.ndim - 1), -1), strong=True)])


def _sequence(given: Any) -> Tensor:
    tensor: Tensor = given.data if isinstance(given, PackedSequence) else given
    return tensor


def _tie_layers(
    tracer: Tracer, part: nn.Module, suffixes: Sequence[tuple[int, str]], given: Tensor, *, projected: bool
) -> Tensor | None:
    """Tie everything that a hidden unit owns; labels of the hidden units, None if there is but one."""
    first = _along(tracer, part, f"weight_hh{suffixes[0][1]}", 1)
    parameters = dict(part.named_parameters(recurse=False))
    if projected or first is None:
        for name in parameters:
            for slot in tracer.value(parameters[name]).slots:
                if not (name.startswith("weight_ih_l0") and slot[1]):
                    tracer.atoms.freeze(slot.labels, _PROJECTED if projected else "it has a single hidden unit")
    for layer, suffix in suffixes:
        columns = _along(tracer, part, f"weight_ih{suffix}", 1)
        if columns is not None:
            tracer.consume(columns)
            if layer == 0:
                _tie_features(tracer, given, columns)
                tracer.atoms.union(columns, _along(tracer, part, f"weight_ih{suffixes[0][1]}", 1))  # type: ignore[arg-type]
            elif first is not None and not projected:
                tracer.atoms.union(columns.view(-1, len(first)), first)
        if first is None or projected:
            continue
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            rows = _along(tracer, part, name + suffix, 0) if name + suffix in parameters else None
            if rows is not None:
                tracer.atoms.union(rows.view(-1, len(first)), first)
                if name.startswith("weight"):
                    tracer.produce(rows)
        state = _along(tracer, part, f"weight_hh{suffix}", 1)
        if state is not None:
            tracer.consume(state)
            tracer.atoms.union(state, first)
    return None if projected else first


def _along(tracer: Tracer, part: nn.Module, name: str, axis: int) -> Tensor | None:
    slots = tracer.value(part.get_parameter(name)).along(axis)
    return slots[0].labels.flatten() if slots else None


def _tie_features(tracer: Tracer, tensor: Tensor, labels: Tensor) -> None:
    """Tie the last axis of an activation to `labels`, shape (features,)."""
    for slot in tracer.value(tensor).along(tensor.ndim - 1):
        tracer.atoms.union(slot.labels, labels)
