"""Multi-head attention with plain linear projections, and the feed-forward pair that follows it.

Heads are counted in ``heads``, which the forward pass reads: a head is cut by shrinking the projections and that count.

References:
    Vaswani et al., 2017, "Attention Is All You Need".
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

Qkv = Literal["separate", "fused"]


class SeparateAttention(nn.Module):
    """Softmax(Q Kᵀ / √d) V with one projection each for Q, K and V.

    Attributes:
        heads: how many.
        head_dim: size of each, d.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Shape (n, t, width), kept; `mask` broadcasts to (n, heads, t, t), True where attention may look."""
        n, t, _ = x.shape
        q, k, v = (
            part(x).reshape(n, t, self.heads, self.head_dim).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed: Tensor = self.out(y.transpose(1, 2).reshape(n, t, self.heads * self.head_dim))
        return mixed


class FusedAttention(nn.Module):
    """The same with one projection whose outputs are Q, K and V, one after another, each of all heads.

    Attributes:
        heads: how many.
        head_dim: size of each.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Shape (n, t, width), kept; `mask` broadcasts to (n, heads, t, t), True where attention may look."""
        n, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        mixed: Tensor = self.out(y.transpose(1, 2).reshape(n, t, self.heads * self.head_dim))
        return mixed


def attention(width: int, heads: int, qkv: Qkv) -> nn.Module:
    """`FusedAttention` or `SeparateAttention`."""
    return FusedAttention(width, heads) if qkv == "fused" else SeparateAttention(width, heads)


class FeedForward(nn.Module):
    """A linear layer to `hidden`, GELU, and a linear layer back."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (..., width), kept."""
        y: Tensor = self.fc2(functional.gelu(self.fc1(x)))
        return y
