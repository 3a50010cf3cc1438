"""The slot with ``move``: real processes on real cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from autocompress.cluster.cores import divide
from autocompress.cluster.slot import ExclusiveSlot
from autocompress.errors import MeasurementError

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")

#: Counts in steps of about 5 ms, and says after each when it began and ended, where, and how far it came.
BURNER = """
import os, sys, time
from pathlib import Path
from autocompress.cluster.slot import ExclusiveSlot
slot = ExclusiveSlot(Path(sys.argv[1]), cores=1)
print("ready", flush=True)
while True:
    with slot.training():
        begun, count = time.monotonic(), 0
        while time.monotonic() < begun + 0.005:
            count += 1
        print(begun, time.monotonic(), ",".join(map(str, sorted(os.sched_getaffinity(0)))), count, flush=True)
"""

MEASURER = """
import sys, time
from pathlib import Path
from autocompress.cluster.slot import ExclusiveSlot
with ExclusiveSlot(Path(sys.argv[1]), cores=1).measuring():
    print("measuring", flush=True)
    time.sleep(60)
"""


def start(code: str, folder: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with log.open("wb") as file:
        return subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=file, env=environment)


def wait_for(log: Path, word: str) -> None:
    for _ in range(200):
        if word in log.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(f"{word!r} never came")


class Step:
    def __init__(self, line: str) -> None:
        begun, ended, cores, count = line.split()
        self.begun, self.ended, self.count = float(begun), float(ended), int(count)
        self.cores = frozenset(map(int, cores.split(",")))


def steps(log: Path, after: float, before: float) -> list[Step]:
    """Whole steps within a time."""
    lines = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n") and line != "ready\n"]
    return [s for s in map(Step, lines) if after <= s.begun and s.ended <= before]


@pytest.fixture
def process(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = start(BURNER, tmp_path / "slot", tmp_path / "burner.log")
    wait_for(tmp_path / "burner.log", "ready")
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def burner(tmp_path: Path, process: subprocess.Popen[bytes]) -> Path:
    return tmp_path / "burner.log"


def test_training_goes_on_beside_a_reading_on_the_other_cores_and_comes_back(tmp_path: Path, burner: Path) -> None:
    cores, slot = divide(1), ExclusiveSlot(tmp_path / "slot", cores=1)
    time.sleep(0.3)
    asked = time.monotonic()
    with slot.measuring(timeout_s=10):
        begun = time.monotonic()
        assert os.sched_getaffinity(0) == cores.measuring
        time.sleep(0.5)
        ended = time.monotonic()
    assert os.sched_getaffinity(0) == cores.home
    time.sleep(0.5)
    assert begun - asked < 1.0
    during, after = steps(burner, begun, ended), steps(burner, ended + 0.2, time.monotonic())
    assert len(during) > 5
    assert {s.cores for s in during} == {cores.training}
    assert len(after) > 5
    assert {s.cores for s in after} == {cores.home}


def test_no_step_is_on_the_measuring_cores_while_a_reading_is_taken(tmp_path: Path, burner: Path) -> None:
    cores, slot = divide(1), ExclusiveSlot(tmp_path / "slot", cores=1)
    readings = []
    for _ in range(10):
        with slot.measuring(timeout_s=10):
            begun = time.monotonic()
            time.sleep(0.05)
            readings.append((begun, time.monotonic()))
        time.sleep(0.03)
    time.sleep(0.2)
    all_steps = steps(burner, 0.0, time.monotonic())
    beside = [s for s in all_steps for begun, ended in readings if s.begun < ended and begun < s.ended]
    assert beside
    # One that began beside a reading may go on after it, never the other way round.
    assert all(s.cores == cores.training for s in beside)


def test_a_measuring_process_that_is_killed_leaves_training_free(tmp_path: Path, burner: Path) -> None:
    cores, log = divide(1), tmp_path / "measurer.log"
    measurer = start(MEASURER, tmp_path / "slot", log)
    wait_for(log, "measuring")
    time.sleep(0.2)
    moved = time.monotonic()
    time.sleep(0.2)
    measurer.send_signal(signal.SIGKILL)
    measurer.wait()
    killed = time.monotonic()
    time.sleep(0.5)
    assert {s.cores for s in steps(burner, moved, killed)} == {cores.training}
    assert {s.cores for s in steps(burner, killed + 0.2, time.monotonic())} == {cores.home}
    with ExclusiveSlot(tmp_path / "slot", cores=1).measuring(timeout_s=2):
        pass


@pytest.mark.alone
def test_what_is_measured_beside_a_burner_is_what_is_measured_alone(
    tmp_path: Path, burner: Path, process: subprocess.Popen[bytes]
) -> None:
    def spin() -> float:
        begun = time.perf_counter()
        for _ in range(200_000):
            pass
        return time.perf_counter() - begun

    slot = ExclusiveSlot(tmp_path / "slot", cores=1)
    slowdowns = []
    for _ in range(3):  # whatever else the machine does may come in between: three times is no accident
        with slot.measuring(timeout_s=10):
            begun = time.monotonic()
            beside = sorted(spin() for _ in range(60))
            ended = time.monotonic()
        assert sum(s.count for s in steps(burner, begun, ended)) > 0, "training went on"
        process.send_signal(signal.SIGSTOP)
        alone = sorted(spin() for _ in range(60))
        process.send_signal(signal.SIGCONT)
        slowdowns.append(max(beside[30] / alone[30], beside[54] / alone[54] / 1.25))
        if slowdowns[-1] < 1.4:  # it would be two if they shared the core
            return
    raise AssertionError(f"beside the burner it took {slowdowns} as long as alone")


def test_a_process_that_was_moved_still_knows_where_it_is_at_home(tmp_path: Path) -> None:
    cores, log = divide(1), tmp_path / "measurer.log"
    measurer = start(MEASURER, tmp_path / "slot", log)
    wait_for(log, "measuring")
    with ExclusiveSlot(tmp_path / "slot", cores=1).training():
        assert os.sched_getaffinity(0) == cores.training
    measurer.kill()
    measurer.wait()
    # A slot that is made anew, as each stage of an evaluation does, while the process is still where it was sent.
    slot = ExclusiveSlot(tmp_path / "slot", cores=1)
    with slot.measuring(timeout_s=5):
        assert os.sched_getaffinity(0) == cores.measuring
    assert os.sched_getaffinity(0) == cores.home
    with slot.training():
        assert os.sched_getaffinity(0) == cores.home


def test_a_machine_without_a_core_to_spare_is_refused(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(MeasurementError, match=rf"'move' needs at least one core beside the {cores} that measure"):
        ExclusiveSlot(tmp_path, cores=cores)
