"""What a trial costs beyond its own work: our executor beside plain Ray Tune, and over a thousand trials.

Both run the same no-op in one Ray session. Ours gives each worker a process that may be killed, and writes every trial
to the journal ledger; plain Tune gets reused actors, a random search and every logger off, and keeps nothing.

    python benchmarks/orchestration.py                      # beside plain Ray Tune, 200 trials a round
    python benchmarks/orchestration.py --long 1000          # cost and memory of the driver as trials add up, and rungs
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")

import psutil

from autocompress.cluster.session import ray_session
from autocompress.records import ChannelCut, EvaluatorReference, ParamValue, Plan, TrialRecord
from autocompress.search.executor import search
from autocompress.search.ledger import Ledger
from autocompress.search.problem import Problem
from autocompress.search.rungs import fidelities
from autocompress.search.samplers import Random
from autocompress.search.settings import SearchSettings
from autocompress.space.space import Suggester

PARAMETERS = 8
EVALUATOR = f"{Path(__file__).resolve().with_name('no_operation.py')}:no_operation"
OBJECTIVES = ("accuracy", "latency_ms")
PROBLEM = Problem(objectives=OBJECTIVES, dense={"accuracy": 0.9, "latency_ms": 1.0})


class Unconditional:
    """Eight numbers that cut a group which nobody has; no two candidates are the same."""

    def suggest(self, trial: Suggester) -> dict[str, ParamValue]:
        """As many parameters as a small network has."""
        return {f"p{i}": trial.suggest_float(f"p{i}", 0.0, 1.0) for i in range(PARAMETERS)}

    def plan(self, params: Any) -> Plan:
        """A cut that tells the parameters apart."""
        keep = 1 + round(1e9 * sum(params.values()))
        return Plan(cuts=(ChannelCut(group="group", keep=keep, criterion="magnitude"),))

    def seeds(self) -> list[tuple[str, dict[str, ParamValue]]]:
        """None."""
        return []

    def size(self) -> float:
        """Of eight real numbers."""
        return 8.0 * 15.0


def ours(
    trials: int,
    workers: int,
    *,
    rungs: Sequence[float] = (0.0,),
    on_trial: Callable[[TrialRecord], None] = lambda trial: None,
) -> float:
    """Seconds for all trials through our executor."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = SearchSettings(
            trials=trials, folder=folder, workers=workers, sampler=Random(), rungs=fidelities(rungs)
        )
        began = time.perf_counter()
        ledger = Ledger.open(folder / "journal.log", "no-op", OBJECTIVES)
        search(
            Unconditional(), EvaluatorReference(factory=EVALUATOR), settings, ledger, on_trial, problem=PROBLEM
        )  # fmt: skip
        seconds = time.perf_counter() - began
        ended = ledger.count("complete", "stopped")
        if ended != trials:
            raise SystemExit(f"expected {trials} ended trials, got {ended}")
        return seconds


def plain_tune(trials: int, workers: int) -> float:
    """Seconds for all trials through Ray Tune alone."""
    from ray import tune

    class NoOperation(tune.Trainable):  # type: ignore[misc]
        """Reports a number at once."""

        def setup(self, config: dict[str, Any]) -> None:
            """Nothing."""

        def step(self) -> dict[str, Any]:
            """Done."""
            return {"accuracy": 0.5, "latency_ms": 0.5, "done": True}

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            """Nothing to reset."""
            return True

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            tune.with_resources(NoOperation, {"CPU": 1}),
            param_space={f"p{i}": tune.uniform(0.0, 1.0) for i in range(PARAMETERS)},
            tune_config=tune.TuneConfig(num_samples=trials, reuse_actors=True, max_concurrent_trials=workers),
            run_config=tune.RunConfig(
                storage_path=folder, verbose=0, checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False)
            ),
        )
        began = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - began
        if len(results) != trials or results.num_errors:
            raise SystemExit(f"expected {trials} results, got {len(results)}, {results.num_errors} errors")
        return seconds


def beside_tune(trials: int, workers: int, rounds: int) -> dict[str, Any]:
    """Both arms in turn."""
    arms = {"plain Ray Tune": plain_tune, "autocompress": ours}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for arm in arms.values():  # the first use of either imports and starts things
        arm(2 * workers, workers)
    for _ in range(rounds):
        for name, arm in arms.items():
            seconds[name].append(arm(trials, workers) / trials)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"{trials} no-op trials, {workers} workers, {rounds} rounds in turn")
    for name, values in seconds.items():
        print(
            f"{name:16s} {statistics.median(values) * 1000:8.1f} ms per trial  ({min(values) * 1000:.1f} to "
            f"{max(values) * 1000:.1f})"
        )
    print(f"{'ratio':16s} {statistics.median(ratios):8.2f}")
    return {"trials": trials, "workers": workers, "seconds_per_trial": seconds, "ratio": statistics.median(ratios)}


def long_run(trials: int, workers: int) -> dict[str, Any]:
    """Cost per trial and the driver's memory in each tenth of a long search, with one rung and with three."""
    found: dict[str, Any] = {"trials": trials, "workers": workers}
    process, part = psutil.Process(), max(1, trials // 10)
    ours(2 * workers, workers)
    for name, rungs in (("one rung", (0.0,)), ("three rungs", (0.0, 0.25, 1.0))):
        marks = [(time.perf_counter(), process.memory_info().rss)]

        def told(trial: TrialRecord, marks: list[tuple[float, int]] = marks) -> None:
            judged = trial.state == "complete" if not trial.rungs else trial.state == "paused" and len(trial.rungs) == 1
            if judged and (trial.number + 1) % part == 0:
                marks.append((time.perf_counter(), process.memory_info().rss))

        seconds = ours(trials, workers, rungs=rungs, on_trial=told)
        costs = [1000 * (b - a) / part for (a, _), (b, _) in pairwise(marks)]
        memory = [rss / 2**20 for _, rss in marks]
        tenths = " ".join(f"{cost:.0f}" for cost in costs)
        print(f"{name}: {1000 * seconds / trials:.1f} ms per trial in all; each tenth: {tenths} ms")
        print(f"  the driver's memory: {memory[0]:.0f} to {memory[-1]:.0f} MiB")
        found[name] = {"ms_per_trial": 1000 * seconds / trials, "tenths_ms": costs, "memory_mib": memory}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--long", type=int, metavar="TRIALS", help="one long search instead")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    # Tune looks for its loggers' files, which are off, and says so for every trial.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    with ray_session(options.workers):
        if options.long:
            result = long_run(options.long, options.workers)
        else:
            result = beside_tune(options.trials, options.workers, options.rounds)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
