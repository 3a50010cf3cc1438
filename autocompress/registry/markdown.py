"""The evidence card as a readable page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from autocompress.records import (
    Estimate,
    LayerReport,
    RuntimeGraph,
    RuntimeLayer,
    Throughput,
    settled,
    starts_untrained,
)
from autocompress.space.words import plan_words

if TYPE_CHECKING:
    from autocompress.registry.card import EvidenceCard

_PURPOSE = {
    "train": "training, recovery, calibration of the quantizer",
    "validation": "guided the search",
    "selection": "judged the finalists",
    "test": "opened once, after all selection",
}


def card_markdown(card: EvidenceCard) -> str:
    """Title, figures, changes, method, data, lineage, warnings and how to check, as Markdown."""
    sections = (
        _head(card),
        _figures(card),
        *_fairness(card),
        _changes(card),
        _method(card),
        _data(card),
        _lineage(card),
        _warnings(card),
        _check(card),
    )
    return "\n\n".join(sections) + "\n"


def card_summary(card: EvidenceCard) -> str:
    """Title and figures only, within the 5000 characters that MLflow's databases keep for a version."""
    return f"{_head(card)}\n\n{_figures(card)}"[:5000]


def _head(card: EvidenceCard) -> str:
    final, lineage = card.final, card.origin.lineage
    return (
        f"# {card.model}: {plan_words(card.plan)}\n\n"
        f"A compressed network for the task `{card.origin.task.name}`, trial {card.trial} of the study "
        f"`{lineage.study}`, written {card.created:%Y-%m-%d %H:%M} UTC.\n"
        f"Every figure was measured on the file with sha256 `{card.artifact.sha256}`, run by {final.host.runtime}; "
        "none stands for another file or another runtime.\n"
        "Intervals in brackets hold the true value with 95% confidence."
    )


def _figures(card: EvidenceCard) -> str:
    final, dense = card.final, card.origin.dense
    reading = final.latency
    rows: list[tuple[str, str, str, str]] = []
    for label, mine, role in (
        ("accuracy, selection split", final.values.get("accuracy"), "selection"),
        ("accuracy, test split", card.test, "test"),
    ):
        theirs = dense.accuracy.get(role)
        rows.append(
            (
                label,
                _share(mine),
                _share(theirs),
                f"{100 * (mine.value - theirs.value):+.2f} points" if mine and theirs else "",
            )
        )
    for metric in card.origin.metrics:
        for split, mine, role in (
            ("selection", final.values.get(metric.name), "selection"),
            ("test", card.test_metrics.get(metric.name), "test"),
        ):
            theirs = dense.metrics.get(role, {}).get(metric.name)
            change = f"{mine.value - theirs.value:+.4g}" if mine and theirs else ""
            better = "larger" if metric.maximize else "smaller"
            rows.append((f"{metric.name} ({better} is better), {split} split", _number(mine), _number(theirs), change))
    rows.append(
        (
            f"latency, batch {reading.batch_size}, {_count(reading.threads, 'thread')}",
            _spread(reading.latency_ms, "ms"),
            f"{reading.baseline_ms:.3f} ms",
            f"× {_spread(reading.ratio, '')}".rstrip(),
        )
    )
    rows.append(("latency, 90% / 99% of calls below", f"{reading.p90_ms:.3f} / {reading.p99_ms:.3f} ms", "", ""))
    rows += [_throughput(rate, reading.batch_size) for rate in reading.throughput]
    memory, dense_memory = final.values.get("peak_memory_bytes"), dense.peak_memory_bytes
    if memory is not None:
        theirs_mb = f"{dense_memory.value / 1e6:.1f} MB" if dense_memory is not None else ""
        change = f"× {memory.value / dense_memory.value:.3f}" if dense_memory is not None else ""
        rows.append(("peak memory of a session", f"{memory.value / 1e6:.1f} MB", theirs_mb, change))
    if final.energy is not None:
        energy = final.energy
        label = "energy of an inference" + (" (noisy)" if energy.noisy else "")
        ratio = f"× {_spread(energy.ratio, '')}".rstrip()
        rows.append((label, _spread(energy.energy_mj, "mJ"), f"{energy.baseline_mj:.3f} mJ", ratio))
    packed = (
        "packed size",
        card.artifact.packed_bytes,
        dense.artifact.packed_bytes or dense.artifact.size_bytes,
        "bytes",
    )
    for label, mine_count, dense_count, unit in (
        ("file size", card.artifact.size_bytes, dense.artifact.size_bytes, "bytes"),
        *([packed] if card.artifact.packed_bytes else []),
        ("multiply-adds per example", card.artifact.macs, dense.artifact.macs, ""),
        ("parameters", card.artifact.parameters, dense.artifact.parameters, ""),
    ):
        rows.append(
            (
                label,
                f"{mine_count:,} {unit}".strip(),
                f"{dense_count:,} {unit}".strip(),
                f"× {mine_count / dense_count:.3f}" if dense_count else "",
            )
        )
    return "## Figures\n\n" + _table(("", "this model", "dense model", "change"), rows)


