"""Readings come from the labelled device node of a Ray cluster, or not at all.

    python benchmarks/device_node.py

Starts two Ray nodes on this machine: one that trains, held to all cores but the last, and a device labelled
``device=bench``, held to the last core and without CPUs to train on. So every reading carries two marks of where it was
taken that do not rest on each other: Ray's id of the node, as the probe found it, and the core that it ran on. A study
of handwritten digits runs; after a few trials the device is killed; later it is put back, and the same study goes on. A
control without ``target.node`` shows that the marks can tell. Takes about five minutes. Writes ``results.json`` and
``results.md`` in `device_node/`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from common import say, table
from ray.cluster_utils import Cluster

from autocompress.cluster.session import ray_session
from autocompress.config import Study
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.progress import SearchState, Silent, reporting_to
from autocompress.pipeline.run import StudyRun
from autocompress.records import Measurement, TrialRecord

HERE = Path(__file__).resolve().parent / "device_node"
LABELS = {"device": "bench"}


class Nodes:
    """The two nodes of the session."""

    def __init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0))
        self.training, self.device = cores[:-1], cores[-1:]
        with held(self.training):
            self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
        self.ids: list[str] = []
        self.node: Any = None

    def add(self) -> None:
        """Start the device."""
        with held(self.device):
            self.node = self.cluster.add_node(num_cpus=0, labels=LABELS)
        self.ids.append(self.node.node_id)

    def kill(self) -> None:
        """Kill every process of the device's node, as if its plug was pulled."""
        self.cluster.remove_node(self.node, allow_graceful=False)
        self.node = None


@contextmanager
def held(cores: Sequence[int]) -> Iterator[None]:
    """What is started inside the block stays on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Taking(Silent):
    """Kills the device once so many trials have ended."""

    def __init__(self, nodes: Nodes, after: int) -> None:
        self.nodes, self.after, self.killed_at = nodes, after, -1

    def searched(self, state: SearchState) -> None:
        """Look at how far the search is."""
        if state.done >= self.after and self.nodes.node is not None:
            self.killed_at = state.done
            self.nodes.kill()
            say(f"the device was killed after {state.done} trials")


def study(output: Path, name: str, trials: int, node: dict[str, str]) -> Study:
    """Handwritten digits, a short search."""
    overrides = [f"name={name}", f"output={output}", f"search.trials={trials}", "search.workers=2"]
    overrides += ["search.rungs=[]", "search.max_failures=1.0", "finalists.count=2", "finalists.recovery_epochs=0.5"]
    return Study.from_packaged("digits", [*overrides, f"target.node={json.dumps(node)}"])


def searched(run: StudyRun) -> tuple[TrialRecord, ...]:
    """Run the search stage and give its trials."""
    run.search()
    return run._trials or ()


def origin(measurement: Measurement) -> dict[str, Any]:
    """The marks of where a reading was taken."""
    return {
        "node_id": measurement.node_id,
        "node": measurement.host.node,
        "cores": list(measurement.latency.cores),
        "latency_ms": measurement.latency.latency_ms.value,
    }


def kept(bench: Workbench) -> list[Measurement]:
    """Every measurement that the study's folder holds."""
    files = sorted((bench.folder.root / "cache").glob("*.json"))
    return [Measurement.model_validate_json(path.read_bytes()) for path in files]


def run(trials: int) -> dict[str, Any]:
    """The whole benchmark; JSON."""
    results: dict[str, Any] = {"trials": [], "finalists": [], "control": []}
    with tempfile.TemporaryDirectory() as name:
        output, nodes = Path(name), Nodes()
        os.environ["RAY_ADDRESS"] = nodes.cluster.address
        nodes.add()
        try:
            with ray_session(2):
                results |= measured(output, nodes, trials)
        finally:
            nodes.cluster.shutdown()
    return results


