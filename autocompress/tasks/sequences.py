"""Sequences to sequences: characters of any text, and reversal, a task that is generated.

Outputs have shape (n, t, vocabulary), targets shape (n, t).
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autocompress.errors import TaskError
from autocompress.models.recurrent import language_model
from autocompress.models.scaling import scaled_arguments
from autocompress.models.seq2seq import seq2seq
from autocompress.models.weights import load_weights
from autocompress.rng import derive_seed
from autocompress.task import Recipe, Task
from autocompress.tasks.fresh import initial_weights, is_dense
from autocompress.tasks.tensors import InputTensors, permuted

#: Tokens of `reverse`; symbols follow.
PADDING, START, END = 0, 1, 2
#: Of `characters`: what does not occur in the training part.
UNKNOWN = 0


def token_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, the mean over all tokens."""
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten())


def token_accuracy(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Share of tokens that score highest at their position, in [0, 1]."""
    return float(np.mean(outputs.argmax(axis=-1) == targets))


def padded_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy, the mean over the tokens that are no padding."""
    return functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=PADDING)


def sequence_accuracy(outputs: np.ndarray, targets: np.ndarray) -> float:
    """Share of sequences in which every token that is no padding scores highest at its position, in [0, 1]."""
    right = (outputs.argmax(axis=-1) == targets) | (targets == PADDING)
    return float(np.mean(right.all(axis=-1)))


