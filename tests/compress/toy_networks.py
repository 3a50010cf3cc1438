"""Tiny networks of every form that a tracer may stumble over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
SEQUENCE = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(0))
TOKENS = torch.tensor([[1, 2, 3, 4, 5], [5, 4, 3, 2, 1]])


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


class Fn(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Tensor:
        return self.function(*args)


class Net(nn.Module):
    """A convolution, what a test puts between, and a classifier."""

    def __init__(self, between: nn.Module, features: int, channels: int = 8) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.between = between
        self.head = nn.Linear(features, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.between(functional.relu(self.conv(x))))
        return out


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(channels, inner, 1)
        self.expand = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class Attention(nn.Module):
    """Heads by a hard-coded count, and as many features in a head as there are heads."""

    def __init__(self, width: int, heads: int, inner: int, *, fused: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.head_size = inner // heads
        self.all_head_size = inner
        self.fused = fused
        if fused:
            self.qkv = nn.Linear(width, 3 * inner)
        else:
            self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, _ = x.shape
        parts = self.qkv(x).chunk(3, dim=-1) if self.fused else (self.q(x), self.k(x), self.v(x))
        q, k, v = (part.view(n, t, self.num_heads, self.head_size).transpose(1, 2) for part in parts)
        weights = (q @ k.transpose(-2, -1) / self.head_size**0.5).softmax(-1)
        mixed: Tensor = self.out((weights @ v).transpose(1, 2).reshape(n, t, self.all_head_size))
        return mixed


class Residual(nn.Module):
    def __init__(self, inner: nn.Module, norm: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = norm or nn.Identity()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(self.norm(x))
        return out


class Recurrent(nn.Module):
    """Embedding, a recurrent module with a state that is made from a fixed size, and a classifier."""

    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.size = 6
        self.words = nn.Embedding(11, 5)
        self.rnn = kind(5, 6, batch_first=True, **options)  # type: ignore[arg-type]
        self.head = nn.Linear(self.size * (2 if self.rnn.bidirectional else 1), 3)

    def forward(self, x: Tensor) -> Tensor:
        layers = self.rnn.num_layers * (2 if self.rnn.bidirectional else 1)
        state = torch.zeros(layers, len(x), self.size)
        out, _ = self.rnn(self.words(x), (state, state) if isinstance(self.rnn, nn.LSTM) else state)
        scores: Tensor = self.head(out[:, -1])
        return scores


class Cells(nn.Module):
    """A recurrent cell, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        scores: Tensor = self.head(h)
        return scores


class Tied(nn.Module):
    """The embedding is the output projection as well."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.inner = nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(self.inner(self.words(x)).tanh())
        return scores


class TwoWays(nn.Module):
    """Two inputs by name, and a tuple and a dict among its outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(6, 8)
        self.first = nn.Linear(8, 3)
        self.second = nn.Linear(8, 2)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        x = self.left(a).relu() * self.right(b).sigmoid()
        return self.first(x), {"other": self.second(x)}


class Functional(nn.Module):
    """Layers called as functions of bare parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 3, 3, 3) * 0.2)
        self.shift = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(pooled(functional.conv2d(x, self.kernel, self.shift).relu()))
        return out


class Dense(nn.Module):
    """Concatenations of everything that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.b = nn.Sequential(nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 6, 3, padding=1))
        self.c = nn.Sequential(nn.BatchNorm2d(13), nn.ReLU(), nn.Conv2d(13, 5, 3, padding=1))
        self.head = nn.Linear(18, 4)

    def forward(self, x: Tensor) -> Tensor:
        for part in (self.a, self.b, self.c):
            x = torch.cat([x, part(x)], dim=1)
        out: Tensor = self.head(pooled(x))
        return out


