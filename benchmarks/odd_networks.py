"""Networks that are no reference: torch's own encoder, and modules in which something is odd."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


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


class ConvNextBlock(nn.Module):
    """Channels last: a LayerNorm over them, two linear layers, and a scale for each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, stride=2)
        self.depthwise = nn.Conv2d(16, 16, 7, padding=3, groups=16)
        self.norm = nn.LayerNorm(16)
        self.wide = nn.Linear(16, 64)
        self.back = nn.Linear(64, 16)
        self.scale = nn.Parameter(torch.full((16,), 0.1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, 3, h, w) to (n, 5)."""
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.back(functional.gelu(self.wide(y)))
        logits: Tensor = self.head((x + y.permute(0, 3, 1, 2)).mean((2, 3)))
        return logits


class GatedDecoder(nn.Module):
    """A causal layer as in today's language models: chunked QKV, rotary positions, root mean squares, a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 3, 8
        self.embedding = nn.Embedding(50, 24)
        self.qkv = nn.Linear(24, 72, bias=False)
        self.out = nn.Linear(24, 24, bias=False)
        self.gain = nn.Parameter(torch.ones(24))
        self.up = nn.Linear(24, 40, bias=False)
        self.gate = nn.Linear(24, 40, bias=False)
        self.down = nn.Linear(40, 24, bias=False)
        self.head = nn.Linear(24, 50, bias=False)
        angles = torch.outer(torch.arange(6.0), 10.0 ** -(torch.arange(4) / 4)).repeat(1, 2)
        self.register_buffer("cosines", angles.cos())
        self.register_buffer("sines", angles.sin())

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape (n, 6) to (n, 6, 50)."""
        x = self.embedding(tokens)
        n, t, _ = x.shape
        q, k, v = (
            part.view(n, t, self.heads, self.head_dim).transpose(1, 2) for part in self.qkv(self._norm(x)).chunk(3, -1)
        )
        y = functional.scaled_dot_product_attention(self._turn(q), self._turn(k), v, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(n, t, -1))
        z = self._norm(x)
        logits: Tensor = self.head(x + self.down(functional.silu(self.gate(z)) * self.up(z)))
        return logits

    def _norm(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.gain

    def _turn(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, -1)
        turned: Tensor = x * self.cosines + torch.cat((-right, left), -1) * self.sines
        return turned


class CellByCell(nn.Module):
    """A loop over a cell, from a state of zeros whose size is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 12)
        self.cell = nn.LSTMCell(12, 20)
        self.hidden = nn.Linear(20, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape (n, t) to (n, 5)."""
        x = self.embedding(tokens)
        h = c = torch.zeros(tokens.shape[0], 20)
        for i in range(tokens.shape[1]):
            h, c = self.cell(x[:, i], (h, c))
        logits: Tensor = self.head(self.hidden(h).relu())
        return logits


#: The modules by the names of their classes.
MODULES = {
    module.__name__: module
    for module in (
        TorchEncoder,
        SharedWeight,
        TiedLanguageModel,
        ReusedModule,
        FunctionalLayers,
        HardCodedReshape,
        DictInTupleOut,
        OneDimensional,
        NormedWeight,
        ConvNextBlock,
        GatedDecoder,
        CellByCell,
    )
}
