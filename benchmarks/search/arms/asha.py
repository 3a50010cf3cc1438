"""Syne Tune's MO-ASHA on the same objective: its own process decides which trial goes on to the next rung."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recorder import Recorder
from runs import Candidate
from torch import nn
from works import Work

from arms.trials import EightBits, Given, eight_bits, inherited, judge, judged, ours
from autocompress.compress.export import export_onnx
from autocompress.compress.prune import cut_channels, drop_blocks
from autocompress.compress.quantize import quantize
from autocompress.compress.stages import calibration_inputs
from autocompress.compress.train import Trainer, recalibrate_bn
from autocompress.errors import AutocompressError
from autocompress.pipeline.prepare import Workbench
from autocompress.records import ParamValue, Plan
from autocompress.rng import derive_seed
from autocompress.space.grid import grid_of

#: Rungs in units of training, the last of which is the evaluator's recovery: each is three times the one before.
RUNGS = (1, 3, 9)
SERVER = Path(__file__).resolve().with_name("asha_server.py")


def moasha(bench: Workbench, work: Work, seed: int, recorder: Recorder, python: Path) -> None:
    """Trial after trial until the time is up; the first candidate is the dense network in 8 bits.

    A trial trains with distillation from the dense network up to a rung, is exported, quantized and judged there, and
    goes on with the same weights if the scheduler says so.

    Args:
        bench: the prepared study.
        work: what is compressed.
        seed: of everything random.
        recorder: takes down what is judged, with the training so far.
        python: of the environment that has syne-tune.
    """
    with subprocess.Popen([python, SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        try:
            _search(bench, work, seed, recorder, server)
        finally:
            server.kill()


def _search(bench: Workbench, work: Work, seed: int, recorder: Recorder, server: subprocess.Popen[str]) -> None:
    own = derive_seed(seed, "sampler") % 2**31
    began = ask(server, {"space": flat(bench), "rungs": RUNGS, "seed": own})
    recorder.notes.append(f"syne-tune {began['ready']}")
    judge(eight_bits(bench), ours(bench, work), recorder, 0.0)
    number = 0
    while True:
        number += 1
        plan = inherited(bench, EightBits(Given(ask(server, {"ask": number})["config"])))
        try:
            module, before = cut(bench, plan, seed), 0
            for rung in RUNGS:
                module = train(bench, work, plan, module, rung, rung - before, seed)
                before = rung
                error, ratio = judged(bench, file_of(bench, module, plan, seed), derive_seed(seed, "trial", plan.key))
                recorder.tell(Candidate(plan=plan), error, ratio, work.own_epochs * rung / RUNGS[-1])
                line = {"number": number, "rung": rung, "error": error, "ratio": ratio}
                if not ask(server, line)["go_on"]:
                    break
        except AutocompressError as failure:
            recorder.notes.append(f"{recorder.seconds:.0f} s: {failure}"[:300])


def ask(server: subprocess.Popen[str], line: dict[str, Any]) -> dict[str, Any]:
    """One line to the server, and its answer."""
    if server.stdin is None or server.stdout is None:
        raise RuntimeError("the server has no pipes")
    server.stdin.write(json.dumps(line) + "\n")
    server.stdin.flush()
    text = server.stdout.readline()
    if not text:
        raise RuntimeError(f"{SERVER.name} ended with {server.wait()} on {line}")
    found: dict[str, Any] = json.loads(text)
    return found


def cut(bench: Workbench, plan: Plan, seed: int) -> nn.Module:
    """The plan's network with inherited weights."""
    example, structure = bench.task.example_input(), bench.prepared.structure
    module = drop_blocks(bench.dense, plan.drops, structure, example=example)
    return cut_channels(
        module, plan.cuts, structure, bench.statistics, example=example, seed=seed, reconstruction=plan.reconstruction
    )


def train(bench: Workbench, work: Work, plan: Plan, module: nn.Module, rung: int, units: int, seed: int) -> nn.Module:
    """So many units of training on, as this project recovers a network."""
    trainer = Trainer(
        task=bench.task,
        teacher=bench.dense,
        distillation=plan.distillation,
        epochs=work.own_epochs * units / RUNGS[-1],
        seed=derive_seed(seed, "recover", plan.key),
    )
    return trainer.train(module, key=f"rung {rung}")


def file_of(bench: Workbench, module: nn.Module, plan: Plan, seed: int) -> bytes:
    """The network in 8 bits, as ONNX."""
    exported = export_onnx(recalibrate_bn(module, bench.task), bench.task.example_input())
    return quantize(exported.model, plan.bits, plan.quantizer, calibration_inputs(bench.task, seed=seed))


class _Asked:
    """Takes down what is asked for, and answers so that as much as possible is."""

    def __init__(self) -> None:
        self.choices: dict[str, list[ParamValue]] = {}

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        self.choices[name] = [float(value) for value in grid_of(low, high, step or high - low)]
        return low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        self.choices[name] = list(range(low, high + 1, step))
        return high

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.choices[name] = list(choices)
        return "keep" if "keep" in choices else choices[0]


def flat(bench: Workbench) -> dict[str, list[ParamValue]]:
    """The space without its conditions: each parameter's choices. What has no effect in a candidate is not read."""
    asked = _Asked()
    bench.space.suggest(EightBits(asked))
    return asked.choices
