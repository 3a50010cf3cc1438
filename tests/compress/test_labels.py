from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.labels import NONE, Atoms, Slot
from autocompress.compress.trace import Tracer, plain_operators


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 30), pairs=st.lists(st.lists(st.tuples(st.integers(-1, 29), st.integers(-1, 29)))))
def test_classes_are_those_of_a_naive_closure(count: int, pairs: list[list[tuple[int, int]]]) -> None:
    atoms = Atoms()
    labels = atoms.new(count)
    naive = list(range(count))
    for batch in pairs:
        kept = [(a % count if a >= 0 else NONE, b % count if b >= 0 else NONE) for a, b in batch]
        atoms.union(torch.tensor([a for a, _ in kept] or [NONE]), torch.tensor([b for _, b in kept] or [NONE]))
        for a, b in kept:
            if a >= 0 and b >= 0:
                old, new = naive[a], naive[b]
                naive = [new if x == old else x for x in naive]
    found = atoms.find(labels).tolist()
    assert [[x == y for y in found] for x in found] == [[x == y for y in naive] for x in naive]
    assert atoms.find(torch.tensor([NONE])).tolist() == [NONE]


class Layer(nn.Module):
    """A parameter whose rows are followed through a function."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(rows))


def followed(shape: tuple[int, ...], axis: int, function: Callable[[Tensor], Tensor]) -> tuple[Tracer, Tensor, Tensor]:
    """The tracer, the data and the labels of `function` of a parameter that lies along one axis of `shape`.

    The data are the positions in the parameter: labels must say the same.
    """
    size = shape[axis]
    layer = Layer(size)
    layer.weight.data = torch.arange(size, dtype=torch.float64)
    tracer = Tracer(layer)
    with torch.no_grad(), plain_operators(), tracer:
        view = [1] * len(shape)
        view[axis] = size
        out = function(layer.weight.view(view).expand(shape))
    slots = tracer.value(out).slots
    labels = slots[0].labels.expand(out.shape) if slots else torch.full(out.shape, NONE)
    return tracer, out, labels


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.flatten(1),
        lambda x: x.reshape(2, 3, 2, 4, 5).transpose(1, 2).reshape(2, 6, 4, 5),
        lambda x: x.view(2, 2, 3, 20).unbind(1)[1],
        lambda x: x.reshape(-1, 5).unflatten(0, (2, 24)),
        lambda x: x[:, 1:5, ::2],
        lambda x: x[:, ::3],
        lambda x: x.flip(1).roll(2, 1),
        lambda x: x.repeat(1, 2, 1, 3),
        lambda x: x.chunk(2, 1)[1],
        lambda x: x.split([1, 5], 1)[1],
        lambda x: torch.cat([x[:, :2], x[:, 3:]], 1),
        lambda x: torch.stack([x, x], 1)[:, 0],
        lambda x: x.unsqueeze(1).squeeze(1).movedim(1, -1).contiguous(),
        lambda x: functional.channel_shuffle(x, 3),
        lambda x: x.mT.expand(3, 2, 6, 5, 4)[1],
        lambda x: functional.pixel_unshuffle(x[:, :, :, :4], 2),
        lambda x: functional.unfold(x, 2),
        lambda x: x.gather(2, torch.zeros(2, 6, 1, 5, dtype=torch.int64)),
        lambda x: x.index_select(3, torch.tensor([0, 2])),
        lambda x: x[:, :, torch.tensor([1, 1, 3])],
        lambda x: functional.max_pool2d(x, 2),
        lambda x: functional.interpolate(x, scale_factor=2, mode="nearest"),
        lambda x: x.amax((2, 3)),
        lambda x: x.clone().relu_().to(torch.float32),
    ],
)
def test_labels_move_as_data_do(function: Callable[[Tensor], Tensor]) -> None:
    _, data, labels = followed((2, 6, 4, 5), 1, function)
    assert torch.equal(labels, data.to(torch.int64))


def test_padding_has_no_label_along_the_channels_and_changes_nothing_elsewhere() -> None:
    _, data, labels = followed((2, 6, 4, 5), 1, lambda x: functional.pad(x, (1, 1, 0, 0, 2, 1)))
    assert labels[0, :, 0, 0].tolist() == [NONE, NONE, 0, 1, 2, 3, 4, 5, NONE]
    assert data.shape == labels.shape


def test_what_an_operator_without_a_rule_touches_is_frozen_with_its_name() -> None:
    tracer, _, labels = followed((2, 6), 1, lambda x: torch.fft.fft(x).real)
    assert (labels == NONE).all()
    assert set(tracer.atoms.reasons().values()) == {"aten._fft_r2c is not followed"}


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.softmax(1), "softmax over its channels"),
        (lambda x: x.sum(1), "sum over its channels"),
        (lambda x: x[:, 2], "single channels are picked by their index"),
        (lambda x: x[:, torch.tensor([0, 1])], "single channels are picked by their index"),
        (lambda x: functional.normalize(x, dim=1), "linalg vector norm over its channels"),
        (lambda x: x @ torch.ones(6, 2, dtype=torch.float64), "multiplied with values that cannot be cut"),
        (lambda x: x.cumsum(1), "cumsum over its channels"),
    ],
)
def test_what_cannot_be_cut_is_frozen_in_words(function: Callable[[Tensor], Tensor], reason: str) -> None:
    tracer, _, _ = followed((2, 6), 1, function)
    assert len(tracer.atoms.reasons()) == 6
    assert all(reason in found for found in tracer.atoms.reasons().values())


def classes(tracer: Tracer, count: int) -> list[list[int]]:
    found: dict[int, list[int]] = {}
    for atom, root in enumerate(tracer.atoms.find(torch.arange(count)).tolist()):
        found.setdefault(root, []).append(atom)
    return sorted(found.values())


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # A view into 2 × 3 must stay a box: the halves lose the same positions.
        (lambda x: x.view(2, 2, 3), [[0, 3], [1, 4], [2, 5]]),
        # Parts of a chunk, or of slices that make up the whole, as well.
        (lambda x: x.chunk(3, 1)[0], [[0, 2, 4], [1, 3, 5]]),
        (lambda x: (x[:, :3], x[:, 3:])[0], [[0, 3], [1, 4], [2, 5]]),
        (lambda x: (x[:, ::2], x[:, 1::2])[0], [[0, 1], [2, 3], [4, 5]]),
        # Parts of unequal size, or that leave some out, tie nothing.
        (lambda x: (x[:, :2], x[:, 2:])[0], [[0], [1], [2], [3], [4], [5]]),
        (lambda x: x.split([2, 4], 1)[0], [[0], [1], [2], [3], [4], [5]]),
        # What is added together goes together.
        (lambda x: x + x.flip(1), [[0, 5], [1, 4], [2, 3]]),
        (lambda x: functional.group_norm(x, 2), [[0, 1, 2], [3, 4, 5]]),
        (lambda x: functional.pixel_shuffle(x[:, :4, None, None].expand(2, 4, 1, 1), 2), [[0, 1, 2, 3], [4], [5]]),
        (lambda x: functional.glu(x, 1), [[0, 3], [1, 4], [2, 5]]),
        # Heads: 3 × 2 channels, each head's two are summed over together.
        (
            lambda x: x.view(2, 1, 3, 2).transpose(1, 2) @ x.view(2, 1, 3, 2).permute(0, 2, 3, 1),
            [[0, 1], [2, 3], [4, 5]],
        ),
    ],
)
def test_ties_are_what_removal_needs(function: Callable[[Tensor], Tensor], expected: list[list[int]]) -> None:
    tracer, _, _ = followed((2, 6), 1, function)
    tracer.finish(None, "")
    assert classes(tracer, 6) == expected


def test_a_scale_that_all_heads_share_does_not_tie_them() -> None:
    atoms = Atoms()
    heads, shared = atoms.new(6).view(1, 3, 2), atoms.new(2).view(1, 1, 2)
    merged = atoms.merge([Slot(heads, strong=True), Slot(shared, strong=False)])
    assert torch.equal(merged[0].labels, heads)
    assert len(set(atoms.find(torch.arange(6)).tolist())) == 6
    assert list(atoms.reasons().values()) == ["it is shared by several heads"] * 2


def test_positions_that_are_flattened_with_channels_give_way_to_them() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4)
            self.positions = nn.Parameter(torch.zeros(1, 5, 4))

        def forward(self, x: Tensor) -> Tensor:
            return (self.layer(x) + self.positions).flatten(1)

    module = Positions()
    tracer = Tracer(module)
    with torch.no_grad(), tracer:
        out = module(torch.zeros(2, 5, 3))
    [slot] = tracer.value(out).slots
    # The flattened axis repeats the four channels for each of the five positions.
    found = tracer.atoms.find(slot.labels).view(5, 4)
    assert torch.equal(found, found[:1].expand(5, 4))
    assert len(found.unique()) == 4
    positions = {root for root, reason in tracer.atoms.reasons().items() if "flattened together with" in reason}
    assert len(positions) == 5
    assert not positions.intersection(found.flatten().tolist())
