from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from autocompress.report.data import ReportData
from autocompress.report.terminal import Progress, front_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def rendered(report: ReportData, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    table = front_table(report.finalists, report.baseline, versions=report.versions, structure=report.structure)
    console.print(table)
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def tell(progress: Progress, done: int, total: int = 24, failed: int = 0) -> None:
    left = 10.0 * (total - done) if done else None
    progress.update(done, total, failed, front_size=3, hypervolume=0.4567, elapsed=12.0 * done, left=left)


def test_table_has_the_front_and_the_dense_model_and_nothing_else(report: ReportData) -> None:
    lines = rendered(report).splitlines()
    named = [line.split()[:2] for line in lines if line.startswith("trial")]
    front = sorted((f for f in report.finalists if f.on_front), key=lambda f: f.final.values["latency_ms"].value)
    assert [int(number) for _, number in named] == [f.number for f in front]
    assert sum(line.startswith("dense") for line in lines) == 1
    champion = next(line.rstrip() for line in lines if "champion" in line)
    assert re.search(r"9\d\.\d\d% ±1\.[01] +9\d\.\d\d% ±0\.5 +0\.\d{3} ms +0\.\d\d×", champion)
    assert champion.endswith("cifar10 v1 champion fastest smallest")
    assert "noisy latency" in next(line for line in lines if "cifar10 v2" in line)


def test_table_fits_a_narrow_terminal(report: ReportData) -> None:
    assert max(len(line) for line in rendered(report, width=80).splitlines()) <= 80
    assert "…" not in rendered(report, width=80)


def test_table_shows_names_with_brackets_as_they_are(report: ReportData) -> None:
    versions = tuple(v.model_copy(update={"model": "[bold]x[/bold]"}) for v in report.versions)
    assert "[bold]x[/bold] v1" in rendered(report.model_copy(update={"versions": versions}), width=260)


def test_without_a_terminal_one_state_is_one_plain_line() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        tell(progress, 3, failed=1)
    assert stream.getvalue() == (
        "search     3/24 trials, 1 failed, front of 3, hypervolume 0.457, 36 s, 3 min 30 s left\n"
    )


def test_without_a_terminal_lines_are_five_seconds_apart_and_the_last_is_told() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock=clock) as progress:
        for done in range(1, 25):
            tell(progress, done)
            clock.now += 1.0
    told = [int(line.split()[1].split("/")[0]) for line in stream.getvalue().splitlines()]
    assert told == [1, 6, 11, 16, 21, 24]
    assert "left" not in stream.getvalue().splitlines()[-1]


def test_without_a_terminal_a_new_stage_is_told_at_once_and_again_after_five_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(stream, clock=clock) as progress:
        progress.stage("prepare", "training")
        progress.stage("profile", "finding groups")
        progress.stage("profile", "kept quiet")
        clock.now = 5.0
        progress.stage("profile", "told again")
    assert stream.getvalue().splitlines() == [
        "prepare    training",
        "profile    finding groups",
        "profile    told again",
    ]


def test_on_a_terminal_a_single_line_is_redrawn_and_the_outcome_stays() -> None:
    stream = Terminal()
    with Progress(stream) as progress:
        progress.stage("prepare", "training")
        for done in range(1, 25):
            tell(progress, done)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "━" in text
    assert text.rstrip().splitlines()[-1].strip().startswith("search     24/24 trials, front of 3")
    assert text.count("search     24/24") == 1


@pytest.mark.parametrize("columns", [76, 80, 120])
def test_on_a_terminal_the_line_fits_and_loses_no_figure(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with Progress(stream) as progress:
        progress.update(112, 240, 11, front_size=13, hypervolume=0.4567, elapsed=9000.0, left=3840.0)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    line = next(line for line in re.split(r"[\r\n]", text) if "112/240" in line).rstrip()
    assert ("━" in line) is (columns >= 80)
    assert len(line) <= columns
    assert line.endswith("112/240, 11 failed, front of 13, hypervolume 0.457, 1 h 04 min left")


def test_the_terminal_is_given_back_when_the_study_fails() -> None:
    stream = Terminal()

    def fail() -> None:
        with Progress(stream) as progress:
            tell(progress, 1)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    shown, hidden = stream.getvalue().rfind("\x1b[?25h"), stream.getvalue().rfind("\x1b[?25l")
    assert shown > hidden >= 0
