"""What is told of a study's search, and the times of its stages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from autocompress.config import Study
from autocompress.files import write_bytes
from autocompress.pipeline import views
from autocompress.pipeline.folder import StudyFolder, write_record
from autocompress.pipeline.publish import Registered, longest_seconds
from autocompress.pipeline.summary import search_summary
from autocompress.records import Artifact, Baseline, Estimate, Fidelity, Host, RungResult, SearchLog, TrialRecord

HOST = Host(cpu="cpu", cores=2, flags=(), memory_gb=4, system="linux", runtime="ort", threads=1)
ARTIFACT = Artifact(sha256="0" * 64, size_bytes=1000, macs=50, parameters=40, layers=())
BASELINE = Baseline(
    artifact=ARTIFACT, accuracy={"validation": Estimate.exact(0.9)}, latency_ms=2.0, host=HOST, agreement=0.0
)
START = datetime(2026, 1, 1, tzinfo=UTC)


def study_in(folder: Path, **search: Any) -> Study:
    return Study.model_validate(
        {"name": "s", "task": {"factory": "autocompress.tasks.digits:digits"}, "output": folder, "search": search}
    )


def judged(number: int, state: str, reason: str = "") -> TrialRecord:
    rung = RungResult(
        plan_key="k",
        fidelity=Fidelity(epochs=0.0),
        values={"accuracy": Estimate.exact(0.5), "latency_ms": Estimate.exact(1.0)},
        seconds={"recover": 3.0},
        judged=START + timedelta(seconds=4),
    )
    finished = None if state == "paused" else START + timedelta(seconds=9)
    return TrialRecord(number=number, state=state, reason=reason, rungs=(rung,), started=START, finished=finished)


def test_a_summary_has_what_the_study_asks_for_and_what_its_search_wrote_down(tmp_path: Path) -> None:
    study = study_in(tmp_path, trials=9, workers=2, time_s=60.0)
    log = SearchLog(sampler="surrogate", why="auto: few", messages=("hello",), seconds={"seeds": 2.0})
    trials = (judged(0, "paused"), judged(1, "stopped", "rung: no"))
    assert search_summary(study, BASELINE, trials).log == SearchLog()
    write_record(StudyFolder(study.folder).search_log, log)
    found = search_summary(study, BASELINE, trials)
    assert (found.total, found.begun, found.time_s, found.log) == (9, 2, 60.0, log)
    assert found.parts.recover == 6.0
    assert found.parts.total == pytest.approx(2 * found.seconds)


@pytest.mark.parametrize(
    ("time_s", "states", "registered", "expected"),
    [
        (None, ("stopped", "stopped"), 2, "finished"),
        (None, ("stopped",), 1, "stopped"),  # one is missing
        (60.0, ("stopped",), 1, "finished"),  # for lack of time
        (60.0, ("stopped",), 0, "stopped"),
        (60.0, ("stopped", "paused"), 1, "stopped"),
    ],
)
def test_a_search_is_over_with_its_trials_or_with_its_time(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    time_s: float | None,
    states: tuple[str, ...],
    registered: int,
    expected: str,
) -> None:
    study = study_in(tmp_path, trials=2, time_s=time_s)
    folder = StudyFolder(study.folder)
    write_bytes(folder.study, study.model_dump_json().encode())
    write_record(folder.registered, Registered(trials=registered))
    trials = tuple(judged(i, state) for i, state in enumerate(states))
    monkeypatch.setattr(views, "load_trials", lambda study: trials)
    found = views.study_status(study)
    assert found.state == expected
    assert found.done == len(states)
    assert sum(found.counts.values()) == len(states)


def test_a_study_s_markdown_ends_what_the_page_is_with_the_last_line_of_the_trace(tmp_path: Path) -> None:
    study = study_in(tmp_path, trials=9)
    went = search_summary(study, BASELINE, (judged(0, "paused"), judged(1, "stopped", "rung: no")))
    view = views.FrontView(study="s", stage="final", objectives=study.objectives, rows=(), search=went)
    text = views.summary_markdown(view, Path("report.html"), "sqlite:///mlflow.db")
    assert "The search: 2 of 9 candidates: 1 stopped early at a rung, 1 paused; hypervolume 0.000; 4.0 s: " in text
    assert "The search" not in views.summary_markdown(
        view.model_copy(update={"search": None}), Path("report.html"), "sqlite:///mlflow.db"
    )


def test_a_rerun_that_finds_its_work_done_does_not_shorten_a_stage(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    assert longest_seconds(folder, {"prepare": 60.0, "search": 300.0}) == {"prepare": 60.0, "search": 300.0}
    again = longest_seconds(folder, {"prepare": 1.0, "search": 0.1, "register": 4.0})
    assert again == {"prepare": 60.0, "search": 300.0, "register": 4.0}
    assert list(again) == ["prepare", "search", "register"]
    assert longest_seconds(folder, {"search": 400.0})["search"] == 400.0
