from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from autocompress.compress.share import Book, Codebooks, centroid_gradients, fit_codebooks
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import Codebook


def _sparse_net(seed: int = 0, share: float = 0.4) -> nn.Sequential:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, 15), nn.ReLU(), nn.Linear(15, 4))
    with torch.no_grad():
        net[0].weight.masked_fill_(torch.rand(15, 20) > share, 0.0)
    return net


def _fit(net: nn.Module, **clusters: int) -> Codebooks:
    asked = [Codebook(layer=name.removeprefix("l"), clusters=k) for name, k in clusters.items()]
    return fit_codebooks(net, asked, seed=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 12))
def test_every_weight_takes_its_nearest_centroid_and_zeros_stay(seed: int, clusters: int) -> None:
    net = _sparse_net(seed)
    weight = net[0].weight.detach().clone()
    books = _fit(net, l0=clusters)
    assert torch.equal(net[0].weight, weight)  # fitting leaves the module alone
    book = books.books["0"]
    assert torch.equal(book.indices == -1, weight == 0)
    for w, index in zip(weight.flatten().tolist(), book.indices.flatten().tolist(), strict=True):
        if w != 0:
            distances = [abs(w - c) for c in book.centroids.tolist()]
            assert distances[index] <= min(distances) + 1e-7
    books.apply(net)
    shared = net[0].weight.detach()
    assert torch.equal(shared == 0, weight == 0)
    assert not bool(torch.signbit(shared[weight == 0]).any())
    assert len(shared[shared != 0].unique()) <= clusters


def test_centroids_are_the_means_of_their_members_and_begin_evenly_spaced() -> None:
    net = nn.Sequential(nn.Linear(6, 1, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[-1.0, -0.8, 0.0, 0.1, 0.9, 1.3]]))
    # Start -1, 0.15, 1.3: members {-1, -.8}, {.1}, {.9, 1.3}.
    book = _fit(net, l0=3).books["0"]
    torch.testing.assert_close(book.centroids, torch.tensor([-0.9, 0.1, 1.1]))
    assert book.indices.tolist() == [[0, 0, -1, 1, 2, 2]]


def test_few_distinct_weights_are_kept_as_they_are() -> None:
    net = nn.Sequential(nn.Linear(4, 3, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0, 2.0, 0.0, 1.0]] * 3))
    book = _fit(net, l0=16).books["0"]
    assert book.centroids.tolist() == [1.0, 2.0]
    assert torch.equal(book.weight(), net[0].weight)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 6), st.integers(0, 1000))
def test_gradient_of_a_centroid_is_the_sum_of_its_members(size: int, clusters: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gradient, indices = rng.normal(size=(size, 3)), rng.integers(-1, clusters, (size, 3))
    expected = [0.0] * clusters
    for row in range(size):
        for column in range(3):
            if indices[row, column] >= 0:
                expected[indices[row, column]] += gradient[row, column]
    got = centroid_gradients(torch.from_numpy(gradient), torch.from_numpy(indices), clusters)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)


def test_gradient_is_that_of_the_loss_in_the_centroids() -> None:
    net = _sparse_net()
    books = _fit(net, l0=5)
    book = books.books["0"]
    x = torch.randn(8, 20)
    centroids = book.centroids.clone().requires_grad_()
    tied = Book(centroids, book.indices).weight()
    torch.autograd.backward(nn.functional.linear(x, tied, net[0].bias).square().sum())
    books.apply(net)
    torch.autograd.backward(net[0](x).square().sum())
    got = centroid_gradients(net[0].weight.grad, book.indices, 5)
    torch.testing.assert_close(got, centroids.grad, rtol=1e-4, atol=1e-4)


