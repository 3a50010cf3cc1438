from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from autocompress.compress.train import train_base
from autocompress.errors import TaskError
from autocompress.inputs import forward
from autocompress.task import Task, fetch
from autocompress.tasks.sequences import (
    END,
    PADDING,
    START,
    UNKNOWN,
    characters,
    padded_loss,
    reverse,
    sequence_accuracy,
    token_accuracy,
    token_loss,
)
from autocompress.tasks.tensors import InputTensors

ROLES = ("train", "validation", "selection", "test")


def parts(task: Task) -> dict[str, InputTensors]:
    found = {role: getattr(task, role) for role in ROLES}
    assert all(isinstance(part, InputTensors) for part in found.values())
    return found


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 5), st.integers(4, 6), st.integers(0, 99))
def test_every_target_is_its_source_backwards_and_every_source_has_one_role(
    symbols: int, length: int, seed: int
) -> None:
    splits = parts(reverse(symbols=symbols, length=length, examples=14, seed=seed))
    assert {role: len(part) for role, part in splits.items()} == {
        "train": 11,
        "validation": 1,
        "selection": 1,
        "test": 1,
    }
    seen = []
    for data in splits.values():
        assert isinstance(data.inputs, tuple)
        for source, decoder, target in zip(*(x.tolist() for x in data.inputs), data.targets.tolist(), strict=True):
            sequence = [token for token in source if token != PADDING]
            assert 1 <= len(sequence) <= length
            assert all(END < token <= END + symbols for token in sequence)
            assert source == sequence + [PADDING] * (length - len(sequence))
            assert target == sequence[::-1] + [END] + [PADDING] * (length - len(sequence))
            assert decoder == [START, *target[:-1]]
            seen.append(tuple(source))
    assert len(seen) == len(set(seen)) == 14


def test_reversal_depends_on_its_seed_alone() -> None:
    first, state = reverse(examples=100, seed=3), torch.random.get_rng_state()
    weights = first.build().state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(9)
    again = reverse(examples=100, seed=3)
    assert torch.equal(parts(again)["train"].targets, parts(first)["train"].targets)
    assert all(torch.equal(weights[name], tensor) for name, tensor in again.build().state_dict().items())
    assert not torch.equal(parts(reverse(examples=100, seed=4))["train"].targets, parts(first)["train"].targets)


def test_more_sequences_than_there_are_are_refused() -> None:
    with pytest.raises(TaskError, match="at most 7 examples of the 14 sequences with 2 symbols and length 3, got 10"):
        reverse(symbols=2, length=3, examples=10)
    with pytest.raises(TaskError, match="at least 2 symbols, length 1 and 10 examples, got 1 symbols"):
        reverse(symbols=1)


@pytest.mark.slow
def test_reversal_is_learnt_and_decoded_without_the_target() -> None:
    task = reverse(symbols=4, length=4, examples=160, hidden=48, epochs=150, learning_rate=1e-2)
    module = train_base(task, task.build(), seed=0)
    inputs, targets = fetch(task.train, torch.arange(112))
    with torch.no_grad():
        assert sequence_accuracy(forward(module, inputs).numpy(), targets.numpy()) > 0.95
    _, decoded = module.generate(inputs, beams=2)  # type: ignore[operator]
    assert (decoded == targets).all(dim=1).float().mean() > 0.9


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
def test_losses_and_metrics_agree_with_loops_over_tokens(n: int, t: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    outputs, targets = rng.normal(size=(n, t, 4)), rng.integers(0, 4, (n, t))
    targets[:, 0] = 2  # at least one token that is no padding
    every, kept, right, clean = [], [], [], []
    for i in range(n):
        good = True
        for j in range(t):
            row = outputs[i, j]
            loss = math.log(sum(math.exp(x) for x in row)) - row[targets[i, j]]
            hit = max(range(4), key=lambda k, row=row: row[k]) == targets[i, j]  # type: ignore[misc]
            every.append(loss)
            right.append(hit)
            if targets[i, j] != PADDING:
                kept.append(loss)
                good = good and hit
        clean.append(good)
    scores, wanted = torch.from_numpy(outputs), torch.from_numpy(targets)
    assert token_loss(scores, wanted).item() == pytest.approx(np.mean(every))
    assert padded_loss(scores, wanted).item() == pytest.approx(np.mean(kept))
    assert token_accuracy(outputs, targets) == pytest.approx(np.mean(right))
    assert sequence_accuracy(outputs, targets) == pytest.approx(np.mean(clean))


def poem(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_windows_cut_the_text_in_order_and_the_target_is_one_ahead(tmp_path: Path) -> None:
    text = "".join(chr(ord("a") + (7 * i) % 23) for i in range(2000)) + "Ω"
    task = characters(poem(tmp_path / "t.txt", text), length=9)
    letters = sorted(set(text) - {"Ω"})
    bounds = (0, round(0.8 * 2001), round(0.85 * 2001), round(0.9 * 2001), 2001)
    for data, start, end in zip(parts(task).values(), bounds, bounds[1:], strict=False):
        assert isinstance(data.inputs, torch.Tensor)
        piece = text[start:end]
        assert len(data) == len(piece) // 10
        for row in range(len(data)):
            window = [letters.index(c) + 1 if c in letters else UNKNOWN for c in piece[10 * row : 10 * row + 10]]
            assert data.inputs[row].tolist() == window[:-1]
            assert data.targets[row].tolist() == window[1:]
    with torch.no_grad():
        assert forward(task.build(), task.example_input()).shape == (1, 9, len(letters) + 1)


def test_a_character_that_training_never_saw_is_unknown(tmp_path: Path) -> None:
    task = characters(poem(tmp_path / "t.txt", "ab" * 100 + "Ω" * 40), length=5)
    data = parts(task)["test"]
    assert isinstance(data.inputs, torch.Tensor)
    assert data.inputs.unique().tolist() == [UNKNOWN]


def test_a_pattern_is_learnt(tmp_path: Path) -> None:
    task = characters(
        poem(tmp_path / "t.txt", "abcdefgh" * 150),
        length=16,
        hidden=24,
        width=8,
        depth=1,
        epochs=30,
        learning_rate=2e-2,
        batch_size=8,
    )
    module = train_base(task, task.build(), seed=0)
    inputs, targets = fetch(task.test, torch.arange(5))
    with torch.no_grad():
        assert task.metric(forward(module, inputs).numpy(), targets.numpy()) > 0.9


def test_texts_that_will_not_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"expected a text file, got .*no\.txt, which does not exist"):
        characters(str(tmp_path / "no.txt"))
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe" * 50)
    with pytest.raises(TaskError, match="expected text in UTF-8"):
        characters(str(tmp_path / "b.txt"))
    with pytest.raises(TaskError, match=r"5% have at least 65 characters \(length \+ 1\), got 5 of 100; lower length"):
        characters(poem(tmp_path / "s.txt", "x" * 100))
    with pytest.raises(TaskError, match="length: expected at least 1 character, got 0"):
        characters(poem(tmp_path / "s.txt", "x" * 100), length=0)


def test_trained_weights_of_a_language_model_come_back(tmp_path: Path) -> None:
    data = poem(tmp_path / "t.txt", "hello world " * 40)
    task = characters(data, length=6, hidden=8, seed=5)
    save_file(task.build().state_dict(), tmp_path / "w.safetensors")
    again = characters(data, length=6, hidden=8, seed=6, weights=str(tmp_path / "w.safetensors"))
    assert again.trained
    state = again.build().state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in task.build().state_dict().items())
