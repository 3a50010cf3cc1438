from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autocompress.errors import MeasurementError
from autocompress.measure.energy import RAPL, Counter, EnergyProcedure, counters, energy

INPUTS = np.zeros((1, 3), dtype=np.float32)
#: Advances counter files at fixed powers, as the kernel does: up to the range, then from 0. Values change at once.
HOST = """
import os, sys, time
start = time.perf_counter()
while True:
    for line in sys.argv[1:]:
        path, watts, range_uj, first = line.rsplit(",", 3)
        value = (int(first) + int(float(watts) * 1e6 * (time.perf_counter() - start))) % int(range_uj)
        with open(path + ".new", "w") as file:
            file.write(f"{value}\\n")
        os.replace(path + ".new", path)
"""


@dataclass
class Sleeping:
    """A network whose inference takes about so many seconds and no processor."""

    seconds: float
    threads: int = 1
    took: list[float] = field(default_factory=list)

    @property
    def mean(self) -> float:
        """Seconds that an inference really took: a system that is busy wakes late."""
        return float(np.mean(self.took))

    def input_shapes(self, batch_size: int) -> dict[str, tuple[int, ...]]:
        return {"x": (batch_size, 3)}

    def run(self, inputs: np.ndarray) -> np.ndarray:
        return inputs

    def runner(self, inputs: np.ndarray) -> Callable[[], object]:
        def call() -> None:
            start = time.perf_counter()
            time.sleep(self.seconds)
            self.took.append(time.perf_counter() - start)

        return call


def zone(folder: Path, name: str, range_uj: int) -> Path:
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text("0\n")
    return folder / "energy_uj"


@contextmanager
def host(*zones: tuple[Path, float, int, int]) -> Iterator[None]:
    """A process that moves the counters: file, watts, range and first value of each."""
    process = subprocess.Popen([sys.executable, "-c", HOST, *(",".join(map(str, entry)) for entry in zones)])
    try:
        time.sleep(0.3)
        yield
    finally:
        process.kill()
        process.wait()


def rapl_of(folder: Path, *, range_uj: int) -> tuple[Path, Path, Path]:
    """A host with one package, its memory, and its cores, which are in the package already."""
    root = folder / "intel-rapl"
    package = zone(root / "intel-rapl:0", "package-0", range_uj)
    memory = zone(root / "intel-rapl:0" / "intel-rapl:0:0", "dram", range_uj)
    zone(root / "intel-rapl:0" / "intel-rapl:0:1", "core", range_uj)
    return root, package, memory


@pytest.mark.slow
@pytest.mark.parametrize("range_uj", [10**12, 40_000_000])  # the smaller one goes round every 0.8 s at 50 W
def test_energy_is_power_times_time_also_when_counters_go_round(tmp_path: Path, range_uj: int) -> None:
    root, package, memory = rapl_of(tmp_path, range_uj=range_uj)
    with host((package, 50.0, range_uj, range_uj - 1_000_000), (memory, 10.0, range_uj, 0)):
        found = counters(gpus=False, rapl=root)
        assert [counter.name for counter in found] == ["intel-rapl:0 package-0", "intel-rapl:0:0 dram"]
        started = time.perf_counter()
        nets, base = [Sleeping(0.02), Sleeping(0.01)], Sleeping(0.02)
        slow, fast = energy(
            nets,
            base,
            INPUTS,
            seed=0,
            counters=found,
            procedure=EnergyProcedure(windows=8, window_s=0.2),
        )
    assert time.perf_counter() - started > 4.0  # so that the small counter has gone round five times
    # 60 W together: the cores are in the package already.
    assert slow.energy_mj.value == pytest.approx(60e3 * nets[0].mean, rel=0.12)
    assert fast.energy_mj.value == pytest.approx(60e3 * nets[1].mean, rel=0.12)
    assert slow.baseline_mj == pytest.approx(60e3 * base.mean, rel=0.12)
    assert fast.ratio.value == pytest.approx(nets[1].mean / base.mean, rel=0.12)
    assert fast.ratio.low <= fast.ratio.value <= fast.ratio.high
    assert (fast.windows, fast.counters) == (8, ("intel-rapl:0 package-0", "intel-rapl:0:0 dram"))


@given(st.floats(0.0, 1e6), st.floats(0.0, 0.99), st.floats(1.0, 1e6))
def test_a_counter_that_goes_round_once_is_set_right(before: float, share: float, size: float) -> None:
    counter = Counter(name="c", read=lambda: 0.0, range_mj=size)
    start, spent = before % size, share * size
    assert counter.spent(start, (start + spent) % size) == pytest.approx(spent, abs=1e-6 * size)


def test_counters_that_stand_still_are_refused(tmp_path: Path) -> None:
    root, *_ = rapl_of(tmp_path, range_uj=10**12)
    with pytest.raises(MeasurementError, match=r"'intel-rapl:0 package-0', .* to move within 0\.05 s, they give 0 mJ"):
        energy(
            [Sleeping(0.01)],
            Sleeping(0.01),
            INPUTS,
            seed=0,
            counters=counters(gpus=False, rapl=root),
            procedure=EnergyProcedure(window_s=0.05),
        )


def test_a_host_without_counters_is_refused_in_words(tmp_path: Path) -> None:
    missing = tmp_path / "intel-rapl"
    with pytest.raises(MeasurementError, match="energy_mj: expected a host that counts its energy, found none of") as e:
        counters(gpus=False, rapl=missing)
    assert str(missing) in str(e.value)
    assert "leave energy_mj out of objectives and constraints" in str(e.value)


@pytest.mark.skipif(RAPL.is_dir() or Path("/dev/nvidiactl").exists(), reason="this host counts its energy")
def test_this_host_is_refused_for_real_and_says_what_was_looked_for() -> None:
    with pytest.raises(MeasurementError, match=r"/sys/class/powercap/intel-rapl, /dev/nvidiactl:"):
        counters(gpus=True)


def test_a_framework_without_packages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "intel-rapl").mkdir()
    with pytest.raises(MeasurementError, match="without a package in it"):
        counters(gpus=False, rapl=tmp_path / "intel-rapl")


def test_counters_that_are_not_whole_are_refused_with_their_cause(tmp_path: Path) -> None:
    root, package, _ = rapl_of(tmp_path, range_uj=10**12)
    package.unlink()
    with pytest.raises(MeasurementError, match="that this user may read, got FileNotFoundError"):
        counters(gpus=False, rapl=root)


def test_a_package_is_not_counted_twice(tmp_path: Path) -> None:
    root, *_ = rapl_of(tmp_path, range_uj=10**12)
    zone(root / "intel-rapl:1", "psys", 10**12)
    found = counters(gpus=False, rapl=root)
    assert [counter.name for counter in found] == ["intel-rapl:0 package-0", "intel-rapl:0:0 dram"]
