from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import f_oneway
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autocompress.compress.state import module_digest, save_tensors
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.errors import CompressionError
from autocompress.records import Structure
from autocompress.task import Task

NOTHING = Structure(groups=(), layers=())


def task_of(inputs: Tensor, targets: Tensor, **changes: Any) -> Task:
    data = TensorDataset(inputs, targets)
    return Task(
        **{
            "name": "t",
            "model": nn.Identity,
            **dict.fromkeys(("train", "validation", "selection", "test"), data),
            **changes,
        }
    )


def images(n: int = 48, classes: int = 3) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, 6, 6, generator=g), torch.randint(classes, (n,), generator=g)


class Small(nn.Module):
    """The ReLU writes into the convolution's output; one branch reuses a layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(2, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.bn(self.relu(self.conv(x))).mean(dim=(2, 3)))


def per_example_gradients(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    copied = copy.deepcopy(module).eval()
    rows: dict[str, list[Tensor]] = {}
    for i in range(len(x)):
        copied.zero_grad()
        torch.autograd.backward(nn.functional.cross_entropy(copied(x[i : i + 1]), y[i : i + 1]))
        for name, p in copied.named_parameters():
            assert p.grad is not None
            rows.setdefault(name, []).append(p.grad.clone())
    return {name: torch.stack(g) for name, g in rows.items()}


def test_with_single_examples_the_fisher_is_their_mean_squared_gradient() -> None:
    x, y = images(12)
    module = Small()
    found = collect_statistics(module, task_of(x, y), NOTHING, batches=12, batch_size=1, seed=0)
    for name, g in per_example_gradients(module, x, y).items():
        torch.testing.assert_close(found.gradient(name), g.mean(dim=0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.fisher(name), g.square().mean(dim=0), rtol=1e-3, atol=1e-7)


def test_from_batches_the_fisher_is_estimated_through_their_variance() -> None:
    x, y = images(2048)
    module = Small()
    found = collect_statistics(module, task_of(x, y), NOTHING, batches=256, batch_size=8, seed=0)
    naive = per_example_gradients(module, x[:600], y[:600])
    for name, g in naive.items():
        expected, got = g.square().mean(), found.fisher(name).mean()
        assert float(got / expected) == pytest.approx(1.0, abs=0.25)
        # Batches' squared gradients are far below: they average before they are squared.
        assert float(expected) > 2.0 * float(found.gradient(name).square().mean())


def naive_activation_taylor(module: Small, x: Tensor, y: Tensor, layer: str) -> np.ndarray:
    total = np.zeros(4)
    for i in range(len(x)):
        conv = module.conv(x[i : i + 1]).detach()
        z = (conv if layer == "conv" else module.bn(conv.relu())).detach().requires_grad_(True)
        rest = module.bn(z.relu()) if layer == "conv" else z
        loss = nn.functional.cross_entropy(module.fc(rest.mean(dim=(2, 3))), y[i : i + 1])
        (g,) = torch.autograd.grad(loss, z)
        for j in range(4):
            total[j] += abs(float((g[0, j] * z[0, j].detach()).mean()))
    mean = total / len(x)
    return mean / np.sqrt((mean**2).sum())


@pytest.mark.parametrize("layer", ["conv", "bn"])
def test_activation_taylor_is_the_formula_example_by_example(layer: str) -> None:
    x, y = images(20)
    module = Small().eval()
    found = collect_statistics(module, task_of(x, y), NOTHING, batches=4, batch_size=5, seed=0)
    expected = naive_activation_taylor(module, x, y, layer)
    np.testing.assert_allclose(found.activation_taylor(layer).numpy(), expected, rtol=1e-4)
    assert float(found.activation_taylor(layer).norm()) == pytest.approx(1.0)


def test_the_f_statistic_is_scipys(tmp_path: Path) -> None:
    x, y = images(60)
    x += y.view(-1, 1, 1, 1) * torch.tensor([0.3, 0.0]).view(1, 2, 1, 1) + 50.0  # far from zero: squares cancel
    module = Small().eval()
    found = collect_statistics(module, task_of(x, y), NOTHING, batches=6, batch_size=10, seed=0)
    with torch.no_grad():
        a = module.conv(x).double().mean(dim=(2, 3)).numpy()
    expected = [f_oneway(*(a[y.numpy() == c, j] for c in range(3))).statistic for j in range(4)]
    np.testing.assert_allclose(found.f_statistic("conv").numpy(), expected, rtol=1e-3)
    found.save(tmp_path / "s.safetensors")
    again = Statistics.load(tmp_path / "s.safetensors")
    assert torch.equal(again.f_statistic("conv"), found.f_statistic("conv"))
    assert torch.equal(again.fisher("conv.weight"), found.fisher("conv.weight"))
    assert torch.equal(again.activation_taylor("bn"), found.activation_taylor("bn"))
    assert torch.equal(again.gradient("fc.bias"), found.gradient("fc.bias"))


def test_constant_channels_have_no_f_and_perfect_ones_a_finite_one() -> None:
    x, y = images(30)
    x[:, 0], x[:, 1] = y.view(-1, 1, 1).float(), 1.0
    module = Small()
    with torch.no_grad():
        module.conv.weight.zero_()
        module.conv.weight[0, 0, 1, 1] = 1.0
        module.conv.weight[1, 1, 1, 1] = 0.1
    f = collect_statistics(module, task_of(x, y), NOTHING, batches=3, batch_size=10, seed=0).f_statistic("conv")
    assert torch.isfinite(f).all()
    assert float(f[0]) > 1e6
    assert f[1:].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("targets", "loss"),
    [
        (torch.randn(24, 3), nn.functional.mse_loss),
        (torch.zeros(24, dtype=torch.int64), nn.functional.cross_entropy),
    ],
    ids=["regression", "one class"],
)
def test_without_two_classes_the_f_statistic_is_absent_and_says_what_it_needs(targets: Tensor, loss: Any) -> None:
    x, _ = images(24)
    found = collect_statistics(Small(), task_of(x, targets, loss=loss), NOTHING, batches=2, batch_size=8, seed=0)
    assert float(found.activation_taylor("conv").norm()) == pytest.approx(1.0)
    with pytest.raises(CompressionError, match=r"F-statistic of 'conv'.*one class index per example, two classes"):
        found.f_statistic("conv")


class Sequence(nn.Module):
    """Embeds, with positions that have no example axis; steps come first; folds steps into examples at the end."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.place = nn.Embedding(11, 6), nn.Embedding(3, 6)
        self.lstm = nn.LSTM(6, 4, num_layers=2, bidirectional=True)
        self.fold, self.out = nn.Linear(8, 5), nn.Linear(15, 2)

    def forward(self, ids: Tensor, scale: Tensor) -> Tensor:
        h = self.embed(ids) + self.place(torch.arange(3))
        h = self.lstm(h.transpose(0, 1))[0].transpose(0, 1) * scale[:, None]
        return self.out(self.fold(h.reshape(-1, 8)).reshape(len(ids), -1))