def _fairness(card: EvidenceCard) -> tuple[str, ...]:
    """The section on single classes; none for a task that is no classification."""
    found = card.final.fairness
    if found is None:
        return ()
    rows = []
    for row in sorted(found.classes, key=lambda row: row.change.value):
        name = f"**{row.target}** (worst)" if row.target == found.worst_class else str(row.target)
        impact = "" if row.impact is None or row.p_value is None else f"{row.impact:+.2f} (p = {row.p_value:.2g})"
        rows.append((name, f"{row.examples:,}", _share(row.dense), _share(row.compressed), _points(row.change), impact))
    head = ("class", "examples", "recall, dense model", "recall, this model", "change, points", "impact: t")
    text = (
        "## Change per class\n\n"
        f"The same {card.final.role} examples run by both models; the worst class first. All examples together: "
        f"{_points(found.overall)} points. Largest drop of a class: {_points(found.worst_class_drop)} points.\n\n"
        + _table(head, rows)
        + "\n\nImpact is Welch's t of the class' change against that of all other examples: below 0, the class loses "
        "more than the others. p is not corrected for the number of classes; intervals of classes with few examples "
        "are wide."
    )
    if found.pies is not None:
        models = _count(found.models or 1, "model")
        text += (
            f"\n\nMost of {models} compressed like this one disagree with most of as many dense ones on "
            f"{_count(len(found.pies), 'example')} (pruning-identified exemplars)."
        )
    return (text,)


def _changes(card: EvidenceCard) -> str:
    dense = {layer.name: layer for layer in card.origin.dense.artifact.layers}
    if card.plan.architecture is not None:
        dense = {}  # equal names are a coincidence
    graph, rows = card.final.graph, []
    for layer in settled(card.artifact, graph).layers:
        before, there = dense.get(layer.name), graph.layer(layer.name) if graph is not None else None
        shape = _shape(layer.shape)
        if before is not None and before.shape != layer.shape:
            shape = f"{shape} (was {_shape(before.shape)})"
        zeros = f"{layer.zeros / layer.weights:.1%}" if layer.weights else ""
        row = [f"`{layer.name}`", shape, str(layer.bits), str(layer.stored_bits), _computing(layer, there), zeros]
        rows.append([*row, *_kernel(there)] if graph is not None else row)
    text = (
        "## What was changed\n\n"
        "Read from the file itself: the grid that weights lie on, and the bits that the file spends on each. "
        + _source(graph)
        + "\n\n"
        + _table((*_LAYER_COLUMNS, *(("kernel", "at once") if graph is not None else ())), rows)
    )
    kept = {layer.name for layer in card.artifact.layers}
    parts = {name.rpartition(".")[0] for name in kept}  # of factorized layers
    gone = [name for name in dense if name not in kept and name not in parts]
    if gone:
        text += "\n\nLayers left out of the network: " + ", ".join(f"`{name}`" for name in gone) + "."
    if card.origin.left_dense and dense:
        text += "\n\nLeft as it was:\n\n" + _bullets(f"`{x.name}`: {x.reason}" for x in card.origin.left_dense)
    return text


