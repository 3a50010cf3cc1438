from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from autocompress.errors import RegistryError
from autocompress.records import Estimate, Finalist, Plan, Version
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
        "| `linear` | 10×64 (was 10×128) | 8 | 10.0% |",
        "`lstm`: recurrent layers are not cut",
        "20 rounds",
        "Test CPU, 2 cores, 8 GB",
        "4 epochs",
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
