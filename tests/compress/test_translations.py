from __future__ import annotations

import importlib
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from autocompress.compress import export, translations
from autocompress.compress.export import export_onnx


def test_the_table_is_made_once_and_the_files_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    home = importlib.import_module(translations._HOME)
    made = getattr(home, translations._NAME)
    calls: list[int] = []

    def counted() -> list[object]:
        calls.append(1)
        table: list[object] = made()
        return table

    monkeypatch.setattr(home, translations._NAME, counted)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2)).eval()
    example = torch.zeros(1, 3, 4, 4)
    first, second = (export_onnx(network, example).model for _ in range(2))
    assert len(calls) == 1, "torch takes the table from where it is remembered"
    assert getattr(home, translations._NAME) is counted, "and finds its own function there afterwards"
    monkeypatch.setattr(export, "remembered", nullcontext)
    assert first == second == export_onnx(network, example).model
    assert len(calls) == 2


def test_another_torch_is_slower_not_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(translations, "_HOME", "onnxscript.is_not_there")
    with translations.remembered():
        network = nn.Linear(3, 2).eval()
        assert export_onnx(network, torch.zeros(1, 3)).agreement < 1e-5
