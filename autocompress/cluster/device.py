"""A device node: a machine of the Ray cluster, found by its labels, that takes readings and does nothing else.

What is to be read travels there as bytes, so that the device needs neither the study's folder nor its data. A small
actor on the node owns one killable process, as a candidate's actor does, and answers one request after another. Ray
places the actor by its labels; the actor looks at the labels of the node that it really runs on before it answers.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from pydantic import Field

from autocompress.cluster.process import KillableWorker
from autocompress.cluster.session import ray_session
from autocompress.errors import MeasurementError, WorkerError
from autocompress.records import EvaluatorReference, Record, digest

Told = Callable[[str], None]

#: Seconds between two looks at whether the device is still there.
_LOOK_S = 0.5
#: Seconds in which the device's actor must have started: Python's imports, on a slow machine.
_START_S = 120.0
#: How often a device that is lost while it answers is asked again, once a node with its labels is there.
_ATTEMPTS = 5
_FOLDER = "autocompress-device-"


class DeviceRequest(Record):
    """What a device is to answer.

    Attributes:
        labels: Ray labels of the node, each with its exact value.
        wait_s: how long to wait for such a node, in seconds, each time that there is none.
        timeout_s: wall time of one answer on the device, in seconds; waiting for its turn is not counted.
        memory_gb: cap on the memory of the device's process, in GiB.
        evaluator: how that process builds ``evaluate(request) -> reply``.
        request: JSON; the device adds ``"files"``, name -> path there, and ``"node"``, its labels as text.
        files: name -> path here of what is sent along; a file that the device has from its last request is not sent.
    """

    labels: dict[str, str]
    wait_s: float = 0.0
    timeout_s: float = 600.0
    memory_gb: float = 8.0
    evaluator: EvaluatorReference
    request: dict[str, Any]
    files: dict[str, str] = Field(default_factory=dict)

    @property
    def where(self) -> str:
        """The labels as text."""
        return labels_text(self.labels)


class DeviceAnswer(Record):
    """A device's answer.

    Attributes:
        reply: the evaluator's, JSON.
        node_id: Ray's id of the node that answered.
    """

    reply: dict[str, Any]
    node_id: str


def labels_text(labels: dict[str, str]) -> str:
    """Such as ``"device=rpi5,room=lab"``, sorted."""
    return ",".join(f"{key}={value}" for key, value in sorted(labels.items()))


def answer_device(question: dict[str, Any]) -> dict[str, Any]:
    """What a candidate's parent answers its child's questions with: each is a `DeviceRequest`, as JSON."""
    return ask_device(DeviceRequest.model_validate(question)).model_dump(mode="json")


def ask_device(asked: DeviceRequest, told: Told = lambda text: None) -> DeviceAnswer:
    """Have a device answer; one request at a time is answered there.

    A device that is lost meanwhile is waited for and asked again; no other node ever answers in its place.

    Args:
        asked: what, where, and how long to wait.
        told: called with words while there is no such node.

    Raises:
        MeasurementError: there is no cluster; no node has the labels within ``wait_s``; the device was lost and did
            not come back; or its process failed: its reason, with the kind that `WorkerError` names.
    """
    with _cluster(asked):
        why = ""
        for _ in range(_ATTEMPTS):
            _await_node(asked, why, told)
            try:
                return _Device(asked).ask()
            except _LostError as error:
                why = str(error)
    raise MeasurementError(f"target.node {asked.where}: the device was lost {_ATTEMPTS} times; at last: {why}")


class _LostError(Exception):
    """The device or its actor is gone."""


@contextlib.contextmanager
def _cluster(asked: DeviceRequest) -> Iterator[None]:
    """Inside the block Ray is connected to a cluster; one of our own making could not hold a device."""
    import ray

    if ray.is_initialized():
        yield
        return
    if not os.environ.get("RAY_ADDRESS"):
        raise MeasurementError(
            f"target.node: expected a Ray cluster with a node labelled {asked.where}, got none: RAY_ADDRESS is not "
            "set. Start one with 'ray start --head --port=6379' here and 'ray start --address=HEAD:6379 --num-cpus=0 "
            f"--labels={asked.where}' on the device, and run with RAY_ADDRESS=HEAD:6379"
        )
    with ray_session(1):
        yield


def _living(labels: dict[str, str]) -> tuple[list[str], list[str]]:
    """Ids of living nodes with these labels, and the labels of all living nodes as text."""
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    own = [{k: v for k, v in node["Labels"].items() if not k.startswith("ray.io/")} for node in nodes]
    matching = [n["NodeID"] for n, have in zip(nodes, own, strict=True) if labels.items() <= have.items()]
    return matching, sorted({labels_text(have) or "none" for have in own})


def _await_node(asked: DeviceRequest, why: str, told: Told) -> None:
    begun = time.monotonic()
    while True:
        matching, there = _living(asked.labels)
        if matching:
            return
        waited = time.monotonic() - begun
        if waited >= asked.wait_s:
            lost = f"; it was lost: {why}" if why else ""
            patience = f" within {asked.wait_s:g} s" if asked.wait_s else ""
            raise MeasurementError(
                f"target.node: expected a living node labelled {asked.where}{patience}, got nodes labelled "
                f"{'; '.join(there)}{lost}. Start it with 'ray start --address=... --num-cpus=0 "
                f"--labels={asked.where}'" + ("" if asked.wait_s else ", or have it waited for with target.node_wait_s")
            )
        told(f"waiting for a node labelled {asked.where}, {asked.wait_s - waited:.0f} s left")
        time.sleep(min(_LOOK_S, asked.wait_s - waited))


#: Handles that this process made or found: an actor ends when its maker's last handle does.
_handles: dict[tuple[str, str], Any] = {}


class _Device:
    """The device's actor, as the caller sees it."""

    def __init__(self, asked: DeviceRequest) -> None:
        import ray

        self._asked = asked
        settings = {"labels": asked.labels, "evaluator": asked.evaluator.model_dump(mode="json")}
        name = f"autocompress-device-{digest(settings)[:12]}"
        self._key = (ray.get_runtime_context().get_job_id(), name)
        known = _handles.get(self._key)
        if known is None:
            decorate: Any = ray.remote  # its types know no concurrency groups
            remote = decorate(num_cpus=0, max_restarts=0, concurrency_groups={"look": 1})(_DeviceActor)
            known = remote.options(
                name=name,
                get_if_exists=True,
                label_selector=dict(asked.labels),
                # Not the caller's own placement group, which is on another node.
                scheduling_strategy="DEFAULT",
            ).remote(**settings, memory_gb=asked.memory_gb)
        self._actor = known
        if self._key not in _handles:
            # Beside the queue of readings: Ray would wait for ever for an actor that it cannot place.
            self._get(known.is_there.options(concurrency_group="look").remote(), _START_S)
            _handles[self._key] = known

    def ask(self) -> DeviceAnswer:
        """The answer; what the device lacks is sent when it says so."""
        paths = {name: Path(path) for name, path in self._asked.files.items()}
        names = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
        contents: dict[str, bytes] = {}
        while True:
            kind, value, node_id = self._get(
                self._actor.answer.remote(
                    self._asked.request, names, contents, self._asked.timeout_s, version("autocompress")
                )
            )
            if kind == "missing" and not contents:
                contents = {sha: paths[name].read_bytes() for name, sha in names.items() if sha in value}
            elif kind == "ok":
                return DeviceAnswer(reply=value, node_id=node_id)
            else:
                raise MeasurementError(f"on the device node {self._asked.where}: {kind}: {value}")

    def _get(self, reference: Any, timeout_s: float | None = None) -> Any:
        import ray
        from ray.exceptions import RayError, RayTaskError

        begun = time.monotonic()
        try:
            while not ray.wait([reference], timeout=_LOOK_S)[0]:
                if not _living(self._asked.labels)[0]:
                    raise self._lost("its node left the cluster")
                if timeout_s is not None and time.monotonic() - begun > timeout_s:
                    raise self._lost(f"its process did not start within {timeout_s:g} s")
            return ray.get(reference)
        except RayTaskError as error:
            cause = str(error).strip().splitlines()[-1]
            raise MeasurementError(f"on the device node {self._asked.where}: {cause:.300}") from error
        except RayError as error:
            raise self._lost(f"{type(error).__name__}: {_first_cause(str(error))}") from error

    def _lost(self, why: str) -> _LostError:
        import ray

        _handles.pop(self._key, None)
        with contextlib.suppress(Exception):  # of an actor that is gone, or was never placed
            ray.kill(self._actor)
        return _LostError(why)


