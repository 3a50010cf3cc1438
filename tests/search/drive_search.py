"""A driver to be killed: ``drive_search.py FOLDER TRIALS SECONDS [FAULTS [RUNGS]]`` runs or continues a search."""

from __future__ import annotations

import json
import sys
from pathlib import Path

here = Path(__file__).parent
sys.path.insert(0, str(here))

from toy_space import ToySpace  # noqa: E402

from autocompress.errors import AutocompressError  # noqa: E402
from autocompress.records import EvaluatorReference, TrialRecord  # noqa: E402
from autocompress.search.executor import search  # noqa: E402
from autocompress.search.ledger import Ledger  # noqa: E402
from autocompress.search.problem import Problem  # noqa: E402
from autocompress.search.rungs import fidelities  # noqa: E402
from autocompress.search.samplers import Random  # noqa: E402
from autocompress.search.settings import SearchSettings  # noqa: E402

PROBLEM = Problem(objectives=("accuracy", "latency_ms"), dense={"accuracy": 0.82, "latency_ms": 1.0})


def main(folder: Path, trials: int, seconds: float, faults: str = "{}", rungs: str = "[0.0]") -> None:
    ledger = Ledger.open(folder / "journal.log", "toy", ["accuracy", "latency_ms"])

    def told(trial: TrialRecord) -> None:
        print(trial.number, trial.state, trial.reason, flush=True)

    evaluator = EvaluatorReference(
        factory=f"{here / 'toy_evaluator.py'}:build",
        arguments={"journal": str(folder / "evaluations"), "seconds": seconds, "faults": json.loads(faults)},
    )
    settings = SearchSettings(
        trials=trials, folder=folder, workers=2, sampler=Random(), memory_gb=64, rungs=fidelities(json.loads(rungs))
    )
    try:
        search(ToySpace(), evaluator, settings, ledger, told, problem=PROBLEM)
    except AutocompressError as error:
        print(type(error).__name__, error, flush=True)
        raise SystemExit(error.exit_code) from error
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), *sys.argv[4:])
