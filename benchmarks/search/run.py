"""Searchers of compressed networks beside each other: same checkpoint, data, threads and wall clock.

    python benchmarks/search/run.py --data FOLDER --weights FOLDER

FOLDER of data holds ``cifar10.npz``, ``trec.train.txt`` and ``trec.test.txt``; FOLDER of weights holds
``cifar10_resnet20x2.safetensors``, and ``minilm_trec.safetensors`` unless it is to be fine-tuned here. Every arm of a
command gets the same minutes on one core; what there is of others is kept. Then every front that an arm would have
returned at any of the moments is built anew by one recovery, read side by side and judged on the selection split;
``--test`` opens the test split for the last fronts.

Every run and every judgement is kept as it ends: run again after a stop, in any session, it goes on. ``--report``
computes nothing. How it is done: README.md; what came out: results/results.md.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from arms.table import ARMS
from environments import python_of
from finals import SITTINGS, Kept, Request, files_of, read_latencies
from jobs import served, side_by_side
from outcome import DENSE, EIGHT, LONGER, Outcome, border, wanted
from runs import Candidate, Run, read_runs
from tables import page
from works import HERE, WORKS, Places, Work

from autocompress.pipeline.prepare import latency_inputs
from autocompress.task import load_task

RESULTS = HERE / "results"


def main() -> None:
    """Run what is missing, judge it, and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of the data")
    parser.add_argument("--weights", type=Path, help="folder of the trained networks")
    parser.add_argument("--work", nargs="+", choices=WORKS, default=list(WORKS), help="networks")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="searchers, in this order")
    parser.add_argument("--seeds", type=int, default=3, help="of every arm, from 0")
    parser.add_argument("--minutes", type=float, default=20.0, help="wall clock of every run")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, each on a core of its own")
    parser.add_argument("--output", type=Path, default=Path("autocompress-runs/search"), help="scratch")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where runs and judgements are kept")
    parser.add_argument(
        "--stop-after", type=float, default=1e9, metavar="MINUTES", help="begin nothing later than this"
    )
    parser.add_argument("--only", choices=("runs", "finals"), help="one of the two parts")
    parser.add_argument(
        "--longer", action="store_true", help="recover those ends of the arms' fronts longer that lose a little"
    )
    parser.add_argument("--test", action="store_true", help="open the test split for the fronts at the end")
    parser.add_argument("--report", action="store_true", help="compute nothing, report what there is")
    options = parser.parse_args()
    if not options.report:
        if options.data is None or options.weights is None:
            parser.error("expected --data and --weights, or --report")
        until = time.monotonic() + 60.0 * options.stop_after
        places = Places(options.data, options.weights, options.output)
        for work in (WORKS[name] for name in options.work):
            work.fine_tune(places)
            if options.only != "finals":
                search(options, places, work, until)
            if options.only != "runs":
                judge(options, places, work, until)
    outcomes = {}
    for work in WORKS.values():
        runs = one_ground(read_runs(options.results, work.name))
        if runs:
            outcomes[work.name] = Outcome(runs, finals_of(options.results, work).values)
    text = page(outcomes, options.results)
    options.results.mkdir(parents=True, exist_ok=True)
    (options.results / "results.md").write_text(text)
    sys.stdout.write(text)


def search(options: argparse.Namespace, places: Places, work: Work, until: float) -> None:
    """The runs that are missing, seed by seed, so that what there is is paired."""
    asked = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    minutes = {(run.arm, run.seed): run.minutes for run in read_runs(options.results, work.name)}
    missing = [job for job in asked if job not in minutes]
    for arm, seed in asked:
        if minutes.get((arm, seed), options.minutes) != options.minutes:
            say(f"{work.name}: {arm}, seed {seed}: kept, of {minutes[arm, seed]:g} minutes; remove it to run it anew")

    def one(job: tuple[str, int], core: int) -> None:
        arm, seed = job
        environment = ARMS[arm].environment
        python = python_of("torch-pruning" if environment == "torch-pruning" else "own", places.output)
        extra: list[str | Path] = ["--arm", arm, "--seed", str(seed), "--minutes", f"{options.minutes:g}"]
        if environment == "syne-tune":
            extra += ["--syne-tune", python_of("syne-tune", places.output)]
        say(f"{work.name}: {arm}, seed {seed}, on core {core}")
        log = (places.output / work.name / "logs" / f"{arm}-{seed}.txt").resolve()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            done = subprocess.run(command(options, work, python, "run", core) + extra, stdout=file, stderr=file)
        if done.returncode:
            say(f"{work.name}: {arm}, seed {seed} failed: {log.read_text()[-600:]}")

    for name in {ARMS[arm].environment for arm, _ in missing}:
        python_of(name, places.output)  # before the first run, not beside one
    left = side_by_side(missing, options.jobs, one, until)
    if left:
        say(f"{work.name}: {len(left)} runs were not begun")


