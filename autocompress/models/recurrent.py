"""Stacked LSTMs and GRUs: a classifier of token sequences, and a language model.

References:
    Hochreiter and Schmidhuber, 1997, "Long Short-Term Memory".
    Cho et al., 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation".
    Zaremba et al., 2014, "Recurrent Neural Network Regularization", for the language model.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from autocompress.models.arguments import at_least, one_of

Cell = Literal["lstm", "gru"]


def recurrent_layers(cell: Cell, inputs: int, hidden: int, depth: int, both_ways: bool = False) -> nn.LSTM | nn.GRU:
    """`depth` stacked recurrent layers that read tensors of shape (n, t, inputs)."""
    kind = nn.LSTM if cell == "lstm" else nn.GRU
    return kind(inputs, hidden, num_layers=depth, batch_first=True, bidirectional=both_ways)


def text_classifier(
    vocabulary: int,
    classes: int,
    width: int = 128,
    hidden: int = 128,
    depth: int = 2,
    cell: Cell = "lstm",
    both_ways: bool = False,
    padding: int | None = 0,
    dropout: float = 0.2,
) -> nn.Module:
    """Embedding, stacked recurrent layers, and a classifier on the mean of their outputs.

    Args:
        vocabulary: number of tokens.
        classes: size of the output.
        width: features of a token.
        hidden: units of each layer.
        depth: layers.
        cell: ``"lstm"`` or ``"gru"``.
        both_ways: read the sequence from both ends.
        padding: token that does not count in the mean; None if every token counts.
        dropout: in front of the classifier.

    Returns:
        A module from tokens of shape (n, t) to outputs of shape (n, classes).

    Raises:
        TaskError: an argument is out of range.
    """
    name = "text_classifier"
    at_least(name, 1, vocabulary=vocabulary, classes=classes, width=width, hidden=hidden, depth=depth)
    at_least(name, 0, dropout=dropout)
    one_of(name, ("lstm", "gru"), cell=cell)
    layers = recurrent_layers(cell, width, hidden, depth, both_ways)
    head = nn.Linear(hidden * (2 if both_ways else 1), classes)
    return TextClassifier(nn.Embedding(vocabulary, width), layers, head, padding, dropout)


def language_model(
    vocabulary: int, width: int = 128, hidden: int = 256, depth: int = 2, cell: Cell = "lstm", dropout: float = 0.2
) -> nn.Module:
    """Embedding, stacked recurrent layers, and the scores of the next token at every position.

    Args:
        vocabulary: number of tokens; characters, for a model of characters.
        width: features of a token.
        hidden: units of each layer.
        depth: layers.
        cell: ``"lstm"`` or ``"gru"``.
        dropout: behind the embedding and in front of the output.

    Returns:
        A module from tokens of shape (n, t) to outputs of shape (n, t, vocabulary): position i scores token i + 1.

    Raises:
        TaskError: an argument is out of range.
    """
    name = "language_model"
    at_least(name, 1, vocabulary=vocabulary, width=width, hidden=hidden, depth=depth)
    at_least(name, 0, dropout=dropout)
    one_of(name, ("lstm", "gru"), cell=cell)
    layers = recurrent_layers(cell, width, hidden, depth)
    return LanguageModel(nn.Embedding(vocabulary, width), layers, nn.Linear(hidden, vocabulary), dropout)


class TextClassifier(nn.Module):
    """``embedding``, ``layers``, the mean over time, and ``head``."""

    def __init__(
        self,
        embedding: nn.Embedding,
        layers: nn.LSTM | nn.GRU,
        head: nn.Linear,
        padding: int | None,
        dropout: float,
    ) -> None:
        super().__init__()
        self.padding = padding
        self.embedding = embedding
        self.layers = layers
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape (n, t), integers, to (n, classes)."""
        x, _ = self.layers(self.embedding(tokens))
        if self.padding is None:
            mean = x.mean(1)
        else:
            counted = (tokens != self.padding).to(x.dtype).unsqueeze(-1)
            # A sequence of padding alone has a mean of 0, not NaN.
            mean = (x * counted).sum(1) / counted.sum(1).clamp(min=1.0)
        logits: Tensor = self.head(self.dropout(mean))
        return logits


class LanguageModel(nn.Module):
    """``embedding``, ``layers`` and ``head``."""

    def __init__(self, embedding: nn.Embedding, layers: nn.LSTM | nn.GRU, head: nn.Linear, dropout: float) -> None:
        super().__init__()
        self.embedding = embedding
        self.layers = layers
        self.dropout = nn.Dropout(dropout)
        self.head = head

    def forward(self, tokens: Tensor) -> Tensor:
        """Shape (n, t), integers, to (n, t, vocabulary)."""
        x, _ = self.layers(self.dropout(self.embedding(tokens)))
        logits: Tensor = self.head(self.dropout(x))
        return logits
