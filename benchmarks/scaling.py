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


def run(workers: int, rounds: int, sleep_s: float) -> float:
    """Seconds from the first trial's start to the last one's end, of ``rounds * workers`` trials that sleep."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trials = rounds * workers
        ledger = Ledger.open(folder / "journal.log", "sleep", OBJECTIVES)
        reference = EvaluatorReference(factory=EVALUATOR, arguments={"sleep_s": sleep_s})
        settings = SearchSettings(trials=trials + workers, folder=folder, workers=workers, sampler=Random())
        search(Unconditional(), reference, settings, ledger)
        done = sorted(ledger.trials(), key=lambda t: t.finished or t.started)
        if [t.state for t in done] != ["complete"] * (trials + workers):
            raise SystemExit(f"expected {trials + workers} complete trials, got {[t.reason for t in done if t.reason]}")
        # Each worker's first trial waits for its process to start, which a real search pays once in hours.
        first, last = done[workers - 1].finished, done[-1].finished
        return (last - first).total_seconds()  # type: ignore[operator]


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
            took = [run(workers, rounds, sleep_s) for _ in range(repeats)]
    finally:
        cluster.shutdown()
    seconds = statistics.median(took)
    return {
        "nodes": nodes,
        "workers": workers,
        "trials": rounds * workers,
        "seconds": took,
        "per_minute": 60.0 * rounds * workers / seconds,
        "busy": rounds * sleep_s / seconds,
    }


def main() -> None:
    """Measure one size of cluster after the other and write down what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--trial-s", type=float, default=2.0, help="what each trial sleeps")
    parser.add_argument("--rounds", type=int, default=8, help="trials of each worker")
    parser.add_argument("--repeats", type=int, default=3)
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
        say(f"{nodes} nodes: {statistics.median(rows[-1]['seconds']):.1f} s, workers busy {rows[-1]['busy']:.1%}")
    HERE.mkdir(exist_ok=True)
    (HERE / "results.json").write_text(json.dumps({"trial_s": options.trial_s, "rows": rows}, indent=1) + "\n")
    (HERE / "results.md").write_text("\n".join(report(rows, options.trial_s)))
    say(f"written {HERE / 'results.md'}")


def report(rows: list[dict], trial_s: float) -> list[str]:
    """The results as Markdown."""
    one = rows[0]["per_minute"] / rows[0]["nodes"]
    header = ["nodes", "workers", "trials", "seconds, each run", "trials per minute", "of linear", "workers busy"]
    body = [
        [r["nodes"], r["workers"], r["trials"], ", ".join(f"{s:.1f}" for s in r["seconds"]), f"{r['per_minute']:.1f}",
         f"{r['per_minute'] / (one * r['nodes']):.3f}", f"{r['busy']:.3f}"]
        for r in rows
    ]  # fmt: skip
    return [
        "# Scaling over Ray nodes",
        "",
        f"`python benchmarks/scaling.py`: every trial sleeps {trial_s:g} s, in its own killable process of a worker. "
        "*Of linear*: trials per minute over those of one node, times nodes. *Workers busy*: sleep over wall time. "
        f"Medians of {len(rows[0]['seconds'])} runs; all nodes are on one machine, so that nothing but the search's "
        "own work is shared.",
        "",
        *table(header, body),
        "",
    ]


if __name__ == "__main__":
    main()