def _train(net: nn.Module, books: Codebooks, steps: int) -> tuple[nn.Module, Codebooks, list[float]]:
    """SGD with momentum and weight decay under the hook."""
    module, hook, losses = copy.deepcopy(net), books.hook(), []
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3)
    torch.manual_seed(3)
    x = torch.randn(64, 20)
    goal = copy.deepcopy(net)
    Codebooks({name: Book(1.4 * b.centroids, b.indices) for name, b in books.books.items()}).apply(goal)
    y = goal(x).detach()
    for step in range(steps):
        hook.before_forward(module, step, steps)
        loss = nn.functional.mse_loss(module(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        hook.before_update(module, step, steps)
        optimizer.step()
        hook.after_update(module, step, steps)
        for name, book in hook.books.books.items():
            weight = module.get_parameter(f"{name}.weight").detach()
            assert torch.equal(weight, book.weight())
    hook.finish(module)
    return module, hook.books, losses


def test_training_keeps_weights_tied_and_zero_and_learns() -> None:
    net = _sparse_net()
    start = _fit(net, l0=6, l2=3)
    module, after, losses = _train(net, start, 40)
    assert losses[-1] < 0.1 * losses[0]
    for name, clusters in (("0", 6), ("2", 3)):
        weight = module.get_parameter(f"{name}.weight").detach()
        assert torch.equal(weight == 0, start.books[name].indices == -1)
        assert len(weight[weight != 0].unique()) == clusters
        assert torch.equal(after.books[name].indices, start.books[name].indices)
        assert not torch.equal(after.books[name].centroids, start.books[name].centroids)


def test_one_step_moves_centroids_by_the_mean_of_their_members_gradients() -> None:
    net = _sparse_net()
    start = _fit(net, l0=4)
    book = start.books["0"]
    module, hook = copy.deepcopy(net), start.hook()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    hook.before_forward(module, 0, 1)
    torch.autograd.backward(module(torch.randn(16, 20)).square().mean())
    gradient = module[0].weight.grad.clone()  # type: ignore[index, union-attr, operator]
    hook.before_update(module, 0, 1)
    optimizer.step()
    hook.after_update(module, 0, 1)
    for k in range(4):
        members: Tensor = gradient[book.indices == k]
        torch.testing.assert_close(hook.books.books["0"].centroids[k], book.centroids[k] - 0.1 * members.mean())


def test_no_steps_still_share() -> None:
    net = _sparse_net()
    hook = _fit(net, l0=4).hook()
    hook.finish(net)
    assert len(net[0].weight.detach().unique()) == 5


def test_a_matrix_of_a_recurrent_layer_and_a_convolution_share() -> None:
    net = nn.Sequential(nn.LSTM(5, 4), nn.Conv2d(2, 3, 3)).to(memory_format=torch.channels_last)
    books = fit_codebooks(net, [Codebook(layer="0.weight_hh_l0", clusters=4), Codebook(layer="1", clusters=2)], seed=0)
    books.apply(net)
    assert len(net[0].weight_hh_l0.unique()) == 4  # type: ignore[union-attr]
    assert len(net[1].weight.unique()) == 2


def test_fitting_is_reproducible_and_leaves_global_random_state_alone() -> None:
    net = _sparse_net()
    np.random.seed(5)
    state = np.random.get_state()[1].copy()  # type: ignore[union-attr, index]
    one, two = _fit(net, l0=7), _fit(net, l0=7)
    assert torch.equal(one.books["0"].centroids, two.books["0"].centroids)
    assert (np.random.get_state()[1] == state).all()  # type: ignore[index]


def test_what_cannot_share_is_named() -> None:
    net = _sparse_net()
    with pytest.raises(InfeasibleError, match=r"^plan\.codebooks: expected a layer of the network, got '9'"):
        _fit(net, l9=4)
    with pytest.raises(InfeasibleError, match="layer '0': expected some weights that are not zero"):
        _fit(nn.Sequential(nn.Linear(3, 3).apply(lambda m: nn.init.zeros_(m.weight))), l0=4)
    bad = _sparse_net()
    with torch.no_grad():
        bad[0].weight[0, 0] = float("inf")
    with pytest.raises(CompressionError, match="codebook of '0': expected finite weights, got NaN or infinity"):
        _fit(bad, l0=4)
    with pytest.raises(CompressionError, match=r"expected a weight of shape \(15, 20\), got \(3, 3\)"):
        _fit(net, l0=4).apply(nn.Sequential(nn.Linear(3, 3)))
