from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.errors import RegistryError
from autocompress.records import (
    Architecture,
    BlockDrop,
    ClassChange,
    Estimate,
    Fairness,
    Finalist,
    Iterative,
    LayerBits,
    LayerReport,
    NoDistillation,
    Plan,
    Quantizer,
    Version,
)
from autocompress.registry.card import EvidenceCard, Origin
from autocompress.registry.markdown import card_summary
from autocompress.registry.tags import estimates, registration_key, study_key, version_tags

MakeFinalist = Callable[..., Finalist]
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def card(network: Callable[..., bytes], finalist: MakeFinalist, origin: Origin) -> EvidenceCard:
    return EvidenceCard.of("digits", finalist(1, network(1)), origin, created=NOON)


def test_a_card_is_json_both_ways(card: EvidenceCard) -> None:
    assert EvidenceCard.model_validate_json(card.model_dump_json()) == card


def test_a_finalist_without_a_test_figure_gets_no_card(
    network: Callable[..., bytes], finalist: MakeFinalist, origin: Origin
) -> None:
    unopened = finalist(1, network(1)).model_copy(update={"test": None})
    with pytest.raises(RegistryError, match="trial 1: expected its accuracy on the test split, got none"):
        EvidenceCard.of("digits", unopened, origin)


def test_a_card_whose_parts_disagree_is_refused(card: EvidenceCard) -> None:
    fields = {name: getattr(card, name) for name in EvidenceCard.model_fields}
    with pytest.raises(ValidationError, match=r"search.plan_key: expected \w{16} \(the plan's\), got \w{16}"):
        EvidenceCard(**fields | {"plan": Plan()})
    with pytest.raises(ValidationError, match=r"final\.role: expected 'selection', got 'validation'"):
        EvidenceCard(**fields | {"final": card.search})


def test_each_role_has_one_split(origin: Origin) -> None:
    fields = {name: getattr(origin, name) for name in Origin.model_fields}
    with pytest.raises(ValidationError, match="expected each of train, validation, selection, test once"):
        Origin(**fields | {"splits": origin.splits[:3]})


def test_a_stranger_finds_every_fact_on_the_page(card: EvidenceCard) -> None:
    page = card.to_markdown()
    for fact in (
        "# digits: 1 group cut, 1 layer int8",
        card.artifact.sha256,
        "onnxruntime 1.31.1",
        "| accuracy, selection split | 91.10% [89.10, 93.10] | 95.00% [93.00, 97.00] | -3.90 points |",
        "| accuracy, test split | 91.00% [89.00, 93.00] | 94.00% [92.00, 96.00] | -3.00 points |",
        "× 0.400 [0.380, 0.420]",
        "| `linear` | 10×64 (was 10×128) | 8 | 32 | float | 10.0% |",
        "`lstm`: recurrent layers are not cut",
        "20 rounds",
        "Test CPU, 2 cores, 8 GB",
        "Recovery: 4 epochs on the training split, with the dense model as teacher; schedule: one-shot. Layers behind "
        "the cuts were refitted by least squares before.",
        "| test | 297 | opened once, after all selection |",
        "`autocompress.tasks.digits:digits(seed=0)`",
        "Seed: 7",
        "torch 2.13.0",
        "- layer stem stayed in float",
        "- macs have no effect here",
        "autocompress verify models:/digits/<version>",
    ):
        assert fact in page


def test_the_page_is_sound_without_warnings_or_dense_test_figure(card: EvidenceCard) -> None:
    dense = card.origin.dense.model_copy(update={"accuracy": {"selection": card.origin.dense.accuracy["selection"]}})
    plain = card.model_copy(
        update={
            "origin": card.origin.model_copy(update={"dense": dense, "warnings": (), "left_dense": ()}),
            "final": card.final.model_copy(update={"warnings": ()}),
        }
    )
    page = plain.to_markdown()
    assert "| accuracy, test split | 91.00% [89.00, 93.00] | not measured |  |" in page
    assert "## Warnings\n\nNone." in page
    assert "Left as it was" not in page


def test_a_noisy_latency_is_a_warning(card: EvidenceCard) -> None:
    latency = card.final.latency.model_copy(update={"noisy": True})
    noisy = card.model_copy(update={"final": card.final.model_copy(update={"latency": latency})})
    assert "stayed noisy" in noisy.to_markdown()
    assert version_tags(noisy, "k", "c")["autocompress.noisy"] == "true"


def fairness(pies: tuple[int, ...] | None = None) -> Fairness:
    def around(value: float) -> Estimate:
        return Estimate(value=value, low=value - 0.02, high=value + 0.02)

    return Fairness(
        classes=(
            ClassChange(target=0, examples=120, dense=around(0.95), compressed=around(0.96), change=around(0.01)),
            ClassChange(
                target=7,
                examples=9,
                dense=around(0.9),
                compressed=around(0.8),
                change=around(-0.1),
                impact=-2.5,
                p_value=0.013,
            ),
        ),
        overall=around(-0.005),
        worst_class=7,
        worst_class_drop=around(0.1),
        pies=pies,
        models=None if pies is None else 5,
    )


def test_changes_per_class_are_on_the_page_the_worst_first(card: EvidenceCard) -> None:
    measured = card.final.model_copy(update={"fairness": fairness()})
    page = card.model_copy(update={"final": measured}).to_markdown()
    section = page.split("## Change per class")[1].split("## What was changed")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    assert rows[2:] == [
        "| **7** (worst) | 9 | 90.00% [88.00, 92.00] | 80.00% [78.00, 82.00] | -10.00 [-12.00, -8.00] "
        "| -2.50 (p = 0.013) |",
        "| 0 | 120 | 95.00% [93.00, 97.00] | 96.00% [94.00, 98.00] | +1.00 [-1.00, +3.00] |  |",
    ]
    assert "The same selection examples run by both models" in section
    assert "All examples together: -0.50 [-2.50, +1.50] points." in section
    assert "Largest drop of a class: +10.00 [+8.00, +12.00] points." in section
    assert "exemplars" not in section


