from __future__ import annotations

import io
import re

import pytest

from autocompress.report.terminal import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def tell(progress: Progress, done: int, total: int = 24, failed: int = 0) -> None:
    left = 10.0 * (total - done) if done else None
    progress.update(done, total, failed, front_size=3, hypervolume=0.4567, elapsed=12.0 * done, left=left)


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


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (120, "112/240, 45 complete, 11 failed, front of 13, hypervolume 0.457, 1 h 04 min left"),
        (80, "112/240, 45 complete, 11 failed, hypervolume 0.457, 1 h 04 min left"),
        (66, "112/240, 11 failed, hypervolume 0.457, 1 h 04 min left"),
    ],
)
def test_a_narrow_terminal_leaves_out_what_can_be_missed(
    monkeypatch: pytest.MonkeyPatch, columns: int, words: str
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = Terminal()
    with Progress(stream) as progress:
        progress.update(112, 240, 11, front_size=13, hypervolume=0.4567, elapsed=9000.0, left=3840.0, complete=45)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    line = next(line for line in re.split(r"[\r\n]", text) if "112/240" in line).rstrip()
    assert len(line) <= columns
    assert line.endswith(words)


def test_where_all_are_complete_that_is_not_said() -> None:
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.update(24, 24, 2, front_size=3, hypervolume=0.4567, elapsed=60.0, left=None, complete=22)
    assert stream.getvalue() == "search     24/24 trials, 2 failed, front of 3, hypervolume 0.457, 1 min 00 s\n"


def test_the_last_line_is_told_once_however_long_the_best_go_on() -> None:
    stream = Terminal()
    with Progress(stream) as progress:
        for left_open in (3, 2, 1, 0):
            progress.update(
                24,
                24,
                0,
                front_size=3,
                hypervolume=0.4567,
                elapsed=60.0,
                left=None,
                complete=8 - left_open,
                left_open=left_open,
            )
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert text.count("search     24/24 trials") == 1
    assert "24/24, 5 complete" in text


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
