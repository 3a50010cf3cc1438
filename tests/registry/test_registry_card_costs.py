from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from autocompress.records import EnergyReading, Estimate, Finalist, Throughput
from autocompress.registry.card import EvidenceCard, Origin
from autocompress.registry.markdown import card_markdown
from autocompress.registry.tags import version_tags

MakeFinalist = Callable[..., Finalist]
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def rate(batch_size: int, mine: float, dense: float, *, noisy: bool = False) -> Throughput:
    estimate = Estimate(value=mine, low=0.9 * mine, high=1.1 * mine)
    return Throughput(batch_size=batch_size, examples_per_s=estimate, baseline_per_s=dense, noisy=noisy)


def test_a_card_shows_throughput_memory_and_energy_beside_the_dense_model(
    network: Callable[..., bytes], finalist: MakeFinalist, origin: Origin
) -> None:
    member = finalist(1, network(1))
    ratio = Estimate(value=0.5, low=0.4, high=0.6)
    energy = EnergyReading(
        energy_mj=Estimate(value=6.0, low=5.0, high=7.0),
        ratio=ratio,
        baseline_mj=12.0,
        windows=10,
        counters=("intel-rapl:0 package-0",),
    )
    latency = member.final.latency.model_copy(
        update={"throughput": (rate(1, 2500.0, 1000.0), rate(8, 4000.0, 2000.0, noisy=True)), "attempts": 2}
    )
    values = {**member.final.values, "peak_memory_bytes": Estimate.exact(5e6), "energy_mj": energy.energy_mj}
    final = member.final.model_copy(update={"latency": latency, "values": values, "energy": energy})
    dense = origin.dense.model_copy(update={"peak_memory_bytes": Estimate.exact(2e7), "energy_mj": 12.0})
    card = EvidenceCard.of(
        "digits",
        member.model_copy(update={"final": final}),
        origin.model_copy(update={"dense": dense}),
        created=NOON,
    )
    page = " ".join(card_markdown(card).split())
    assert "| examples per second, batch 1 | 2,500 | 1,000 | × 2.50 |" in page
    assert "| examples per second, batch 8 (noisy) | 4,000 | 2,000 | × 2.00 |" in page
    assert "| peak memory of a session | 5.0 MB | 20.0 MB | × 0.250 |" in page
    assert "energy of an inference" in page
    assert "12.000 mJ" in page
    assert "2 attempts" in page
    tags = version_tags(card, "key", "sha")
    assert tags["autocompress.peak_memory_bytes"] == "5000000.0"
    assert tags["autocompress.energy_mj.low"] == "5.0"
    assert EvidenceCard.model_validate_json(card.model_dump_json()) == card


def test_a_card_of_a_latency_alone_has_no_such_rows(
    network: Callable[..., bytes], finalist: MakeFinalist, origin: Origin
) -> None:
    page = card_markdown(EvidenceCard.of("digits", finalist(1, network(1)), origin, created=NOON))
    for words in ("examples per second", "peak memory", "energy of an inference"):
        assert words not in page
