"""How the search scales over the nodes of a Ray cluster: trials that sleep, on 1, 2 and 4 nodes.

    python benchmarks/scaling.py

Starts a real Ray cluster on this machine, nodes of two CPUs each, and runs searches whose candidates sleep for a fixed
time, so that what is measured is how well the search keeps every worker busy, not how many cores this machine has. A
search of r rounds on w workers takes r times the sleep at best. Takes about five minutes. Writes ``results.json`` and
``results.md`` in `scaling/`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "86400")

from common import say, table
from orchestration import OBJECTIVES, Unconditional
from ray.cluster_utils import Cluster

from autocompress.cluster.session import ray_session
from autocompress.records import EvaluatorReference
from autocompress.search.executor import search
from autocompress.search.ledger import Ledger
from autocompress.search.samplers import Random
from autocompress.search.settings import SearchSettings

HERE = Path(__file__).resolve().parent / "scaling"
EVALUATOR = f"{Path(__file__).resolve().with_name('no_operation.py')}:no_operation"
CPUS = 2
MARK = "row: "


def run(workers: int, rounds: int, sleep_s: float) -> tuple[float, float]:
    """Trials per second while all workers are there, and seconds until they are.

    From when every worker's first trial has ended, so that its process is there, until the last one begins: starting
    workers takes some seconds of a core each, and here those of all nodes share this machine's.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trials = rounds * workers
        ledger = Ledger.open(folder / "journal.log", "sleep", OBJECTIVES)
        reference = EvaluatorReference(factory=EVALUATOR, arguments={"sleep_s": sleep_s})
        settings = SearchSettings(trials=trials, folder=folder, workers=workers, sampler=Random())
        search(Unconditional(), reference, settings, ledger)
        spans = [(t.started, t.finished) for t in ledger.trials() if t.state == "complete" and t.started and t.finished]
        if len(spans) != trials:
            raise SystemExit(f"expected {trials} complete trials, got {len(spans)}")
        began, last = min(begun for begun, _ in spans), max(begun for begun, _ in spans)
        full = max(ended for _, ended in sorted(spans)[:workers])
        if full >= last:
            raise SystemExit(f"expected more than one round of {workers} workers, got none; raise --rounds")
        # By the part of each trial that lies within: whole ones would undercount by up to a round.
        done = sum(max(min(y, last) - max(x, full), timedelta(0)) / (y - x) for x, y in spans)
        return done / (last - full).total_seconds(), (full - began).total_seconds() - sleep_s


def measure(nodes: int, rounds: int, sleep_s: float, repeats: int) -> dict:
    """One size of cluster."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "include_dashboard": False})
    try:
        for _ in range(nodes - 1):
            cluster.add_node(num_cpus=CPUS)
        cluster.wait_for_nodes()
        os.environ["RAY_ADDRESS"] = cluster.address
        workers = nodes * CPUS
        with ray_session(workers) as granted:
            if granted != workers:
                raise SystemExit(f"expected {workers} workers, got {granted}")
            runs = [run(workers, rounds, sleep_s) for _ in range(repeats)]
    finally:
        cluster.shutdown()
    rates = [60.0 * rate for rate, _ in runs]
    rate = statistics.median(rates)
    return {
        "nodes": nodes,
        "workers": workers,
        "trials": rounds * workers,
        "rates": rates,
        "rate": rate,
        "busy": rate * sleep_s / 60.0 / workers,
        "starts_s": [seconds for _, seconds in runs],
    }


def main() -> None:
    """Measure one size of cluster after the other and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--trial-s", type=float, default=5.0, help="what each trial sleeps")
    parser.add_argument("--rounds", type=int, default=8, help="trials of each worker")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    if len(options.nodes) == 1:
        row = measure(options.nodes[0], options.rounds, options.trial_s, options.repeats)
        sys.stdout.write(f"\n{MARK}{json.dumps(row)}\n")
        return
    rows = []
    for nodes in options.nodes:
        # A process of its own for each cluster: Ray does not start a second one in a process reliably.
        command = [sys.executable, __file__, "--nodes", str(nodes), "--trial-s", str(options.trial_s)]
        command += ["--rounds", str(options.rounds), "--repeats", str(options.repeats)]
        done = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE)
        rows.append(json.loads(done.stdout.rpartition(MARK)[2]))
        say(f"{nodes} nodes: {rows[-1]['rate']:.1f} trials per minute, workers busy {rows[-1]['busy']:.1%}")
    HERE.mkdir(exist_ok=True)
    (HERE / "results.json").write_text(json.dumps({"trial_s": options.trial_s, "rows": rows}, indent=1) + "\n")
    (HERE / "results.md").write_text("\n".join(report(rows, options.trial_s)))
    say(f"written {HERE / 'results.md'}")


def report(rows: list[dict], trial_s: float) -> list[str]:
    """The results as Markdown."""
    one = rows[0]["rate"] / rows[0]["nodes"]
    header = [
        "nodes",
        "workers",
        "trials",
        "trials per minute, each run",
        "median",
        "of linear",
        "workers busy",
        "start, s",
    ]
    body = [
        [r["nodes"], r["workers"], r["trials"], ", ".join(f"{x:.1f}" for x in r["rates"]), f"{r['rate']:.1f}",
         f"{r['rate'] / (one * r['nodes']):.3f}", f"{r['busy']:.3f}",
         ", ".join(f"{x:.1f}" for x in r["starts_s"])]
        for r in rows
    ]  # fmt: skip
    return [
        "# Scaling over Ray nodes",
        "",
        f"`python benchmarks/scaling.py`: every trial sleeps {trial_s:g} s, in its own killable process of a worker. "
        "Trials per minute from when every worker's first trial has ended until the last trial begins, each by the "
        "part of it that lies within. *Of linear*: over those of one node, times nodes. *Workers busy*: the share of "
        "their time in which they sleep. *Start*: what the first trials took beyond their sleep, until the last worker "
        "had its actor and its process, in each run; here the workers of all nodes start on one machine's cores.",
        "",
        *table(header, body),
        "",
    ]


if __name__ == "__main__":
    main()
