"""The slot's contract, with real processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autocompress.cluster.slot import ExclusiveSlot
from autocompress.errors import MeasurementError

TRAINER = """
import sys, time
from pathlib import Path
from autocompress.cluster.slot import ExclusiveSlot
slot = ExclusiveSlot(Path(sys.argv[1]))
print("ready", flush=True)
end = time.monotonic() + float(sys.argv[3])
while time.monotonic() < end:
    with slot.training():
        begun = time.monotonic()
        time.sleep(float(sys.argv[2]))
        print(begun, time.monotonic(), flush=True)
"""


def trainer(folder: Path, step_s: float, for_s: float) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", TRAINER, str(folder), str(step_s), str(for_s)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def steps(process: subprocess.Popen[str]) -> list[tuple[float, float]]:
    output, _ = process.communicate(timeout=30)
    return [(float(a), float(b)) for a, b in (line.split() for line in output.splitlines())]


def overlap(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] < b[1] and b[0] < a[1]


def test_readings_never_overlap_training_and_are_not_starved_by_it(tmp_path: Path) -> None:
    slot = ExclusiveSlot(tmp_path)
    trainers = [trainer(tmp_path, 0.02, 2.0) for _ in range(3)]
    readings, waits = [], []
    for _ in range(8):
        asked = time.monotonic()
        with slot.measuring(timeout_s=10):
            begun = time.monotonic()
            time.sleep(0.05)
            readings.append((begun, time.monotonic()))
        waits.append(begun - asked)
        time.sleep(0.05)
    trained = [steps(t) for t in trainers]
    assert all(len(t) > 5 for t in trained)
    assert not any(overlap(r, s) for r in readings for t in trained for s in t)
    assert any(overlap(a, b) for a in trained[0] for b in trained[1]), "trainers work side by side"
    assert max(waits) < 1.0


def test_a_reading_waits_only_so_long_and_says_so(tmp_path: Path) -> None:
    process = trainer(tmp_path, 30.0, 30.0)
    time.sleep(0.2)
    begun = time.monotonic()
    with (
        pytest.raises(MeasurementError, match=r"was not free within 0.3 s; another process holds it"),
        ExclusiveSlot(tmp_path).measuring(timeout_s=0.3),
    ):
        pass
    assert time.monotonic() - begun < 2
    process.kill()
    process.wait()


def test_a_killed_holder_frees_the_slot_at_once(tmp_path: Path) -> None:
    process = trainer(tmp_path, 30.0, 30.0)
    time.sleep(0.2)
    process.kill()
    process.wait()
    begun = time.monotonic()
    with ExclusiveSlot(tmp_path).measuring(timeout_s=5):
        assert time.monotonic() - begun < 1


def test_an_error_inside_frees_the_slot(tmp_path: Path) -> None:
    slot = ExclusiveSlot(tmp_path)
    with pytest.raises(ZeroDivisionError), slot.measuring():
        raise ZeroDivisionError
    with slot.training():
        pass
    with slot.measuring(timeout_s=1):
        pass


def test_a_step_costs_little(tmp_path: Path) -> None:
    slot = ExclusiveSlot(tmp_path)
    begun = time.perf_counter()
    for _ in range(500):
        with slot.training():
            pass
    assert (time.perf_counter() - begun) / 500 < 0.001
