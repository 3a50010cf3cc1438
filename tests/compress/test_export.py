from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.compress.export import export_onnx, runtime_session
from autocompress.compress.fold import fold_batch_norm
from autocompress.errors import ExportError


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc(functional.relu(self.norm(self.conv(x)) + x).mean((2, 3)))


class Sequence(nn.Module):
    """A linear layer over a sequence, called twice: exported as two matrix products with a folded transpose."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.first(x).relu())).mean(1)


class FixedView(nn.Module):
    def __init__(self, batch: int) -> None:
        super().__init__()
        self.batch = batch
        self.fc = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.reshape(self.batch, 12))


def residual(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    module = Residual()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.running_mean, -1, 1)
            nn.init.uniform_(part.running_var, 0.5, 2)
            nn.init.uniform_(part.weight, 0.5, 2)
            nn.init.uniform_(part.bias, -1, 1)
    return module.eval()


def example(*shape: int) -> Tensor:
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(0))


def test_runtime_gives_torchs_outputs_for_any_batch_size() -> None:
    module = residual()
    exported = export_onnx(module, example(3, 8, 8))
    session = runtime_session(exported.model)
    assert exported.agreement < 1e-5
    for batch in (1, 2, 7):
        inputs = torch.randn(batch, 3, 8, 8)
        got = session.run(["output"], {"input": inputs.numpy()})[0]
        np.testing.assert_allclose(got, module(inputs).detach().numpy(), atol=1e-5)


def test_nodes_with_weights_are_named_like_their_layers_and_normalization_is_gone() -> None:
    graph = onnx.load_model_from_string(export_onnx(residual(), example(3, 8, 8)).model).graph
    assert [n.name for n in graph.node if n.op_type in ("Conv", "Gemm")] == ["stem.0", "conv", "fc"]
    assert "BatchNormalization" not in {n.op_type for n in graph.node}
    assert len({n.name for n in graph.node}) == len(graph.node)
    assert {"stem.0.weight", "conv.weight", "fc.weight"} <= {t.name for t in graph.initializer}


def test_layer_over_a_sequence_that_runs_twice_is_named_twice() -> None:
    graph = onnx.load_model_from_string(export_onnx(Sequence().eval(), example(4, 6)).model).graph
    assert [n.name for n in graph.node if n.op_type == "MatMul"] == ["first", "first@2", "last"]
    assert {"first.weight", "last.weight"} <= {t.name for t in graph.initializer}


def test_module_is_left_alone() -> None:
    module = residual().train()
    module.fc.requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    export_onnx(module, example(3, 8, 8))
    assert module.training
    assert not module.fc.weight.requires_grad
    assert module.conv.weight.requires_grad
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_training_mode_and_memory_layout_do_not_change_the_bytes() -> None:
    plain = export_onnx(residual(), example(3, 8, 8)).model
    assert export_onnx(residual().train(), example(3, 8, 8)).model == plain
    assert export_onnx(residual().to(memory_format=torch.channels_last), example(3, 8, 8)).model == plain


def test_bytes_do_not_depend_on_the_example_and_hold_no_paths() -> None:
    model = export_onnx(residual(), example(3, 8, 8)).model
    assert export_onnx(residual(), torch.ones(4, 3, 8, 8)).model == model
    assert b"stack_trace" not in model
    assert str(Path(__file__).parent).encode() not in model
    assert onnx.load_model_from_string(model).SerializeToString(deterministic=True) == model


@pytest.mark.slow
def test_another_process_writes_the_same_bytes() -> None:
    script = (
        "import hashlib, torch\n"
        "from torch import nn\n"
        "from autocompress.compress.export import export_onnx\n"
        "torch.manual_seed(0)\n"
        "m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()\n"
        "print(hashlib.sha256(export_onnx(m, torch.zeros(1, 3, 8, 8)).model).hexdigest())\n"
    )
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    here = hashlib.sha256(export_onnx(module, torch.zeros(1, 3, 8, 8)).model).hexdigest()
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    assert there == here


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_fixed_batch_size_is_refused(batch: int) -> None:
    with pytest.raises(ExportError, match="has to take a batch of any size"):
        export_onnx(FixedView(batch), example(12))


def test_batch_size_that_the_exporter_froze_in_silence_is_refused() -> None:
    class Freezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + torch.zeros(int(x.shape[0]), 2)

    with pytest.raises(ExportError, match=r"expected a free batch axis, got input of shape \[2, 4\]"):
        export_onnx(Freezes().eval(), example(4))


def test_module_that_raises_or_returns_a_tuple_is_named() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no such thing")

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ExportError, match=r"shape \(2, 4\): RuntimeError: no such thing"):
        export_onnx(Raises(), example(4))
    with pytest.raises(ExportError, match="expected the module to return one tensor, got tuple"):
        export_onnx(Pair(), example(4))


def test_control_flow_on_values_is_refused() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 100 else self.fc(-x)

    with pytest.raises(ExportError, match="torch could not write the module as ONNX"):
        export_onnx(Branch(), example(4))


def test_random_outputs_are_refused() -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + torch.randn_like(x[:, :2])

    with pytest.raises(ExportError, match="differ from torch's by"):
        export_onnx(Noisy().eval(), example(4))


def test_folding_keeps_outputs_and_zeros() -> None:
    module = residual()
    with torch.no_grad():
        module.conv.weight[:, ::2] = 0.0
    inputs = torch.randn(4, 3, 8, 8)
    folded = fold_batch_norm(module, inputs)
    assert isinstance(folded.norm, nn.Identity)
    assert isinstance(folded.stem[1], nn.Identity)
    torch.testing.assert_close(folded(inputs), module(inputs), atol=1e-5, rtol=1e-5)
    assert torch.count_nonzero(folded.conv.weight) == torch.count_nonzero(module.conv.weight)


def test_only_safe_pairs_are_folded() -> None:
    class Unsafe(nn.Module):
        """The output of `read` has a second reader; `twice` runs twice; `tied` shares its weight."""

        def __init__(self) -> None:
            super().__init__()
            self.read, self.a = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.twice, self.b = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.tied, self.c = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
            self.other = nn.Conv2d(3, 3, 1)
            self.other.weight = self.tied.weight

        def forward(self, x: Tensor) -> Tensor:
            y = self.read(x)
            x = self.a(y) + y
            x = self.b(self.twice(self.twice(x)))
            return self.other(self.c(self.tied(x)))

    torch.manual_seed(0)
    module = Unsafe().eval()
    inputs = torch.randn(2, 3, 4, 4)
    assert fold_batch_norm(module, inputs) is module
