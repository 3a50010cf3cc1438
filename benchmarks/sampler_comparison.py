"""Which sampler finds the front in few trials, on a problem in the shape of compression whose truth is a formula.

    python benchmarks/sampler_comparison.py --seeds 4

Every sampler gets the same trials, the dense network first; with seeds also a dozen that a knapsack over the guide's
tables gives. Hypervolume is that of the measured values in the study's box, as a share of the best union of all runs of
the same problem. The surrogate's model is also held against plans that it has not seen, beside an ensemble of trees.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import moocore
import numpy as np
import optuna
from common import Kept, say, spread, table
from sampler_problem import Truth, joint_space, trial
from scipy.stats import kendalltau

from autocompress.records import ParamValue, TrialRecord
from autocompress.search.ledger import Candidate, Ledger
from autocompress.search.samplers import GP, NSGA2, TPE, ChosenSampler, Random, Surrogate
from autocompress.search.surrogate import Fitter
from autocompress.search.surrogate_data import Book, ask_guide, axes_of
from autocompress.search.surrogate_proposer import SurrogateProposer
from autocompress.space.draws import Tilted
from autocompress.space.space import Space

HERE = Path(__file__).parent / "sampler_comparison"
COUNTS = (30, 100, 300)
#: Seconds that the surrogate is told a trial takes: it draws as many candidates as a few percent of them allow.
TRIAL_S = 2.0
KNAPSACK_SEEDS = 12
#: Ended trials, and seconds that each took, at which the time of asking is taken.
ENDED, SECONDS = (100, 1000, 5000), (0.0, 1.0, 5.0)
#: Plans that the model learns from.
LEARNT = (40, 120, 300)
#: Arm -> (sampler, with the guide, with seeds, most trials).
ARMS: dict[str, tuple[ChosenSampler, bool, bool, int]] = {
    "surrogate": (Surrogate(), True, False, 300),
    "surrogate without a guide": (Surrogate(), False, False, 300),
    "NSGA-II": (NSGA2(population_size=20), False, False, 300),
    "TPE": (TPE(), False, False, 300),
    "GP": (GP(), False, False, 30),
    "random": (Random(), False, False, 300),
    "surrogate, seeds": (Surrogate(), True, True, 300),
    "NSGA-II, seeds": (NSGA2(population_size=20), False, True, 300),
    "TPE, seeds": (TPE(), False, True, 300),
    "random, seeds": (Random(), False, True, 300),
}


def run(arm: str, seed: int, space: Space) -> dict[str, Any]:
    """Points in the box of every trial, and the seconds that asking took."""
    config, guided, seeded, most = ARMS[arm]
    truth = Truth(seed)
    problem = truth.problem(guided=guided)
    start = [space.dense(), *(truth.seeds(space, KNAPSACK_SEEDS) if seeded else [])]
    asks: list[float] = []
    values: list[dict[str, float]] = []
    propose = _ours(config, space, problem, seed) if isinstance(config, Surrogate) else _optuna(config, space, seed)
    trials: list[TrialRecord] = []
    for i in range(most):
        began = time.perf_counter()
        params, tell = propose(start[i] if i < len(start) else None, trials)
        asks.append(time.perf_counter() - began)
        plan = space.plan(params)
        found = truth.values(plan, 1.0)
        values.append(found)
        trials.append(trial(i, params, plan, found, seconds=TRIAL_S))
        tell(found)
    return {"points": problem.points(values).round(6).tolist(), "ask": float(np.mean(asks[len(start) :]))}


Proposal = tuple[dict[str, ParamValue], Callable[[dict[str, float]], None]]


def _ours(
    config: Surrogate, space: Space, problem: Any, seed: int
) -> Callable[[dict[str, ParamValue] | None, Sequence[TrialRecord]], Proposal]:
    proposer = SurrogateProposer(config, space, problem, seed)
    return lambda given, trials: (given or proposer.propose(trials), lambda found: None)


def _optuna(
    config: Any, space: Space, seed: int
) -> Callable[[dict[str, ParamValue] | None, Sequence[TrialRecord]], Proposal]:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=config.build(seed))

    def propose(given: dict[str, ParamValue] | None, trials: Sequence[TrialRecord]) -> Proposal:
        if given is not None:
            study.enqueue_trial(given)
        asked = study.ask()
        params = space.suggest(asked)
        return params, lambda found: study.tell(asked, [found["accuracy"], found["latency_ms"]])

    return propose


# --- the model alone --------------------------------------------------------------------------------------------------


def model_quality(count: int, seed: int, space: Space) -> dict[str, float]:
    """Errors of predicted error, as shares of the box, on 300 plans that no model has seen.

    Plans are draws of every size, as those that a search begins with; a quarter of the learnt ones have passed the last
    rung, all of them the first. Beside the chain of processes stand a process of the last rung's values alone, and 300
    extremely randomized trees of the same inputs, whose spread over trees is their standard deviation.
    """
    from sklearn.ensemble import ExtraTreesRegressor

    truth = Truth(seed)
    problem = truth.problem()
    rng = np.random.default_rng(seed)
    plans = []
    while len(plans) < count + 300:
        params = space.suggest(Tilted(rng))
        plan = space.plan(params)
        if truth.values(plan, 1.0)["accuracy"] > 0.7:
            plans.append((params, plan))
    learnt, unseen = plans[:count], plans[count:]
    axes = axes_of(problem)

    def rows(rungs: bool) -> list[TrialRecord]:
        found = []
        for i, (params, plan) in enumerate(learnt):
            done = i % 4 == 0
            lower = [truth.values(plan, 0.0)] if rungs else []
            if done or rungs:
                value = truth.values(plan, 1.0) if done else None
                found.append(trial(i, params, plan, value, rungs=lower, state="complete" if done else "stopped"))
        return found

    told = [ask_guide(problem.guide, plan, axes) for _, plan in unseen]
    actual = axes[0].units(np.array([truth.values(plan, 1.0)["accuracy"] for _, plan in unseen]))
    found: dict[str, float] = {}
    for name, rungs in (("chain", True), ("last rung", False)):
        book = Book(problem, axes)
        book.read(rows(rungs))
        fitter = Fitter(book)
        model = fitter.fit(np.random.default_rng(seed))
        inputs = fitter.features([(known, {}) for known, _ in told])
        mean, std = model.predict(inputs, np.stack([costs for _, costs in told]))
        found |= _errors(name, actual, mean[:, 0], std[:, 0])
    done = [truth.features(plan) for i, (_, plan) in enumerate(learnt) if i % 4 == 0]
    values = axes[0].units(
        np.array([truth.values(p, 1.0)["accuracy"] for i, (_, p) in enumerate(learnt) if i % 4 == 0])
    )
    trees = ExtraTreesRegressor(300, random_state=seed, min_samples_leaf=2).fit(np.stack(done), values)
    asked = np.stack([truth.features(plan) for _, plan in unseen])
    each = np.stack([tree.predict(asked) for tree in trees.estimators_])
    return found | _errors("trees", actual, each.mean(axis=0), each.std(axis=0))


def _errors(name: str, actual: np.ndarray, mean: np.ndarray, std: np.ndarray) -> dict[str, float]:
    inside = actual < 1.5  # what is far out of the box does not matter
    off = (mean - actual)[inside]
    return {
        f"{name}: error": float(np.median(np.abs(off))),
        f"{name}: tau": float(kendalltau(mean[inside], actual[inside]).statistic),
        f"{name}: within 2 std": float((np.abs(off) < 2.0 * np.maximum(std[inside], 1e-9)).mean()),
    }


# --- what asking costs -----------------------------------------------------------------------------------------------


def asking(ended: int, seconds: float, space: Space) -> dict[str, float]:
    """Milliseconds of 40 asks, one ended trial more before each, after `ended` trials that took `seconds` each."""
    truth = Truth(0)
    rng = np.random.default_rng(0)
    trials: list[TrialRecord] = []
    proposer = SurrogateProposer(Surrogate(), space, truth.problem(), 0)
    asks = []
    while len(trials) < ended + 40:
        params = space.suggest(Tilted(rng))
        plan = space.plan(params)
        lower = [truth.values(plan, 0.0)]
        trials.append(trial(len(trials), params, plan, truth.values(plan, 1.0), rungs=lower, seconds=seconds / 2))
        if len(trials) >= ended:
            began = time.perf_counter()
            proposer.propose(trials)
            asks.append(1000.0 * (time.perf_counter() - began))
    return {"first": asks[0], "mean": float(np.mean(asks[1:])), "max": max(asks[1:])}


def evolving(ended: int, space: Space) -> dict[str, float]:
    """The same of NSGA-II, which `auto` picks for more than 3000 trials, by way of a ledger in a file."""
    truth = Truth(0)
    problem = truth.problem()
    with TemporaryDirectory() as folder:
        ledger = Ledger.open(Path(folder) / "journal.log", "asking", problem.objectives)
        ledger.use(Random().build(0))
        asks = []
        for number in range(ended + 40):
            if number == ended:
                ledger.use(NSGA2(population_size=50).build(0))
            began = time.perf_counter()
            candidate = ledger.ask(space)
            asks.append(1000.0 * (time.perf_counter() - began))
            if not isinstance(candidate, Candidate):
                raise RuntimeError(f"trial {number}: expected a candidate, got one that {candidate.state}")
            known = trial(number, {}, candidate.plan, truth.values(candidate.plan, 1.0)).measurement
            ledger.tell(number, known.model_dump(mode="json") if known is not None else {})
    return {"first": asks[ended], "mean": float(np.mean(asks[ended + 1 :])), "max": max(asks[ended + 1 :])}


# --- the report -------------------------------------------------------------------------------------------------------


def volumes(kept: Kept, seeds: int) -> dict[str, dict[int, list[float]]]:
    """Arm -> trials -> hypervolume of each seed, as a share of the best that is known of that problem."""
    found: dict[str, dict[int, list[float]]] = {arm: {} for arm in ARMS}
    for seed in range(seeds):
        runs = {arm: kept.values.get(f"{arm} / {seed}") for arm in ARMS}
        if not any(runs.values()):
            continue  # of a benchmark that was stopped
        everything = np.vstack([np.array(r["points"]) for r in runs.values() if r])
        best = moocore.hypervolume(everything, ref=np.ones(2))
        for arm, result in runs.items():
            if result:
                points = np.array(result["points"])
                for count in [c for c in (1, 10, 20, *COUNTS, 50, 150, 200) if c <= len(points)]:
                    share = float(moocore.hypervolume(points[:count], ref=np.ones(2)) / best)
                    found[arm].setdefault(count, []).append(share)
    return found


def report(kept: Kept, seeds: int) -> str:
    """The page."""
    found = volumes(kept, seeds)
    rows = [
        [
            arm,
            *(spread(found[arm].get(count, []), 100.0, 1) for count in COUNTS),
            spread(
                [kept.values[f"{arm} / {s}"]["ask"] for s in range(seeds) if f"{arm} / {s}" in kept.values], 1000.0, 0
            ),
        ]
        for arm in ARMS
    ]
    lines = [
        "# Samplers on a problem in the shape of compression",
        "",
        (__doc__ or "").strip(),
        "",
        "Hypervolume in percent of the best known, mean and range over "
        f"{seeds} problems, each a network of its own; GP was run for 30 trials only, as its asks take seconds. Ask: "
        "mean milliseconds per proposal, on two cores that others use as well; the surrogate was told that a trial "
        f"takes {TRIAL_S:g} s. It begins with eight draws around one level each, the others with even ones. The truth "
        "is of a form that suits the guide's features; what a real network gives is another matter.",
        "",
        *table(["sampler", *(f"{count} trials" for count in COUNTS), "ask, ms"], rows),
        "",
        "![hypervolume over trials](hypervolume.png)",
        "",
        "## The model alone",
        "",
        "Error of the predicted error on 300 unseen plans, in shares of the box; Kendall's τ; and how many lie within "
        "two predicted standard deviations (0.95 would be right). Judged at the first rung: as many as the first "
        "column says; a quarter of them at the last as well.",
        "",
    ]
    header = ["judged", "model", "median error", "τ", "within 2 std"]
    body = []
    for count in LEARNT:
        quality = [kept.values[f"model {count} / {s}"] for s in range(seeds) if f"model {count} / {s}" in kept.values]
        for name in ("chain", "last rung", "trees"):
            cells = [
                spread([q[f"{name}: {what}"] for q in quality], 1.0, digits)
                for what, digits in (("error", 3), ("tau", 3), ("within 2 std", 2))
            ]
            body.append([count, name, *cells])
    costs = [
        ("surrogate", ended, f"{seconds:g}", kept.values.get(f"asking {ended} {seconds:g}"))
        for ended in ENDED
        for seconds in SECONDS
    ]
    costs += [("NSGA-II", ended, "any", kept.values.get(f"evolving {ended}")) for ended in ENDED]
    asked = [[*row, *(f"{cost[what]:.0f}" for what in ("first", "mean", "max"))] for *row, cost in costs if cost]
    last = [
        "## What asking costs",
        "",
        "Milliseconds of asks after so many ended trials that took so many seconds each (`--asking`). The surrogate's "
        "first reads the whole ledger, loads scikit-learn and fits; the mean and the largest are of 40 more. NSGA-II "
        "asks by way of a ledger in a file; of more than 3000 trials `auto` picks it. Taken one after the other, "
        "while nothing else runs.",
        "",
    ]
    table_of_asks = table(
        ["sampler", "ended trials", "seconds per trial", "first, ms", "mean, ms", "largest, ms"], asked
    )
    return "\n".join([*lines, *table(header, body), "", *last, *table_of_asks, ""])


def picture(kept: Kept, seeds: int, path: Path) -> None:
    """Hypervolume over trials, mean over problems."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = volumes(kept, seeds)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    colours = {
        "surrogate": "C0",
        "surrogate without a guide": "C4",
        "NSGA-II": "C1",
        "TPE": "C2",
        "GP": "C3",
        "random": "C7",
    }
    for axis, seeded in zip(axes, (False, True), strict=True):
        for arm in [a for a in ARMS if a.endswith("seeds") == seeded and found[a]]:
            counts = sorted(found[arm])
            means = [100 * np.mean(found[arm][c]) for c in counts]
            axis.plot(counts, means, marker="o", ms=3, label=arm, color=colours[arm.removesuffix(", seeds")])
        axis.set(xlabel="trials", title="with a knapsack's seeds" if seeded else "from the dense network alone")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_ylabel("hypervolume, % of the best known")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run what is missing and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--to", type=Path, default=HERE)
    parser.add_argument("--asking", action="store_true", help="take the time of asking alone, afresh")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="seconds; the next call goes on")
    parser.add_argument("--report", action="store_true", help="of what there is; runs nothing")
    arguments = parser.parse_args()
    kept = Kept(arguments.to / "results.json", closed=arguments.report)
    space = joint_space()
    work: list[tuple[str, Callable[[], Any]]] = []
    if arguments.asking:
        for ended in ENDED:
            for seconds in SECONDS:
                kept.values.pop(f"asking {ended} {seconds:g}", None)
                work.append((f"asking {ended} {seconds:g}", partial(asking, ended, seconds, space)))
            kept.values.pop(f"evolving {ended}", None)
            work.append((f"evolving {ended}", partial(evolving, ended, space)))
    else:
        for seed in range(arguments.seeds):
            work += [(f"{arm} / {seed}", partial(run, arm, seed, space)) for arm in ARMS]
            work += [(f"model {count} / {seed}", partial(model_quality, count, seed, space)) for count in LEARNT]
    began = time.monotonic()
    for name, compute in work:
        if time.monotonic() - began < arguments.stop_after:
            kept.get(name, compute)
    picture(kept, arguments.seeds, arguments.to / "hypervolume.png")
    (arguments.to / "results.md").write_text(report(kept, arguments.seeds), encoding="utf-8")
    say(f"written to {arguments.to}")


if __name__ == "__main__":
    main()
