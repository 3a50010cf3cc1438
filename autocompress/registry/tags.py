"""What a version's tags say, written and read in one place.

Tags are text. Numbers are written so that reading them gives the very same float.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from autocompress.errors import RegistryError
from autocompress.records import FIXED, Estimate, Lineage, Plan, Version, digest
from autocompress.registry.card import EvidenceCard
from autocompress.registry.redact import redact
from autocompress.space.words import plan_words

PREFIX = "autocompress."
KEY = PREFIX + "key"
KIND = PREFIX + "kind"
STUDY = PREFIX + "study"
STUDY_KEY = PREFIX + "study_key"
TRIAL = PREFIX + "trial"
PLAN = PREFIX + "plan"
SHA256 = PREFIX + "sha256"
CARD_SHA256 = PREFIX + "card_sha256"
HOST = PREFIX + "host"
#: Metrics of the study stand below this, apart from the tags above.
METRIC = PREFIX + "metric."


def study_key(lineage: Lineage) -> str:
    """Identity of a study across processes: its name and the hashes of model, data, code and space.

    Host and library versions are left out: the same study continued after an upgrade stays one study.
    """
    return digest(
        [
            lineage.study,
            lineage.task,
            lineage.model_sha256,
            lineage.data_sha256,
            lineage.code_sha256,
            lineage.space_sha256,
        ]
    )


def registration_key(lineage: Lineage, plan: Plan, sha256: str) -> str:
    """Identity of a registration: study, plan and artifact. The same one is never registered twice."""
    return digest([study_key(lineage), plan.key, sha256])


def version_tags(card: EvidenceCard, key: str, card_sha256: str) -> dict[str, str]:
    """Tags of a version: objectives with intervals, test accuracy, plan, hashes, lineage and host."""
    lineage, final = card.origin.lineage, card.final
    tags = {
        KEY: key,
        KIND: "finalist",
        STUDY: lineage.study,
        STUDY_KEY: study_key(lineage),
        TRIAL: str(card.trial),
        PLAN: plan_words(card.plan),
        PREFIX + "plan_key": card.plan.key,
        SHA256: card.artifact.sha256,
        CARD_SHA256: card_sha256,
        HOST: final.host.key,
        PREFIX + "runtime": final.host.runtime,
        PREFIX + "target": card.origin.target.kind,
        PREFIX + "task": lineage.task,
        PREFIX + "model_sha256": lineage.model_sha256,
        PREFIX + "data_sha256": lineage.data_sha256,
        PREFIX + "code_sha256": lineage.code_sha256,
        PREFIX + "space_sha256": lineage.space_sha256,
        PREFIX + "dense_sha256": lineage.dense_sha256,
        PREFIX + "latency_ratio": repr(final.latency.ratio.value),
        PREFIX + "noisy": str(final.latency.noisy).lower(),
        **_estimate_tags("test_accuracy", card.test),
    }
    for name, estimate in final.values.items():
        tags |= _estimate_tags(_place(name), estimate)
    for name, estimate in card.test_metrics.items():
        tags |= _estimate_tags(f"test_metric.{name}", estimate)
    return {name: redact(value) for name, value in tags.items()}


def _place(objective: str) -> str:
    return objective if objective in FIXED else METRIC.removeprefix(PREFIX) + objective


def _estimate_tags(name: str, estimate: Estimate) -> dict[str, str]:
    tags = {PREFIX + name: repr(float(estimate.value))}
    if not estimate.low == estimate.value == estimate.high:
        tags |= {f"{PREFIX}{name}.low": repr(float(estimate.low)), f"{PREFIX}{name}.high": repr(float(estimate.high))}
    return tags


def estimates(version: Version) -> dict[str, Estimate]:
    """Objective or metric -> estimate, as measured on the selection split. Empty for a version of another tool.

    Accuracy on the test split is not among them: nothing may be picked by it.

    Raises:
        RegistryError: a tag that should hold a number holds something else.
    """
    found: dict[str, Estimate] = {}
    metrics = (tag.removeprefix(METRIC).partition(".")[0] for tag in version.tags if tag.startswith(METRIC))
    for name in dict.fromkeys((*FIXED, *metrics)):
        value = _number(version, PREFIX + _place(name))
        if value is not None:
            low, high = (_number(version, f"{PREFIX}{_place(name)}.{end}") for end in ("low", "high"))
            found[name] = Estimate(value=value, low=value if low is None else low, high=value if high is None else high)
    return found


def values(version: Version) -> dict[str, float]:
    """Objective name -> value, each in the objective's own unit; see `estimates`."""
    return {name: estimate.value for name, estimate in estimates(version).items()}


def is_noisy(version: Version) -> bool:
    """Whether the version's latency reading stayed noisy; such a latency should not rank."""
    return version.tags.get(PREFIX + "noisy") == "true"


def test_accuracy(version: Version) -> float | None:
    """Accuracy on the test split, for display only; None if the version carries none."""
    return _number(version, PREFIX + "test_accuracy")


def _number(version: Version, tag: str) -> float | None:
    text = version.tags.get(tag)
    if text is None:
        return None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RegistryError(
            f"{version.uri}: tag {tag}: expected a finite number, got {text!r}; "
            "restore it from the version's card.json, or delete the version"
        )
    return number


def registry_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """`tags` as they may stand in a run: redacted, and cut to MLflow's 8000 characters."""
    return {name: redact(value)[:8000] for name, value in tags.items()}