def characters(
    data: str,
    length: int = 64,
    width: int = 64,
    hidden: int = 256,
    depth: int = 2,
    cell: Literal["lstm", "gru"] = "lstm",
    weights: str | None = None,
    epochs: int = 10,
    learning_rate: float = 2e-3,
    batch_size: int = 32,
    recovery_learning_rate: float = 1e-3,
    seed: int = 0,
) -> Task:
    """The next character of a text, by stacked recurrent layers.

    The text is cut once into its first 80% (*train*) and the next 5, 5 and 10% (*validation*, *selection*, *test*),
    each of them into windows of `length` + 1 characters that do not overlap. The metric is the share of characters
    that the network finds.

    Args:
        data: path of a text file in UTF-8.
        length: characters that the network reads at a time.
        width: features of a character.
        hidden: units of each layer.
        depth: layers.
        cell: ``"lstm"`` or ``"gru"``.
        weights: a safetensors file for the network; without it the network is trained by `epochs` and its companions.
        epochs: of training without weights.
        learning_rate: its peak.
        batch_size: of training and recovery.
        recovery_learning_rate: its peak.
        seed: of the initial weights.

    Raises:
        TaskError: the file is missing, is no text, or too short.
    """
    if length < 1:
        raise TaskError(f"length: expected at least 1 character, got {length}")
    text = _text(Path(data).expanduser())
    bounds = [round(share * len(text)) for share in (0.0, 0.8, 0.85, 0.9, 1.0)]
    parts = [text[start:end] for start, end in pairwise(bounds)]
    shortest = min(len(part) for part in parts)
    if shortest < length + 1:
        raise TaskError(
            f"data: expected a text whose 5% have at least {length + 1} characters (length + 1), got {shortest} of "
            f"{len(text)}; lower length"
        )
    vocabulary = {character: number for number, character in enumerate(sorted(set(parts[0])), start=UNKNOWN + 1)}

    def windows(part: str) -> InputTensors:
        tokens = torch.tensor([vocabulary.get(character, UNKNOWN) for character in part])
        rows = tokens[: len(tokens) // (length + 1) * (length + 1)].view(-1, length + 1)
        return InputTensors(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())

    network = {"width": width, "hidden": hidden, "depth": depth, "cell": cell}

    def build(width: float = 1.0, depth: float = 1.0) -> nn.Module:
        dense = is_dense(width, depth)
        sizes = scaled_arguments(language_model, network, width=width, depth=depth)
        with initial_weights(seed, dense=dense):
            module = language_model(len(vocabulary) + 1, **sizes)
        return load_weights(module, Path(weights).expanduser()) if weights is not None and dense else module

    train, validation, selection, test = (windows(part) for part in parts)
    return Task(
        name="characters",
        model=build,
        train=train,
        validation=validation,
        selection=selection,
        test=test,
        loss=token_loss,
        metric=token_accuracy,
        trained=weights is not None,
        recipe=_recipe(epochs, learning_rate, batch_size),
        recovery_learning_rate=recovery_learning_rate,
    )


def reverse(
    symbols: int = 8,
    length: int = 6,
    examples: int = 4000,
    width: int = 32,
    hidden: int = 64,
    depth: int = 1,
    cell: Literal["lstm", "gru"] = "gru",
    epochs: int = 20,
    learning_rate: float = 5e-3,
    batch_size: int = 64,
    recovery_learning_rate: float = 2e-3,
    seed: int = 0,
) -> Task:
    """Sequences of 1 to `length` symbols, to be written backwards by an encoder and a decoder.

    Inputs are (source, decoder input), the latter a start token and the target without its last token; targets are
    the symbols backwards, an end token and padding. All sources are different, so that the four splits, of 70, 10, 10
    and 10%, share none. The metric is the share of sequences without a mistake. The network decodes by itself with
    ``generate``, so that it can be distilled at sequence level.

    Args:
        symbols: how many there are.
        length: of the longest sequence.
        examples: in all splits together.
        width: features of a token.
        hidden: units of each layer.
        depth: layers of the encoder, and of the decoder.
        cell: ``"lstm"`` or ``"gru"``.
        epochs: of training.
        learning_rate: its peak.
        batch_size: of training and recovery.
        recovery_learning_rate: its peak.
        seed: of the sequences, the splits and the initial weights.

    Raises:
        TaskError: there are not so many different sequences, or an argument is out of range.
    """
    if symbols < 2 or length < 1 or examples < 10:
        raise TaskError(
            "reverse: expected at least 2 symbols, length 1 and 10 examples, got "
            f"{symbols} symbols, length {length} and {examples} examples"
        )
    sources = _different(symbols, length, examples, np.random.default_rng(derive_seed(seed, "sequences")))
    source = torch.full((examples, length), PADDING)
    targets = torch.full((examples, length + 1), PADDING)
    for row, sequence in enumerate(sources):
        source[row, : len(sequence)] = torch.tensor(sequence)
        targets[row, : len(sequence) + 1] = torch.tensor([*reversed(sequence), END])
    decoder = torch.cat((torch.full((examples, 1), START), targets[:, :-1]), dim=1)
    tenth = examples // 10
    sizes = {"train": examples - 3 * tenth, "validation": tenth, "selection": tenth, "test": tenth}
    parts = permuted(InputTensors((source, decoder), targets), sizes, derive_seed(seed, "split"))
    vocabulary = symbols + END + 1

    network = {"width": width, "hidden": hidden, "depth": depth, "cell": cell, "end": END, "padding": PADDING}

    def build(width: float = 1.0, depth: float = 1.0) -> nn.Module:
        sizes = scaled_arguments(seq2seq, network, width=width, depth=depth)
        with initial_weights(seed, dense=is_dense(width, depth)):
            return seq2seq(vocabulary, vocabulary, **sizes)

    return Task(
        name="reverse",
        model=build,
        train=parts["train"],
        validation=parts["validation"],
        selection=parts["selection"],
        test=parts["test"],
        loss=padded_loss,
        metric=sequence_accuracy,
        recipe=_recipe(epochs, learning_rate, batch_size),
        recovery_learning_rate=recovery_learning_rate,
    )


def _recipe(epochs: int, learning_rate: float, batch_size: int) -> Recipe:
    return Recipe(
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        weight_decay=0.01,
        optimizer="adamw",
        clip=1.0,
    )


def _text(path: Path) -> str:
    if not path.is_file():
        raise TaskError(f"data: expected a text file, got {path}, which does not exist")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"data: {path}: expected text in UTF-8, got {error}") from error


def _different(symbols: int, length: int, count: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """`count` different sequences of 1 to `length` symbols; drawn anew until all differ."""
    possible = sum(symbols**n for n in range(1, length + 1))
    # Beyond half of what there is, drawing until all are different takes long.
    if count > possible // 2:
        raise TaskError(
            f"reverse: expected at most {possible // 2} examples of the {possible} sequences with {symbols} symbols "
            f"and length {length}, got {count}"
        )
    found: dict[tuple[int, ...], None] = {}
    while len(found) < count:
        size = int(rng.integers(1, length + 1))
        found[tuple(int(symbol) for symbol in rng.integers(END + 1, END + 1 + symbols, size))] = None
    return list(found)