class Named(torch.utils.data.Dataset[Any]):
    def __init__(self, n: int) -> None:
        g = torch.Generator().manual_seed(3)
        self.ids, self.y = torch.randint(11, (n, 3), generator=g), torch.arange(n) % 2

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Any:
        return {"ids": self.ids[i], "scale": torch.ones(1)}, self.y[i]


def test_inputs_by_name_recurrent_layers_and_folded_positions_are_followed() -> None:
    data, module = Named(18), Sequence().eval()
    roles: Any = dict.fromkeys(("train", "validation", "selection", "test"), data)
    found = collect_statistics(
        module, Task(name="t", model=Sequence, **roles), NOTHING, batches=1, batch_size=18, seed=0
    )
    with torch.no_grad():
        h = module.lstm(module.embed(data.ids).transpose(0, 1) + module.place(torch.arange(3))[:, None])[0]
        folded = module.fold(h.transpose(0, 1))
    y = data.y.numpy()

    def f(a: Tensor) -> list[float]:
        return [f_oneway(a[y == 0, j].numpy(), a[y == 1, j].numpy()).statistic for j in range(a.shape[1])]

    assert found.f_statistic("fold").tolist() == pytest.approx(f(folded.double().mean(dim=1)), rel=1e-3)
    expected = f(h.double().mean(dim=0))
    # Every gate's row of a hidden unit has the unit's value.
    assert found.f_statistic("lstm.weight_ih_l1").tolist() == pytest.approx(expected[:4] * 4, rel=1e-3)
    assert found.f_statistic("lstm.weight_hh_l1_reverse").tolist() == pytest.approx(expected[4:] * 4, rel=1e-3)
    assert found.f_statistic("embed").shape == (6,)
    for absent in ("place", "lstm.weight_ih_l0", "lstm"):
        with pytest.raises(CompressionError, match=f"activation gradients of '{absent}'"):
            found.activation_taylor(absent)
    assert found.gradient("lstm.weight_ih_l0").shape == (16, 6)


