"""Syne Tune's MO-ASHA, asked and told in lines of JSON; runs in an environment of its own, without this project.

One line in, one line out::

    {"space": {name: [choices]}, "rungs": [1, 3, 9], "seed": 0}  ->  {"ready": version}
    {"ask": number}                                              ->  {"config": {name: choice}}
    {"number": ..., "rung": 1, "error": ..., "ratio": ...}       ->  {"go_on": true}
"""

from __future__ import annotations

import datetime
import json
import random
import sys

import numpy as np
import syne_tune
from syne_tune.backend.trial_status import Trial
from syne_tune.config_space import choice
from syne_tune.optimizer.scheduler import SchedulerDecision
from syne_tune.optimizer.schedulers.multiobjective.moasha import MOASHA


def answer(line: dict) -> None:
    """Write a line."""
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Serve until standard input ends."""
    first = json.loads(sys.stdin.readline())
    random.seed(first["seed"])
    np.random.seed(first["seed"])  # its choices are drawn from here
    rungs = first["rungs"]
    scheduler = MOASHA(
        {name: choice(choices) for name, choices in first["space"].items()},
        metrics=["error", "ratio"],
        time_attr="rung",
        max_t=rungs[-1],
        grace_period=rungs[0],
        reduction_factor=rungs[1] / rungs[0],
        random_seed=first["seed"],
    )
    trials: dict[int, Trial] = {}
    answer({"ready": syne_tune.__version__})
    for text in sys.stdin:
        line = json.loads(text)
        if "ask" in line:
            config = scheduler.suggest().config
            trials[line["ask"]] = Trial(line["ask"], config, datetime.datetime.now(datetime.UTC))
            scheduler.on_trial_add(trials[line["ask"]])
            answer({"config": config})
        else:
            number = line.pop("number")
            decision = scheduler.on_trial_result(trials[number], line)
            answer({"go_on": decision == SchedulerDecision.CONTINUE})


if __name__ == "__main__":
    main()