#: Columns of the table of layers; what the runtime tells of itself comes behind.
_LAYER_COLUMNS = ("layer", "weight shape", "bits", "stored bits", "computes with", "zeros")


def _source(graph: RuntimeGraph | None) -> str:
    if graph is None:
        return (
            "What the runtime computes with (integers; integer weights and float activations; floats, so that fewer "
            "bits save storage only) is what the file lets expect: the runtime does not show its graph, or ran on "
            "another machine."
        )
    others = ", ".join(f"{count} {what}" for what, count in graph.others.items())
    folded = f" Computed once, at load: {_count(len(graph.folded), 'node')} of the file." if graph.folded else ""
    return (
        "What is computed with, by which kernel and what at once, is read from the graph that "
        f"{graph.runtime} executes after its optimizations; where its kernel reads more bits than the file stores, "
        f"they save storage only. Nodes that are no layer's: {others or 'none'}.{folded}"
    )


def _computing(layer: LayerReport, there: RuntimeLayer | None) -> str:
    if there is None:
        return layer.compute
    told = {"never": "", "at load": ": storage only", "every run": ", unpacked in every inference: storage only"}
    return there.computing + told[there.unpacked]


def _throughput(rate: Throughput, latency_batch: int) -> tuple[str, str, str, str]:
    """A row: examples per second at one batch size."""
    mine, theirs = rate.examples_per_s.value, rate.baseline_per_s
    label = f"examples per second, batch {rate.batch_size}"
    if rate.noisy and rate.batch_size != latency_batch:  # of its own batch the latency's warning speaks
        label += " (noisy)"
    return (label, f"{mine:,.0f}", f"{theirs:,.0f}", f"× {mine / theirs:.2f}")


def _kernel(there: RuntimeLayer | None) -> tuple[str, str]:
    return ("not shown", "") if there is None else (there.operation, there.joined)


def _method(card: EvidenceCard) -> str:
    final, target = card.final, card.origin.target
    reading, host = final.latency, final.host
    sizes = {split.role: split.size for split in card.origin.splits}
    lines = (
        f"Accuracy: `{card.origin.task.metric}` over the outputs of the runtime on this file, "
        f"{sizes['selection']:,} examples (selection) and {sizes['test']:,} (test); "
        "intervals from a bootstrap over examples.",
        f"Latency: target `{target.kind}`, batch {target.batch_size}, {_count(target.threads, 'thread')}, "
        f"{reading.rounds} rounds, each with the dense model beside this one in shuffled order; "
        "median of the rounds' ratios × median of the dense model; interval from a bootstrap over rounds. "
        f"Load of the host before the reading: {reading.load:.2f}; dispersion of the ratios {reading.dispersion:.3f}, "
        f"drift of the dense model {reading.drift:.3f}, {_count(reading.attempts, 'attempt')}.",
        f"Host `{host.key}`: {host.cpu}, {_count(host.cores, 'core')}, {host.memory_gb} GB, {host.system}, "
        f"{host.setup}. A latency holds for this host only.",
        _recovery(card),
        f"Largest difference between the outputs of the training framework and of the runtime, before "
        f"quantization: {final.agreement:.2g}.",
        *(
            f"{metric.name}: `{metric.source}`"
            + (
                f" with {', '.join(f'{k}={v}' for k, v in sorted(metric.arguments.items()))}"
                if metric.arguments
                else ""
            )
            + f", outputs taken for {metric.outputs}; interval from a bootstrap over examples."
            for metric in card.origin.metrics
        ),
        *_agreement(card),
        f"Objectives of the search: {', '.join(card.origin.objectives)}. Seed: {card.origin.seed}.",
    )
    return "## How it was measured\n\n" + _bullets(lines)


