from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from autocompress.errors import TaskError
from autocompress.models.attention import FusedAttention, SeparateAttention
from autocompress.models.bert import bert
from autocompress.models.recurrent import language_model, text_classifier

TINY = {"vocabulary": 11, "width": 12, "depth": 2, "heads": 3, "hidden": 8, "length": 9, "classes": 4}


@pytest.mark.parametrize("qkv", ["separate", "fused"])
def test_bert_base_has_the_published_number_of_parameters(qkv: str) -> None:
    with torch.device("meta"):
        first, mean = bert(qkv=qkv, pooling="cls"), bert(qkv=qkv, pooling="mean")  # type: ignore[arg-type]
    head = 2 * 768 + 2
    assert sum(p.numel() for p in first.parameters()) == 109_482_240 + head
    assert sum(p.numel() for p in mean.parameters()) == 109_482_240 + head - (768 * 768 + 768)


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """One head of one example, position by position."""
    out = np.zeros_like(v)
    for i in range(len(q)):
        weights = np.array([np.exp(q[i] @ k[j] / np.sqrt(q.shape[1])) if seen[j] else 0.0 for j in range(len(k))])
        out[i] = (weights[:, None] / weights.sum() * v).sum(0)
    return out


def test_attention_is_that_of_the_formula_head_by_head() -> None:
    torch.manual_seed(0)
    module = SeparateAttention(6, 2)
    x, seen = torch.randn(2, 4, 6), torch.tensor([[1, 1, 1, 0], [1, 0, 1, 1]], dtype=torch.bool)
    with torch.no_grad():
        q, k, v = (part(x).numpy() for part in (module.query, module.key, module.value))
        heads = np.stack(
            [
                np.concatenate(
                    [
                        naive_attention(*(p[n][:, h] for p in (q, k, v)), seen[n].numpy())
                        for h in (slice(3), slice(3, 6))
                    ],
                    axis=1,
                )
                for n in range(2)
            ]
        )
        expected = module.out(torch.from_numpy(heads))
        got = module(x, seen[:, None, None, :])
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_fused_attention_is_separate_attention_with_its_weights_one_after_another() -> None:
    torch.manual_seed(0)
    apart, fused = SeparateAttention(6, 2), FusedAttention(6, 2)
    parts = (apart.query, apart.key, apart.value)
    fused.load_state_dict(
        {
            "qkv.weight": torch.cat([p.weight for p in parts]),
            "qkv.bias": torch.cat([p.bias for p in parts]),
            "out.weight": apart.out.weight,
            "out.bias": apart.out.bias,
        }
    )
    x, mask = torch.randn(2, 5, 6), torch.rand(2, 1, 1, 5) > 0.3
    torch.testing.assert_close(fused(x, mask), apart(x, mask))


@pytest.mark.parametrize("build", [SeparateAttention, FusedAttention])
def test_a_head_is_cut_by_shrinking_the_projections_and_the_count(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = build(12, 3)
    kept = [0, 1, 2, 3, 8, 9, 10, 11]
    cut = build(12, 3)
    cut.heads = 2
    with torch.no_grad():
        for name, part in module.named_children():
            whole = [i + 12 * third for third in range(3) for i in kept] if name == "qkv" else kept
            smaller = nn.Linear(8, 12) if name == "out" else nn.Linear(12, len(whole))
            smaller.weight.copy_(part.weight[:, kept] if name == "out" else part.weight[whole])
            smaller.bias.copy_(part.bias if name == "out" else part.bias[whole])
            setattr(cut, name, smaller)
        module.get_submodule("out").get_parameter("weight")[:, 4:8] = 0.0
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(cut(x), module(x))


@pytest.mark.parametrize("qkv", ["separate", "fused"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_tokens_that_do_not_count_change_no_output_of_bert(qkv: str, pooling: str) -> None:
    torch.manual_seed(0)
    module = bert(**TINY, qkv=qkv, pooling=pooling).eval()  # type: ignore[arg-type]
    ids = torch.randint(1, 11, (3, 6))
    padded = torch.cat((ids, torch.randint(1, 11, (3, 3))), dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 3] * 3)
    out = module(input_ids=padded, attention_mask=mask)
    assert out.shape == (3, 4)
    torch.testing.assert_close(out, module(ids))
    assert not torch.allclose(out, module(padded), rtol=1e-4)


def test_a_sequence_in_which_no_token_counts_gives_numbers() -> None:
    module = bert(**TINY, pooling="mean").eval()  # type: ignore[arg-type]
    ids, mask = torch.ones(2, 4, dtype=torch.int64), torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])
    assert torch.isfinite(module(ids, mask)).all()


