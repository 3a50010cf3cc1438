"""The driver is killed or stopped for real; the same command must end with exactly n trials and nothing left over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from autocompress.records import TrialRecord
from autocompress.search.ledger import Ledger

SCRIPT = Path(__file__).with_name("drive_search.py")
TRIALS = 8
pytestmark = [pytest.mark.integration, pytest.mark.slow]


def start(
    folder: Path, seconds: float = 0.5, faults: str = "{}", rungs: str = "[0.0]", **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(TRIALS), str(seconds), faults, rungs],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def read_until(driver: subprocess.Popen[str], word: str, times: int = 1) -> str:
    seen = ""
    assert driver.stdout is not None
    for line in driver.stdout:
        seen += line
        if seen.count(word) >= times:
            return seen
    raise AssertionError(f"the driver ended before {word!r} came {times} times:\n{seen}")


def descendants(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    """Ray's processes, the actors and the candidates' processes."""
    found = psutil.Process(driver.pid).children(recursive=True)
    assert len(found) > 5
    return found


def none_lives(processes: list[psutil.Process], within_s: float) -> None:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    assert [f"{p.pid} {p.name()}" for p in alive if p.is_running()] == []


def trials_of(folder: Path) -> tuple[TrialRecord, ...]:
    return Ledger.open(folder / "journal.log", "toy", ["accuracy", "latency_ms"], create=False).trials()


def evaluations_ended(folder: Path) -> Counter[int]:
    lines = [json.loads(line) for line in (folder / "evaluations").read_text().splitlines()]
    return Counter(line["ended"] for line in lines if "ended" in line)


def test_killed_driver_continues_to_exactly_n_trials_and_runs_no_completed_one_again(tmp_path: Path) -> None:
    for completed in (0, 2, 3):
        driver = start(tmp_path)
        read_until(driver, "complete" if completed else "running", completed or 2)
        time.sleep(0.2)
        processes = descendants(driver)
        driver.kill()
        driver.wait()
        none_lives(processes, within_s=5)
    before = {t.number: t for t in trials_of(tmp_path) if t.state == "complete"}
    assert 5 <= len(before) < TRIALS
    assert any(t.state == "running" for t in trials_of(tmp_path))

    driver = start(tmp_path)
    read_until(driver, "complete")
    processes = descendants(driver)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    none_lives(processes, within_s=5)
    after = trials_of(tmp_path)
    assert [t.number for t in after] == list(range(TRIALS))
    assert {t.state for t in after} == {"complete"}
    assert all(after[number] == trial for number, trial in before.items())
    assert max(t.attempts for t in after) > 1
    # A trial that ended after its driver died may have been measured twice; a completed one never.
    assert sum(evaluations_ended(tmp_path).values()) <= TRIALS + 2 * 3


def test_a_killed_driver_goes_on_from_the_rungs_that_were_passed(tmp_path: Path) -> None:
    for word in ("paused", "complete"):
        driver = start(tmp_path, rungs="[0.0, 1.0]")
        read_until(driver, word, 2)
        processes = descendants(driver)
        driver.kill()
        driver.wait()
        none_lives(processes, within_s=5)
    before = {t.number: t for t in trials_of(tmp_path)}
    output, _ = start(tmp_path, rungs="[0.0, 1.0]").communicate(timeout=120)
    assert output.rstrip().endswith("done"), output
    after = trials_of(tmp_path)
    assert [t.number for t in after] == list(range(TRIALS))
    assert {t.state for t in after} == {"complete", "stopped"}
    for number, trial in before.items():
        # What was judged is not judged again.
        assert after[number].rungs[: len(trial.rungs)] == trial.rungs
        if trial.state == "complete":
            assert after[number] == trial


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_stops_at_once_and_the_same_command_finishes(tmp_path: Path, number: signal.Signals) -> None:
    driver = start(tmp_path, seconds=30.0 if number == signal.SIGTERM else 1.0)
    read_until(driver, "running", 2)
    time.sleep(0.5)
    processes = descendants(driver)
    begun = time.monotonic()
    driver.send_signal(number)
    output, _ = driver.communicate(timeout=60)
    took = time.monotonic() - begun
    assert driver.returncode == 130, output
    assert f"stopped by {number.name} after 0 of {TRIALS} trials; the same command continues" in output
    assert took < 12, f"stopping took {took:.1f} s"
    none_lives(processes, within_s=5)
    assert [t.state for t in trials_of(tmp_path)][:2] == ["running", "running"]

    driver = start(tmp_path, seconds=0.0)
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    assert [t.state for t in trials_of(tmp_path)] == ["complete"] * TRIALS


def test_a_trial_that_rays_own_memory_monitor_kills_is_failed_and_not_run_again(tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    used = (memory.total - memory.available) / memory.total
    allowed = used + 2 * 2**30 / memory.total
    if allowed > 0.9:
        pytest.skip("too little memory is free")
    driver = start(
        tmp_path,
        faults=json.dumps({"32": "memory"}),
        # Long enough for what was killed to give its memory back: else Ray takes the next trial for it as well.
        RAY_memory_monitor_refresh_ms="1500",
        RAY_memory_usage_threshold=f"{allowed:.3f}",
    )
    output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 0, output
    trials = trials_of(tmp_path)
    assert trials[1].reason.startswith("oom: "), trials[1].reason
    assert "low on memory" in trials[1].reason
    assert trials[1].attempts == 1
    # Ray may look again before the memory of what it killed is back, and take one more; which, and why, is said too.
    failed = [t for t in trials if t.state == "failed"]
    assert trials[1] in failed
    assert len(failed) <= 2
    assert all(t.reason.startswith("oom: ") and t.attempts == 1 for t in failed)
    assert {t.state for t in trials} == {"complete", "failed"}
    assert len(trials) == TRIALS