def _agreement(card: EvidenceCard) -> tuple[str, ...]:
    found = card.final.predictions
    if found is None:
        return ()
    least = min(found.classes, key=lambda c: c.dense.value)
    torch = (
        "this file is quantized, and no longer the network that was trained"
        if found.torch is None
        else f"{_share(found.torch)} are the training framework's"
    )
    return (
        f"Predictions on the selection split: {_share(found.dense)} are the dense model's, fewest in class "
        f"{least.target} with {_share(least.dense)}; {torch}.",
    )


def _recovery(card: EvidenceCard) -> str:
    plan, epochs = card.plan, card.final.fidelity.epochs
    if plan.is_dense:
        return "Recovery: none, the dense model was exported as it is."
    if not plan.trains:
        return "Recovery: none, the weights were only stored in fewer bits."
    teacher = {
        "none": "on the task's own loss",
        "response": "with the dense model as teacher",
        "features": "with the dense model and its inner layers as teacher",
        "attention": "with the dense model and its inner layers, paired by attention, as teacher",
        "sequence": "on the dense model's own decoded outputs",
    }[plan.distillation.kind]
    aware = "; quantization-aware" if plan.quantizes and plan.quantizer.training == "aware" else ""
    refits = plan.cuts and plan.reconstruction == "least-squares" and not starts_untrained(plan)
    refitted = " Layers behind the cuts were refitted by least squares before." if refits else ""
    if plan.architecture is not None:
        sizes = ", ".join(f"{name} {size:g}" for name, size in plan.architecture.sizes.items())
        return (
            f"Training: another network, built by the task at {sizes}, from fresh weights; {epochs:g} "
            f"{'epoch' if epochs == 1 else 'epochs'} on the training split, {teacher}{aware}."
        )
    return (
        f"Recovery: {epochs:g} {'epoch' if epochs == 1 else 'epochs'} on the training split, {teacher}; "
        f"schedule: {plan.schedule.kind}{aware}.{refitted}"
    )


def _data(card: EvidenceCard) -> str:
    rows = [(s.role, f"{s.size:,}", _PURPOSE[s.role], f"`{s.sha256[:16]}`") for s in card.origin.splits]
    return "## Data\n\n" + _table(("split", "examples", "used for", "sha256, first 16"), rows)


def _lineage(card: EvidenceCard) -> str:
    lineage, task = card.origin.lineage, card.origin.task
    arguments = ", ".join(f"{key}={value!r}" for key, value in sorted(task.arguments.items()))
    rows = [
        ("task", f"`{task.factory}({arguments})`"),
        ("dense weights", f"`{lineage.model_sha256[:16]}`"),
        ("dense file", f"`{lineage.dense_sha256[:16]}`"),
        ("data", f"`{lineage.data_sha256[:16]}`"),
        ("code", f"`{lineage.code_sha256[:16]}`"),
        ("search space", f"`{lineage.space_sha256[:16]}`"),
        ("plan", f"`{card.plan.key}`"),
        ("versions", ", ".join(f"{name} {version}" for name, version in sorted(lineage.versions.items()))),
    ]
    return "## Where it came from\n\n" + _table(("", "name or sha256, first 16"), rows)


def _warnings(card: EvidenceCard) -> str:
    return "## Warnings\n\n" + (_bullets(card.warnings) if card.warnings else "None.")


def _check(card: EvidenceCard) -> str:
    return (
        "## Check it\n\n"
        f"`autocompress verify models:/{card.model}/<version>` builds the task, checks the hashes of data and file, "
        "and measures accuracy and latency again. All of the above, in full precision, is in `card.json`."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {' '.join(line.split())}" for line in lines)


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not measured"
    return f"{100 * estimate.value:.2f}% [{100 * estimate.low:.2f}, {100 * estimate.high:.2f}]"


def _number(estimate: Estimate | None) -> str:
    if estimate is None:
        return "not measured"
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def _points(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.2f} [{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}]"


def _spread(estimate: Estimate, unit: str) -> str:
    return f"{estimate.value:.3f} {unit}".rstrip() + f" [{estimate.low:.3f}, {estimate.high:.3f}]"


def _shape(shape: tuple[int, ...]) -> str:
    return "×".join(str(n) for n in shape)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
