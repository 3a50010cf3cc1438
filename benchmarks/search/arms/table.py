"""Every arm by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from recorder import Recorder
from works import Work

from autocompress.pipeline.prepare import Workbench

Environment = Literal["own", "syne-tune", "torch-pruning"]


@dataclass(frozen=True)
class Arm:
    """A searcher.

    Attributes:
        title: in tables and pictures.
        environment: the one whose Python runs it, or the server that it asks.
    """

    title: str
    environment: Environment = "own"


#: In the order in which runs are most worth having.
ARMS = {
    "ours": Arm("ours"),
    "optuna-tpe": Arm("Optuna TPE, fine-tuning"),
    "optuna-nsga2": Arm("Optuna NSGA-II, fine-tuning"),
    "torch-pruning": Arm("Torch-Pruning, 6 ratios", "torch-pruning"),
    "tpe-our-evaluator": Arm("Optuna TPE, our evaluator"),
    "nsga2-our-evaluator": Arm("Optuna NSGA-II, our evaluator"),
    "moasha": Arm("Syne Tune MO-ASHA", "syne-tune"),
    "random": Arm("random, fine-tuning"),
    "ours-no-seeds": Arm("ours without seeds"),
    "ours-no-rungs": Arm("ours without rungs"),
    "ours-no-surrogate": Arm("ours without surrogate"),
    "ours-no-reconstruction": Arm("ours, cut as a script cuts"),
}


def settings(arm: str, minutes: float) -> dict[str, Any]:
    """Of the arm's study."""
    if not arm.startswith("ours"):
        return {}
    from arms import own

    return own.settings(arm, minutes)


def function(arm: str, work: Work, seed: int, syne_tune: Path | None) -> Callable[[Workbench, Recorder], None]:
    """What runs the arm. Imports what it needs, and nothing that another arm needs."""
    if arm.startswith("ours"):
        from arms.own import own

        return own
    if arm == "moasha":
        from arms.asha import moasha

        if syne_tune is None:
            raise ValueError("moasha: expected the Python of syne-tune's environment, got none")
        python = syne_tune
        return lambda bench, recorder: moasha(bench, work, seed, recorder, python)
    if arm == "torch-pruning":
        from arms.pruning import torch_pruning

        return lambda bench, recorder: torch_pruning(bench, work, seed, recorder)
    from arms.scripts import script

    kind, _, judge = arm.removeprefix("optuna-").partition("-")
    return lambda bench, recorder: script(bench, work, seed, recorder, kind, own=judge == "our-evaluator")
