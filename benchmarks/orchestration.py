"""What a trial costs beyond its own work: our executor beside plain Ray Tune, in one Ray session.

Both run the same no-op. Ours gives each worker a process that may be killed, and writes every trial to the journal
ledger; plain Tune gets reused actors, a random search and every logger off, and keeps nothing.

    python benchmarks/orchestration.py --trials 200 --workers 2 --json orchestration.json
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")

from autocompress.cluster.session import ray_session
from autocompress.records import ChannelCut, EvaluatorReference, ParamValue, Plan
from autocompress.search.executor import search
from autocompress.search.ledger import Ledger
from autocompress.search.samplers import Random
from autocompress.search.settings import SearchSettings
from autocompress.space.space import Suggester

PARAMETERS = 8
EVALUATOR = f"{Path(__file__).resolve().with_name('no_operation.py')}:no_operation"
OBJECTIVES = ("accuracy", "latency_ms")


class NoSpace:
    """Parameters of a group that nobody has; no two candidates are the same."""

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



def ours(trials: int, workers: int) -> float:
    """Seconds for all trials through our executor."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = SearchSettings(trials=trials, folder=folder, workers=workers, sampler=Random())
        began = time.perf_counter()
        ledger = Ledger.open(folder / "journal.log", "no-op", OBJECTIVES)
        search(NoSpace(), EvaluatorReference(factory=EVALUATOR), settings, ledger)
        seconds = time.perf_counter() - began
        if ledger.count("complete") != trials:
            raise SystemExit(f"expected {trials} complete trials, got {ledger.count('complete')}")
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


def main() -> None:
    """Measure both in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()

    # Tune looks for its loggers' files, which are off, and says so for every trial.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    arms = {"plain Ray Tune": plain_tune, "autocompress": ours}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with ray_session(options.workers):
        for arm in arms.values():  # the first use of either imports and starts things
            arm(2 * options.workers, options.workers)
        for _ in range(options.rounds):
            for name, arm in arms.items():
                seconds[name].append(arm(options.trials, options.workers) / options.trials)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    print(f"{options.trials} no-op trials, {options.workers} workers, {options.rounds} rounds in turn")
    for name, values in seconds.items():
        print(
            f"{name:16s} {statistics.median(values) * 1000:8.1f} ms per trial  ({min(values) * 1000:.1f} to "
            f"{max(values) * 1000:.1f})"
        )
    print(f"{'ratio':16s} {statistics.median(ratios):8.2f}")
    if options.json:
        result = {
            "trials": options.trials,
            "workers": options.workers,
            "seconds_per_trial": seconds,
            "ratio": statistics.median(ratios),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