def test_tied_parameters_have_their_statistics_under_each_name_and_unused_ones_none() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.idle = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(2, 2)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.a(x).relu())

    found = collect_statistics(
        Tied(), task_of(torch.randn(8, 3), torch.arange(8) % 3), NOTHING, batches=1, batch_size=8, seed=0
    )
    assert torch.equal(found.gradient("a.weight"), found.gradient("b.weight"))
    with pytest.raises(CompressionError, match=r"expected a gradient of 'idle\.weight'"):
        found.gradient("idle.weight")
    with pytest.raises(CompressionError, match=r"expected squared gradients of 'idle\.weight'"):
        found.fisher("idle.weight")


def test_collecting_leaves_the_module_and_the_global_stream_alone_and_repeats() -> None:
    x, y = images(40)
    module = Small().train().requires_grad_(False)
    before, state = module_digest(module), torch.random.get_rng_state()
    first = collect_statistics(module, task_of(x, y), NOTHING, batches=2, batch_size=8, seed=4)
    assert module_digest(module) == before
    assert module.training
    assert not module.conv._forward_hooks
    assert torch.equal(torch.random.get_rng_state(), state)
    second = collect_statistics(module, task_of(x, y), NOTHING, batches=2, batch_size=8, seed=4)
    assert torch.equal(first.fisher("conv.weight"), second.fisher("conv.weight"))
    other = collect_statistics(module, task_of(x, y), NOTHING, batches=2, batch_size=8, seed=5)
    assert not torch.equal(first.fisher("conv.weight"), other.fisher("conv.weight"))


def test_bad_arguments_weights_and_losses_are_refused_by_name() -> None:
    task = task_of(*images(8))
    with pytest.raises(CompressionError, match="expected batches and batch_size >= 1, got 0 and 4"):
        collect_statistics(Small(), task, NOTHING, batches=0, batch_size=4, seed=0)
    broken = Small()
    broken.fc.weight.data[0, 0] = float("nan")
    with pytest.raises(CompressionError, match=r"expected finite weights, got NaN or infinity in 'fc\.weight'"):
        collect_statistics(broken, task, NOTHING, seed=0)
    with pytest.raises(CompressionError, match="reaches no parameter of Identity"):
        collect_statistics(
            nn.Identity(),
            task_of(torch.randn(4, 3).requires_grad_(True), torch.zeros(4, dtype=torch.int64)),
            NOTHING,
            seed=0,
        )
    emptied = task_of(*images(8))
    object.__setattr__(emptied, "train", TensorDataset(torch.zeros(0, 2, 6, 6), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(CompressionError, match="expected training examples of 't', got none"):
        collect_statistics(Small(), emptied, NOTHING, seed=0)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    save_tensors({"conv.weight": torch.zeros(1)}, tmp_path / "s.safetensors")
    with pytest.raises(CompressionError, match=r"named gradient/\.\.\., .*got 'conv\.weight'; delete it"):
        Statistics.load(tmp_path / "s.safetensors")


def test_statistics_follow_a_cut_along_any_output_axis() -> None:
    dense = torch.arange(24.0).view(2, 4, 3)  # a transposed convolution: outputs along axis 1
    statistics = Statistics({"t.weight": dense}, {"t.weight": dense + 1}, {"t": torch.arange(4.0)}, {}, {"t": 1})
    positions = torch.arange(24).view(2, 4, 3)[1:, [3, 1]]
    left = statistics.follow({"t.weight": positions})
    assert torch.equal(left.gradient("t.weight"), dense[1:, [3, 1]])
    assert torch.equal(left.fisher("t.weight"), dense[1:, [3, 1]] + 1)
    assert left.activation_taylor("t").tolist() == [3.0, 1.0]
    rows = Statistics({"l.weight_hh_l0": torch.zeros(6, 2)}, {}, {"l.weight_hh_l0": torch.arange(6.0)})
    at = torch.arange(12).view(6, 2)[[1, 3, 5], 1:]
    assert rows.follow({"l.weight_hh_l0": at}).activation_taylor("l.weight_hh_l0").tolist() == [1.0, 3.0, 5.0]
    assert rows.follow({}).activation_taylor("l.weight_hh_l0").shape == (6,)
    with pytest.raises(CompressionError, match="expected positions in the dense network's weights"):
        rows.follow({"l.weight_hh_l0": torch.tensor([[99]])})
