from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from autocompress.compress.factorize import factorizable, factorize, rank_for_energy, tucker2
from autocompress.compress.structure import find_structure
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import LowRank
from autocompress.space.ranks import max_ranks


def _net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10))


def _low(layer: str, *ranks: int) -> list[LowRank]:
    return [LowRank(layer=layer, ranks=ranks)]


def _product(chain: nn.Module) -> torch.Tensor:
    return chain[1].weight.double() @ chain[0].weight.double()  # type: ignore[index]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 12), st.data())
def test_error_of_a_matrix_is_the_tail_of_its_singular_values(out: int, inner: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, min(out, inner)))
    torch.manual_seed(out * 100 + inner)
    net = nn.Sequential(nn.Linear(inner, out).double())
    weight = net[0].weight.detach().numpy()
    chain = factorize(net, _low("0", rank)).get_submodule("0")
    error = np.linalg.norm(weight - _product(chain).detach().numpy()) ** 2
    tail = np.linalg.svd(weight, compute_uv=False)[rank:]
    assert error == pytest.approx(float((tail**2).sum()), rel=1e-9, abs=1e-12)
    assert chain[0].weight.shape == (rank, inner)  # type: ignore[index]
    assert chain[1].weight.shape == (out, rank)  # type: ignore[index]


def test_factors_are_balanced_and_signs_do_not_depend_on_the_library() -> None:
    net = nn.Sequential(nn.Linear(6, 5))
    one = factorize(net, _low("0", 3)).get_submodule("0")
    flipped = copy.deepcopy(net)
    with torch.no_grad():
        flipped[0].weight.neg_()
    two = factorize(flipped, _low("0", 3)).get_submodule("0")
    u, v = one[1].weight, one[0].weight  # type: ignore[index]
    # Both carry the root of the singular values.
    torch.testing.assert_close(u.T @ u, v @ v.T)
    # -W has the same left factors, because their largest entries are positive, and the opposite right ones.
    torch.testing.assert_close(two[1].weight, u)  # type: ignore[index]
    torch.testing.assert_close(two[0].weight, -v)  # type: ignore[index]
    assert bool((u.gather(0, u.abs().argmax(0, keepdim=True)) > 0).all())


@pytest.mark.parametrize(
    ("layer", "size"),
    [
        (nn.Linear(7, 5), (4, 7)),
        (nn.Linear(7, 5, bias=False), (2, 3, 7)),
        (nn.Conv2d(6, 4, 1, stride=2, padding=1), (2, 6, 5, 7)),
        (nn.Conv2d(6, 9, 3, stride=2, padding=1, dilation=2), (2, 6, 9, 9)),
        (nn.Conv2d(3, 40, (3, 1), padding="same"), (2, 3, 6, 6)),
        (nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect", bias=False), (2, 4, 6, 6)),
        (nn.Conv1d(4, 6, 5, padding=2), (2, 4, 9)),
        (nn.Conv1d(4, 6, 1), (2, 4, 9)),
        (nn.Conv3d(2, 3, 2), (1, 2, 3, 3, 3)),
    ],
    ids=str,
)
def test_full_rank_changes_no_output(layer: nn.Module, size: tuple[int, ...]) -> None:
    net = nn.Sequential(layer)
    x = torch.randn(size)
    full = factorize(net, _low("0", *max_ranks(layer.weight.shape)))  # type: ignore[arg-type]
    torch.testing.assert_close(full(x), net(x), atol=1e-5, rtol=1e-4)


def test_a_kernel_of_low_tucker_rank_is_found_exactly() -> None:
    torch.manual_seed(0)
    core = torch.randn(3, 2, 9, dtype=torch.double)
    u, v = torch.randn(10, 3, dtype=torch.double), torch.randn(7, 2, dtype=torch.double)
    kernel = torch.einsum("abp,oa,ib->oip", core, u, v)
    g, left, right = tucker2(kernel, 3, 2)
    torch.testing.assert_close(torch.einsum("abp,oa,ib->oip", g, left, right), kernel)
    torch.testing.assert_close(left.T @ left, torch.eye(3, dtype=torch.double))
    torch.testing.assert_close(right.T @ right, torch.eye(2, dtype=torch.double))


def test_alternating_steps_improve_the_truncated_decomposition() -> None:
    torch.manual_seed(1)
    kernel = torch.randn(8, 8, 9, dtype=torch.double)
    u = torch.linalg.svd(kernel.flatten(1))[0][:, :3]
    v = torch.linalg.svd(kernel.transpose(0, 1).flatten(1))[0][:, :3]
    start = torch.einsum("oip,oa,ib->abp", kernel, u, v).square().sum()
    core, left, right = tucker2(kernel, 3, 3)
    assert core.square().sum() > start * 1.001
    # With orthonormal factors, what is lost is what the core does not hold.
    lost = (kernel - torch.einsum("abp,oa,ib->oip", core, left, right)).square().sum()
    torch.testing.assert_close(lost, kernel.square().sum() - core.square().sum())


def test_parts_carry_stride_padding_bias_names_and_what_the_layer_had() -> None:
    net = _net().double().eval()
    net[0].weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    result = factorize(net, [*_low("0", 4, 2), *_low("3", 5)])
    assert sorted(result.state_dict()) == [
        "0.0.weight", "0.1.weight", "0.2.bias", "0.2.weight", "3.0.weight", "3.1.bias", "3.1.weight",
    ]  # fmt: skip
    first, core, last = result[0]  # type: ignore[index]
    assert (first.in_channels, first.out_channels, first.kernel_size) == (3, 2, (1, 1))
    assert (core.in_channels, core.out_channels, core.stride, core.padding) == (2, 4, (2, 2), (1, 1))
    assert (last.in_channels, last.out_channels, first.bias, core.bias) == (4, 8, None, None)
    assert not any(part.training for part in result.modules())
    assert {p.dtype for p in result.parameters()} == {torch.float64}
    assert not first.weight.requires_grad
    assert result[3][0].weight.requires_grad  # type: ignore[index]
    assert factorize(net.train(), _low("3", 2))[3].training  # type: ignore[index]
    # The given network is as it was.
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = self.a

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.a(x))  # type: ignore[no-any-return]


