from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from autocompress.records import Agreement, ClassAgreement, Estimate, Finalist, Metric, Version
from autocompress.registry.card import EvidenceCard, Origin
from autocompress.registry.markdown import card_markdown
from autocompress.registry.tags import estimates, version_tags

LOSS = Metric(name="log_loss", maximize=False, best=0.0, source="scikit-learn:neg_log_loss")
TOP = Metric(name="key", maximize=True, source="scikit-learn:top_k_accuracy", arguments={"k": 3})


def of(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def test_metrics_and_agreement_are_on_the_card_and_metrics_in_the_tags(
    network: Callable[..., bytes], finalist: Callable[..., Finalist], origin: Origin
) -> None:
    member = finalist(1, network(1))
    alike = Agreement(
        dense=of(0.97), torch=of(1.0), classes=(ClassAgreement(target=4, examples=25, dense=of(0.8), torch=of(1.0)),)
    )
    values = {**member.final.values, "log_loss": of(0.3), "key": of(0.9)}
    final = member.final.model_copy(update={"values": values, "predictions": alike})
    dense = origin.dense.model_copy(update={"metrics": {"selection": {"log_loss": of(0.2), "key": of(0.95)}}})
    card = EvidenceCard.of(
        "digits",
        member.model_copy(update={"final": final, "test_metrics": {"log_loss": of(0.35), "key": of(0.88)}}),
        origin.model_copy(update={"dense": dense, "metrics": (LOSS, TOP), "objectives": ("log_loss", "latency_ms")}),
        created=datetime(2026, 1, 2, 12, tzinfo=UTC),
    )
    assert EvidenceCard.model_validate_json(card.model_dump_json()) == card
    page = " ".join(card_markdown(card).split())
    assert "| log_loss (smaller is better), selection split | 0.3 [0.29, 0.31] | 0.2 [0.19, 0.21] | +0.1 |" in page
    assert "| log_loss (smaller is better), test split | 0.35 [0.34, 0.36] | not measured | |" in page
    assert "key: `scikit-learn:top_k_accuracy` with k=3, outputs taken for logits" in page
    assert "97.00% [96.00, 98.00] are the dense model's, fewest in class 4 with 80.00%" in page
    # A metric called "key" does not overwrite the registration's key.
    tags = version_tags(card, "the-key", "sha")
    assert tags["autocompress.key"] == "the-key"
    assert tags["autocompress.metric.key"] == "0.9"
    assert tags["autocompress.test_metric.log_loss"] == "0.35"
    found = estimates(Version(model="m", version=1, sha256="s", run_id="r", tags=tags))
    assert found["log_loss"] == of(0.3)
    assert set(found) == set(values)
