"""The page's section about a search whose candidates climbed rungs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import plotly.graph_objects as go
import pytest

from autocompress.front.effort import PARTS
from autocompress.front.summary import summarize
from autocompress.records import Estimate, Fidelity, RungResult, SearchLog, TrialRecord
from autocompress.report.data import ReportData
from autocompress.report.page import render
from autocompress.report.search_figures import DRAWN, hypervolume_figure, parts_figure
from autocompress.report.search_section import search_figures, search_section

EVIL = '<script>alert("1")</script>'
SECONDS = {"compress": 0.5, "recover": 9.0, "export": 1.5, "quality": 1.0, "latency": 0.5, "propose": 0.5}


def climbed(trial: TrialRecord) -> TrialRecord:
    """The trial with a rung before its measurement; every third one stopped there, and one in twenty was hopeless."""
    if trial.measurement is None or trial.started is None or trial.finished is None:
        return trial
    if trial.number % 20 == 7:
        update: dict[str, Any] = {"state": "stopped", "measurement": None, "violations": {}, "reason": "hopeless: far"}
        return trial.model_copy(update=update)
    judged = trial.started + timedelta(seconds=4)
    early = RungResult(
        plan_key=trial.measurement.plan_key,
        fidelity=Fidelity(epochs=0.0),
        values={n: Estimate.exact(e.value) for n, e in trial.measurement.values.items()},
        predicted=("latency_ms",),
        seconds={"recover": 2.0, "export": 1.0, "quality": 1.0},
        judged=judged,
    )
    if trial.number % 3 == 1:
        reason = "rung: not among the best of like latency after 0 epochs"
        update = {"state": "stopped", "measurement": None, "violations": {}, "reason": reason}
        return trial.model_copy(update={"rungs": (early,), **update})
    full = {"fidelity": Fidelity(epochs=0.25, rung=1), "seconds": SECONDS}
    return trial.model_copy(update={"rungs": (early,), "measurement": trial.measurement.model_copy(update=full)})


@pytest.fixture(scope="module")
def searched(make: Callable[..., ReportData]) -> ReportData:
    data = make()
    log = SearchLog(sampler="surrogate", why="auto: slow candidates", messages=("the first rung stays",))
    trials = tuple(climbed(t) for t in data.trials)
    search = summarize(trials, data.baseline, data.objectives, total=80, workers=2, time_s=1800.0, log=log)
    return data.model_copy(update={"trials": trials, "search": search})


def themed(figure: dict[str, Any]) -> Any:
    return json.loads(re.sub(r'"@[a-z-]+"', '"#123456"', json.dumps(figure)))


def test_the_section_tells_candidates_sampler_time_and_what_the_search_had_to_say(searched: ReportData) -> None:
    text = re.sub(r"<[^>]+>", " ", search_section(searched.summary(), searched.trials))
    for words in (
        "60 of 80: ",
        "stopped early at a rung",
        "3 as predicted to lie far behind the front",
        "6 seeds: 5 uniform, 1 dense",
        "surrogate (auto: slow candidates)",
        " of 30 min 00 s: recovering ",
        "the first rung stays",
        "3 trials failed",
        "2 × worker",
    ):
        assert words in text, words


def test_every_rung_has_its_row(searched: ReportData) -> None:
    summary = searched.summary()
    first, last = summary.rungs
    section = search_section(summary, searched.trials)
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr>(.*?)</tr>", section)[1:]]
    cells = [[cell for cell in row.split("|") if cell] for row in rows]
    assert cells[0][:6] == ["0", "0", str(first.judged), str(first.promoted), str(first.stopped), "0"]
    assert cells[0][6:] == ["4.0 s", f"{first.tau:.2f}", f"{first.pairs} pairs of like latency"]
    assert cells[1] == ["last", "0.25", str(last.judged), "13 s"]


def test_a_search_without_rungs_and_without_times_says_less(report: ReportData) -> None:
    summary = report.summary()
    section = search_section(summary, report.trials)
    assert "Rungs" not in section
    assert "Where the time" not in section
    assert set(search_figures(summary)) == {"hypervolume"}


def test_both_figures_stand_on_the_page(searched: ReportData) -> None:
    text = render(searched)
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    assert {"hypervolume", "parts"} <= set(json.loads(found[1]))
    assert all(text.count(f'id="{name}"') == 1 for name in ("hypervolume", "parts"))


def test_hypervolume_figure_is_valid_plotly_and_never_falls(searched: ReportData) -> None:
    figure = hypervolume_figure(searched.summary().trace)
    go.Figure(themed(figure))
    y = figure["data"][0]["y"]
    assert y == sorted(y)
    assert y[-1] == searched.summary().hypervolume > 0


def test_the_areas_add_up_to_the_time_of_all_workers(searched: ReportData) -> None:
    summary = searched.summary()
    figure = parts_figure(summary.trace)
    go.Figure(themed(figure))
    assert [area["line"]["color"].removeprefix("@part-") for area in figure["data"]] == list(PARTS)
    minutes = sum(area["y"][-1] for area in figure["data"])
    assert minutes == pytest.approx(2 * summary.seconds / 60)
    assert all(area["y"] == sorted(area["y"]) for area in figure["data"])
    style = render(searched)
    assert all(style.count(f"--part-{part}:") == 2 for part in PARTS)  # light and dark


def test_a_long_trace_is_thinned_but_keeps_its_steps_and_its_end(searched: ReportData) -> None:
    points = searched.summary().trace
    later = [
        points[-1].model_copy(update={"seconds": points[-1].seconds + i, "trials": 60 + i}) for i in range(1, 3 * DRAWN)
    ]
    figure = hypervolume_figure([*points, *later])
    x, y = figure["data"][0]["x"], figure["data"][0]["y"]
    assert len(x) < 2 * DRAWN
    assert set(y) == {0.0, *(p.hypervolume for p in points)}
    assert x[-1] == later[-1].seconds / 60


def test_what_users_and_samplers_write_is_text(searched: ReportData) -> None:
    log = SearchLog(sampler=EVIL, why=EVIL, messages=(EVIL,))
    trials = tuple(t.model_copy(update={"origin": f"seed:{EVIL}"}) for t in searched.trials)
    search = summarize(trials, searched.baseline, searched.objectives, log=log)
    text = render(searched.model_copy(update={"search": search, "trials": trials}))
    assert EVIL not in text
    assert text.count("&lt;script&gt;") >= 4
