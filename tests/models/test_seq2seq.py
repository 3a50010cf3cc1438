from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.models.seq2seq import seq2seq

START, END, PADDING = 1, 2, 0


def build(cell: str = "gru", target_vocabulary: int = 5, end: int | None = END, depth: int = 2) -> nn.Module:
    torch.manual_seed(0 if cell == "gru" else 3)
    module = seq2seq(
        7,
        target_vocabulary,
        width=4,
        hidden=6,
        depth=depth,
        cell=cell,
        end=end,
        padding=PADDING,  # type: ignore[arg-type]
    )
    # Sharper than at the start, so that the best sequence is no tie and ending early is worth it at times.
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(6.0)
    return module.eval()


def batch(n: int = 4, length: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(7, (n, 5), generator=generator)
    return source, torch.full((n, length), START)


def score(module: nn.Module, source: Tensor, sequence: tuple[int, ...], end: int | None) -> float:
    """Sum of the log-probabilities up to and with the end, by the teacher-forced forward pass."""
    target_in = torch.tensor([[START, *sequence[:-1]]])
    with torch.no_grad():
        steps = module(source, target_in).log_softmax(-1)[0]
    total = 0.0
    for position, token in enumerate(sequence):
        total += float(steps[position, token])
        if token == end:
            break
    return total


def sequences(vocabulary: int, length: int, end: int | None) -> list[tuple[int, ...]]:
    """Every sequence that can be decoded: behind the end there is padding alone."""
    found = []
    for tokens in itertools.product(range(vocabulary), repeat=length):
        stop = tokens.index(end) if end in tokens else length
        if all(token == PADDING for token in tokens[stop + 1 :]):
            found.append(tokens)
    return found


@pytest.mark.parametrize("cell", ["gru", "lstm"])
@pytest.mark.parametrize("end", [END, None])
def test_a_beam_that_is_wide_enough_finds_what_exhaustive_search_finds(cell: str, end: int | None) -> None:
    module = build(cell, target_vocabulary=4, end=end)
    source, target_in = batch(n=3, length=3)
    _, targets = module.generate((source, target_in), beams=4**3)
    for i in range(3):
        best = max(sequences(4, 3, end), key=lambda tokens: score(module, source[i : i + 1], tokens, end))
        assert tuple(targets[i].tolist()) == best


def naive_beam(module: nn.Module, source: Tensor, length: int, beams: int) -> tuple[int, ...]:
    """Beam search that scores every prefix from the start, with lists."""
    hypotheses: list[tuple[int, ...]] = [()]
    for _ in range(length):
        grown = []
        for tokens in hypotheses:
            if END in tokens:
                grown.append((*tokens, PADDING))
            else:
                grown += [(*tokens, token) for token in range(5)]
        hypotheses = sorted(grown, key=lambda tokens: -score(module, source, tokens, END))[:beams]
    return hypotheses[0]


@pytest.mark.parametrize("beams", [1, 2, 3, 5])
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_narrow_beams_are_those_of_the_naive_search(cell: str, beams: int) -> None:
    module = build(cell)
    source, target_in = batch()
    _, targets = module.generate((source, target_in), beams=beams)
    expected = [naive_beam(module, source[i : i + 1], 4, beams) for i in range(len(source))]
    assert [tuple(row) for row in targets.tolist()] == expected


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_some_decoded_sequences_end_early_and_are_padded(cell: str) -> None:
    module = build(cell)
    source = torch.randint(7, (64, 5), generator=torch.Generator().manual_seed(1))
    _, targets = module.generate((source, torch.full((64, 4), START)), beams=3)
    ended = [row for row in targets.tolist() if END in row[:-1]]
    assert 0 < len(ended) < 64
    assert all(set(row[row.index(END) + 1 :]) == {PADDING} for row in ended)


def test_the_inputs_come_back_with_the_decoded_sequence_shifted_behind_the_start() -> None:
    module = build()
    source, target_in = batch()
    inputs, targets = module.generate((source, target_in), beams=2)
    assert inputs[0] is source
    assert targets.dtype == torch.int64
    assert torch.equal(inputs[1], torch.cat((target_in[:, :1], targets[:, :-1]), dim=1))
    assert module(*inputs).shape == (*targets.shape, 5)
    assert not targets.requires_grad


def test_greedy_decoding_takes_the_best_token_at_every_step() -> None:
    module = build(end=None)
    inputs, targets = module.generate(batch(), beams=1)
    assert torch.equal(module(*inputs).argmax(-1), targets)


def test_teacher_forcing_never_looks_ahead() -> None:
    module = build("lstm")
    source, target_in = batch()
    longer = torch.cat((target_in, torch.full((4, 2), 3)), dim=1)
    torch.testing.assert_close(module(source, longer)[:, :4], module(source, target_in))


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(TaskError, match="expected end to be a token below 5, got 9"):
        seq2seq(7, 5, end=9)
    with pytest.raises(TaskError, match="expected padding to be a token below 5, got -1"):
        seq2seq(7, 5, padding=-1)
    with pytest.raises(TaskError, match="expected end and padding to be different tokens, got 0 for both"):
        seq2seq(7, 5, end=0)
    with pytest.raises(TaskError, match="expected cell to be one of 'lstm', 'gru', got 'rnn'"):
        seq2seq(7, 5, cell="rnn")  # type: ignore[arg-type]
    with pytest.raises(TaskError, match="generate: expected beams >= 1, got 0"):
        build().generate(batch(), beams=0)
    with pytest.raises(TaskError, match=r"generate: expected inputs \(source, target_in\), got Tensor"):
        build().generate(torch.zeros(1, 2), beams=1)
