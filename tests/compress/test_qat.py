from __future__ import annotations

import copy
import math

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from autocompress.compress.artifact import describe
from autocompress.compress.export import export_onnx, runtime_session
from autocompress.compress.fake_quantize import Blocks, Step, input_step, weight_step
from autocompress.compress.fold import fold_batch_norm
from autocompress.compress.grids import Grid, from_integers
from autocompress.compress.masks import FixedMasks, Masks
from autocompress.compress.qat import train_quantized
from autocompress.compress.quantize import quantize
from autocompress.compress.train import Trainer
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.records import LayerBits, NoDistillation, Quantizer
from autocompress.task import Recipe, Task

LAYERS = ("a", "b", "c", "fc")


class Chain(nn.Module):
    """Every quantized layer reads what a ReLU or the input gives, so that nothing is rounded but what torch rounds."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.c = nn.Conv2d(8, 12, 3, stride=2)
        self.fc = nn.Linear(12 * 9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.a(x)))
        x = functional.relu(self.c(functional.relu(self.b(x))))
        return self.fc(x.flatten(1))


GENERATOR = torch.Generator().manual_seed(0)
INPUTS = torch.randn(64, 3, 8, 8, generator=GENERATOR)
TARGETS = torch.randint(0, 5, (64,), generator=GENERATOR)


def trainer(
    module: nn.Module, inputs: Tensor, targets: Tensor, *, epochs: float = 1.0, optimizer: str = "sgd"
) -> Trainer:
    data = TensorDataset(inputs, targets)
    task = Task(
        name="small", model=lambda: copy.deepcopy(module), train=data, validation=data, selection=data, test=data,
        recipe=Recipe(batch_size=16, optimizer=optimizer), recovery_learning_rate=0.02 if optimizer == "sgd" else 1e-3,
    )  # fmt: skip
    return Trainer(task=task, teacher=module, distillation=NoDistillation(), epochs=epochs, seed=0)


def request(bits: int, layers: tuple[str, ...] = LAYERS) -> list[LayerBits]:
    return [LayerBits(layer=name, bits=bits) for name in layers]  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def chain() -> nn.Module:
    torch.manual_seed(0)
    return fold_batch_norm(Chain().eval(), INPUTS[:2])


def constants(model: bytes) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in onnx.load_model_from_string(model).graph.initializer}


def rounded(x: Tensor, grid: Grid) -> Tensor:
    """ONNX's QuantizeLinear and DequantizeLinear, by hand."""
    scale = torch.tensor(grid.input_scale)
    return ((x / scale).round() + grid.input_zero_point).clamp(0, 255).sub(grid.input_zero_point) * scale


@pytest.mark.parametrize("bits", [8, 7, 6, 5, 4, 3, 2])
def test_trained_grid_is_the_exported_one_bit_by_bit(chain: nn.Module, bits: int) -> None:
    quantizer = Quantizer(training="aware", ranges="learnt" if bits % 2 == 0 else "calibrated")
    module, grids = train_quantized(
        chain, request(bits), quantizer, trainer(chain, INPUTS, TARGETS), calibration=INPUTS, share=1.0, seed=0
    )
    assert set(grids) == set(LAYERS)
    # A plain module: the same parameters, nothing of the training.
    assert {name: type(part) for name, part in module.named_modules()} == {
        name: type(part) for name, part in chain.named_modules()
    }
    assert module.state_dict().keys() == chain.state_dict().keys()
    exported = export_onnx(module, INPUTS[:1]).model
    written = quantize(exported, request(bits), quantizer, INPUTS, grids)
    stored = constants(written)
    limit = 2 ** (bits - 1) - 1
    for name, grid in grids.items():
        weight = module.get_submodule(name).weight.detach().numpy()
        integers = stored[f"{name}.weight_quantized"]
        assert np.abs(integers).max() == limit
        np.testing.assert_array_equal(integers, grid.integers(weight))
        np.testing.assert_array_equal(stored[f"{name}.weight_scale"], grid.weight_scale)
        np.testing.assert_array_equal(from_integers(integers, grid.weight_scale), weight)
    # Ranges of activations are those of training: the tensors' scales in the file are the grids', in float32.
    scales = {
        stored[n.input[1]].item()
        for n in onnx.load_model_from_string(written).graph.node
        if n.op_type == "QuantizeLinear"
    }
    assert scales == {float(grid.input_scale) for grid in grids.values()}
    for layer in describe(written).layers:
        assert (layer.bits, layer.stored_bits, layer.compute) == (bits, 8, "integer")

    compare_layer_by_layer(module, grids, written)


