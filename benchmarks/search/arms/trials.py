"""What a trial is: the engineer's, with fine-tuning of its own, or this project's evaluator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from recorder import Recorder
from runs import Candidate
from works import Work

from autocompress.compress.engine import build
from autocompress.errors import AutocompressError
from autocompress.measure.latency import measure
from autocompress.measure.quality import predict
from autocompress.pipeline.evaluate import Evaluator
from autocompress.pipeline.prepare import Workbench
from autocompress.records import Fidelity, NoDistillation, ParamValue, Plan
from autocompress.rng import derive_seed
from autocompress.space.draft import effective

#: Judges a plan: error on the validation split and latency relative to the dense network.
Trial = Callable[[Plan], tuple[float, float]]


@dataclass(frozen=True)
class EightBits:
    """Asks a suggester for everything but bits, which are 8: whoever writes such a script knows that they pay."""

    inner: Any

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """As the inner one."""
        return float(self.inner.suggest_float(name, low, high, step=step))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """As the inner one."""
        return int(self.inner.suggest_int(name, low, high, step=step))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """As the inner one, unless bits are asked for."""
        return 8 if 8 in choices else self.inner.suggest_categorical(name, list(choices))


@dataclass(frozen=True)
class Given:
    """Answers with given values."""

    config: dict[str, Any]

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """The given value."""
        return float(self.config[name])

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        """The given value."""
        return int(self.config[name])

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """The given value."""
        return self.config[name]


def starting_point(bench: Workbench) -> dict[str, ParamValue]:
    """Parameters of the dense network in 8 bits, without those that are not asked for."""
    return {k: v for k, v in bench.space.uniform(sparsity=0.0, bits=8).items() if v != 8}


def inherited(bench: Workbench, suggester: Any) -> Plan:
    """A plan of the space as a script carries it out: cut by Taylor scores, and refitted behind no cut."""
    plan = bench.space.plan(bench.space.suggest(suggester))
    cuts = tuple(cut.model_copy(update={"criterion": "taylor"}) for cut in plan.cuts)
    return effective(plan.model_copy(update={"cuts": cuts, "reconstruction": "none"}))


def eight_bits(bench: Workbench) -> Plan:
    """The dense network in 8 bits."""
    return bench.space.plan(bench.space.suggest(EightBits(Given(starting_point(bench)))))


def engineer(bench: Workbench, work: Work, seed: int) -> Trial:
    """Cut with inherited weights, fine-tune with cross-entropy, export, quantize, predict, measure beside dense.

    Cutting, training in bf16 and channels-last, fresh statistics of batch normalization, export and quantization are
    this project's own functions: better than what a script has at first.
    """

    def trial(plan: Plan) -> tuple[float, float]:
        own = derive_seed(seed, "trial", plan.key)
        made = build(
            bench.task,
            bench.dense,
            plan.model_copy(update={"distillation": NoDistillation()}),
            bench.prepared.structure,
            bench.statistics,
            epochs=work.trial_epochs,
            seed=own,
        )
        return judged(bench, made.model, own)

    return trial


def judged(bench: Workbench, model: bytes, seed: int) -> tuple[float, float]:
    """Error on the validation split and latency relative to the dense network, of a file."""
    session = bench.target.prepare(model)
    outputs, targets = predict(session, bench.task.validation)
    reading = measure([session], bench.dense_session, bench.inputs, seed=seed)[0]
    return 1.0 - float(bench.task.metric(outputs, targets)), reading.ratio.value


def ours(bench: Workbench, work: Work) -> Trial:
    """This project's evaluator at the fidelity of its last rung: recovery with distillation."""
    evaluator, fidelity = Evaluator(bench), Fidelity(epochs=work.own_epochs)

    def trial(plan: Plan) -> tuple[float, float]:
        found = evaluator(plan, fidelity, "validation")
        return 1.0 - found.values["accuracy"].value, found.latency.ratio.value

    return trial


def judge(plan: Plan, trial: Trial, recorder: Recorder, epochs: float) -> tuple[float, float] | None:
    """Judge a plan and take it down; None, with a note, if it cannot be built or is not finite."""
    try:
        error, ratio = trial(plan)
    except AutocompressError as failure:
        recorder.notes.append(f"{recorder.seconds:.0f} s: {failure}"[:300])
        return None
    if not (math.isfinite(error) and math.isfinite(ratio)):
        recorder.notes.append(f"{recorder.seconds:.0f} s: not finite: {error}, {ratio}")
        return None
    recorder.tell(Candidate(plan=plan), error, ratio, epochs if plan.changes_weights else 0.0)
    return error, ratio
