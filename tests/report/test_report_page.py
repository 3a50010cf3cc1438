from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest

from autocompress.measure.fairness import fairness
from autocompress.records import Estimate, LayerReport, LeftDense, Version
from autocompress.report.data import ReportData, champion, dense_row, finalist_rows
from autocompress.report.figures import front_figure, hidden_trials
from autocompress.report.layers import layer_strips, layer_table
from autocompress.report.markup import Html, join, script_json, tag
from autocompress.report.page import render, write_page

EVIL = '<script>alert("1")</script>&</style>'


class Elements(HTMLParser):
    """Every element with its attributes, the text outside scripts and styles, and tags that do not match."""

    void = frozenset({"meta", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.unmatched: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.unmatched.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data


def figures_of(text: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    loaded: dict[str, Any] = json.loads(found[1])
    return loaded


def strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def themed(value: Any) -> Any:
    if isinstance(value, str):
        return ("Arial" if value == "@font" else "#123456") if value.startswith("@") else value
    if isinstance(value, list):
        return [themed(v) for v in value]
    return {k: themed(v) for k, v in value.items()} if isinstance(value, dict) else value


def test_page_is_well_formed_and_loads_nothing(report: ReportData) -> None:
    page = Elements(render(report))
    assert page.unmatched == []
    assert page.open == []
    assert not [name for name, _ in page.found if name in ("link", "img", "iframe", "base", "object")]
    assert not [a for _, a in page.found if a.keys() & {"src", "href", "onclick", "onload"}]
    policy = next(a["content"] for n, a in page.found if n == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'unsafe-inline'; ")


def test_plotly_is_inside_once_and_every_figure_has_its_place(report: ReportData) -> None:
    text = render(report)
    assert text.count("Copyright 2012-") == 1
    ids = [a["id"] for _, a in Elements(text).found if "id" in a]
    assert len(ids) == len(set(ids))
    assert set(figures_of(text)) == {"front-latency_ms", "hypervolume"} <= set(ids)


def test_page_shows_what_a_reader_must_know(report: ReportData) -> None:
    text = Elements(render(report)).text
    for finalist in report.finalists:
        assert f"{100 * finalist.final.values['accuracy'].value:.2f}%" in text
        assert finalist.final.artifact.sha256 in text
        if finalist.on_front and finalist.test:
            assert f"{100 * finalist.test.value:.2f}%" in text
    for version in report.versions:
        assert f"{version.model} v{version.version}" in text
    for left in report.structure.left_dense:
        assert left.reason in text
    for words in (report.baseline.host.cpu, "2 × worker", "1 × infeasible", "3 failed", "noisy", *report.how):
        assert words in text


def test_the_same_data_gives_the_same_page(report: ReportData) -> None:
    again = ReportData.model_validate_json(report.model_dump_json())
    assert again == report
    assert render(again) == render(report)


def test_names_from_users_are_text_everywhere(make: Callable[..., ReportData]) -> None:
    data = make()
    structure = data.structure.model_copy(update={"left_dense": (LeftDense(name=EVIL, reason=EVIL),)})
    trials = tuple(
        t.model_copy(update={"origin": EVIL, "reason": EVIL if t.state == "failed" else ""}) for t in data.trials
    )
    versions = tuple(v.model_copy(update={"model": EVIL, "aliases": (*v.aliases, EVIL)}) for v in data.versions)
    update = {"study": EVIL, "how": (EVIL,), "structure": structure, "trials": trials, "versions": versions}
    evil = data.model_copy(update=update)
    text = render(evil)
    assert EVIL not in text
    page = Elements(text)
    assert page.unmatched == []
    assert sum(name == "script" for name, _ in page.found) == 3
    assert page.text.count(EVIL) >= 5
    assert not [s for s in strings(figures_of(text)) if "<script" in s]


@pytest.mark.parametrize("objective", ["latency_ms", "size_bytes", "macs", "parameters"])
def test_front_figure_is_valid_plotly_and_holds_every_model(report: ReportData, objective: str) -> None:
    rows = finalist_rows(report.finalists, report.baseline, versions=report.versions)
    figure = front_figure(report, rows, objective)
    go.Figure(themed(figure))
    by_name = {t["name"]: t for t in figure["data"] if "name" in t}
    front = [r for r in rows if r.on_front]
    assert by_name["front"]["y"] == [100 * r.accuracy.value for r in front]
    for kind, end in (("array", "high"), ("arrayminus", "low")):
        expected = [100 * abs(getattr(r.accuracy, end) - r.accuracy.value) for r in front]
        assert by_name["front"]["error_y"][kind] == pytest.approx(expected)
    assert ("error_x" in by_name["front"]) is (objective == "latency_ms")
    assert len(by_name["finalist off the front"]["x"]) == len(rows) - len(front)
    complete = sum(t.state == "complete" for t in report.trials)
    assert len(by_name["search trial"]["x"]) + len(by_name["breaks a constraint"]["x"]) == complete
    left, right = figure["layout"]["xaxis"]["range"]
    assert all(left <= x <= right for name in ("front", "dense") for x in by_name[name]["x"])


def test_upper_axis_says_one_where_the_dense_model_is(report: ReportData) -> None:
    figure = front_figure(report, finalist_rows(report.finalists, report.baseline), "latency_ms")
    layout, dense = figure["layout"], next(t for t in figure["data"] if t.get("name") == "dense")
    assert dense["x"] == [report.baseline.latency_ms] == [layout["meta"]["dense"]]
    assert layout["xaxis2"]["range"][1] == pytest.approx(layout["xaxis"]["range"][1] / report.baseline.latency_ms)


def test_trials_outside_the_view_are_counted(report: ReportData) -> None:
    rows = finalist_rows(report.finalists, report.baseline)
    figure = front_figure(report, rows, "latency_ms")
    bottom = figure["layout"]["yaxis"]["range"][0]
    measured = [t.measurement for t in report.trials if t.measurement is not None]
    below = sum(100 * m.values["accuracy"].value < bottom for m in measured)
    assert hidden_trials(report, figure, "latency_ms") == below > 0


def test_the_accuracy_axis_names_nothing_over_a_hundred_percent(report: ReportData) -> None:
    rows = finalist_rows(report.finalists, report.baseline)
    perfect = [r.model_copy(update={"accuracy": Estimate(value=1.0, low=0.995, high=1.0)}) for r in rows]
    axis = front_figure(report, perfect, "latency_ms")["layout"]["yaxis"]
    assert axis["range"][1] > 100  # room for names
    assert {axis["labelalias"][text] for text in ("100.5", "101", "101.0", "102", "105", "110", "120")} == {" "}
    assert "100" not in axis["labelalias"]
    assert not [text for text in axis["labelalias"] if float(text) <= 100]


def test_each_further_cost_has_its_own_figure(make: Callable[..., ReportData]) -> None:
    text = render(make(objectives=("accuracy", "size_bytes", "latency_ms")))
    assert set(figures_of(text)) == {"front-latency_ms", "front-size_bytes", "hypervolume"}
    assert "Accuracy against file size" in text


@pytest.mark.parametrize(
    "missing", [{"finalists": ()}, {"trials": (), "finalists": ()}, {"lineage": None, "seconds": {}, "how": ()}]
)
def test_page_can_be_made_of_a_study_that_is_not_done(make: Callable[..., ReportData], missing: dict[str, Any]) -> None:
    page = Elements(render(make(versions=(), **missing)))
    assert page.unmatched == []
    if "finalists" in missing:
        assert "No model reached the final front." in page.text


def test_rows_carry_the_version_with_the_same_bytes(report: ReportData) -> None:
    rows = finalist_rows(report.finalists, report.baseline, versions=report.versions)
    by_sha = {v.sha256: v for v in report.versions}
    for row in rows:
        version = by_sha.get(row.artifact.sha256)
        assert row.version == (f"{version.model} v{version.version}" if version else "")
        assert row.aliases == (version.aliases if version else ())
    best = champion(rows)
    assert best is not None
    assert "champion" in best.aliases


def test_the_newest_of_two_versions_with_the_same_bytes_is_shown(report: ReportData) -> None:
    old = report.versions[0]
    newer = Version(model=old.model, version=99, sha256=old.sha256, run_id="x", aliases=("champion",))
    rows = finalist_rows(report.finalists, report.baseline, versions=(newer, *report.versions))
    assert f"{old.model} v99" in [r.version for r in rows]


def test_the_dense_row_falls_back_to_validation_until_selection_is_opened(report: ReportData) -> None:
    only = report.baseline.model_copy(update={"accuracy": {"validation": report.baseline.accuracy["validation"]}})
    assert dense_row(only).accuracy == report.baseline.accuracy["validation"]
    assert dense_row(only).test is None
    assert dense_row(report.baseline).accuracy == report.baseline.accuracy["selection"]


def test_writing_replaces_the_page_and_leaves_no_draft(report: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    assert write_page(path, report) == path
    assert path.read_text(encoding="utf-8") == render(report)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_markup_escapes_text_and_attributes_but_not_markup() -> None:
    assert tag("p", "<b>", Html("<i>x</i>"), title='"&') == '<p title="&quot;&amp;">&lt;b&gt;<i>x</i></p>'
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert tag("div", None, hidden=True, class_=None, aria_label="a") == '<div hidden aria-label="a"></div>'
    assert join("&", None, Html("&amp;")) == "&amp;&amp;"


def test_script_json_survives_html_and_refuses_what_json_cannot_say() -> None:
    value = {"text": "</script><!-- & \u2028"}
    text = script_json(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == value
    with pytest.raises(ValueError, match="JSON compliant"):
        script_json([float("nan")])


def with_fairness(data: ReportData, classes: int) -> ReportData:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, classes, 40 * classes)
    dense = np.eye(classes)[np.where(rng.random(len(targets)) < 0.9, targets, 0)]
    finalists = []
    for i, finalist in enumerate(data.finalists):
        worse = np.where(rng.random(len(targets)) < 0.1 * (targets == i % classes), (targets + 1) % classes, targets)
        found = fairness(dense, np.eye(classes)[worse], targets, seed=i)
        final = finalist.final.model_copy(update={"fairness": found})
        finalists.append(finalist.model_copy(update={"final": final}))
    return data.model_copy(update={"finalists": tuple(finalists)})


def test_every_class_of_the_front_is_shown_with_its_change(report: ReportData) -> None:
    data = with_fairness(report, classes=4)
    page = Elements(render(data))
    assert page.unmatched == []
    section = page.text.split("What became of every class")[1].split("How the search went")[0]
    for finalist in data.finalists:
        found = finalist.final.fairness
        assert found is not None
        for change in found.classes if finalist.on_front else ():
            assert f"{100 * change.change.value:+.1f}[{100 * change.change.low:+.1f}, " in section
    assert "all160" in section
    assert "What became of every class" not in render(report)


def test_of_many_classes_those_that_lose_most_are_shown(report: ReportData) -> None:
    data = with_fairness(report, classes=30)
    page = Elements(render(data)).text
    assert "The 20 classes of 30 that lose most in any model." in page
    front = [f.final.fairness for f in data.finalists if f.on_front]
    section = page.split("What became of every class")[1].split("How the search went")[0]
    worst = min((c.change.value, c.target) for found in front if found for c in found.classes)
    assert f"{100 * worst[0]:+.1f}" in section


def test_bars_tell_dropped_factorized_and_stored_layers_apart(report: ReportData) -> None:
    row = finalist_rows(report.finalists, report.baseline)[0]
    whole, gone, chain, stored = report.structure.layers[:4]
    reports = (
        LayerReport(name=whole.name, shape=whole.shape, bits=32, zeros=0, weights=prod(whole.shape)),
        LayerReport(
            name=f"{chain.name}.0", shape=(4, *chain.shape[1:]), bits=8, zeros=1, weights=36, compute="integer"
        ),
        LayerReport(name=f"{chain.name}.1", shape=(chain.shape[0], 4, 1, 1), bits=16, zeros=2, weights=128),
        LayerReport(name=stored.name, shape=stored.shape, bits=4, stored_bits=4, zeros=0, weights=prod(stored.shape)),
    )
    changed = row.model_copy(update={"artifact": row.artifact.model_copy(update={"layers": reports})})
    strips, table = layer_strips([changed], report.structure), layer_table([changed], report.structure)
    assert f"{gone.name}: left out" in strips
    assert f"{chain.name}: {chain.shape[0]} of {chain.shape[0]} channels, 16 bits, storage only, 1.8% of 164" in strips
    assert f"{stored.name}: {stored.shape[0]} of {stored.shape[0]} channels, 4 bits, storage only" in strips
    assert f"{chain.shape[0]} channels, 164 weights in a chain" in table
