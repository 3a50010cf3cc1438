"""The networks of `families.py`: every family at a size that two cores check in seconds, and modules that are odd."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

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


class TorchEncoder(nn.Module):
    """torch's own ``nn.TransformerEncoder``, whose attention is one module with a fused weight."""

    def __init__(self, pre_norm: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, 48)
        layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=True, norm_first=pre_norm)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape (n, t) to (n, 5)."""
        logits: Tensor = self.head(self.encoder(self.embedding(tokens)).mean(1))
        return logits


def _frozen() -> nn.Module:
    return resnet_cifar(8, (8, 16, 32), shortcut="projection").requires_grad_(False)


class SharedWeight(nn.Module):
    """Two convolutions with one weight, between two of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.one = nn.Conv2d(16, 16, 3, padding=1)
        self.other = nn.Conv2d(16, 16, 3, padding=1)
        self.other.weight = self.one.weight
        self.inner = nn.Conv2d(16, 24, 3, padding=1)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, 3, h, w) to (n, 5)."""
        x = self.other(self.one(self.first(x).relu()).relu()).relu()
        logits: Tensor = self.head(self.inner(x).relu().mean((2, 3)))
        return logits


class TiedLanguageModel(nn.Module):
    """The embedding's table is the output's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(60, 24)
        self.hidden = nn.Linear(24, 48)
        self.back = nn.Linear(48, 24)
        self.head = nn.Linear(24, 60, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape (n, t) to (n, t, 60)."""
        logits: Tensor = self.head(self.back(self.hidden(self.embedding(tokens)).relu()))
        return logits


class ReusedModule(nn.Module):
    """One convolution that runs three times, each time on its own output."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.again = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.inner = nn.Linear(16, 20)
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, 3, h, w) to (n, 5)."""
        x = self.first(x).relu()
        for _ in range(3):
            x = self.again(x)
        logits: Tensor = self.head(self.inner(x.amax((2, 3))).relu())
        return logits


class FunctionalLayers(nn.Module):
    """Weights held as plain parameters and given to torch's functions, beside layers that are modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(24, 16, 3, 3) * 0.1)
        self.bias = nn.Parameter(torch.zeros(24))
        self.hidden = nn.Linear(24, 20)
        self.weight_out = nn.Parameter(torch.randn(5, 20) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, 3, h, w) to (n, 5)."""
        x = functional.conv2d(functional.relu(self.conv(x)), self.weight, self.bias, padding=1)
        x = functional.relu(self.hidden(functional.adaptive_avg_pool2d(x, 1).flatten(1)))
        return functional.linear(x, self.weight_out)


class HardCodedReshape(nn.Module):
    """A view that names the number of channels; what lies behind it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 8, 3, padding=1)
        self.hidden = nn.Linear(8 * 8 * 8, 40)
        self.head = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, 3, 8, 8) to (n, 5)."""
        x = self.second(self.first(x).relu()).relu()
        logits: Tensor = self.head(self.hidden(x.view(-1, 8 * 8 * 8)).relu())
        return logits


class DictInTupleOut(nn.Module):
    """Two inputs by name, one of them integers; a tuple of a tensor and a dict comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.words = nn.Embedding(30, 12)
        self.joint = nn.Linear(28, 32)
        self.classes = nn.Linear(32, 5)
        self.boxes = nn.Linear(32, 4)

    def forward(self, *, image: Tensor, words: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Shapes (n, 3, h, w) and (n, t) to (n, 5), and boxes of shape (n, 4)."""
        both = torch.cat((self.image(image).mean((2, 3)), self.words(words).mean(1)), dim=1)
        joint = self.joint(both).relu()
        return self.classes(joint), {"boxes": self.boxes(joint)}


class OneDimensional(nn.Module):
    """Gated convolutions over time, with grouped and transposed ones."""

    def __init__(self) -> None:
        super().__init__()
        self.gated = nn.Conv1d(4, 32, 5, padding=2)
        self.grouped = nn.Conv1d(16, 24, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm1d(24)
        self.up = nn.ConvTranspose1d(24, 12, 4, stride=2, padding=1)
        self.head = nn.Conv1d(12, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, 4, t) to (n, 3, 2 t)."""
        x = functional.glu(self.gated(x), dim=1)
        x = functional.silu(self.norm(self.grouped(x)))
        maps: Tensor = self.head(functional.gelu(self.up(x)))
        return maps


class NormedWeight(nn.Module):
    """A parametrized layer between plain ones, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 24)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(24, 16))
        self.last = nn.Linear(16, 12)
        self.head = nn.Linear(12, 5)
        self.unused = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, 10) to (n, 5)."""
        x = self.last(self.normed(self.first(x).relu()).relu()).relu()
        logits: Tensor = self.head(x)
        return logits


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
    Case("ImageNet ResNet-18", "64 × 64 images", lambda: resnet_imagenet(18), _image(64), 12),
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
        "nn.TransformerEncoder", "width 48, 2 layers", lambda: TorchEncoder(False), lambda: _tokens(500, 12), 3, heads=2
    ),
    Case(
        "nn.TransformerEncoder, norm first",
        "width 48, 2 layers",
        lambda: TorchEncoder(True),
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
    Case("Shared weight", "two convolutions with one weight", SharedWeight, _image(8), 2),
    Case("Tied embedding", "its table is the output's weight", TiedLanguageModel, lambda: _tokens(60, 6), 2),
    Case("Reused module", "one convolution that runs three times", ReusedModule, _image(8), 2),
    Case("Functional layers", "plain parameters in torch's functions", FunctionalLayers, _image(8), 3),
    Case("Hard-coded reshape", "a view that names the channels", HardCodedReshape, _image(8), 2),
    Case(
        "Dict in, tuple out",
        "image and words; classes and boxes",
        DictInTupleOut,
        lambda: {"image": _image(8)(), "words": _tokens(30, 4)},
        3,
    ),
    Case(
        "One-dimensional",
        "gated, grouped and transposed convolutions",
        OneDimensional,
        lambda: torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(0)),
        2,
    ),
    Case(
        "Parametrized weight",
        "weight norm, and a layer that never runs",
        NormedWeight,
        lambda: torch.randn(2, 10, generator=torch.Generator().manual_seed(0)),
        1,
    ),
)

CASES = FAMILIES + ODD