def measured(output: Path, nodes: Nodes, trials: int) -> dict[str, Any]:
    """Study, device killed, device back, finalists, control."""
    say("preparing")
    first, taking = StudyRun(study(output, "device", trials, LABELS)), Taking(nodes, trials // 3)
    with first.opened(), reporting_to(taking):
        first.prepare()
        first.profile()
        ended = searched(first)
    say(f"{sum(t.state == 'failed' for t in ended)} of {len(ended)} trials failed")
    time.sleep(1.0)
    nodes.add()
    second = StudyRun(study(output, "device", trials + trials // 3, LABELS))
    with second.opened():
        second.prepare()
        second.profile()
        after = searched(second)
        second.find_finalists()
    control = StudyRun(study(output, "control", 2, {}))
    with control.opened():
        control.prepare()
        control.profile()
        without = searched(control)
    everything = [*kept(second.bench), *(f.final for f in second.finals.finalists)]
    marks = [origin(m) for m in everything]
    device = [m for m in marks if m["node_id"] in nodes.ids and m["cores"] == nodes.device]
    return {
        "cores": {"training": nodes.training, "device": nodes.device},
        "device_ids": nodes.ids,
        "killed_after": taking.killed_at,
        "trials": [
            {
                "number": t.number,
                "state": t.state,
                "reason": t.reason,
                "begun_with": "first" if t.number < len(ended) else "second",
                **(origin(t.measurement) if t.measurement else {}),
            }
            for t in after
        ],
        "finalists": [{"number": f.number, **origin(f.final)} for f in second.finals.finalists],
        "control": [{"number": t.number, **origin(t.measurement)} for t in without if t.measurement],
        "baseline_node": second.bench.prepared.baseline.host.node,
        "recorded": len(marks),
        "recorded_by_device": len(device),
        "recorded_elsewhere": len(marks) - len(device),
    }


def report(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    ids = results["device_ids"]

    def row(what: str, found: dict[str, Any]) -> list[object]:
        if "node_id" not in found:
            return [what, found["state"], "none", "", "", f"{found['reason'] or '':.150}"]
        place = f"device, session {ids.index(found['node_id']) + 1}" if found["node_id"] in ids else "not the device"
        cores = ", ".join(map(str, found["cores"]))
        return [what, "complete", place, found["node"] or "", cores, f"{found['latency_ms']:.4f} ms"]

    rows = [row(f"trial {t['number']}", t) for t in results["trials"]]
    rows += [row(f"finalist {f['number']}", f) for f in results["finalists"]]
    rows += [row(f"control, trial {c['number']}", c) for c in results["control"]]
    failed = sum(t["state"] == "failed" for t in results["trials"])
    lines = [
        "# A device node: where each reading came from",
        "",
        f"`python benchmarks/device_node.py`. Two Ray nodes on one machine: the one that trains is held to cores "
        f"{results['cores']['training']}, the device, labelled `device=bench`, to cores {results['cores']['device']}. "
        f"The device was killed once {results['killed_after']} trials had ended, and put back after the search.",
        "",
        f"- Readings recorded in the study's folder: {results['recorded']}.",
        f"- By the device, by its node's id and by its core: {results['recorded_by_device']}.",
        f"- **From elsewhere: {results['recorded_elsewhere']}.**",
        f"- Trials that failed because the device was away: {failed}.",
        "",
        *table(
            ["what", "state", "taken by", "label it found", "core it ran on", "latency, or why there is none"], rows
        ),
        "",
        "The control has no `target.node`: its readings carry no node and another core, so the marks can tell.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=9, help="of the search that loses its device; default 9")
    results = run(parser.parse_args().trials)
    HERE.mkdir(exist_ok=True)
    (HERE / "results.json").write_text(json.dumps(results, indent=1))
    (HERE / "results.md").write_text(report(results))
    if results["recorded_elsewhere"]:
        raise SystemExit(f"{results['recorded_elsewhere']} readings were recorded from elsewhere")


if __name__ == "__main__":
    main()