def test_segments_are_told_apart() -> None:
    module = bert(**TINY).eval()  # type: ignore[arg-type]
    ids = torch.ones(1, 4, dtype=torch.int64)
    segments = torch.tensor([[0, 0, 1, 1]])
    torch.testing.assert_close(module(ids), module(ids, token_type_ids=torch.zeros_like(ids)))
    assert not torch.equal(module(ids), module(ids, token_type_ids=segments))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("both_ways", [False, True])
def test_a_text_classifier_reads_any_length(cell: str, both_ways: bool) -> None:
    torch.manual_seed(0)
    module = text_classifier(13, 4, width=5, hidden=6, depth=2, cell=cell, both_ways=both_ways)  # type: ignore[arg-type]
    module.eval()
    for n, t in ((1, 1), (3, 7)):
        assert module(torch.randint(13, (n, t))).shape == (n, 4)
    gates = 4 if cell == "lstm" else 3
    ways = 2 if both_ways else 1
    first, second = gates * 6 * (5 + 6 + 2), gates * 6 * (6 * ways + 6 + 2)
    assert sum(p.numel() for p in module.parameters()) == 13 * 5 + ways * (first + second) + 6 * ways * 4 + 4


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_padding_at_the_end_does_not_count(cell: str) -> None:
    torch.manual_seed(0)
    module = text_classifier(13, 4, width=5, hidden=6, cell=cell).eval()  # type: ignore[arg-type]
    tokens = torch.randint(1, 13, (3, 5))
    padded = torch.cat((tokens, torch.zeros(3, 4, dtype=torch.int64)), dim=1)
    torch.testing.assert_close(module(padded), module(tokens))
    assert torch.isfinite(module(torch.zeros(2, 4, dtype=torch.int64))).all()


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_a_language_model_is_an_lstm_step_by_step_and_never_looks_ahead() -> None:
    torch.manual_seed(0)
    module = language_model(7, width=3, hidden=4, depth=1).eval()
    tokens = torch.randint(7, (1, 5))
    p = {name: value.detach().numpy() for name, value in module.named_parameters()}
    h = c = np.zeros(4)
    expected = []
    for token in tokens[0].tolist():
        gates = p["layers.weight_ih_l0"] @ p["embedding.weight"][token] + p["layers.weight_hh_l0"] @ h
        i, f, g, o = np.split(gates + p["layers.bias_ih_l0"] + p["layers.bias_hh_l0"], 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        expected.append(p["head.weight"] @ h + p["head.bias"])
    out = module(tokens)
    np.testing.assert_allclose(out[0].detach().numpy(), np.stack(expected), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(module(tokens[:, :3]), out[:, :3])


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_language_model_scores_every_position(cell: str) -> None:
    module = language_model(7, width=3, hidden=4, depth=2, cell=cell)  # type: ignore[arg-type]
    assert module(torch.randint(7, (3, 5))).shape == (3, 5, 7)


@pytest.mark.parametrize(
    ("build", "arguments", "message"),
    [
        (bert, {"width": 10, "heads": 3}, "bert: expected width to be a multiple of 3, got 10"),
        (bert, {"qkv": "x"}, "bert: expected qkv to be one of 'separate', 'fused', got 'x'"),
        (bert, {"pooling": "max"}, "bert: expected pooling to be one of 'cls', 'mean', got 'max'"),
        (bert, {"vocabulary": 0}, "bert: expected vocabulary >= 1, got 0"),
        (text_classifier, {"vocabulary": 5, "classes": 2, "cell": "rnn"}, "expected cell to be one of 'lstm', 'gru'"),
        (text_classifier, {"vocabulary": 5, "classes": 2, "depth": 0}, "text_classifier: expected depth >= 1, got 0"),
        (language_model, {"vocabulary": 5, "hidden": 0}, "language_model: expected hidden >= 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(
    build: Callable[..., nn.Module], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(TaskError, match=message), torch.device("meta"):
        build(**arguments)
