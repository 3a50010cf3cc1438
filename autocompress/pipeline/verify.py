"""Verify: recompute, from registered bytes alone, what their evidence card claims."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from autocompress.compress.artifact import describe
from autocompress.config import Study
from autocompress.measure.host import host_of
from autocompress.measure.latency import measure
from autocompress.measure.metrics import is_function
from autocompress.measure.quality import predict
from autocompress.measure.target import Target
from autocompress.measure.targets import target_settings
from autocompress.pipeline.folder import StudyFolder
from autocompress.pipeline.identity import dataset_digest
from autocompress.pipeline.judge import Judge
from autocompress.pipeline.prepare import latency_inputs
from autocompress.records import Estimate, LatencyReading, Metric, Record, Role
from autocompress.registry.card import EvidenceCard
from autocompress.registry.store import Store
from autocompress.rng import derive_seed
from autocompress.task import Task, load_task

Outcome = Literal["holds", "differs", "not comparable"]
_UNKNOWN: Outcome = "not comparable"

#: Latency is measured again, not replayed: two readings on one host agree if their ratios to the dense baseline
#: differ by less than this share, or their intervals overlap.
LATENCY_TOLERANCE = 0.15

#: Task functions that ship with autocompress, by their full names: a prefix would let other names of a module through.
OWN_TASKS = frozenset(
    {
        "autocompress.tasks.digits:digits",
        "autocompress.tasks.images:images",
        "autocompress.tasks.text:trec",
        "autocompress.tasks.sequences:characters",
        "autocompress.tasks.sequences:reverse",
    }
)


class Check(Record):
    """One claim of the card and what was found.

    Attributes:
        name: what is claimed.
        claimed, found: in words, with units.
        outcome: ``"not comparable"`` where this host cannot tell, and why in `found`.
    """

    name: str
    claimed: str
    found: str
    outcome: Outcome


class Verification(Record):
    """Every claim of one version, checked."""

    uri: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool:
        """No claim differs."""
        return all(c.outcome != "differs" for c in self.checks)


def verify_version(uri: str, *, output: Path, trusted: str | None = None) -> Verification:
    """Fetch a version and check each claim of its card on this machine.

    The card names a function that brings the data. Whoever can write to the registry chose that name, so it is called
    only if it is one of autocompress' own, the one of the study of that name in `output`, or `trusted`.

    Bytes, size, layers, multiply-adds and parameters are recounted; accuracy is measured again on the data with the
    hashes on the card; latency is measured again beside the dense baseline where this host is the card's.

    Raises:
        RegistryError: there is no such version, or it is not one of ours.
        TaskError: the task that the card names cannot be built here.
    """
    store = Store(None, output)
    model, card = store.fetch(uri)
    target = target_settings(**card.origin.target.model_dump(exclude={"options"}), **card.origin.target.options).build()
    checks = _bytes(model, card)
    factory = card.origin.task.factory
    # The study's name comes from the card too, and must not lead out of the output folder.
    if factory != trusted and not _is_known(factory, output / Path(card.origin.lineage.study).name):
        why = f"not run: {factory} is no function of autocompress or of a study in {output}; --task {factory} trusts it"
        unknown = [
            Check(name=name, claimed="measured with the task's data", found=why, outcome="not comparable")
            for name in ("accuracy (selection)", "accuracy (test)", "latency")
        ]
        return Verification(uri=uri, checks=(*checks, *unknown))
    task = load_task(factory, card.origin.task.arguments)
    trusted_metrics = _known_metrics(card, factory, output / Path(card.origin.lineage.study).name)
    for name in [m.name for m in card.origin.metrics if m not in trusted_metrics]:
        why = "not run: a function that is neither of the task's module nor of a study in the output folder"
        checks.append(Check(name=name, claimed="measured with the metric's function", found=why, outcome=_UNKNOWN))
    judge = Judge(task, trusted_metrics, card.origin.seed)
    for role, claimed in (("selection", card.final.values), ("test", {"accuracy": card.test, **card.test_metrics})):
        checks += _quality(model, card, target, judge, getattr(task, role), role, claimed)  # type: ignore[arg-type]
    checks.append(_latency(uri, model, card, target, task, store))
    return Verification(uri=uri, checks=tuple(checks))


def _is_known(factory: str, folder: Path) -> bool:
    if factory in OWN_TASKS:
        return True
    kept = StudyFolder(folder).study
    return kept.is_file() and Study.model_validate_json(kept.read_bytes()).task.factory == factory


def _known_metrics(card: EvidenceCard, factory: str, folder: Path) -> tuple[Metric, ...]:
    """Metrics that may be run: scikit-learn's, and functions beside the task's or of the study that is kept here."""
    kept = StudyFolder(folder).study
    own = Study.model_validate_json(kept.read_bytes()).metrics if kept.is_file() else ()
    place = factory.rpartition(":")[0]
    return tuple(
        m for m in card.origin.metrics if not is_function(m) or m.source.rpartition(":")[0] == place or m in own
    )


def _equal(name: str, claimed: object, found: object) -> Check:
    return Check(name=name, claimed=str(claimed), found=str(found), outcome="holds" if claimed == found else "differs")


def _bytes(model: bytes, card: EvidenceCard) -> list[Check]:
    claimed, found = card.artifact, describe(model)
    different = [f"{a.name}: {a} -> {b}" for a, b in zip(claimed.layers, found.layers, strict=False) if a != b]
    layers = f"{len(found.layers)} layers as claimed" if claimed.layers == found.layers else "; ".join(different)
    return [
        _equal("sha256", claimed.sha256, hashlib.sha256(model).hexdigest()),
        _equal("size_bytes", claimed.size_bytes, len(model)),
        _equal("macs", claimed.macs, found.macs),
        _equal("parameters", claimed.parameters, found.parameters),
        _equal("layers: shapes, bits, zeros", f"{len(claimed.layers)} layers as claimed", layers),
    ]


def _quality(
    model: bytes,
    card: EvidenceCard,
    target: Target,
    judge: Judge,
    data: Any,
    role: Role,
    claimed: Mapping[str, Estimate],
) -> list[Check]:
    split = next(s for s in card.origin.splits if s.role == role)
    same = _equal(f"data ({role})", split.sha256, dataset_digest(data))
    if same.outcome == "differs":
        return [same]
    outputs, targets = predict(target.prepare(model), data)
    here = host_of(target)
    checks = [same]
    for name, found in judge.values(outputs, targets, role).items():
        said = claimed.get(name)
        if said is None:
            checks.append(_equal(f"{name} ({role})", "no value", f"{found.value:.6f}"))
            continue
        check = _equal(f"{name} ({role})", f"{said.value:.6f}", f"{found.value:.6f}")
        if check.outcome == "differs" and here.key != card.final.host.key and said.low <= found.value <= said.high:
            # Kernels of another processor round differently: within the interval it says nothing against the card.
            check = check.model_copy(
                update={"outcome": _UNKNOWN, "found": f"{check.found}, inside the interval, on another host"}
            )
        checks.append(check)
    return checks


def _latency(uri: str, model: bytes, card: EvidenceCard, target: Target, task: Task, store: Store) -> Check:
    claimed = card.final.latency
    words = f"{claimed.latency_ms.value:.4f} ms, {claimed.ratio.value:.3f} of dense"
    here = host_of(target)
    if here.key != card.final.host.key:
        found = f"this host is {here.key} ({here.cpu}), the card's is {card.final.host.key}"
        return Check(name="latency", claimed=words, found=found, outcome="not comparable")
    dense = store.dense(uri)
    inputs = latency_inputs(task, target.batch_size)
    reading = measure([target.prepare(model)], target.prepare(dense), inputs, seed=derive_seed(0, "verify"))[0]
    agrees = agree(claimed, reading)
    noise = "; the machine was too noisy to tell" if reading.noisy else ""
    return Check(
        name="latency",
        claimed=words,
        found=f"{reading.latency_ms.value:.4f} ms, {reading.ratio.value:.3f} of dense{noise}",
        outcome="holds" if agrees else "not comparable" if reading.noisy else "differs",
    )


def agree(first: LatencyReading, second: LatencyReading) -> bool:
    """Whether two readings of one artifact on one host tell the same ratio to the dense baseline."""
    a, b = first.ratio, second.ratio
    overlap = a.low <= b.high and b.low <= a.high
    return overlap or abs(a.value - b.value) <= LATENCY_TOLERANCE * max(a.value, b.value)
