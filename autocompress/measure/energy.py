"""Energy of an inference, read from the host's own counters; where there are none it is refused, never estimated.

Processors count what their packages and memory have used (RAPL, on Intel and AMD, which the kernel shows as files),
NVIDIA's graphics cards what the board has used (NVML, through the library nvidia-ml-py). One *window* is a run of
inferences of at least `window_s` seconds; with n inferences in it and the counters c read before and after:

    energy of an inference = sum over counters of (after - before, modulo the counter's range) / n

So it is what the host used meanwhile, idle power included, not the inference's share of it: another program that
computes at the same time is counted too. Windows of candidate and dense baseline take turns, shuffled, and are
compared as latencies are: median of ratios × median of the baseline, with a bootstrap interval over windows.

References:
    Linux kernel, "Power Capping Framework": ``energy_uj`` counts up to ``max_energy_range_uj``, then from 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from autocompress.errors import MeasurementError
from autocompress.measure.ratios import compare
from autocompress.records import EnergyReading, Record
from autocompress.rng import derive_seed

if TYPE_CHECKING:
    from autocompress.inputs import Arrays
    from autocompress.measure.target import Session

#: Where the kernel shows RAPL's counters.
RAPL = Path("/sys/class/powercap/intel-rapl")
#: There with NVIDIA's driver.
NVIDIA = Path("/dev/nvidiactl")
_ADVICE = "leave energy_mj out of objectives and constraints, or run where counters can be read"


class EnergyProcedure(Record):
    """How energy is taken.

    Attributes:
        windows: per network.
        window_s: shortest time of a window, in seconds: RAPL's counters move every millisecond, those of graphics
            cards every 20 to 100.
        dispersion: interquartile range of the windows' ratios, as a share of their median, beyond which a reading is
            noisy.
        drift: of the baseline, likewise.
        resamples: of the bootstrap.
    """

    windows: Annotated[int, Field(ge=3)] = 10
    window_s: Annotated[float, Field(gt=0.0)] = 1.0
    dispersion: Annotated[float, Field(gt=0.0)] = 0.1
    drift: Annotated[float, Field(gt=0.0)] = 0.1
    resamples: Annotated[int, Field(ge=100)] = 1000


@dataclass(frozen=True)
class Counter:
    """One counter of the host.

    Attributes:
        name: such as ``"package-0"`` or ``"NVIDIA H100"``.
        read: millijoules since some moment.
        range_mj: value at which it starts from 0 again; None if it does not.
    """

    name: str
    read: Callable[[], float]
    range_mj: float | None = None

    def spent(self, before: float, after: float) -> float:
        """Millijoules between two values; a counter that went round at most once since is set right."""
        return (after - before) % self.range_mj if self.range_mj else after - before


def counters(*, gpus: bool, rapl: Path = RAPL) -> tuple[Counter, ...]:
    """The host's counters: packages and memory, and graphics cards if the target computes there.

    Args:
        gpus: look for those of graphics cards too.
        rapl: folder of the kernel's power capping framework.

    Raises:
        MeasurementError: there are none, or they cannot be read; the message says what was looked for.
    """
    looked = [str(rapl), *([str(NVIDIA)] if gpus else [])]
    cards = gpus and NVIDIA.exists()
    if not rapl.is_dir() and not cards:
        raise MeasurementError(
            f"energy_mj: expected a host that counts its energy, found none of {', '.join(looked)}: virtual machines "
            f"and containers mostly hide them, and some processors have none; {_ADVICE}"
        )
    try:
        # Of the zones inside a package only memory is apart: cores and graphics are in the package's own count. A zone
        # of the whole platform (psys) would count packages twice.
        packages = [z for z in sorted(rapl.glob("intel-rapl:*")) if _word(z / "name").startswith("package")]
        memories = [z for z in sorted(rapl.glob("intel-rapl:*/intel-rapl:*:*")) if _word(z / "name") == "dram"]
        found = [_of_zone(zone) for zone in (*packages, *memories)]
    except (OSError, ValueError) as error:
        raise MeasurementError(
            f"energy_mj: expected energy counters that this user may read, got {type(error).__name__}: {error}; most "
            f"systems show {rapl}/*/energy_uj to root only: 'sudo chmod -R a+r {rapl}/' until the next start; {_ADVICE}"
        ) from error
    if cards:
        found += _of_cards()
    if not found:
        raise MeasurementError(
            f"energy_mj: expected a host that counts its energy, got {rapl} without a package in it; {_ADVICE}"
        )
    return tuple(found)


def energy(
    candidates: Sequence[Session],
    baseline: Session,
    inputs: Arrays,
    *,
    seed: int,
    counters: Sequence[Counter],
    procedure: EnergyProcedure | None = None,
) -> list[EnergyReading]:
    """Millijoules of one inference of each candidate beside the baseline: see the module's formula.

    The caller keeps everything else off the machine meanwhile, as for latency.

    Args:
        candidates: networks to compare; the baseline itself may be one of them.
        baseline: the dense network.
        inputs: what one inference works on.
        seed: of the order of windows and of the bootstrap.
        counters: from `counters`, at least one.
        procedure: how; `EnergyProcedure()` if None.

    Raises:
        MeasurementError: a network fails, or the counters did not move within a window.
    """
    procedure = procedure or EnergyProcedure()
    calls = [session.runner(inputs) for session in (baseline, *candidates)]
    for call in calls:
        call()
    spent: list[list[float]] = [[] for _ in calls]
    rng = np.random.default_rng(derive_seed(seed, "energy"))
    for _ in range(procedure.windows):
        for i in rng.permutation(len(calls)):
            spent[i].append(_window(calls[i], counters, procedure.window_s))
    readings = []
    for i in range(len(candidates)):
        # Joules, as `compare` gives thousandths of what it is given.
        found = compare(
            np.array(spent[i + 1]) * 1e-3,
            np.array(spent[0]) * 1e-3,
            seed=derive_seed(seed, "bootstrap", i),
            resamples=procedure.resamples,
        )
        readings.append(
            EnergyReading(
                energy_mj=found.latency_ms,
                ratio=found.ratio,
                baseline_mj=found.baseline_ms,
                windows=procedure.windows,
                counters=tuple(counter.name for counter in counters),
                noisy=found.dispersion > procedure.dispersion or found.drift > procedure.drift,
            )
        )
    return readings


def _window(call: Callable[[], object], counters: Sequence[Counter], window_s: float) -> float:
    """Millijoules of one inference, over one window."""
    before = [counter.read() for counter in counters]
    end, count = time.perf_counter() + window_s, 0
    while time.perf_counter() < end:
        call()
        count += 1
    total = sum(c.spent(b, c.read()) for c, b in zip(counters, before, strict=True))
    if not total > 0:
        raise MeasurementError(
            f"energy_mj: expected the counters {[c.name for c in counters]} to move within {window_s:g} s, they give "
            f"{total:g} mJ"
        )
    return total / count


def _word(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _of_zone(zone: Path) -> Counter:
    count = zone / "energy_uj"
    int(_word(count))  # now, so that a file that may not be read is told before anything is measured
    return Counter(
        name=f"{zone.name} {_word(zone / 'name')}",
        read=lambda: int(_word(count)) / 1e3,
        range_mj=int(_word(zone / "max_energy_range_uj")) / 1e3,
    )


def _of_card(nvml: Any, index: int) -> Counter:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    nvml.nvmlDeviceGetTotalEnergyConsumption(handle)  # now: cards before Volta have no counter
    return Counter(
        name=f"gpu {index} {nvml.nvmlDeviceGetName(handle)}",
        read=lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)),
    )


def _of_cards() -> list[Counter]:
    try:
        import pynvml
    except ImportError as error:
        raise MeasurementError(
            f"energy_mj: expected the package nvidia-ml-py, which failed to import: {error}; install it with "
            "\"pip install 'autocompress[energy]'\""
        ) from error
    try:
        pynvml.nvmlInit()
        return [_of_card(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        raise MeasurementError(
            f"energy_mj: expected NVIDIA's cards to count their energy, NVML says: {error}; cards before Volta do "
            f"not; {_ADVICE}"
        ) from error