def _first_cause(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return f"{lines[0] if lines else 'no reason known':.200}".rstrip(".")


class _DeviceActor:
    """Runs on the device; owns the process that answers, and the files that were sent."""

    def __init__(self, labels: dict[str, str], evaluator: dict[str, Any], memory_gb: float) -> None:
        _remove_orphans()
        self._labels = labels
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-"))
        reference = EvaluatorReference.model_validate(evaluator)
        self._worker = KillableWorker(reference, self._folder / "logs", memory_gb)

    def is_there(self) -> bool:
        """True, once the actor has started."""
        return True

    def answer(
        self,
        request: dict[str, Any],
        names: dict[str, str],
        contents: dict[str, bytes],
        timeout_s: float,
        caller: str,
    ) -> tuple[str, Any, str]:
        """``("ok", reply, node id)``, ``("missing", sha256s, node id)`` or ``(kind, message, node id)``."""
        import ray

        context = ray.get_runtime_context()
        node_id, found = context.get_node_id(), {key: str(value) for key, value in context.get_node_labels().items()}
        if not self._labels.items() <= found.items():
            wanted = labels_text(self._labels)
            return "measure", f"expected a node labelled {wanted}, got one labelled {labels_text(found)}", node_id
        if version("autocompress") != caller:
            here = version("autocompress")
            return "measure", f"expected autocompress {caller}, as where the study runs, got {here} there", node_id
        for sha256, data in contents.items():
            (self._folder / sha256).write_bytes(data)
        kept = {path.name for path in self._folder.iterdir() if path.is_file()}
        missing = sorted(set(names.values()) - kept)
        if missing:
            return "missing", missing, node_id
        for old in kept - set(names.values()):
            (self._folder / old).unlink()
        files = {name: str(self._folder / sha256) for name, sha256 in names.items()}
        node = labels_text({key: found[key] for key in self._labels})
        try:
            return "ok", self._worker.call({**request, "files": files, "node": node}, timeout_s), node_id
        except WorkerError as error:
            return error.kind, str(error).partition(": ")[2], node_id


def _remove_orphans() -> None:
    """Remove what actors that were killed have left on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        pid = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if folder.is_dir() and pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
