"""How training runs fast: the same values up to rounding, in bfloat16 only where the processor computes with it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from autocompress.compress import fast
from autocompress.compress.fast import as_fast, fast_layout, plain_layout, run


class Spy(nn.Module):
    """Remembers how it was run; `parts` decide what kind of network it is."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(parts)
        self.seen: list[tuple[torch.dtype, bool]] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.parts[0](x)
        out = first[0] if isinstance(first, tuple) else first
        last = x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)
        self.seen.append((out.dtype, last))
        return {"out": out, "index": out.argmax(dim=-1)}


@pytest.mark.parametrize(
    ("make", "shape", "half"),
    [
        (lambda: Spy(nn.Conv2d(3, 8, 3)), (2, 3, 6, 6), True),
        (lambda: Spy(nn.Linear(5, 4), nn.LayerNorm(4)), (2, 5), True),
        (lambda: Spy(nn.Linear(5, 4)), (2, 5), False),
        (lambda: Spy(nn.LSTM(5, 4, batch_first=True), nn.LayerNorm(4)), (2, 3, 5), False),
    ],
    ids=["images", "transformer", "plain", "recurrent"],
)
@pytest.mark.parametrize("hardware", [True, False])
def test_what_gains_from_it_runs_in_bfloat16_and_returns_single_precision(
    monkeypatch: pytest.MonkeyPatch, make: object, shape: tuple[int, ...], half: bool, hardware: bool
) -> None:
    monkeypatch.setattr(fast, "_has_bfloat16", lambda: hardware)
    module: Spy = make()  # type: ignore[operator]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = run(module, x)
    assert module.seen == [(torch.bfloat16 if half and hardware else torch.float32, len(shape) == 4)]
    assert found["out"].dtype == torch.float32
    assert found["index"].dtype == torch.int64
    torch.testing.assert_close(found["out"], module(x)["out"].float(), rtol=0.02, atol=0.02)


def test_layouts_change_where_weights_lie_and_no_value() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
    weight = module[0].weight.detach().clone()
    assert fast_layout(module)[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(module[0].weight, weight)
    assert plain_layout(module)[0].weight.is_contiguous()
    assert torch.equal(module[0].weight, weight)
    volumes = nn.Sequential(nn.Conv3d(3, 8, 3))
    assert fast_layout(volumes) is volumes
    assert volumes[0].weight.is_contiguous()


def test_inputs_of_any_form_are_taken() -> None:
    images, ids = torch.rand(2, 3, 4, 4), torch.arange(6).reshape(2, 3)
    fast_images = as_fast({"images": images, "ids": ids})
    assert fast_images["images"].is_contiguous(memory_format=torch.channels_last)  # type: ignore[index,call-overload]
    assert torch.equal(fast_images["images"], images)  # type: ignore[index,call-overload]
    assert fast_images["ids"] is ids  # type: ignore[index,call-overload]