def compare_layer_by_layer(module: nn.Module, grids: dict[str, Grid], written: bytes) -> None:
    """Each layer on the runtime's own inputs, so that differences do not add up.

    Integer kernels add integers and multiply the sums by a ratio of scales in float32, where torch adds floats: a value
    beside a half may round to the neighbouring step, and never further.
    """
    proto = onnx.load_model_from_string(written)
    reads = {node.name: node.input[0] for node in proto.graph.node if node.name in LAYERS}
    proto.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in reads.values()
    )
    names = ["output", *(reads[layer] for layer in LAYERS)]
    output, *inputs = runtime_session(proto.SerializeToString()).run(names, {"input": INPUTS.numpy()})
    np.testing.assert_array_equal(inputs[0], rounded(INPUTS, grids["a"]).numpy())
    with torch.no_grad():
        for layer, following, x, got in zip(LAYERS, LAYERS[1:], inputs, inputs[1:], strict=False):
            result = rounded(functional.relu(module.get_submodule(layer)(torch.tensor(x))), grids[following])
            steps = np.abs(got - result.reshape(got.shape).numpy()) / float(grids[following].input_scale)
            assert steps.max() <= 1.01
            assert np.mean(steps > 0.5) < 0.01
        want = module.fc(torch.tensor(inputs[-1])).numpy()
    # The last layer returns floats.
    np.testing.assert_allclose(output, want, atol=1e-5)


def test_learnt_steps_move_and_calibrated_ones_stay(chain: nn.Module) -> None:
    def scales(ranges: str, epochs: float, optimizer: str = "sgd") -> dict[str, Grid]:
        return train_quantized(
            chain, request(4), Quantizer(training="aware", ranges=ranges),  # type: ignore[arg-type]
            trainer(chain, INPUTS, TARGETS, epochs=epochs, optimizer=optimizer),
            calibration=INPUTS, share=1.0, seed=0,
        )[1]  # fmt: skip

    start, kept = scales("learnt", 0.0), scales("calibrated", 2.0)
    for optimizer in ("sgd", "adamw"):
        moved = scales("learnt", 2.0, optimizer)
        for name in LAYERS:
            np.testing.assert_array_equal(kept[name].weight_scale, start[name].weight_scale)
            assert kept[name].input_scale == start[name].input_scale
            assert np.all(moved[name].weight_scale != start[name].weight_scale)
            assert moved[name].input_scale != start[name].input_scale
            # By per cents, not by orders of magnitude, whatever the optimizer.
            np.testing.assert_allclose(moved[name].weight_scale, start[name].weight_scale, rtol=0.25)
            assert moved[name].input_zero_point == start[name].input_zero_point


def test_nothing_outside_is_changed_and_the_same_call_gives_the_same(chain: nn.Module) -> None:
    before, state = copy.deepcopy(chain.state_dict()), torch.random.get_rng_state()
    results = [
        train_quantized(
            chain, request(4), Quantizer(training="aware"), trainer(chain, INPUTS, TARGETS),
            calibration=INPUTS, share=1.0, seed=seed,
        )[0].state_dict()
        for seed in (0, 0, 1)
    ]  # fmt: skip
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(before[name], value) for name, value in chain.state_dict().items())
    assert type(chain.a) is nn.Conv2d
    assert all(torch.equal(results[0][name], value) for name, value in results[1].items())
    assert not torch.equal(results[0]["a.weight"], results[2]["a.weight"])


