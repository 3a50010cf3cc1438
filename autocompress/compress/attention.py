"""Multi-head attention that knows the size of its heads, so that it may have fewer than its inputs have room for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class HeadwiseAttention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` after a cut: the same parameters, of which rows, columns or whole heads are missing.

    torch's own derives the size of a head from the size of its inputs, which a cut changes. Never constructed; a cut
    module takes this class on by `become`.

    References:
        Vaswani et al., 2017, "Attention Is All You Need".
    """

    @classmethod
    def become(cls, part: nn.MultiheadAttention) -> None:
        """Turn a multi-head attention whose parameters were cut into this class, in place."""
        rows = len(part.in_proj_weight) // 3 if part.in_proj_weight is not None else len(part.q_proj_weight)
        part.num_heads = rows // part.head_dim
        part.embed_dim = part.out_proj.out_features
        # torch's fused encoder layer takes attention for its own unless it is told that the projections are apart.
        part._qkv_same_embed_dim = False
        part.__class__ = cls

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`; `is_causal` is a hint about `attn_mask`, which must be given with it."""
        batched = query.ndim == 3
        inputs = [x if batched else x.unsqueeze(0) for x in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [x.transpose(0, 1) for x in inputs]
        q, k, v = (x.reshape(len(x), x.shape[1], -1, self.head_dim).transpose(1, 2) for x in self._project(*inputs))
        mask = self._mask(
            q, k, attn_mask, key_padding_mask if batched or key_padding_mask is None else key_padding_mask[None]
        )
        scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
        weights = functional.softmax(scores if mask is None else scores + mask, dim=-1)
        dropped = functional.dropout(weights, self.dropout, self.training)
        mixed = (dropped @ v).transpose(1, 2).flatten(2)
        # As a function, as torch does: the projection is no layer that runs by itself.
        output = functional.linear(mixed, self.out_proj.weight, self.out_proj.bias)
        if batched and not self.batch_first:
            output = output.transpose(0, 1)
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if not batched:
            output, shown = output.squeeze(0), None if shown is None else shown.squeeze(0)
        return output, shown

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(
            functional.linear(x, weight, bias)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )

    def _mask(self, q: Tensor, k: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Summands of the scores, broadcast to shape (n, heads, targets, sources)."""
        total = None
        if attn_mask is not None:
            shape = (1, 1) if attn_mask.ndim == 2 else (len(q), -1)
            total = self._summand(attn_mask, q).view(*shape, q.shape[2], k.shape[2])
        if padding is not None:
            added = self._summand(padding, q)[:, None, None, :]
            total = added if total is None else total + added
        return total

    @staticmethod
    def _summand(mask: Tensor, like: Tensor) -> Tensor:
        if mask.dtype != torch.bool:
            return mask.to(like.dtype)
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, float("-inf"))
