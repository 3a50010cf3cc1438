from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from autocompress.compress.export import export_onnx
from autocompress.compress.prune import cut_channels, drop_blocks
from autocompress.compress.quantize import quantize
from autocompress.compress.skeleton import learn_skeleton, size_of
from autocompress.compress.statistics import Statistics
from autocompress.compress.structure import find_structure
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.models.bert import bert
from autocompress.models.resnet import resnet_cifar
from autocompress.records import BlockDrop, ChannelCut, LayerBits, LowRank, Plan, Quantizer


def distinct(network: nn.Module) -> nn.Module:
    # Equal biases would be stored once, in a network that was just drawn only.
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def convolutional():
    torch.manual_seed(0)
    return distinct(resnet_cifar(8, widths=(16, 32, 32), shortcut="projection")), torch.randn(1, 3, 16, 16)


def transformer():
    torch.manual_seed(0)
    network = bert(vocabulary=40, width=32, depth=2, heads=4, hidden=64, length=8, classes=3)
    ids = torch.randint(1, 40, (1, 8))
    return distinct(network), {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture(scope="module", params=[convolutional, transformer])
def made(request):
    network, example = request.param()
    structure = find_structure(network, example)
    model = export_onnx(network, example).model
    skeleton = learn_skeleton(network, model, structure, Statistics({}), example, round_to=8, seed=0)
    return network, example, structure, model, skeleton


def a_plan(structure, *, drop=False, bits=None):
    gone = structure.blocks[-1].layers if drop else ()
    groups = [g for g in structure.groups if g.width > 8 or g.kind == "heads"]
    cuts = [
        ChannelCut(group=g.name, keep=max(1, g.width // 2), criterion="magnitude") for g in groups if g.name not in gone
    ]
    return Plan(
        drops=(BlockDrop(block=structure.blocks[-1].name),) if drop else (),
        cuts=tuple(sorted(cuts, key=lambda cut: cut.group)),
        bits=tuple(
            LayerBits(layer=x.name, bits=8, weights_only=bits == "weights" and x.kind == "linear")
            for i, x in enumerate(sorted(structure.layers, key=lambda x: x.name))
            if bits and x.name not in gone and (bits != "mixed" or i % 2)
        ),
    )


def really_built(network, example, structure, plan):
    module = drop_blocks(network, plan.drops, structure, example=example)
    module = cut_channels(module, plan.cuts, structure, Statistics({}), example=example, seed=0)
    return quantize(export_onnx(module, example).model, plan.bits, Quantizer(), example)


def runtime_graph(model, folder):
    """What the runtime makes of a file: operators with their attributes, shapes and types of constants."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    graph = onnx.load(folder / "optimized.onnx").graph
    constants = {tensor.name: (tensor.data_type, *tensor.dims) for tensor in graph.initializer}
    return Counter(
        (
            node.domain,
            node.op_type,
            # A scale or a number of an axis may be stored as such or with an axis of 1.
            tuple(constants[x] for x in node.input if x in constants and np.prod(constants[x][1:]) > 1),
            tuple((a.name, a.i, tuple(a.ints)) for a in sorted(node.attribute, key=lambda a: a.name)),
        )
        for node in graph.node
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cuts", "drops", "mixed", "all", "weights"])
def test_the_runtime_makes_the_same_of_it_as_of_a_real_build(made, kind, tmp_path):
    network, example, structure, _, skeleton = made
    plan = a_plan(structure, drop=kind == "drops", bits=None if kind in ("cuts", "drops") else kind)
    assert plan.cuts
    expected = runtime_graph(really_built(network, example, structure, plan), tmp_path)
    assert runtime_graph(skeleton.model(plan), tmp_path) == expected


def test_the_dense_plan_gives_the_dense_file(made):
    _, _, _, model, skeleton = made
    assert Counter(n.op_type for n in onnx.load_model_from_string(skeleton.model(Plan())).graph.node) == Counter(
        n.op_type for n in onnx.load_model_from_string(model).graph.node
    )


def test_blocks_in_a_row_may_all_be_left_out(made):
    _, _, structure, model, skeleton = made
    drops = tuple(BlockDrop(block=block.name) for block in sorted(structure.blocks, key=lambda b: b.name))
    nodes = onnx.load_model_from_string(skeleton.model(Plan(drops=drops))).graph.node
    gone = {name for block in structure.blocks for name in block.layers}
    assert not gone.intersection(node.name for node in nodes)
    assert len(nodes) < len(onnx.load_model_from_string(model).graph.node)


def test_factorized_layers_are_refused(made):
    _, _, structure, _, skeleton = made
    layer = next(x for x in structure.layers if x.kind == "linear")
    with pytest.raises(InfeasibleError, match="expected a plan without factorized layers, got '"):
        skeleton.model(Plan(ranks=(LowRank(layer=layer.name, ranks=(2,)),)))


def test_a_size_follows_one_group_or_two_or_is_refused():
    lost = [{"a": 1, "b": 5}, {"a": 4, "b": 2}, {"a": 3, "b": 3}]
    assert size_of("x", 8, [8, 8, 8], lost) == (8, ())
    assert size_of("x", 64, [62, 56, 58], lost) == (64, (("a", 2),))
    assert size_of("x", 64, [58, 58, 58], lost) == (64, (("a", 1), ("b", 1)))
    with pytest.raises(CompressionError, match=r"x: expected a size that falls with .*, got 64 and then \[63, 63, 1\]"):
        size_of("x", 64, [63, 63, 1], lost)
