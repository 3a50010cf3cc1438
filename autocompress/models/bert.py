"""A BERT-like encoder with a classifier.

References:
    Devlin et al., 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".
    Reimers and Gurevych, 2019, "Sentence-BERT", for pooling by the mean of all tokens.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from autocompress.models.arguments import at_least, multiple_of, one_of
from autocompress.models.attention import FeedForward, Qkv, attention
from autocompress.models.initial import truncated_normal

Pooling = Literal["cls", "mean"]


def bert(
    vocabulary: int = 30522,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    hidden: int | None = None,
    length: int = 512,
    segments: int = 2,
    classes: int = 2,
    qkv: Qkv = "separate",
    pooling: Pooling = "cls",
    dropout: float = 0.1,
) -> nn.Module:
    """Encoder for token ids, with a linear classifier on one vector per sequence; the default is BERT-base.

    Args:
        vocabulary: number of tokens.
        width: features of a token; `heads` must divide it.
        depth: layers.
        heads: of each layer.
        hidden: neurons of the feed-forward part; four times `width` by default.
        length: longest sequence.
        segments: kinds of token (``token_type_ids``).
        classes: size of the output.
        qkv: ``"separate"`` projections of query, key and value, or one ``"fused"``.
        pooling: ``"cls"``: the first token through a linear layer and tanh; ``"mean"`` of the tokens that count.
        dropout: share of features dropped while training.

    Returns:
        A module ``(input_ids, attention_mask=None, token_type_ids=None)``, each of shape (n, t) and integers, with 0
        in the mask for tokens that do not count; its outputs have shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    hidden = 4 * width if hidden is None else hidden
    at_least("bert", 1, vocabulary=vocabulary, width=width, depth=depth, heads=heads, hidden=hidden)
    at_least("bert", 1, length=length, segments=segments, classes=classes)
    at_least("bert", 0, dropout=dropout)
    one_of("bert", ("separate", "fused"), qkv=qkv)
    one_of("bert", ("cls", "mean"), pooling=pooling)
    multiple_of("bert", heads, width=width)
    embeddings = Embeddings(vocabulary, length, segments, width, dropout)
    layers = nn.ModuleList(PostNormLayer(width, heads, hidden, qkv, dropout) for _ in range(depth))
    return Bert(embeddings, layers, nn.Linear(width, width) if pooling == "cls" else None, nn.Linear(width, classes))


class Embeddings(nn.Module):
    """The normalized sum of a token's, its position's and its segment's vector."""

    def __init__(self, vocabulary: int, length: int, segments: int, width: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(length, width)
        self.segments = nn.Embedding(segments, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """Two of shape (n, t), integers, to (n, t, width)."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.tokens(tokens) + self.positions(positions) + self.segments(segments)
        y: Tensor = self.dropout(self.norm(x))
        return y


class PostNormLayer(nn.Module):
    """norm(x + attention(x)), then norm(x + feed-forward(x))."""

    def __init__(self, width: int, heads: int, hidden: int, qkv: Qkv, dropout: float) -> None:
        super().__init__()
        self.attention = attention(width, heads, qkv)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.mlp = FeedForward(width, hidden)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Shape (n, t, width), kept; `mask` of shape (n, 1, 1, t), True for tokens that count."""
        x = self.norm1(x + self.dropout(self.attention(x, mask)))
        y: Tensor = self.norm2(x + self.dropout(self.mlp(x)))
        return y


class Bert(nn.Module):
    """``embeddings``, ``layers``, ``pooler`` (of the first token; None averages all) and ``head``."""

    def __init__(
        self, embeddings: Embeddings, layers: nn.ModuleList, pooler: nn.Linear | None, head: nn.Linear
    ) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.layers = layers
        self.pooler = pooler
        self.head = head
        truncated_normal(self)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Three of shape (n, t), integers, to (n, classes)."""
        x = self.embeddings(input_ids, torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids)
        counted = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mask = None if attention_mask is None else attention_mask.bool()[:, None, None, :]
        for layer in self.layers:
            x = layer(x, mask)
        if self.pooler is not None:
            pooled = self.pooler(x[:, 0]).tanh()
        else:
            weights = counted.to(x.dtype).unsqueeze(-1)
            # A sequence in which no token counts has a mean of 0, not NaN.
            pooled = (x * weights).sum(1) / weights.sum(1).clamp(min=1.0)
        logits: Tensor = self.head(pooled)
        return logits
