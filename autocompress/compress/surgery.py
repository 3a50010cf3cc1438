"""Taking units out of a module: indices of parameters and buffers go, and module attributes follow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from autocompress.compress.attention import HeadwiseAttention
from autocompress.compress.grouping import Coupled
from autocompress.compress.layers import RECURRENT

#: Choices of attributes that are tried before a cut is given up.
_TRIES = 48


@dataclass(frozen=True)
class Removal:
    """Some units of one group go.

    Attributes:
        coupled: the group.
        keep: indices of the units that stay, rising.
    """

    coupled: Coupled
    keep: Tensor

    @property
    def gone(self) -> Tensor:
        """Indices of the units that go."""
        stays = torch.zeros(self.coupled.units.group.width, dtype=torch.bool)
        stays[self.keep] = True
        return (~stays).nonzero().flatten()


def kept_indices(module: nn.Module, removals: Sequence[Removal]) -> dict[tuple[str, int], Tensor]:
    """(parameter or buffer, axis) -> the indices that stay, rising; only for axes that lose something."""
    gone: dict[tuple[str, int], list[Tensor]] = {}
    for removal in removals:
        for use, positions in removal.coupled.units.positions.items():
            gone.setdefault(use, []).append(positions[removal.gone].flatten())
    found = {}
    for (name, axis), parts in gone.items():
        stays = torch.ones(tensor_of(module, name).shape[axis], dtype=torch.bool)
        stays[torch.cat(parts)] = False
        if not bool(stays.all()):
            found[name, axis] = stays.nonzero().flatten()
    return found


def tensor_of(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its qualified name."""
    owner, _, last = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(owner), last)
    return tensor


@torch.no_grad()
def shrink(module: nn.Module, removals: Sequence[Removal]) -> dict[tuple[str, int], Tensor]:
    """Remove units, in place, and refit the attributes of torch's own modules.

    Returns:
        `kept_indices`.
    """
    kept = kept_indices(module, removals)
    for (name, axis), stays in kept.items():
        tensor = tensor_of(module, name)
        # Assigning data keeps the parameter's identity: whoever shares it, shares what is left.
        tensor.data = tensor.data.index_select(axis, stays.to(tensor.device))
        tensor.grad = None
    for removal in removals:
        for (name, axis), positions in removal.coupled.counted.items():
            _recount(module.get_submodule(name), axis, positions[removal.gone].numel())
    for part in module.modules():
        _refit(part)
    return kept


