"""What runs in a process of its own, on one core: one run of an arm, or files for the final comparison."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from arms.table import function, settings
from finals import Judge, Request
from recorder import Recorder
from runs import write_run
from works import HERE, WORKS, Places

from autocompress.pipeline.prepare import prepare


def main() -> None:
    """Run one arm, or judge candidates that come as lines of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "judge"))
    parser.add_argument("--work", required=True, choices=WORKS)
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--arm", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--syne-tune", type=Path)
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})  # inherited by all that it starts
    torch.set_num_threads(1)
    if options.what == "run":
        run(options)
    else:
        judge(options)


def run(options: argparse.Namespace) -> None:
    """One run; its study is prepared before the clock begins, and removed when the record is written."""
    work, places = WORKS[options.work], Places(options.data, options.weights, options.output)
    name = f"{options.arm}-{options.seed}"
    own = (options.output / work.name / name).resolve()
    shutil.rmtree(own, ignore_errors=True)
    bench = prepare(work.study(places, name, options.seed, settings(options.arm, options.minutes)))
    for part in (bench.dense, bench.statistics, bench.dense_session, bench.space, bench.inputs):
        del part  # made on first use: not in the arm's time
    arm = function(options.arm, work, options.seed, options.syne_tune)
    recorder = Recorder(options.minutes)
    # A study ends by its own clock, and its ledger is read afterwards; a script is ended.
    with contextlib.nullcontext() if options.arm.startswith("ours") else recorder.limited():
        arm(bench, recorder)
    write_run(options.results, recorder.run(work.name, options.arm, options.seed, bench, commit()))
    shutil.rmtree(own, ignore_errors=True)


def judge(options: argparse.Namespace) -> None:
    """A line of JSON in, a line out, until there are no more."""
    work, places = WORKS[options.work], Places(options.data, options.weights, options.output)
    judge_one = Judge(work, places, f"finals-{options.core}")
    for line in sys.stdin:
        started = time.monotonic()
        found = judge_one(Request.model_validate_json(line))
        sys.stdout.write(json.dumps({**found, "seconds": round(time.monotonic() - started, 1)}) + "\n")
        sys.stdout.flush()


def commit() -> str:
    """Of this project, "+" if the working tree differs but for results; empty outside of a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True).stdout.strip()

    changed = git(
        "status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/search/results"
    )
    return git("describe", "--always") + ("+" if changed else "")


if __name__ == "__main__":
    main()
