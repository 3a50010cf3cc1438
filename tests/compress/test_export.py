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


def test_module_that_raises_or_returns_no_tensor_is_named() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("no such thing")

    class Word(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, str]:
            return x, "word"

    with pytest.raises(ExportError, match=r"shape \(2, 4\): RuntimeError: no such thing"):
        export_onnx(Raises(), example(4))
    with pytest.raises(ExportError, match="expected the module to return tensors only, got Tensor, str"):
        export_onnx(Word(), example(4))


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


# --- several inputs and outputs, integers, attention, recurrent layers ------------------------------------------------


class Encoder(nn.Module):
    """Like BERT: two inputs by name, two outputs by name, embeddings, attention, a table read at fixed places."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(11, 16), nn.Embedding(6, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.word(ids) + self.place(torch.arange(6))
        x = self.blocks(x, src_key_padding_mask=mask == 0)
        return {"logits": self.head(x[:, 0]), "hidden": x}


class Translator(nn.Module):
    """Sequence to sequence: two inputs by position, the decoder starts from the encoder's state."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(9, 8)
        self.encoder, self.decoder = nn.GRU(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)
        self.out = nn.Linear(8, 9)

    def forward(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        _, state = self.encoder(self.word(source))
        hidden, state = self.decoder(self.word(target), state)
        return self.out(hidden), state


class Reader(nn.Module):
    """Two layers, both directions."""

    def __init__(self, kind: type[nn.RNNBase], hidden: int = 5) -> None:
        super().__init__()
        self.word = nn.Embedding(9, 8)
        self.rnn = kind(8, hidden, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * hidden, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.fc(self.rnn(self.word(ids))[0][:, -1])


def tokens(rows: int, length: int, below: int) -> Tensor:
    return torch.randint(0, below, (rows, length), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def encoder() -> tuple[nn.Module, bytes]:
    torch.manual_seed(0)
    module = Encoder().eval()
    # Not in the order in which the module declares them.
    return module, export_onnx(module, {"mask": torch.ones(1, 6, dtype=torch.long), "ids": tokens(1, 6, 11)}).model


def sizes(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def test_inputs_by_name_and_several_outputs(encoder: tuple[nn.Module, bytes]) -> None:
    module, model = encoder
    graph = onnx.load_model_from_string(model).graph
    assert [(v.name, sizes(v)) for v in graph.input] == [("mask", ["batch", 6]), ("ids", ["batch", 6])]
    assert [(v.name, sizes(v)) for v in graph.output] == [("output_0", ["batch", 3]), ("output_1", ["batch", 6, 16])]
    assert {v.type.tensor_type.elem_type for v in graph.input} == {onnx.TensorProto.INT64}
    ids, mask = tokens(5, 6, 11), torch.ones(5, 6, dtype=torch.long)
    mask[2, 4:] = 0
    got = runtime_session(model).run(None, {"ids": ids.numpy(), "mask": mask.numpy()})
    want = module(ids, mask)
    np.testing.assert_allclose(got[0], want["logits"].detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(got[1], want["hidden"].detach().numpy(), atol=1e-5)


def test_layers_of_a_transformer_are_named_even_where_their_weights_are_equal(
    encoder: tuple[nn.Module, bytes],
) -> None:
    # Torch copies the first block into the second, so that the file stores their weights once.
    graph = onnx.load_model_from_string(encoder[1]).graph
    named = [n.name for n in graph.node if not n.name.startswith(f"{n.op_type}_")]
    block = ["self_attn.in_proj", "self_attn.out_proj", "linear1", "linear2"]
    assert named == ["word", "place", *(f"blocks.layers.{i}.{part}" for i in (0, 1) for part in block), "head"]


def test_attention_is_exported_without_computed_sizes(encoder: tuple[nn.Module, bytes]) -> None:
    count = [n.op_type for n in onnx.load_model_from_string(encoder[1]).graph.node]
    assert (count.count("LayerNormalization"), count.count("Gelu"), count.count("Softmax")) == (4, 2, 2)
    assert count.count("Concat") == 0
    assert count.count("Slice") == 0


def test_inputs_by_position() -> None:
    torch.manual_seed(0)
    module = Translator().eval()
    model = export_onnx(module, (tokens(1, 6, 9), tokens(1, 4, 9))).model
    graph = onnx.load_model_from_string(model).graph
    assert [(v.name, sizes(v)) for v in graph.input] == [("input_0", ["batch", 6]), ("input_1", ["batch", 4])]
    assert [(v.name, sizes(v)) for v in graph.output] == [("output_0", ["batch", 4, 9]), ("output_1", [1, "batch", 8])]
    assert [n.name for n in graph.node if not n.name.startswith(f"{n.op_type}_")] == [
        "word", "encoder.l0", "word@2", "decoder.l0", "out"
    ]  # fmt: skip
    source, target = tokens(7, 6, 9), tokens(7, 4, 9)
    got = runtime_session(model).run(None, {"input_0": source.numpy(), "input_1": target.numpy()})
    for mine, theirs in zip(got, module(source, target), strict=True):
        np.testing.assert_allclose(mine, theirs.detach().numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_are_one_node_per_layer_and_nothing_else(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    module = Reader(kind).eval()
    model = export_onnx(module, tokens(1, 6, 9)).model
    graph = onnx.load_model_from_string(model).graph
    count = [n.op_type for n in graph.node]
    assert [n.name for n in graph.node if n.op_type == kind.__name__] == ["rnn.l0", "rnn.l1"]
    # The initial state of zeros and the sizes of the reshapes are not computed at run time.
    assert not {"Shape", "Expand", "Slice", "Concat"} & set(count)
    ids = tokens(4, 6, 9)
    got = runtime_session(model).run(None, {"input": ids.numpy()})[0]
    np.testing.assert_allclose(got, module(ids).detach().numpy(), atol=1e-5)


@pytest.mark.slow
def test_matrices_of_a_large_recurrent_layer_are_constants() -> None:
    # Beyond the sizes up to which torch's exporter folds constants by itself.
    torch.manual_seed(0)
    graph = onnx.load_model_from_string(export_onnx(Reader(nn.LSTM, hidden=80), tokens(1, 3, 9)).model).graph
    constants = {t.name for t in graph.initializer}
    nodes = [n for n in graph.node if n.op_type == "LSTM"]
    assert all({n.input[1], n.input[2], n.input[3]} <= constants for n in nodes)
    assert {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.weight_ih_l1", "rnn.weight_hh_l1"} <= constants


@pytest.mark.parametrize("mask", ["causal", "boolean", "float", "none"])
def test_attention_with_every_kind_of_mask(mask: str) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            q = x.unflatten(-1, (2, 4)).transpose(1, 2)
            lower = torch.ones(5, 5, dtype=torch.bool).tril()
            given = {"boolean": lower, "float": torch.where(lower, 0.0, -1.5)}.get(mask)
            y = functional.scaled_dot_product_attention(q, q * 2, q + 1, attn_mask=given, is_causal=mask == "causal")
            return y.transpose(1, 2).flatten(2)

    module, inputs = Attention(), torch.randn(3, 5, 8)
    got = runtime_session(export_onnx(module, inputs).model).run(None, {"input": inputs.numpy()})[0]
    np.testing.assert_allclose(got, module(inputs).numpy(), atol=1e-5)


def test_an_input_that_is_not_read_or_returned_as_it_is_keeps_its_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor, unread: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x), kept

    x, kept = torch.randn(2, 4), torch.randn(2, 3)
    session = runtime_session(export_onnx(Odd(), {"x": x, "unread": x, "kept": kept}).model)
    assert [value.name for value in session.get_inputs()] == ["x", "unread", "kept"]
    got = session.run(None, {"x": x.numpy(), "unread": x.numpy(), "kept": kept.numpy()})[1]
    np.testing.assert_array_equal(got, kept.numpy())


def test_second_output_with_a_frozen_batch_is_refused() -> None:
    class Freezes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.fc(x), torch.ones(3, 2)

    with pytest.raises(ExportError, match=r"expected a free batch axis, got output_1 of shape \[3, 2\]"):
        export_onnx(Freezes().eval(), example(4))


def test_token_ids_are_never_scaled() -> None:
    class Strict(nn.Module):
        """Fails on ids that the example does not have."""

        def __init__(self) -> None:
            super().__init__()
            self.word = nn.Embedding(100, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.word(ids - 95).mean(1)

    assert export_onnx(Strict(), torch.tensor([[95, 97, 99]])).agreement < 1e-6
