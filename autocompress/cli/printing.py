"""What the commands print: tables and short lines on standard output."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from autocompress.records import FIXED, Artifact, Baseline, Estimate
from autocompress.report.data import champion_first
from autocompress.report.search_words import sampler_words, search_line, state_words, time_words
from autocompress.report.words import duration, milliseconds, number, number_interval, percent, plural, size

if TYPE_CHECKING:
    from autocompress.front.summary import SearchSummary
    from autocompress.pipeline.doctor import Examination
    from autocompress.pipeline.profile import Profile
    from autocompress.pipeline.run import Outcome
    from autocompress.pipeline.single import Built
    from autocompress.pipeline.verify import Verification
    from autocompress.pipeline.views import FrontRow, FrontView, PickView, StatusView


def console() -> Console:
    """Standard output; wide enough for a table where it is not a terminal."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=140)


def front_table(view: FrontView, *, hashes: bool = False) -> Table:
    """The members of a front, fastest first, the champion in bold, the dense model below. Fits 80 columns.

    Behind ± is the wider side of the 95% interval, in points of accuracy, or of the dense latency.

    Args:
        view: the front.
        hashes: show each file's sha256 too.
    """
    final = view.stage == "final"
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("model", no_wrap=True)
    for name in ("accuracy", *(["test"] if final else []), "latency", "of dense", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("version, plan" if final else "plan", ratio=1)
    for row in view.rows:
        table.add_row(*_cells(row, final, hashes), style="bold" if "champion" in row.aliases else "")
    if view.dense is not None:
        table.add_row(*_dense_cells(view.dense, final, hashes), style="yellow")
    return table


def _cells(row: FrontRow, final: bool, hashes: bool) -> list[Text]:
    version = "not registered" if final else ""
    if row.uri:
        version = " v".join(row.uri.removeprefix("models:/").rsplit("/", 1))
    noisy = "noisy latency; " if row.noisy else ""
    words = " ".join(filter(None, [version, *champion_first(row.aliases)]))
    lines = [words] if words else []
    lines += [
        f"{noisy}{row.summary}",
        *_metrics(row.values),
        *_ties(row.tied_with),
        *([f"sha256 {row.sha256}"] if hashes else []),
    ]
    cells = (
        f"trial {row.trial}",
        _share(row.values["accuracy"]),
        *([_share(row.test) if row.test else ""] if final else []),
        milliseconds(row.values["latency_ms"].value),
        f"{100 * row.ratio.value:.1f}% ±{100 * _side(row.ratio):.1f}",
        size(row.values["size_bytes"].value),
        "\n".join(lines),
    )
    # Text, not str: rich reads markup in a str, and names come from users.
    return [Text(cell) for cell in cells]


def _metrics(values: Mapping[str, Estimate]) -> list[str]:
    """A line with the study's own metrics; none if it has none."""
    own = [f"{name} {number(e.value)} {number_interval(e)}".strip() for name, e in values.items() if name not in FIXED]
    return [", ".join(own)] if own else []


def _ties(numbers: Sequence[int]) -> list[str]:
    return [f"tied with trial {', '.join(map(str, numbers))}"] if numbers else []


def _dense_cells(dense: Baseline, final: bool, hashes: bool) -> list[Text]:
    accuracy = dense.accuracy["selection" if final and "selection" in dense.accuracy else "validation"]
    test = dense.accuracy.get("test")
    cells = (
        "dense",
        _share(accuracy),
        *([_share(test) if test else ""] if final else []),
        milliseconds(dense.latency_ms),
        "100%",
        size(dense.artifact.size_bytes),
        "the model as it came" + (f"\nsha256 {dense.artifact.sha256}" if hashes else ""),
    )
    return [Text(cell) for cell in cells]


def _share(estimate: Estimate) -> str:
    side = _side(estimate)
    return f"{percent(estimate.value)} ±{100 * side:.1f}" if side > 0 else percent(estimate.value)


def _side(estimate: Estimate) -> float:
    return max(estimate.high - estimate.value, estimate.value - estimate.low)


def command() -> str:
    """How this installation's command is called from here: by name where the shell finds it, else by its path."""
    own = Path(sys.executable).with_name("autocompress")
    found = shutil.which("autocompress")
    if not own.is_file() or (found is not None and Path(found).samefile(own)):
        return "autocompress"
    return str(own.relative_to(Path.cwd())) if own.is_relative_to(Path.cwd()) else str(own)


def print_outcome(outcome: Outcome) -> None:
    """The end of a run: the front, where everything is, what to try next."""
    out = console()
    out.print()
    out.print(f"[bold]{escape(outcome.study)}[/bold]: final front, fastest first; ± holds 95%")
    out.print(front_table(outcome.front))
    out.print()
    model = outcome.versions[0].model if outcome.versions else ""
    numbers = ", ".join(str(v.version) for v in outcome.versions)
    parts = ", ".join(f"{name} {duration(seconds)}" for name, seconds in outcome.seconds.items())
    if outcome.front.search is not None:
        out.print(f"search    {escape(search_line(outcome.front.search))}", soft_wrap=True)
    out.print(f"report    {escape(outcome.page)}", soft_wrap=True)
    out.print(f"registry  model {escape(model)}, versions {numbers}, in {escape(outcome.tracking)}", soft_wrap=True)
    out.print(f"time      {duration(sum(outcome.seconds.values()))}: {parts}", soft_wrap=True)
    out.print(f"next      {escape(command())} pick {escape(model)} --prefer fastest --download picked", soft_wrap=True)


def print_front(view: FrontView) -> None:
    """The front, or that there is none yet."""
    if not view.rows:
        console().print(f"{escape(view.study)}: no front yet; run the study first")
        return
    what = "final front" if view.stage == "final" else "front so far, at search fidelity, on the validation split"
    console().print(f"[bold]{escape(view.study)}[/bold]: {what}")
    console().print(front_table(view, hashes=True))
    if view.search is not None:
        console().print(f"\nsearch    {escape(search_line(view.search))}", soft_wrap=True)


def print_status(view: StatusView) -> None:
    """State, trials, reasons, the search and the front so far."""
    out = console()
    out.print(f"study     {escape(view.study)} ({view.state})")
    out.print(f"folder    {escape(view.folder)}", soft_wrap=True)
    search = view.front.search
    counts = state_words(view.counts, search.stops if search else {})
    out.print(f"trials    {view.done} of {view.total}: {counts}", soft_wrap=True)
    for reason, seen in view.reasons.items():
        out.print(f"  failed  {seen} x {escape(reason)}", soft_wrap=True)
    if search is not None:
        _print_search(search, out)
    if view.front.rows:
        members = plural(len(view.front.rows), "member")
        out.print(f"front     {members}, hypervolume of the search {view.hypervolume:.3f}")
        out.print()
        out.print(front_table(view.front))
    if view.state == "stopped":
        out.print("\nThe same 'autocompress run' command continues it.")


def _print_search(search: SearchSummary, out: Console) -> None:
    """Who proposed, the rungs, and where the time went."""
    if words := sampler_words(search):
        out.print(f"sampler   {escape(words)}", soft_wrap=True)
    for rung in (r for r in search.rungs if not r.last):
        tau = f", Kendall tau {rung.tau:.2f} with full recovery" if rung.tau is not None else ""
        out.print(
            f"rung {rung.rung:<3}  {rung.epochs:g} epochs: {rung.judged} judged, {rung.promoted} went on, "
            f"{rung.stopped} stopped, {rung.waiting} waiting{tau}",
            soft_wrap=True,
        )
    for message in search.log.messages:
        out.print(f"note      {escape(message)}", soft_wrap=True)
    if words := time_words(search):
        out.print(f"time      {words}", soft_wrap=True)


def print_pick(view: PickView) -> None:
    """The picked version and how to use it."""
    out = console()
    names = f" ({', '.join(view.aliases)})" if view.aliases else ""
    out.print(f"[bold]{escape(view.uri)}[/bold]{escape(names)}, preferring {view.prefer}")
    test = f", {percent(view.test_accuracy)} on the test split" if view.test_accuracy is not None else ""
    out.print(f"accuracy  {escape(_share(view.values['accuracy']))}{test}")
    out.print(f"latency   {milliseconds(view.values['latency_ms'].value)}")
    out.print(f"size      {size(view.values['size_bytes'].value)}")
    for line in _metrics(view.values):
        out.print(f"metrics   {escape(line)}", soft_wrap=True)
    out.print(f"plan      {escape(view.plan)}")
    out.print(f"sha256    {view.sha256}")
    if view.downloaded:
        out.print(f"written   {escape(view.downloaded)}", soft_wrap=True)


def print_built(built: Built) -> None:
    """One plan's model beside the dense one, and where it is."""
    out = console()
    found, dense, artifact = built.measurement, built.dense, built.measurement.artifact
    out.print(f"[bold]{escape(built.study)}[/bold]: {escape(built.summary)}", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for name in ("", "dense", "compressed", "to dense"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    before, after = dense.accuracy["validation"], found.values["accuracy"]
    points = 100 * (after.value - before.value)
    table.add_row("accuracy (validation)", _share(before), _share(after), f"{points:+.2f} points")
    latency = found.values["latency_ms"].value
    rows = [
        ("latency", milliseconds(dense.latency_ms), milliseconds(latency), found.latency.ratio.value),
        ("file", size(dense.artifact.size_bytes), size(artifact.size_bytes), _ratio(artifact, dense, "size_bytes")),
        ("packed file", "", size(artifact.packed_bytes), artifact.packed_bytes / dense.artifact.size_bytes),
        ("multiply-adds", f"{dense.artifact.macs:,}", f"{artifact.macs:,}", _ratio(artifact, dense, "macs")),
        (
            "parameters",
            f"{dense.artifact.parameters:,}",
            f"{artifact.parameters:,}",
            _ratio(artifact, dense, "parameters"),
        ),
    ]
    for name, old, new, ratio in rows:
        table.add_row(name, old, new, f"{ratio:.3f}")
    out.print(table)
    for warning in (*found.warnings, *(["the latency stayed noisy after all repeats"] if found.latency.noisy else [])):
        out.print(f"note      {escape(warning)}", soft_wrap=True)
    out.print(f"written   {escape(built.model)}, {escape(built.packed)}, {escape(built.card)}", soft_wrap=True)


def _ratio(artifact: Artifact, dense: Baseline, field: str) -> float:
    return float(getattr(artifact, field) / getattr(dense.artifact, field))


def print_verification(view: Verification) -> None:
    """Each claim with what was found."""
    table = Table(title=escape(view.uri), title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in ("claim", "on the card", "found here", ""):
        table.add_column(name, overflow="fold")
    for check in view.checks:
        style = {"holds": "green", "differs": "bold red"}.get(check.outcome, "yellow")
        table.add_row(
            escape(check.name), escape(check.claimed), escape(check.found), f"[{style}]{check.outcome}[/{style}]"
        )
    console().print(table)
    console().print("\nThe card holds." if view.holds else "\nThe card does not hold.")


def print_profile(found: Profile) -> None:
    """Groups, blocks and layers with their share of the time and what compressing each alone costs; what is dense."""
    out = console()
    total = sum(n.milliseconds for n in found.latency) or 1.0

    def share(layers: Iterable[str]) -> str:
        names = set(layers)
        return f"{100 * sum(n.milliseconds for n in found.latency if not names.isdisjoint(n.layers)) / total:.1f}%"

    structure, costs = found.structure, found.sensitivity
    groups = _titled(
        "groups: KL from the dense model, in nats, at three widths", "group", "kind", "width", "time", "KL"
    )
    for group in structure.groups:
        levels = [f"{s.keep}: {_cost(s.kl, s.loss)}" for s in costs.groups if s.group == group.name]
        words = ", ".join(levels) or "too narrow"
        groups.add_row(escape(group.name), group.kind, str(group.width), share(group.layers), words)
    out.print(groups)
    if structure.blocks:
        out.print()
        columns = ("block", "time", "KL", *(("together with",) if costs.pairs else ()))
        blocks = _titled("blocks: KL when left out", *columns)
        left_out = {s.block: s for s in costs.blocks}
        followed = {s.blocks[0]: f"{escape(s.blocks[1])}: {_cost(s.kl, s.loss)}" for s in costs.pairs}
        for block in structure.blocks:
            gone = left_out.get(block.name)
            cells = (_cost(gone.kl, gone.loss) if gone else "", followed.get(block.name, ""))
            blocks.add_row(escape(block.name), share(block.layers), *cells[: len(columns) - 2])
        out.print(blocks)
    if costs.layers:
        out.print()
        layers = _titled("layers: KL when their weights are rounded", "layer", "time", "KL")
        for layer in structure.layers:
            bits = [f"{s.bits} bits: {_cost(s.kl, s.loss)}" for s in costs.layers if s.layer == layer.name]
            layers.add_row(escape(layer.name), share([layer.name]), ", ".join(bits))
        out.print(layers)
    out.print()
    nodes = _titled("slowest nodes", "node", "operation", "ms", "share")
    for node in sorted(found.latency, key=lambda n: -n.milliseconds)[:12]:
        percentage = f"{100 * node.milliseconds / total:.1f}%"
        nodes.add_row(escape(node.layer or node.node), escape(node.operation), f"{node.milliseconds:.4f}", percentage)
    out.print(nodes)
    out.print(f"\nspace     {escape(found.space)}", soft_wrap=True)
    for remark in found.remarks():
        out.print(f"note      {escape(remark)}", soft_wrap=True)
    for left in structure.left_dense:
        out.print(f"dense     {escape(left.name)}: {escape(left.reason)}", soft_wrap=True)


def _titled(title: str, *columns: str) -> Table:
    """A table under a title; names and words to the left, numbers to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in ("width", "time", "ms", "share") else "left")
    return table


def _cost(kl: float | None, loss: float) -> str:
    return f"loss {loss:+.3f}" if kl is None else f"{kl:.3f}"


def _bits(widths: Sequence[int]) -> str:
    """``"32, 16, 8-2"``: three in a row and more as a range; ``"none"``."""
    runs: list[list[int]] = []
    for width in widths:
        if runs and runs[-1][-1] - 1 == width:
            runs[-1].append(width)
        else:
            runs.append([width])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 2 else ", ".join(map(str, r)) for r in runs) or "none"


def print_doctor(view: Examination) -> None:
    """Versions, targets, host."""
    out = console()
    out.print(f"python    {view.python} on {escape(view.system)}")
    host = view.host
    out.print(f"host      {escape(host.cpu)}, {host.cores} cores, {host.memory_gb} GiB, fingerprint {host.key}")
    table = Table(box=None, pad_edge=False)
    for name in ("target", "version", "", "computes", "weights alone", "stores", "rounds to", "N:M", "what works"):
        table.add_column(name)
    for target in view.targets:
        mark = "[green]works[/green]" if target.works else "[yellow]no[/yellow]"
        bits = (_bits(target.computes), _bits(target.weights_only_bits), _bits(target.bits))
        patterns = ", ".join(target.patterns) or "none"
        detail = escape(target.detail if target.install is None else f"not installed: {target.install}")
        table.add_row(
            escape(target.name), target.version or "", mark, *bits, str(target.round_to), escape(patterns), detail
        )
    out.print(table)
    out.print("Every target takes any batch size and number of threads.")
    libraries = Table(box=None, pad_edge=False)
    for name in ("library", "version"):
        libraries.add_column(name)
    for name, version in view.versions.items():
        libraries.add_row(name, version)
    out.print(libraries)
    out.print("\nA study can run here." if view.healthy else "\nA study cannot run here: see what is missing above.")