class Skips(nn.Module):
    """Down, up by a transposed convolution, and the skipped channels beside."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Conv2d(3, 4, 3, padding=1)
        self.deep = nn.Conv2d(4, 6, 3, padding=1)
        self.up = nn.ConvTranspose2d(6, 5, 2, stride=2)
        self.merge = nn.Conv2d(9, 7, 3, padding=1)
        self.head = nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.top(x).relu()
        up = self.up(self.deep(functional.max_pool2d(top, 2)).relu())
        out: Tensor = self.head(self.merge(torch.cat([up, top], dim=1)).relu())
        return out


def shuffled(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def swapped(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=1)
    return torch.cat([b, a * 2], dim=1)


def sliced(x: Tensor) -> Tensor:
    half = x.shape[1] // 2
    return x[:, :half] * x[:, half:].sigmoid()


def between(*parts: nn.Module | Callable[[Tensor], Tensor], features: int = 8) -> Net:
    modules = [part if isinstance(part, nn.Module) else Fn(part) for part in parts]
    return Net(nn.Sequential(*modules), features)


#: Networks whose groups can all be cut, with their inputs: nothing but the last layer is left dense.
ALL_CUT: dict[str, tuple[Callable[[], nn.Module], object]] = {
    "flatten": (lambda: between(nn.Flatten(), features=8 * 64), IMAGE),
    "depthwise": (lambda: between(nn.Conv2d(8, 16, 3, groups=8), nn.BatchNorm2d(16), pooled, features=16), IMAGE),
    "grouped": (lambda: between(nn.Conv2d(8, 12, 3, groups=4), pooled, features=12), IMAGE),
    "group norm": (lambda: between(nn.GroupNorm(4, 8), pooled), IMAGE),
    "plain norms": (lambda: between(nn.GroupNorm(4, 8, affine=False), nn.InstanceNorm2d(8), pooled), IMAGE),
    "instance norm": (lambda: between(nn.InstanceNorm2d(8, affine=True, track_running_stats=True), pooled), IMAGE),
    "gate": (lambda: between(Gate(8, 4), pooled), IMAGE),
    "shuffle": (lambda: between(shuffled, nn.Conv2d(8, 6, 1), nn.ChannelShuffle(3), pooled, features=6), IMAGE),
    "swapped halves": (lambda: between(swapped, pooled), IMAGE),
    "sliced halves": (lambda: between(sliced, pooled, features=4), IMAGE),
    "glu": (lambda: between(nn.GLU(1), nn.PReLU(4), pooled, features=4), IMAGE),
    "pixel shuffle": (lambda: between(nn.PixelShuffle(2), pooled, features=2), IMAGE),
    "flip": (lambda: between(pooled, lambda x: x.flip(1)), IMAGE),
    "detach": (lambda: between(pooled, lambda x: x.detach()), IMAGE),
    "dense": (Dense, IMAGE),
    "skips": (Skips, IMAGE),
    "residual": (lambda: between(Residual(nn.Conv2d(8, 8, 3, padding=1)), nn.BatchNorm2d(8), pooled), IMAGE),
    "resampling": (lambda: between(nn.Upsample(scale_factor=2), nn.AvgPool2d(2), nn.ReflectionPad2d(1), pooled), IMAGE),
    "einsum": (lambda: between(lambda x: torch.einsum("nchw->nc", x * 0.01).unsqueeze(2).squeeze(2)), IMAGE),
    "one dimension": (
        lambda: nn.Sequential(nn.Conv1d(5, 8, 3), nn.BatchNorm1d(8), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(16, 3)),
        SEQUENCE,
    ),
    "functional": (Functional, IMAGE),
    "lstm": (lambda: Recurrent(nn.LSTM), TOKENS),
    "bidirectional gru": (lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True), TOKENS),
    "rnn": (lambda: Recurrent(nn.RNN, bias=False), TOKENS),
    "cell": (Cells, SEQUENCE),
    "tied": (Tied, TOKENS),
    "two ways": (TwoWays, {"a": SEQUENCE, "b": SEQUENCE.flip(0)}),
    "separate heads": (
        lambda: nn.Sequential(nn.Linear(6, 12), Residual(Attention(12, 4, 16, fused=False)), nn.Linear(12, 3)),
        SEQUENCE,
    ),
    "fused heads": (
        lambda: nn.Sequential(nn.Linear(6, 12), Residual(Attention(12, 2, 8, fused=True)), nn.Linear(12, 3)),
        SEQUENCE,
    ),
    "built-in heads": (
        lambda: nn.Sequential(nn.Linear(6, 12), BuiltIn(12, 3), nn.Linear(12, 3)),
        SEQUENCE,
    ),
}


class BuiltIn(nn.Module):
    """torch's own attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        out: Tensor = x + self.attention(x, x, x, attn_mask=mask)[0]
        return out
