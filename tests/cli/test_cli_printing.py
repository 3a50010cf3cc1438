from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from autocompress.cli.printing import command, front_table, print_front, print_status
from autocompress.front.summary import RungSummary, SearchSummary
from autocompress.pipeline.views import FrontRow, FrontView, StatusView
from autocompress.records import Estimate, Plan, SearchLog


def row(trial: int, **changes: object) -> FrontRow:
    values = {
        "trial": trial,
        "role": "selection",
        "epochs": 1.0,
        "values": {
            "accuracy": Estimate(value=0.92, low=0.91, high=0.928),
            "latency_ms": Estimate(value=0.412, low=0.4, high=0.42),
            "size_bytes": Estimate.exact(1_080_000),
        },
        "ratio": Estimate(value=0.31, low=0.30, high=0.315),
        "test": Estimate(value=0.915, low=0.91, high=0.92),
        "plan": Plan(),
        "summary": "all 12 groups cut to 25–88% of channels (magnitude); 20 of 22 layers at 8 bits",
        "sha256": "ab" * 32,
        "uri": f"models:/cifar10/{trial}",
        "aliases": ("champion", "fastest"),
    }
    return FrontRow.model_validate({**values, **changes})


def rendered(view: FrontView, width: int, *, hashes: bool = False) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(front_table(view, hashes=hashes))
    return file.getvalue()


def view(*rows: FrontRow, stage: str = "final") -> FrontView:
    return FrontView.model_validate(
        {"study": "s", "stage": stage, "objectives": ("accuracy", "latency_ms"), "rows": rows}
    )


@pytest.mark.parametrize("stage", ["final", "search"])
def test_the_table_fits_a_narrow_terminal(stage: str) -> None:
    text = rendered(view(row(1), row(2, aliases=()), stage=stage), 80)
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "…" not in text


def test_values_have_units_and_the_wider_side_of_their_interval() -> None:
    text = rendered(view(row(7)), 160)
    for part in (
        "trial 7",
        "92.00% ±1.0",
        "91.50% ±0.5",
        "0.412 ms",
        "31.0% ±1.0",
        "1.08 MB",
        "cifar10 v7 champion fastest",
    ):
        assert part in text, f"{part!r} is not in\n{text}"


def test_noise_and_a_missing_registration_are_said() -> None:
    assert "noisy latency" in rendered(view(row(1, noisy=True)), 160)
    assert "not registered" in rendered(view(row(1, uri=None)), 160)


def test_hashes_are_whole_and_on_request() -> None:
    assert "ab" * 32 in rendered(view(row(1)), 160, hashes=True)
    assert "ab" * 32 not in rendered(view(row(1)), 160)


def test_names_with_brackets_stay_as_they_are() -> None:
    assert "[bold]x[/bold] v1" in rendered(view(row(1, uri="models:/[bold]x[/bold]/1")), 160)


def test_the_next_command_can_be_called_as_it_is_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = tmp_path / ".venv" / "bin" / "autocompress"
    own.parent.mkdir(parents=True)
    own.touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(own.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    assert command() == str(own)
    monkeypatch.chdir(tmp_path)
    assert command() == ".venv/bin/autocompress"
    monkeypatch.setenv("PATH", str(own.parent))
    assert command() == "autocompress"


SEARCH = SearchSummary(
    total=60,
    begun=37,
    counts={"complete": 12, "stopped": 21, "paused": 3, "failed": 1},
    stops={"rung": 21},
    hypervolume=0.41234,
    seconds=372.0,
    time_s=600.0,
    shares={"recover": 0.75, "measure": 0.25},
    rungs=(
        RungSummary(rung=0, epochs=0.0, judged=36, promoted=14, waiting=2, stopped=20, seconds=4.0, tau=0.51, pairs=9),
        RungSummary(rung=1, epochs=0.25, judged=12, seconds=20.0, last=True),
    ),
    log=SearchLog(sampler="surrogate", why="auto: slow [candidates]", messages=("0 epochs rank well",)),
)


def status(**changes: object) -> StatusView:
    values = {
        "study": "s",
        "folder": "runs/s",
        "state": "stopped",
        "done": 37,
        "total": 60,
        "counts": SEARCH.counts,
        "reasons": {"timeout: no reply": 1},
        "hypervolume": SEARCH.hypervolume,
        "front": view(row(7), stage="search").model_copy(update={"search": SEARCH}),
    }
    return StatusView.model_validate({**values, **changes})


def test_status_tells_the_search_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_status(status())
    lines = capsys.readouterr().out.splitlines()
    assert lines[:9] == [
        "study     s (stopped)",
        "folder    runs/s",
        "trials    37 of 60: 12 complete, 21 stopped early at a rung, 3 paused, 1 failed",
        "  failed  1 x timeout: no reply",
        "sampler   surrogate (auto: slow [candidates])",
        "rung 0    0 epochs: 36 judged, 14 went on, 20 stopped, 2 waiting, Kendall tau 0.51 with full recovery",
        "note      0 epochs rank well",
        "time      6 min 12 s of 10 min 00 s: recovering 75%, measuring 25%",
        "front     1 member, hypervolume of the search 0.412",
    ]
    assert lines[-1] == "The same 'autocompress run' command continues it."


def test_status_of_a_study_without_a_search_is_short(capsys: pytest.CaptureFixture[str]) -> None:
    nothing = view(stage="none")
    print_status(status(state="not started", done=0, counts={}, reasons={}, front=nothing, hypervolume=0.0))
    assert capsys.readouterr().out.splitlines() == [
        "study     s (not started)",
        "folder    runs/s",
        "trials    0 of 60: none yet",
    ]


def test_a_front_ends_with_the_search_that_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    print_front(view(row(7)).model_copy(update={"search": SEARCH}))
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(
        "search    37 of 60 candidates: 12 complete, 21 stopped early at a rung, 3 paused, 1 failed; "
    )
    assert last.endswith("recovering 75%, measuring 25%; sampler surrogate (auto: slow [candidates])")