def test_a_module_under_two_names_stays_one() -> None:
    net = _Twice()
    result = factorize(net, _low("a", 4))
    assert result.a is result.b
    x = torch.randn(3, 4)
    torch.testing.assert_close(result(x), net(x))


def test_the_fused_path_of_a_transformer_does_not_read_what_is_gone() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    result = factorize(net, _low("layers.1.linear1", 8))
    x = torch.randn(2, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        got, want = result(x, src_key_padding_mask=padding), net(x, src_key_padding_mask=padding)
    torch.testing.assert_close(got[~padding], want[~padding], atol=1e-5, rtol=1e-4)


def test_ranks_by_energy_rounding_and_saving() -> None:
    net = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        net[0].weight.copy_(torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.0])) @ torch.eye(4, 6))
    # Squares 16, 4, 1 of 21.
    assert [rank_for_energy(net, "0", e) for e in (16 / 21, 0.77, 20 / 21, 0.96, 1.0)] == [(1,), (2,), (2,), (3,), (3,)]
    assert rank_for_energy(net, "0", 0.5, round_to=3) == (3,)
    kernel = net[1].weight.detach().double()
    modes = [kernel.flatten(1), kernel.transpose(0, 1).flatten(1)]
    for rank, mode in zip(rank_for_energy(net, "1", 0.7), modes, strict=True):
        squares = np.linalg.svd(mode.numpy(), compute_uv=False) ** 2
        share = np.cumsum(squares) / squares.sum()
        assert share[rank - 1] >= 0.7
        assert rank == 1 or share[rank - 2] < 0.7
    with pytest.raises(ValueError, match=r"energy: expected a share in \(0, 1\], got 1.5"):
        rank_for_energy(net, "0", 1.5)


@pytest.mark.parametrize(
    ("net", "layer", "ranks", "message"),
    [
        (_net(), "9", (1,), "expected a layer of the network, got '9'; it has 0, 3"),
        (_net(), "1", (1,), "layer '1' is of kind ReLU; linear layers and convolutions of one group can be"),
        (_net(), "3", (11,), r"layer '3' with weights of shape \(10, 32\): expected ranks of at most \(10,\), got"),
        (_net(), "0", (9, 1), r"expected ranks of at most \(8, 3\), got \(9, 1\)"),
        (_net(), "0", (2,), r"expected two ranks \(output, input\), got \(2,\)"),
        (_net(), "3", (2, 2), r"expected one rank, got \(2, 2\)"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), "0", (1, 1), "layer '0' is a Conv2d of 4 groups"),
        (nn.Sequential(nn.ConvTranspose2d(4, 4, 3)), "0", (1, 1), "layer '0' is of kind ConvTranspose2d"),
        (nn.Sequential(nn.Embedding(4, 4)), "0", (1,), "layer '0' is of kind Embedding"),
        (nn.Sequential(nn.LSTM(4, 4)), "0.weight_ih_l0", (1,), "'0.weight_ih_l0' is a matrix inside LSTM"),
        (nn.Sequential(nn.MultiheadAttention(4, 2)), "0.out_proj", (1,), "inside MultiheadAttention, which reads"),
        (
            nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))), "0", (1,),
            "the weight of layer '0' is computed from others",
        ),
    ],
)  # fmt: skip
def test_what_has_no_factors_is_named(net: nn.Module, layer: str, ranks: tuple[int, ...], message: str) -> None:
    with pytest.raises(InfeasibleError, match=r"^plan\.ranks: .*" + message):
        factorize(net, _low(layer, *ranks))


def test_a_weight_shared_with_an_embedding_is_refused() -> None:
    net = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    net[1].weight = net[0].weight
    with pytest.raises(InfeasibleError, match=r"the weight of layer '1' is shared with 1 other module\(s\)"):
        factorize(net, _low("1", 2))


class _Mixed(nn.Module):
    """Every kind of layer that has factors, and of those that have none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3)
        self.grouped = nn.Conv2d(8, 8, 3, groups=2)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.tied, self.twin, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.twin.weight = self.tied.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.up(self.grouped(self.stem(x))).flatten(2).transpose(1, 2)
        x, _ = self.attention(self.normed(x), x, x)
        return self.head(self.twin(self.tied(x)).mean(dim=1))  # type: ignore[no-any-return]


def test_a_structure_says_what_can_be_factorized_and_the_pass_agrees() -> None:
    net = _Mixed().eval()
    layers = find_structure(net, torch.zeros(1, 4, 8, 8)).layers
    assert {layer.name for layer in layers if layer.factorizable} == {"stem", "head"}
    assert {"grouped", "up", "tied"} < {layer.name for layer in layers}
    for layer in layers:
        assert layer.factorizable == (factorizable(net, layer.name) == "")
        if layer.factorizable:
            factorize(net, _low(layer.name, *max_ranks(layer.shape)))
        else:
            with pytest.raises(InfeasibleError, match="can be factorized"):
                factorize(net, _low(layer.name, 1))


def test_a_weight_that_is_not_finite_is_refused() -> None:
    net = _net()
    with torch.no_grad():
        net[3].weight[0, 0] = float("nan")
    with pytest.raises(CompressionError, match="layer '3': expected finite weights, got NaN or infinity"):
        factorize(net, _low("3", 2))