def judge(options: argparse.Namespace, places: Places, work: Work, until: float) -> None:
    """The judgements that are missing: files and accuracy side by side, then latency of many together, alone."""
    runs = one_ground(read_runs(options.results, work.name))
    kept = finals_of(options.results, work)
    candidates = {key: candidate for run in runs for key, candidate in run.candidates.items()}
    candidates |= {key + LONGER: candidate for key, candidate in candidates.items()}
    missing = [key for key in wanted(runs) if not {"selection", "failed"} & kept.values.get(key, {}).keys()]
    say(f"{work.name}: {len(missing)} of {len(wanted(runs))} candidates are not judged")
    files = files_of(places, work)
    if not (files / f"{DENSE}.onnx").is_file():
        # What the others are read beside; it takes seconds, however little time is left.
        ask_judges(options, places, work, kept, candidates, [DENSE], "selection", math.inf)
    ask_judges(options, places, work, kept, candidates, missing, "selection", until)
    asked = [run for run in runs if options.longer and run.arm in options.arms]
    longer = [key + LONGER for key in border(Outcome(asked, kept.values))]
    again = [key for key in longer if not {"selection", "failed"} & kept.values.get(key, {}).keys()]
    ask_judges(options, places, work, kept, candidates, again, "selection", until)
    # Of runs that are there: what was judged for others cannot be made again.
    unread = [key for key in (DENSE, EIGHT, *candidates) if kept.values.get(key, {}).keys() >= {"selection"}]
    unread = [key for key in unread if "ratio" not in kept.values[key]]
    lost = [key for key in unread if not (files / f"{key}.onnx").is_file()]
    ask_judges(options, places, work, kept, candidates, lost, "selection", until)  # their files are made again
    ready = [key for key in sorted(unread) if (files / f"{key}.onnx").is_file()]
    if ready:
        task = work.task(places)
        say(f"{work.name}: latency of {len(ready)} files in {SITTINGS} sittings, alone")
        inputs = latency_inputs(load_task(task["factory"], task["arguments"]), 1)
        read_latencies(work, places, kept, inputs, ready)
    if options.test:
        ends = [key for run in runs for key in run.front(run.minutes)]
        known = {key: kept.values.get(key, {}) for key in (DENSE, EIGHT, *ends, *longer)}
        closed = [key for key, found in known.items() if "selection" in found and "test" not in found]
        # It is short, and what there is may be opened when no time is left for more of it.
        ask_judges(options, places, work, kept, candidates, closed, "test", math.inf)


def ask_judges(
    options: argparse.Namespace,
    places: Places,
    work: Work,
    kept: Kept,
    candidates: dict[str, Candidate],
    keys: Sequence[str],
    role: str,
    until: float,
) -> None:
    """Have candidates judged, a process for each core; what Torch-Pruning cuts, where it is installed."""
    if not keys:
        return
    cut = [key for key in keys if key in candidates and candidates[key].ratio is not None]
    # The few first: they are an arm of their own.
    for some, name in ((cut, "torch-pruning"), ([key for key in keys if key not in cut], "own")):
        if not some:
            continue
        python = python_of(name, places.output)
        shares = [some[i :: options.jobs] for i in range(options.jobs)]

        def one(share: list[str], core: int, python: Path = python) -> None:
            with served(command(options, work, python, "judge", core)) as ask:
                for key in share:
                    if time.monotonic() > until:
                        return
                    request = Request(key=key, candidate=candidates.get(key), longer=key.endswith(LONGER), role=role)
                    found = json.loads(ask(request.model_dump_json(exclude_defaults=True)))
                    kept.keep(found.pop("key"), found)
                    told = ", ".join(f"{name} {value}" for name, value in found.items() if name != "sha256")
                    say(f"{work.name}: {key}: {told}")

        side_by_side([share for share in shares if share], options.jobs, one, until)


def command(options: argparse.Namespace, work: Work, python: Path, what: str, core: int) -> list[str | Path]:
    """Of a worker."""
    places = ["--data", options.data, "--weights", options.weights, "--output", options.output]
    return [
        python,
        HERE / "worker.py",
        what,
        "--work",
        work.name,
        "--core",
        str(core),
        *places,
        "--results",
        options.results,
    ]


def finals_of(results: Path, work: Work) -> Kept:
    """The judgements of a work."""
    return Kept(results / work.name / "finals.json")


def one_ground(runs: list[Run]) -> list[Run]:
    """The runs themselves.

    Raises:
        SystemExit: they did not begin with the same dense weights, and so do not compare.
    """
    if len(found := {run.dense_sha256 for run in runs}) > 1:
        sys.exit(
            f"{runs[0].work}: expected runs from one dense network, got {sorted(found)}; remove those of another one"
        )
    return runs


def say(text: str) -> None:
    """A line of progress on standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main()
