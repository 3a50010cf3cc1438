from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autocompress.references import load_object

FAMILIES = Path(__file__).resolve().parents[2] / "benchmarks" / "families.py"
CASES: dict[str, Any] = {case.name: case for case in load_object(f"{FAMILIES}:CASES")}
check = load_object(f"{FAMILIES}:check")
page = load_object(f"{FAMILIES}:page")
run_counted = load_object(f"{FAMILIES}:run_counted")

FAST = (
    "LeNet-300-100",
    "LeNet-5",
    "ViT, fused QKV",
    "BERT-like, separate Q, K, V",
    "Stacked LSTM",
    "Seq2seq, GRU",
    "Everything frozen",
    "Shared weight",
    "Tied embedding",
    "Reused module",
    "Functional layers",
    "Hard-coded reshape",
    "Dict in, tuple out",
    "One-dimensional",
    "ConvNeXt-like",
    "Llama-like",
    "LSTM cell in a loop",
    "Parametrized weight",
)


@pytest.mark.parametrize("name", FAST)
def test_what_is_removed_is_what_would_be_masked(name: str) -> None:
    assert check(CASES[name]).problem == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - set(FAST)))
def test_so_it_is_in_every_other_family(name: str) -> None:
    assert check(CASES[name]).problem == ""


def test_macs_are_those_counted_by_hand() -> None:
    # Two examples of nine tokens; a layer of an LSTM multiplies four gates' weights, the head reads one mean each.
    layers = 4 * 64 * ((32 + 64) + 2 * (64 + 64))
    case = CASES["Stacked LSTM"]
    assert run_counted(case.build().eval().double(), case.example())[1] == 2 * (9 * layers + 64 * 5)
    conv = nn.Conv2d(3, 8, 3, padding=1)
    images = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    output, macs = run_counted(conv.double(), images)
    assert macs == 2 * 25 * 8 * 27
    assert torch.equal(output, conv(images))


def test_the_page_has_a_line_for_every_network_and_every_reason() -> None:
    row = check(CASES["Hard-coded reshape"])
    text = page([row])
    assert text.count("| Hard-coded reshape |") == 2 + len(row.left_dense)
    assert row.left_dense
    assert all(reason in text for reason in row.left_dense)
