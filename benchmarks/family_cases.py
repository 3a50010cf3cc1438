"""The networks of `families.py`: every family at a size that two cores check in seconds, and modules that are odd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from autocompress.inputs import Inputs
from autocompress.models.bert import bert
from autocompress.models.dense import densenet
from autocompress.models.imagenet_resnet import resnet_imagenet
from autocompress.models.lenet import lenet5, lenet_300_100
from autocompress.models.mobile import efficientnet, mobilenet_v2, mobilenet_v3
from autocompress.models.recurrent import language_model, text_classifier
from autocompress.models.resnet import resnet_cifar
from autocompress.models.seq2seq import seq2seq
from autocompress.models.shuffle import shufflenet_v2
from autocompress.models.squeeze import squeezenet
from autocompress.models.unet import unet
from autocompress.models.vgg import vgg
from autocompress.models.vit import vit
from autocompress.references import load_object


@dataclass(frozen=True)
class Case:
    """A network, an input for it, and what is to be found.

    Attributes:
        name: of the family.
        size: what was made smaller, or what is odd.
        build: makes the network.
        example: one batch of two.
        channels, heads, hidden: groups of each kind that must be found, counted by hand from the architecture.
    """

    name: str
    size: str
    build: Callable[[], nn.Module]
    example: Callable[[], Inputs]
    channels: int
    heads: int = 0
    hidden: int = 0


def _image(side: int, channels: int = 3) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


def _tokens(vocabulary: int, length: int) -> Tensor:
    return torch.randint(1, vocabulary, (2, length), generator=torch.Generator().manual_seed(0))


def _text() -> Inputs:
    mask = torch.ones(2, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    return {"input_ids": _tokens(500, 12), "attention_mask": mask}


def _pair() -> Inputs:
    return _tokens(60, 9), _tokens(50, 7)


#: By path, so that this file also works where its folder is no place to import from.
_ODD = load_object(f"{Path(__file__).resolve().with_name('odd_networks.py')}:MODULES")


def _frozen() -> nn.Module:
    return resnet_cifar(8, (8, 16, 32), shortcut="projection").requires_grad_(False)


TRANSFORMER = {"width": 48, "depth": 3, "heads": 4, "classes": 5}
BERT = {"vocabulary": 500, "length": 16, **TRANSFORMER}

FAMILIES = (
    # A convolution inside each of nine blocks, and the first stage: what a shortcut pads has its size in the forward
    # pass.
    Case("CIFAR ResNet-20, padded shortcut", "full size", lambda: resnet_cifar(20), _image(32), 10),
    # A convolution inside each of nine blocks, and three stages.
    Case(
        "CIFAR ResNet-20, projection",
        "widths 32-64-128",
        lambda: resnet_cifar(20, (32, 64, 128), shortcut="projection"),
        _image(32),
        12,
    ),
    # A convolution inside each of eight blocks, and four stages; the stem belongs to the first.
    Case("ImageNet ResNet-18", "width ½, 64 × 64 images", lambda: resnet_imagenet(18, 32), _image(64), 12),
    # Two inside each of sixteen blocks, the stem, and four stages.
    Case("ImageNet ResNet-50", "width ½, 64 × 64 images", lambda: resnet_imagenet(50, 32), _image(64), 37),
    # Two inside each of eight blocks, the stem, and four stages; whole groups of the normalization are the units.
    Case(
        "ResNet-26 with GroupNorm",
        "width ½, 8 groups, 64 × 64 images",
        lambda: resnet_imagenet(26, 32, norm="group", norm_groups=8),
        _image(64),
        21,
    ),
    # Thirteen convolutions, two hidden linear layers.
    Case(
        "VGG-16 with flatten",
        "width ¼, hidden 512, 64 × 64 images",
        lambda: vgg(16, 16, image=64, hidden=512, norm="batch"),
        _image(64),
        15,
    ),
    Case("LeNet-300-100", "full size", lenet_300_100, _image(28, 1), 2),
    Case("LeNet-5", "full size", lenet5, _image(28, 1), 3),
    # Sixteen expansions, the stem with the first block's filter, seven widths, the last convolution.
    Case("MobileNetV2", "width ½, 64 × 64 images", lambda: mobilenet_v2(0.5), _image(64), 25),
    # Fourteen expansions, eight squeezed widths, six widths with the stem's, the last convolution, the hidden layer.
    Case("MobileNetV3-Large", "width ½, 64 × 64 images", lambda: mobilenet_v3("large", 0.5), _image(64), 30),
    # Ten expansions, nine squeezed widths, the stem, four widths (half of 40 and of 48 are one), and the same last
    # two.
    Case("MobileNetV3-Small", "width ½, 64 × 64 images", lambda: mobilenet_v3("small", 0.5), _image(64), 26),
    # Fifteen expansions, sixteen squeezed widths, the stem, seven widths, the last convolution.
    Case("EfficientNet-B0", "width ½, 64 × 64 images", lambda: efficientnet(0.5), _image(64), 40),
    # A width inside each of sixteen blocks, the stem, the last convolution, and the first and third stage: shuffling
    # eight times ties all channels of the second.
    Case("ShuffleNetV2", "width ½, 64 × 64 images", lambda: shufflenet_v2(0.5), _image(64), 20),
    # The first convolution, and three of each fire module.
    Case("SqueezeNet 1.1", "64 × 64 images", squeezenet, _image(64), 25),
    # Two of each of ten layers, the stem, two transitions.
    Case(
        "DenseNet",
        "blocks 3-4-3, growth 16, 64 × 64 images",
        lambda: densenet((3, 4, 3), 16, 32),
        _image(64),
        23,
    ),
    # Ten convolutions down, four transposed ones, eight beside the maps of the encoder.
    Case("U-Net", "width 16, 32 × 32 images", lambda: unet(16), _image(32), 22),
    # Each layer's feed-forward part, and the features of the tokens.
    Case(
        "ViT, separate Q, K, V",
        "width 48, 3 layers, 32 × 32 images",
        lambda: vit(32, 8, **TRANSFORMER),
        _image(32),
        4,
        heads=3,
    ),
    Case(
        "ViT, fused QKV",
        "width 48, 3 layers, 32 × 32 images",
        lambda: vit(32, 8, **TRANSFORMER, qkv="fused"),
        _image(32),
        4,
        heads=3,
    ),
    # The same, and the pooler.
    Case("BERT-like, separate Q, K, V", "width 48, 3 layers; dict of inputs", lambda: bert(**BERT), _text, 5, heads=3),
    Case(
        "BERT-like, fused QKV",
        "width 48, 3 layers, mean pooling; dict of inputs",
        lambda: bert(**BERT, qkv="fused", pooling="mean"),
        _text,
        4,
        heads=3,
    ),
    Case(
        "nn.TransformerEncoder",
        "width 48, 2 layers",
        lambda: _ODD["TorchEncoder"](False),
        lambda: _tokens(500, 12),
        3,
        heads=2,
    ),
    Case(
        "nn.TransformerEncoder, norm first",
        "width 48, 2 layers",
        lambda: _ODD["TorchEncoder"](True),
        lambda: _tokens(500, 12),
        3,
        heads=2,
    ),
    # The features of a token; layers of one recurrent module have one size.
    Case(
        "Stacked LSTM",
        "3 layers of 64",
        lambda: text_classifier(200, 5, 32, 64, 3),
        lambda: _tokens(200, 9),
        1,
        hidden=1,
    ),
    Case(
        "Stacked GRU",
        "3 layers of 64",
        lambda: text_classifier(200, 5, 32, 64, 3, "gru"),
        lambda: _tokens(200, 9),
        1,
        hidden=1,
    ),
    Case(
        "LSTM in both directions",
        "2 layers of 64",
        lambda: text_classifier(200, 5, 32, 64, 2, both_ways=True),
        lambda: _tokens(200, 9),
        1,
        hidden=1,
    ),
    Case(
        "Character LSTM",
        "2 layers of 64; output at every position",
        lambda: language_model(50, 24, 64),
        lambda: _tokens(50, 9),
        1,
        hidden=1,
    ),
    # Features of the source's and of the target's tokens; the decoder starts from the encoder's state.
    Case("Seq2seq, GRU", "2 layers of 48; tuple of inputs", lambda: seq2seq(60, 50, 24, 48, 2), _pair, 2, hidden=1),
    Case(
        "Seq2seq, LSTM",
        "1 layer of 48; tuple of inputs",
        lambda: seq2seq(60, 50, 24, 48, 1, "lstm"),
        _pair,
        2,
        hidden=1,
    ),
)

ODD = (
    Case("Everything frozen", "CIFAR ResNet-8", _frozen, _image(16), 6),
    Case("Shared weight", "two convolutions with one weight", _ODD["SharedWeight"], _image(8), 2),
    Case("Tied embedding", "its table is the output's weight", _ODD["TiedLanguageModel"], lambda: _tokens(60, 6), 2),
    Case("Reused module", "one convolution that runs three times", _ODD["ReusedModule"], _image(8), 2),
    Case("Functional layers", "plain parameters in torch's functions", _ODD["FunctionalLayers"], _image(8), 3),
    Case("Hard-coded reshape", "a view that names the channels", _ODD["HardCodedReshape"], _image(8), 2),
    Case(
        "Dict in, tuple out",
        "image and words; classes and boxes",
        _ODD["DictInTupleOut"],
        lambda: {"image": _image(8)(), "words": _tokens(30, 4)},
        3,
    ),
    Case(
        "One-dimensional",
        "gated, grouped and transposed convolutions",
        _ODD["OneDimensional"],
        lambda: torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0)),
        2,
    ),
    Case("ConvNeXt-like", "channels last, scaled", _ODD["ConvNextBlock"], _image(8), 2),
    Case("Llama-like", "chunked QKV, rotary, gated", _ODD["GatedDecoder"], lambda: _tokens(50, 6), 2, heads=1),
    Case("LSTM cell in a loop", "zero state of a fixed size", _ODD["CellByCell"], lambda: _tokens(50, 6), 2),
    Case(
        "Parametrized weight",
        "weight norm, and a layer that never runs",
        _ODD["NormedWeight"],
        lambda: torch.randn(2, 10, generator=torch.Generator().manual_seed(0)),
        1,
    ),
)

CASES = FAMILIES + ODD
