"""A small encoder-decoder of recurrent layers, with beam search.

References:
    Sutskever et al., 2014, "Sequence to Sequence Learning with Neural Networks".
    Kim and Rush, 2016, "Sequence-Level Knowledge Distillation": the student learns the teacher's decoded outputs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.inputs import Inputs
from autocompress.models.arguments import at_least, one_of
from autocompress.models.recurrent import Cell, recurrent_layers


def seq2seq(
    source_vocabulary: int,
    target_vocabulary: int,
    width: int = 64,
    hidden: int = 128,
    depth: int = 1,
    cell: Cell = "gru",
    end: int | None = 2,
    padding: int = 0,
) -> nn.Module:
    """Encoder and decoder of the same size; the decoder starts from the encoder's last state.

    Args:
        source_vocabulary: number of the source's tokens.
        target_vocabulary: number of the target's tokens.
        width: features of a token.
        hidden: units of each recurrent layer.
        depth: layers of the encoder, and of the decoder.
        cell: ``"lstm"`` or ``"gru"``.
        end: token that ends a target; None if targets have a fixed length.
        padding: token behind the end.

    Returns:
        A `Seq2Seq`.

    Raises:
        TaskError: an argument is out of range.
    """
    at_least("seq2seq", 1, source_vocabulary=source_vocabulary, target_vocabulary=target_vocabulary)
    at_least("seq2seq", 1, width=width, hidden=hidden, depth=depth)
    one_of("seq2seq", ("lstm", "gru"), cell=cell)
    for name, token in (("end", end), ("padding", padding)):
        if token is not None and not 0 <= token < target_vocabulary:
            raise TaskError(f"seq2seq: expected {name} to be a token below {target_vocabulary}, got {token}")
    if end == padding:
        raise TaskError(f"seq2seq: expected end and padding to be different tokens, got {end} for both")
    return Seq2Seq(
        nn.Embedding(source_vocabulary, width),
        recurrent_layers(cell, width, hidden, depth),
        nn.Embedding(target_vocabulary, width),
        recurrent_layers(cell, width, hidden, depth),
        nn.Linear(hidden, target_vocabulary),
        end,
        padding,
    )


class Seq2Seq(nn.Module):
    """``source``, ``encoder``, ``target``, ``decoder`` and ``head``.

    Attributes:
        end: token that ends a target, or None.
        padding: token behind the end.
    """

    def __init__(
        self,
        source: nn.Embedding,
        encoder: nn.LSTM | nn.GRU,
        target: nn.Embedding,
        decoder: nn.LSTM | nn.GRU,
        head: nn.Linear,
        end: int | None,
        padding: int,
    ) -> None:
        super().__init__()
        self.source = source
        self.encoder = encoder
        self.target = target
        self.decoder = decoder
        self.head = head
        self.end = end
        self.padding = padding

    def forward(self, source: Tensor, target_in: Tensor) -> Tensor:
        """Scores of the target under teacher forcing.

        Args:
            source: shape (n, s), tokens.
            target_in: shape (n, t), a start token and the target without its last token.

        Returns:
            Shape (n, t, target vocabulary): position i scores token i of the target.
        """
        _, state = self.encoder(self.source(source))
        x, _ = self.decoder(self.target(target_in), state)
        logits: Tensor = self.head(x)
        return logits

    @torch.no_grad()
    def generate(self, inputs: Inputs, *, beams: int) -> tuple[Inputs, Tensor]:
        """Decode by beam search, in the form that training on the decoded sequences needs.

        A hypothesis scores the sum of its tokens' log-probabilities; one that has ended is padded at no cost. Equal
        scores keep the better beam, then the lower token. Modes are left alone: call it in evaluation mode.

        Args:
            inputs: (source, target_in) as for `forward`. Of target_in, only the first column is read, as the start
                tokens; its length is how many tokens are decoded.
            beams: hypotheses that are kept at every step; 1 is greedy decoding.

        Returns:
            The same source with the decoded sequence, shifted behind the start token, as the decoder's input; and the
            decoded tokens as targets, shape (n, t), int64.

        Raises:
            TaskError: the inputs have another form, or `beams` is below 1.
        """
        at_least("generate", 1, beams=beams)
        if not isinstance(inputs, tuple) or len(inputs) != 2:
            raise TaskError(f"generate: expected inputs (source, target_in), got {type(inputs).__name__}")
        source, target_in = inputs
        targets = self._search(source, target_in[:, 0], target_in.shape[1], beams)
        return (source, torch.cat((target_in[:, :1], targets[:, :-1].to(target_in.dtype)), dim=1)), targets

    def _search(self, source: Tensor, start: Tensor, length: int, beams: int) -> Tensor:
        """The best hypothesis of every example, shape (n, length)."""
        n = len(source)
        _, state = self.encoder(self.source(source))
        tokens = start.unsqueeze(1)  # (n, beams so far), the last token of every hypothesis
        scores = torch.zeros(n, 1, device=source.device)
        ended = torch.zeros(n, 1, dtype=torch.bool, device=source.device)
        decoded = torch.zeros(n, 1, 0, dtype=torch.int64, device=source.device)
        for _ in range(length):
            width = tokens.shape[1]
            x, state = self.decoder(self.target(tokens.reshape(-1, 1)), state)
            steps = self.head(x).log_softmax(-1).reshape(n, width, -1)
            # The only way on from an ended hypothesis is padding, for free.
            free = torch.full_like(steps[:1, :1], -torch.inf)
            free[..., self.padding] = 0.0
            steps = torch.where(ended.unsqueeze(-1), free, steps)
            reached = (scores.unsqueeze(-1) + steps).flatten(1)
            order = reached.sort(dim=1, descending=True, stable=True).indices[:, : min(beams, reached.shape[1])]
            scores = reached.gather(1, order)
            beam, chosen = order // steps.shape[-1], order % steps.shape[-1]
            decoded = torch.cat((_take(decoded, beam), chosen.unsqueeze(-1)), dim=2)
            ended = ended.gather(1, beam)
            if self.end is not None:
                ended = ended | (chosen == self.end)
            rows = (torch.arange(n, device=source.device).unsqueeze(1) * width + beam).flatten()
            state = _select(state, rows)
            tokens = chosen
        # The best comes first: every step sorts.
        return decoded[:, 0]


def _take(decoded: Tensor, beam: Tensor) -> Tensor:
    """Row `beam` of every example; shapes (n, b, t) and (n, k) to (n, k, t)."""
    return decoded.gather(1, beam.unsqueeze(-1).expand(-1, -1, decoded.shape[2]))


def _select(state: Any, rows: Tensor) -> Any:
    """The hypotheses `rows` of a GRU's state, shape (depth, n b, hidden), or of both of an LSTM's."""
    if isinstance(state, tuple):
        return tuple(part.index_select(1, rows) for part in state)
    return state.index_select(1, rows)