def _recount(part: nn.Module, axis: int, gone: int) -> None:
    """Lower what a normalization without parameters counts."""
    if isinstance(part, nn.GroupNorm):
        width = part.num_channels - gone
        part.num_groups = max(1, part.num_groups * width // part.num_channels) if part.num_groups > 1 else 1
        part.num_channels = width
    elif isinstance(part, nn.LayerNorm | nn.RMSNorm):
        shape = list(part.normalized_shape)
        shape[axis] -= gone
        part.normalized_shape = tuple(shape)
    elif isinstance(part, nn.modules.instancenorm._InstanceNorm):
        part.num_features -= gone


def _refit(part: nn.Module) -> None:
    """Attributes that say what shape a module's parameters have."""
    if isinstance(part, RECURRENT):
        _refit_recurrent(part)
        return
    if isinstance(part, nn.MultiheadAttention):
        _refit_attention(part)
        return
    weight = part._parameters.get("weight")
    shape = None if weight is None else tuple(weight.shape)
    if isinstance(part, nn.modules.batchnorm._NormBase):
        counted = weight if weight is not None else part.running_mean
        if counted is not None:
            part.num_features = len(counted)
    if shape is None:
        return
    if isinstance(part, nn.modules.conv._ConvTransposeNd):
        if part.groups > 1:
            part.groups = max(1, part.groups * shape[0] // part.in_channels)
        part.in_channels, part.out_channels = shape[0], shape[1] * part.groups
    elif isinstance(part, nn.modules.conv._ConvNd):
        if part.groups > 1:
            part.groups = max(1, part.groups * shape[0] // part.out_channels)
        part.in_channels, part.out_channels = shape[1] * part.groups, shape[0]
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = shape
    elif isinstance(part, nn.Embedding | nn.EmbeddingBag):
        part.num_embeddings, part.embedding_dim = shape
    elif isinstance(part, nn.LayerNorm | nn.RMSNorm):
        part.normalized_shape = shape
    elif isinstance(part, nn.GroupNorm):
        if part.num_groups > 1:
            part.num_groups = max(1, part.num_groups * shape[0] // part.num_channels)
        part.num_channels = shape[0]
    elif isinstance(part, nn.PReLU):
        part.num_parameters = shape[0]


def _refit_recurrent(part: nn.Module) -> None:
    if isinstance(part, nn.RNNBase):
        part.hidden_size = part.get_parameter("weight_hh_l0").shape[1] if not part.proj_size else part.hidden_size
        part.input_size = part.get_parameter("weight_ih_l0").shape[1]
        part.flatten_parameters()
    elif isinstance(part, nn.RNNCellBase):
        part.hidden_size = part.get_parameter("weight_hh").shape[1]
        part.input_size = part.get_parameter("weight_ih").shape[1]


def _refit_attention(part: nn.MultiheadAttention) -> None:
    out = part.out_proj.weight
    part.out_proj.out_features, part.out_proj.in_features = out.shape
    if not isinstance(part, HeadwiseAttention):
        if out.shape == (part.embed_dim, part.embed_dim):
            return
        if part.bias_k is None and not part.add_zero_attn:
            HeadwiseAttention.become(part)
    else:
        HeadwiseAttention.become(part)


# --- attributes of the user's modules -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Edit:
    """One attribute of a module that holds an old size, and its new value."""

    module: str
    attribute: str
    old: Any
    new: Any
    counts: bool

    @property
    def key(self) -> tuple[str, Any]:
        """What equal modules of a network have in common."""
        return self.attribute, self.counts


def settle(module: nn.Module, removals: Sequence[Removal], refusal: Callable[[nn.Module], str]) -> str:
    """Make a module that was cut run, by setting attributes of the user's modules that hold an old size.

    Tried are the integers, and integers in tuples and lists, of the modules that own the cut layers: none of them,
    those that equal the number of units, those that equal a width, both, then smaller choices of them; the first that
    is not refused stays, in place. The order is fixed, so that equal cuts are settled equally.

    Args:
        module: already shrunk.
        removals: what was removed.
        refusal: says what is wrong with the module; empty if nothing is.

    Returns:
        The refusal without any edit if nothing helps, else empty.
    """
    first = refusal(module)
    if not first:
        return ""
    edits = list(_candidates(module, removals))
    for chosen in _choices(edits):
        for edit in chosen:
            setattr(module.get_submodule(edit.module), edit.attribute, edit.new)
        if not refusal(module):
            return ""
        for edit in chosen:
            setattr(module.get_submodule(edit.module), edit.attribute, edit.old)
    return first


def _candidates(module: nn.Module, removals: Sequence[Removal]) -> Iterator[_Edit]:
    seen: set[tuple[str, str]] = set()
    for removal in removals:
        group = removal.coupled.units.group
        kept = len(removal.keep)
        sizes = {group.width * n: kept * n for n in {p.shape[1] for p in removal.coupled.units.positions.values()}}
        for counts, table in (
            (True, {group.width: kept}),
            (False, {o: n for o, n in sizes.items() if o != group.width}),
        ):
            for owner in _owners(module, [*group.layers, *(name for name, _ in removal.coupled.units.positions)]):
                for attribute, old in vars(module.get_submodule(owner)).items():
                    new = _replaced(old, table)
                    if new != old and (owner, attribute) not in seen and not attribute.startswith("_"):
                        seen.add((owner, attribute))
                        yield _Edit(owner, attribute, old, new, counts)


def _owners(module: nn.Module, layers: Sequence[str]) -> list[str]:
    """Modules of the user's that hold these layers or parameters, the nearest to each."""
    found: dict[str, None] = {}
    for layer in layers:
        name = layer
        while name:
            name = name.rpartition(".")[0]
            if not type(module.get_submodule(name)).__module__.startswith("torch.nn."):
                found.setdefault(name)
                break
    return list(found)


def _replaced(value: Any, table: Mapping[int, int]) -> Any:
    if type(value) is int:
        return table.get(value, value)
    if type(value) in (tuple, list):
        return type(value)(_replaced(item, table) for item in value)
    return value


def _choices(edits: Sequence[_Edit]) -> Iterator[list[_Edit]]:
    """Which edits to make, the likely ones first; edits of the same attribute are made together."""
    keys = list(dict.fromkeys(edit.key for edit in edits))
    wanted: list[tuple[Any, ...]] = [
        tuple(key for key in keys if key[1]),
        tuple(keys),
        tuple(key for key in keys if not key[1]),
    ]
    wanted += [chosen for size in range(1, len(keys)) for chosen in combinations(keys, size)]
    tried: set[frozenset[Any]] = {frozenset()}
    for chosen in wanted[:_TRIES]:
        if frozenset(chosen) not in tried:
            tried.add(frozenset(chosen))
            yield [edit for edit in edits if edit.key in chosen]
