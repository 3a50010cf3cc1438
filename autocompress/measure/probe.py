"""Readings as they are taken on whichever machine: by this process, or by a device node's.

A device gets settings, files and inputs, and needs neither torch nor the study's folder.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from autocompress.cluster.slot import ExclusiveSlot
from autocompress.errors import MeasurementError
from autocompress.measure.host import host_of
from autocompress.measure.latency import Procedure, measure, throughput
from autocompress.measure.layers import node_latencies
from autocompress.measure.target import Session
from autocompress.measure.targets import target_settings
from autocompress.records import Host, LatencyReading, NodeLatency, Record

if TYPE_CHECKING:
    # Lazy: it brings torch.
    from autocompress.inputs import Arrays

#: How a device's process builds its evaluator.
FACTORY = "autocompress.measure.probe:build_probe"
_PREFIX = "input:"


class ReadingRequest(Record):
    """What a reading rests on, beside the files.

    Attributes:
        target: settings of the target, as JSON; its ``node`` and ``node_wait_s`` have been seen to.
        what: ``"host"`` for the fingerprint alone; ``"latency"`` for readings beside it; ``"nodes"`` for the time of
            each node of the baseline.
        exclusive: how training keeps out of the way.
        slot: folder of the study's slot; entered where it is visible, beside the machine's own.
        seed: of the order of networks and of the bootstrap.
        procedure: how a latency is taken.
        models: how many; their files are called ``"model-0"``, ``"model-1"``, ..., the baseline's ``"dense"``.
        batches: how many batches for the throughput; their files are called ``"batch-0"``, ..., the latency's
            ``"inputs"``.
        owners: layer -> names of the baseline's nodes that read its weights.
    """

    target: dict[str, Any]
    what: Literal["host", "latency", "nodes"] = "latency"
    exclusive: Literal["wait", "move"] = "wait"
    slot: str = ""
    seed: int = 0
    procedure: Procedure = Field(default_factory=Procedure)
    models: int = 0
    batches: int = 0
    owners: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class Taken(Record):
    """Readings and where they were taken.

    Attributes:
        readings: one for each model, in their order.
        nodes: of the baseline with their time; None if that was not asked or the target's runtime times no nodes.
        host: that took them, as it sees itself.
        node_id: Ray's id of the node that took them; empty for this process.
        wait_s: until the machine was free, in seconds.
        seconds: that the readings took.
    """

    readings: tuple[LatencyReading, ...] = ()
    nodes: tuple[NodeLatency, ...] | None = None
    host: Host
    node_id: str = ""
    wait_s: float = 0.0
    seconds: float = 0.0


def take(
    slots: Sequence[ExclusiveSlot],
    candidates: Sequence[Session],
    baseline: Session,
    inputs: Arrays,
    *,
    host: Host,
    seed: int,
    procedure: Procedure,
    batches: Sequence[Arrays] = (),
) -> Taken:
    """Readings of candidates beside the baseline, while nothing else of the study computes where they are taken.

    Args:
        slots: entered in this order.
        candidates: networks to compare.
        baseline: the dense network.
        inputs: what a latency is taken on.
        host: fingerprint of this machine.
        seed: of the order of networks and of the bootstrap.
        procedure: how.
        batches: inputs at which the throughput is measured as well.

    Raises:
        MeasurementError: a network cannot run, or a slot was not free in time.
    """
    asked = time.monotonic()
    with ExitStack() as stack:
        for slot in slots:
            stack.enter_context(slot.measuring())
        entered = time.monotonic()
        readings = measure(candidates, baseline, inputs, seed=seed, procedure=procedure)
        if batches:
            rates = throughput(candidates, baseline, batches, seed=seed, procedure=procedure)
            readings = [r.model_copy(update={"throughput": t}) for r, t in zip(readings, rates, strict=True)]
    done = time.monotonic()
    return Taken(readings=tuple(readings), host=host, wait_s=entered - asked, seconds=done - entered)


def machine_slot(cores: int | None) -> ExclusiveSlot:
    """The slot that all studies of this user share on this machine."""
    return ExclusiveSlot(Path.home() / ".cache" / "autocompress" / "slot", cores)


def build_probe() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function that a device's process answers with: a `ReadingRequest` as JSON, a `Taken` as JSON."""

    def evaluate(message: dict[str, Any]) -> dict[str, Any]:
        files: dict[str, str] = message.pop("files")
        node: str = message.pop("node")
        request = ReadingRequest.model_validate(message)
        target = target_settings(**request.target).build()
        cores = target.threads if request.exclusive == "move" else None
        slots = [machine_slot(cores)]
        if request.slot and Path(request.slot).parent.is_dir():
            # Candidates that train on this machine wait at the study's own slot.
            slots.append(ExclusiveSlot(Path(request.slot), cores))
        host = host_of(target, node)
        if request.what == "host":
            return Taken(host=host).model_dump(mode="json")
        dense, inputs = Path(files["dense"]).read_bytes(), unpack_arrays(Path(files["inputs"]).read_bytes())
        if request.what == "nodes":
            with ExitStack() as stack:
                for slot in slots:
                    stack.enter_context(slot.measuring())
                found = node_latencies(target, [(dense, request.owners)], inputs)
            return Taken(host=host, nodes=tuple(found[0]) if found is not None else None).model_dump(mode="json")
        return take(
            slots,
            [target.prepare(Path(files[f"model-{i}"]).read_bytes()) for i in range(request.models)],
            target.prepare(dense),
            inputs,
            host=host,
            seed=request.seed,
            procedure=request.procedure,
            batches=[unpack_arrays(Path(files[f"batch-{i}"]).read_bytes()) for i in range(request.batches)],
        ).model_dump(mode="json")

    return evaluate


def pack_arrays(inputs: Arrays) -> bytes:
    """Inputs as the bytes of an ``.npy`` or, if they have names, of an ``.npz`` file."""
    buffer = io.BytesIO()
    if isinstance(inputs, dict):
        # Prefixed: numpy has parameters of its own, and an input may be called like one.
        np.savez(buffer, **{_PREFIX + name: array for name, array in inputs.items()})  # type: ignore[arg-type]
    else:
        np.save(buffer, inputs, allow_pickle=False)
    return buffer.getvalue()


def unpack_arrays(data: bytes) -> Arrays:
    """What `pack_arrays` packed.

    Raises:
        MeasurementError: the bytes are no such file.
    """
    try:
        found = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError) as error:
        raise MeasurementError(f"expected inputs as an .npy or .npz file, got {len(data)} bytes: {error}") from error
    if isinstance(found, np.ndarray):
        return found
    return {name.removeprefix(_PREFIX): found[name] for name in found.files}