def test_exemplars_are_counted_where_several_models_were_compared(card: EvidenceCard) -> None:
    measured = card.final.model_copy(update={"fairness": fairness(pies=(3, 8, 20))})
    page = card.model_copy(update={"final": measured}).to_markdown()
    assert "Most of 5 models compressed like this one disagree with most of as many dense ones on 3 examples" in page


def test_a_task_without_classes_has_no_such_section(card: EvidenceCard) -> None:
    assert card.final.fairness is None
    assert "Change per class" not in card.to_markdown()


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (Plan(), "Recovery: none, the dense model was exported as it is."),
        (
            Plan(bits=(LayerBits(layer="linear", bits=4),)),
            "Recovery: none, the weights were only stored in fewer bits.",
        ),
        (
            Plan(bits=(LayerBits(layer="linear", bits=4),), quantizer=Quantizer(training="aware")),
            "with the dense model as teacher; schedule: one-shot; quantization-aware.",
        ),
        (
            Plan(drops=(BlockDrop(block="b"),), schedule=Iterative(), distillation=NoDistillation()),
            "4 epochs on the training split, on the task's own loss; schedule: iterative.",
        ),
        (
            Plan(architecture=Architecture(width=0.5, depth=2, bits=8), quantizer=Quantizer(training="aware")),
            "Training: another network, built by the task at width 0.5, depth 2, from fresh weights; 4 epochs on the "
            "training split, with the dense model as teacher; quantization-aware.",
        ),
    ],
)
def test_the_page_says_how_the_model_recovered(card: EvidenceCard, plan: Plan, words: str) -> None:
    assert words in card.model_copy(update={"plan": plan}).to_markdown()


def test_layers_of_a_network_that_is_built_are_not_held_against_the_dense_one_s(card: EvidenceCard) -> None:
    built = card.model_copy(update={"plan": Plan(architecture=Architecture(width=0.5))}).to_markdown()
    changes = built[built.index("## What was changed") :]
    changes = changes[: changes.index("\n## ")]
    assert f"`{card.artifact.layers[0].name}`" in changes
    assert "(was" not in changes
    assert "Layers left out of the network" not in changes


def test_layers_that_are_gone_are_named_and_factorized_ones_are_not(card: EvidenceCard) -> None:
    def layer(name: str) -> LayerReport:
        return LayerReport(name=name, shape=(4, 4), bits=4, stored_bits=4, compute="weights", zeros=0, weights=16)

    before = card.origin.dense.artifact.model_copy(update={"layers": (layer("a"), layer("b"), layer("c"))})
    after = card.artifact.model_copy(update={"layers": (layer("a"), layer("b.0"), layer("b.1")), "packed_bytes": 99})
    page = card.model_copy(
        update={
            "origin": card.origin.model_copy(
                update={"dense": card.origin.dense.model_copy(update={"artifact": before})}
            ),
            "final": card.final.model_copy(update={"artifact": after}),
        }
    ).to_markdown()
    assert "Layers left out of the network: `c`." in page
    assert "| `b.1` | 4×4 | 4 | 4 | weights | 0.0% |" in page
    assert f"| packed size | 99 bytes | {before.size_bytes:,} bytes |" in page


def test_every_table_of_the_page_has_equal_rows(card: EvidenceCard) -> None:
    columns = None
    for line in card.to_markdown().splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        count = line.replace("\\|", "").count("|")
        assert columns in (None, count), line
        columns = count


def test_the_summary_fits_what_databases_keep(card: EvidenceCard) -> None:
    summary = card_summary(card)
    assert summary.startswith("# digits")
    assert len(summary) <= 5000
    assert card.to_markdown().startswith(summary)


_floats = st.floats(allow_nan=False, allow_infinity=False)


@given(value=_floats, low=_floats, high=_floats)
def test_estimates_survive_tags_exactly(value: float, low: float, high: float) -> None:
    from autocompress.registry.tags import _estimate_tags

    estimate = Estimate(value=value, low=low, high=high)
    version = Version(model="m", version=1, sha256="", run_id="", tags=_estimate_tags("latency_ms", estimate))
    assert estimates(version) == {"latency_ms": estimate}


@pytest.mark.parametrize("text", ["nan", "inf", "", "1,5"])
def test_a_tag_that_is_no_finite_number_is_refused(text: str) -> None:
    version = Version(model="m", version=4, sha256="", run_id="", tags={"autocompress.accuracy": text})
    with pytest.raises(RegistryError, match=r"models:/m/4: tag autocompress\.accuracy: expected a finite number, got "):
        estimates(version)


def test_identity_is_study_plan_and_artifact(origin: Origin, card: EvidenceCard) -> None:
    lineage = origin.lineage
    key = registration_key(lineage, card.plan, "a")
    assert key == registration_key(lineage.model_copy(update={"host": "x", "versions": {}}), card.plan, "a")
    assert key != registration_key(lineage, Plan(), "a")
    assert key != registration_key(lineage, card.plan, "b")
    for field in ("study", "model_sha256", "data_sha256", "code_sha256", "space_sha256", "task"):
        assert study_key(lineage) != study_key(lineage.model_copy(update={field: "x"})), field
