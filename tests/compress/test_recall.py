"""Calls that are answered from what was computed before are those of the real computation, bit by bit."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.recall import Recall
from autocompress.models.resnet import resnet_cifar


class Counted(nn.Module):
    """Counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inner(x)


class Chain(nn.Module):
    """Convolutions with something in between that is no module."""

    def __init__(self, between: Callable[[Tensor], Tensor] = functional.relu) -> None:
        super().__init__()
        self.first = Counted(nn.Conv2d(3, 4, 1))
        self.rest = nn.Sequential(Counted(nn.Conv2d(4, 4, 1)), Counted(nn.BatchNorm2d(4)), Counted(nn.Conv2d(4, 2, 1)))
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.between(self.first(x)))

    @property
    def counts(self) -> list[int]:
        return [part.calls for part in self.modules() if isinstance(part, Counted)]

    def __deepcopy__(self, memo: dict[int, object]) -> Chain:
        same = Chain(self.between)
        same.load_state_dict(self.state_dict())
        same.train(self.training)
        return same


def learnt(module: nn.Module, x: Tensor, **more: int) -> Recall:
    recall = Recall(module, **more)
    with torch.no_grad(), recall.learn():
        module(x)
    return recall


def answered(recall: Recall, module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad(), recall.use(module):
        found: Tensor = module(x)
    assert not any("forward" in part.__dict__ for part in module.modules())
    return found


@pytest.mark.parametrize(("changed", "computed"), [(None, 0), (0, 4), (1, 3), (3, 1)])
def test_only_what_follows_a_change_is_computed(changed: int | None, computed: int) -> None:
    chain, x = Chain().eval(), torch.randn(5, 3, 4, 4)
    recall, other = learnt(chain, x), copy.deepcopy(chain)
    if changed is not None:
        part = [part for part in other.modules() if isinstance(part, Counted)][changed]
        torch.nn.init.ones_(part.inner.weight)
    with torch.no_grad():
        expected = copy.deepcopy(other)(x)
    assert torch.equal(answered(recall, other, x), expected)
    assert sum(other.counts) == computed


def test_other_inputs_and_other_batches_are_computed() -> None:
    chain, x = Chain().eval(), torch.randn(5, 3, 4, 4)
    recall = learnt(chain, x)
    for batch, inputs in ((1, x), (0, x + 1.0), (0, x[:3])):
        other = copy.deepcopy(chain)
        recall.batch = batch
        with torch.no_grad(), recall.use(other):
            found = other(inputs)
        with torch.no_grad():
            assert torch.equal(found, chain(inputs))
        assert sum(other.counts) == 4


def test_statistics_count_unless_they_are_only_written() -> None:
    x = torch.randn(5, 3, 4, 4)
    for training, computed in ((False, 2), (True, 0)):
        chain = Chain().train(training)
        recall, other = learnt(chain, x), copy.deepcopy(chain)
        other.rest[1].inner.running_mean += 1.0
        with torch.no_grad():
            expected = copy.deepcopy(other)(x)
        assert torch.equal(answered(recall, other, x), expected)
        assert sum(other.counts) == computed


def test_what_is_written_to_in_place_is_not_recalled() -> None:
    chain, x = Chain(between=lambda x: x.relu_()).eval(), torch.randn(5, 3, 4, 4)
    with torch.no_grad():
        expected = chain(x)
    recall = learnt(chain, x)
    for _ in range(2):
        other = copy.deepcopy(chain)
        assert torch.equal(answered(recall, other, x), expected)
        # The first is written to by what follows; what comes out of that is the same again.
        assert other.counts == [1, 0, 0, 0]


def test_no_more_than_the_limit_is_kept() -> None:
    chain, x = Chain().eval(), torch.randn(5, 3, 4, 4)
    first = 5 * 4 * 16 * 4
    for limit, computed in ((0, 4), (first, 3), (2 * first, 2), (1 << 20, 0)):
        other = copy.deepcopy(chain)
        answered(learnt(chain, x, limit=limit), other, x)
        assert sum(other.counts) == computed, limit


def test_a_part_s_own_forward_comes_back() -> None:
    chain, x = Chain().eval(), torch.randn(5, 3, 4, 4)
    recall, other = learnt(chain, x), copy.deepcopy(chain)

    def own(x: Tensor) -> Tensor:
        return torch.zeros(5, 4, 4, 4)

    other.first.forward = own
    with torch.no_grad(), recall.use(other):
        other(x)
    assert other.first.forward is own


def test_blocks_of_a_residual_network_are_recalled_up_to_the_change() -> None:
    network = resnet_cifar(depth=14, widths=(8, 8, 16), shortcut="projection").train()
    x = torch.randn(4, 3, 16, 16)
    recall = learnt(network, x)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.body[3].c1.weight[0] = 0.0
    called = []
    handles = [
        part.register_forward_hook(lambda part, args, out, name=name: called.append(name))
        for name, part in other.named_modules()
        if isinstance(part, nn.Conv2d)
    ]
    found = answered(recall, other, x)
    for handle in handles:
        handle.remove()
    assert called
    assert not any(name.startswith(("body.0", "body.1", "body.2")) for name in called)
    with torch.no_grad():
        assert torch.equal(found, copy.deepcopy(other)(x))
