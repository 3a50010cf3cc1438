"""Vision transformer.

References:
    Dosovitskiy et al., 2021, "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale".
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autocompress.models.arguments import at_least, multiple_of, one_of
from autocompress.models.attention import FeedForward, Qkv, attention
from autocompress.models.initial import truncated_normal


def vit(
    image: int = 224,
    patch: int = 16,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int | None = None,
    classes: int = 1000,
    channels: int = 3,
    qkv: Qkv = "separate",
) -> nn.Module:
    """Vision transformer with a class token; the default is ViT-B/16.

    Args:
        image: side of the input.
        patch: side of a patch; must divide `image`.
        width: features of a token; `heads` must divide it.
        depth: layers.
        heads: of each layer.
        hidden: neurons of the feed-forward part; four times `width` by default.
        classes: size of the output.
        channels: of the input.
        qkv: ``"separate"`` projections of query, key and value, or one ``"fused"``.

    Returns:
        A module from inputs of shape (n, channels, image, image) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    hidden = 4 * width if hidden is None else hidden
    at_least("vit", 1, image=image, patch=patch, width=width, depth=depth, heads=heads, hidden=hidden)
    at_least("vit", 1, classes=classes, channels=channels)
    one_of("vit", ("separate", "fused"), qkv=qkv)
    multiple_of("vit", patch, image=image)
    multiple_of("vit", heads, width=width)
    return VisionTransformer(image // patch, patch, width, depth, heads, hidden, classes, channels, qkv)


class PreNormLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, width: int, heads: int, hidden: int, qkv: Qkv) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = attention(width, heads, qkv)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, t, width), kept."""
        x = x + self.attention(self.norm1(x))
        y: Tensor = x + self.mlp(self.norm2(x))
        return y


class VisionTransformer(nn.Module):
    """``patches``, ``layers``, ``norm`` and, on the class token, ``head``."""

    def __init__(
        self,
        side: int,
        patch: int,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        classes: int,
        channels: int,
        qkv: Qkv,
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, side * side + 1, width))
        self.layers = nn.Sequential(*(PreNormLayer(width, heads, hidden, qkv) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        truncated_normal(self)

    def forward(self, x: Tensor) -> Tensor:
        """Shape (n, channels, image, image) to (n, classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        logits: Tensor = self.head(self.norm(self.layers(x))[:, 0])
        return logits
