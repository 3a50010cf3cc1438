from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from autocompress.compress.attention import HeadwiseAttention

MASKS: dict[str, Tensor | None] = {
    "none": None,
    "causal": torch.ones(5, 7, dtype=torch.bool).triu(3),
    "added": torch.randn(5, 7, generator=torch.Generator().manual_seed(1)),
    "per head": torch.randn(2 * 4, 5, 7, generator=torch.Generator().manual_seed(1)),
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"kdim": 6, "vdim": 5, "bias": False}])
@pytest.mark.parametrize("average", [True, False])
def test_with_all_its_heads_it_is_torchs_own(mask: str, options: dict[str, int | bool], average: bool) -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 4, **options).eval()  # type: ignore[arg-type]
    cut = copy.deepcopy(plain)
    HeadwiseAttention.become(cut)
    sizes = (8, int(options.get("kdim", 8)), int(options.get("vdim", 8)))
    q, k, v = (torch.randn(2, t, size) for t, size in zip((5, 7, 7), sizes, strict=True))
    if not options.get("batch_first"):
        q, k, v = (x.transpose(0, 1) for x in (q, k, v))
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 6:] = True
    settings = {"attn_mask": MASKS[mask], "average_attn_weights": average}
    if mask != "added" and mask != "per head":
        settings["key_padding_mask"] = padding
    for got, want in zip(cut(q, k, v, **settings), plain(q, k, v, **settings), strict=True):
        torch.testing.assert_close(got, want)


def test_without_a_batch_and_without_weights() -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    cut = copy.deepcopy(plain)
    HeadwiseAttention.become(cut)
    x, padding = torch.randn(5, 8), torch.tensor([False, False, False, True, True])
    got, weights = cut(x, x, x, need_weights=False, key_padding_mask=padding)
    assert weights is None
    torch.testing.assert_close(got, plain(x, x, x, need_weights=False, key_padding_mask=padding)[0])
    assert cut(x, x, x)[1].shape == (5, 5)
