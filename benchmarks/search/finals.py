"""The same end for every member of every returned front: recovery, file, accuracy on the selection split, latency."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from arms.trials import eight_bits
from outcome import DENSE, EIGHT
from runs import Candidate
from works import Places, Work

from autocompress.compress.engine import build
from autocompress.errors import AutocompressError
from autocompress.files import write_bytes
from autocompress.measure.latency import Procedure, measure, together
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.quality import predict
from autocompress.pipeline.prepare import Workbench, prepare
from autocompress.records import LatencyReading, Plan, Record, Response
from autocompress.rng import derive_seed

#: Files that are read together, beside the dense one.
BATCH = 40
#: Sittings of the final comparison, each with sessions of its own: where a large network's weights come to lie, and
#: what its neighbours do to the caches meanwhile, is worth more than the rounds of one sitting show.
SITTINGS = 5
#: Readings of each: longer blocks than in a search.
PROCEDURE = Procedure(rounds=15, block_s=0.01, repeats=3)
#: Seed of everything random in the final recovery.
SEED = 0


class Request(Record):
    """What is asked of the judge.

    Attributes:
        key: that the answer is kept under.
        candidate: what to build; None for the dense network as it is.
        longer: with the work's longer recovery.
        role: the split that it is judged on. A file that is there already is not built again.
    """

    key: str
    candidate: Candidate | None = None
    longer: bool = False
    role: Literal["selection", "test"] = "selection"


class Kept:
    """Answers by key in one JSON file, written whole after each: a stopped command goes on where it was."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self.values: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else {}

    def keep(self, key: str, values: dict[str, Any]) -> None:
        """Add to what is known of a key."""
        with self._lock:
            self._keep(key, values)

    def _keep(self, key: str, values: dict[str, Any]) -> None:
        self.values[key] = {**self.values.get(key, {}), **values}
        write_bytes(self.path, (json.dumps(self.values, indent=0, sort_keys=True) + "\n").encode())


class Judge:
    """Builds candidates and judges their files.

    Args:
        work: what is compressed.
        places: where things are; files go to ``<output>/<work>/files``.
        name: of the study that it works in.
    """

    def __init__(self, work: Work, places: Places, name: str) -> None:
        self.work = work
        self.files = files_of(places, work)
        self.bench: Workbench = prepare(work.study(places, name, SEED))

    def __call__(self, request: Request) -> dict[str, Any]:
        """Key, role and accuracy; or why there is none, under ``failed``."""
        path = self.files / f"{request.key}.onnx"
        try:
            if not path.is_file():
                candidate = self.eight_bits() if request.key == EIGHT else request.candidate
                epochs = self.work.longer_epochs if request.longer else self.work.final_epochs
                if candidate is None and request.key != DENSE:
                    raise ValueError(f"{request.key}: expected a candidate, got none; its run is gone")
                write_bytes(path, self.build(candidate, epochs))
        except AutocompressError as error:
            return {"key": request.key, "failed": str(error)[:300]}
        model = path.read_bytes()
        outputs, targets = predict(self.bench.target.prepare(model), getattr(self.bench.task, request.role))
        return {
            "key": request.key,
            request.role: round(float(self.bench.task.metric(outputs, targets)), 6),
            "sha256": hashlib.sha256(model).hexdigest(),
            "bytes": len(model),
        }

    def build(self, candidate: Candidate | None, epochs: float) -> bytes:
        """The file, recovered from the dense weights as every other one is."""
        bench = self.bench
        if candidate is None:
            return bench.folder.read_artifact(bench.prepared.baseline.artifact.sha256)
        if candidate.ratio is not None:
            from arms.pruning import finished, gradients, pruned

            module = pruned(bench, candidate.ratio, gradients(bench, candidate.seed))
            return finished(bench, module, Response(), epochs, derive_seed(SEED, "final"))
        if candidate.plan is None:
            raise ValueError("candidate: expected a plan")
        plan: Plan = candidate.plan
        own = derive_seed(SEED, "final")
        structure, statistics = bench.prepared.structure, bench.statistics
        return build(bench.task, bench.dense, plan, structure, statistics, epochs=epochs, seed=own).model

    def eight_bits(self) -> Candidate:
        """The dense network in 8 bits: the point of reference."""
        return Candidate(plan=eight_bits(self.bench))


def files_of(places: Places, work: Work) -> Path:
    """Where the files are; they can be made again."""
    return (places.output / work.name / "files").resolve()


def read_latencies(work: Work, places: Places, kept: Kept, inputs: Any, keys: Sequence[str]) -> None:
    """Latency of files relative to the dense one, many in each reading; call it while nothing else runs.

    Args:
        work: what is compressed.
        places: where the files are.
        kept: gets of each ``ratio``, the median of the sittings; ``ratio_low`` and ``ratio_high``, the ends of all
            their intervals; ``noisy``, whether most of them were; and ``sittings``, how many.
        inputs: of one inference.
        keys: of files that are there.
    """
    target, files = OnnxRuntimeCpu().build(), files_of(places, work)
    found: dict[str, list[LatencyReading]] = {key: [] for key in keys}
    for sitting in range(SITTINGS):
        # Beside others each time.
        order = np.random.default_rng(derive_seed(SEED, "sitting", sitting)).permutation(len(keys))
        for some in parts([keys[i] for i in order], BATCH):
            dense = target.prepare((files / f"{DENSE}.onnx").read_bytes())
            sessions = [target.prepare((files / f"{key}.onnx").read_bytes()) for key in some]
            seed = derive_seed(SEED, "latency", sitting, *some)
            readings = measure(sessions, dense, inputs, seed=seed, procedure=PROCEDURE)
            for key, reading in zip(some, readings, strict=True):
                found[key].append(reading)
    for key, readings in found.items():
        reading = together(readings)
        ratio = reading.ratio
        values = {"ratio": ratio.value, "ratio_low": ratio.low, "ratio_high": ratio.high}
        told = {name: round(value, 5) for name, value in values.items()}
        kept.keep(key, {**told, "noisy": reading.noisy, "sittings": SITTINGS})


def parts(keys: Sequence[str], size: int) -> Iterable[Sequence[str]]:
    """In order, as many at once as `size`, the last part smaller."""
    return (keys[i : i + size] for i in range(0, len(keys), size))