def test_masked_weights_stay_zero(chain: nn.Module) -> None:
    masks = Masks({name: chain.get_submodule(name).weight.abs() > 0.05 for name in ("c", "fc")})
    module, grids = train_quantized(
        chain, request(3), Quantizer(training="aware"), trainer(chain, INPUTS, TARGETS, epochs=2.0),
        calibration=INPUTS, share=1.0, seed=0, hooks=[FixedMasks(masks)],
    )  # fmt: skip
    written = quantize(export_onnx(module, INPUTS[:1]).model, request(3), Quantizer(), INPUTS, grids)
    reports = {layer.name: layer for layer in describe(written).layers}
    for name, kept in masks.kept.items():
        assert not module.get_submodule(name).weight[~kept].any()
        assert reports[name].zeros >= int((~kept).sum()) > 0


class Branches(nn.Module):
    """Two layers read one tensor; one layer runs twice; one embedding; both directions of a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(9, 8)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)
        self.again = nn.Linear(8, 8)
        self.rnn = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = functional.relu(self.word(ids))
        x = functional.relu(self.left(x)) * torch.sigmoid(self.right(x))
        x = self.again(self.again(x).relu())
        return self.fc(self.rnn(x)[0].mean(1))


@pytest.fixture(scope="module")
def branches() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 9, (48, 5), generator=generator)
    return Branches().eval(), ids, torch.randint(0, 3, (48,), generator=generator)


def test_layers_share_the_grid_of_what_they_read_and_recurrent_matrices_are_trained(
    branches: tuple[nn.Module, Tensor, Tensor],
) -> None:
    dense, ids, targets = branches
    bits = [
        *request(4, ("again", "left", "right", "rnn.weight_hh_l0", "rnn.weight_ih_l0_reverse", "word")),
        LayerBits(layer="fc", bits=4, weights_only=True),
    ]
    module, grids = train_quantized(
        dense, bits, Quantizer(training="aware"), trainer(dense, ids, targets, epochs=2.0),
        calibration=ids, share=1.0, seed=0,
    )  # fmt: skip
    assert set(grids) == {entry.layer for entry in bits} - {"fc"}
    assert grids["left"].input_scale == grids["right"].input_scale != grids["again"].input_scale
    assert grids["word"].input_scale is None
    exported = export_onnx(module, ids[:1]).model
    written = quantize(exported, bits, Quantizer(), ids, grids)
    stored = constants(written)
    for name in ("again", "left", "right", "word"):
        weight = module.get_submodule(name).weight.detach().numpy().T
        values = stored[f"{name}.weight_quantized"]
        np.testing.assert_array_equal(values * stored[f"{name}.weight_scale"], weight.T if name == "word" else weight)
    for name in ("rnn.weight_hh_l0", "rnn.weight_ih_l0_reverse"):
        assert len(np.unique(stored[f"{name}_quantized"])) <= 15
    # All weights lie on the grids already, gates in ONNX's order included: what the file rounds is activations only.
    stored_only = [entry for entry in bits if "rnn" in entry.layer or entry.layer == "word"]
    weights = quantize(exported, stored_only, Quantizer(), ids, grids)
    got, want = (runtime_session(m).run(None, {"input": ids.numpy()})[0] for m in (weights, exported))
    np.testing.assert_allclose(got, want, atol=1e-5)
    # The packed product's kernel rounds its input to 8 bits by itself.
    packed = quantize(exported, [entry for entry in bits if entry.layer == "fc"], Quantizer(), ids)
    got = runtime_session(packed).run(None, {"input": ids.numpy()})[0]
    np.testing.assert_allclose(got, want, atol=0.03 * float(np.abs(want).max()))


def test_impossible_requests_are_named(chain: nn.Module, branches: tuple[nn.Module, Tensor, Tensor]) -> None:
    def ask(entry: LayerBits, calibration: Tensor = INPUTS) -> None:
        train_quantized(
            chain, [entry], Quantizer(training="aware"), trainer(chain, INPUTS, TARGETS),
            calibration=calibration, share=1.0, seed=0,
        )  # fmt: skip

    with pytest.raises(InfeasibleError, match=r"plan.bits: expected a layer of the network, got 'nope'"):
        ask(LayerBits(layer="nope", bits=4))
    with pytest.raises(InfeasibleError, match=r"'a': expected a linear layer .* for weights_only, got Conv2d"):
        ask(LayerBits(layer="a", bits=4, weights_only=True))
    with pytest.raises(InfeasibleError, match=r"'norm': expected a convolution, linear layer, .* got Identity"):
        ask(LayerBits(layer="norm", bits=4))
    with pytest.raises(CompressionError, match="at least one calibration input"):
        ask(LayerBits(layer="a", bits=4), INPUTS[:0])


# --- the rounding itself ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "value", "want", "slope"), [
    # s = 0.5. Inside: q·s, dw = 1, ds = q - w/s. Beyond the end, ±(2^(b-1) - 1): dw = 0, ds = ±(2^(b-1) - 1).
    (3, 0.6, 0.5, 1 - 1.2),
    (3, 0.25, 0.0, 0 - 0.5),  # a half is rounded to even
    (3, 0.75, 1.0, 2 - 1.5),
    (3, 9.0, 1.5, 3.0),
    (2, -9.0, -0.5, -1.0),
    (8, -9.0, -9.0, 0.0),
])  # fmt: skip
@pytest.mark.parametrize("normalizes", [True, False])
def test_gradients_are_those_of_learned_step_sizes(
    bits: int, value: float, want: float, slope: float, normalizes: bool
) -> None:
    step = weight_step(np.full(2, 0.5, dtype=np.float32), bits, 0, learnt=True, normalizes=normalizes)
    weight = torch.tensor([[value, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    result = step(weight)
    assert result[0, 0].item() == want
    (0.01 * result[0, 0]).backward()
    inside = abs(value) < (2 ** (bits - 1) - 0.5) * 0.5
    assert weight.grad[0, 0].item() == pytest.approx(0.01 if inside else 0.0)
    scaled = 0.01 * slope / math.sqrt(3 * (2 ** (bits - 1) - 1))
    assert step.log_ratio.grad[0].item() == pytest.approx(scaled * 0.5 if normalizes else scaled / 0.5, abs=1e-8)
    assert step.log_ratio.grad[1].item() == 0.0


def test_inputs_are_rounded_like_onnx_rounds_them() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n"])],
        [
            numpy_helper.from_array(np.array(0.0313, dtype=np.float32), "s"),
            numpy_helper.from_array(np.array(97, dtype=np.uint8), "z"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    want = runtime_session(model.SerializeToString()).run(None, {"x": x.numpy()})[0]
    got = input_step(0.0313, 97, learnt=False, normalizes=False)(x)
    np.testing.assert_array_equal(got.numpy(), want)


@pytest.mark.parametrize("bits", [8, 4])
def test_blocks_are_rounded_once_and_for_all(bits: int) -> None:
    weight = torch.randn(5, 50, generator=torch.Generator().manual_seed(0), requires_grad=True)
    rule = Blocks(bits)
    once = rule(weight)
    once.sum().backward()
    assert torch.equal(weight.grad, torch.ones_like(weight))
    torch.testing.assert_close(rule(once.detach()), once.detach(), atol=1e-6, rtol=0)
    assert max(len(row.unique()) for row in once.detach()[:, :32]) <= 2**bits


def test_steps_stay_positive() -> None:
    step = Step(torch.tensor(0.1), low=0, high=255, zero=0, axis=None, learnt=True, normalizes=False)
    assert step.log_ratio is not None
    with torch.no_grad():
        step.log_ratio.fill_(-5.0)
    assert 0.0 < step.scale().item() < 0.1
