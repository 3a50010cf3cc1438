"""A fixed list of evaluations, several at once, each in a process that may be killed."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from autocompress.cluster.device import answer_device
from autocompress.cluster.interrupt import stop_signals
from autocompress.cluster.process import KillableWorker, failure
from autocompress.cluster.session import ray_session
from autocompress.errors import WorkerError
from autocompress.records import EvaluatorReference

#: How often a job whose process or Ray actor died is tried in all.
_ATTEMPTS = 3
_LOOK_S = 0.1

Outcome = dict[str, Any] | WorkerError


def run_jobs(
    evaluator: EvaluatorReference,
    requests: Sequence[dict[str, Any]],
    *,
    workers: int,
    timeout_s: float,
    memory_gb: float,
    logs: Path,
    on_result: Callable[[int, Outcome], None] = lambda index, outcome: None,
) -> list[Outcome]:
    """Evaluate every request.

    Args:
        evaluator: how each process builds ``evaluate(request) -> reply``.
        requests: JSON each.
        workers: evaluations at once.
        timeout_s: wall time of one evaluation, in seconds.
        memory_gb: memory of one evaluation's processes, in GiB.
        logs: folder for what the processes print.
        on_result: called in this process as each ends, with its index and outcome.

    Returns:
        Outcomes in the order of the requests: the reply, or the `WorkerError` with its kind.

    Raises:
        InterruptedStudyError: SIGINT or SIGTERM came; the processes are killed.
        SearchError: Ray cannot be used.
    """
    if not requests:
        return []
    import ray
    from ray.exceptions import RayError

    outcomes: dict[int, Outcome] = {}
    waiting = deque((index, 1) for index in range(len(requests)))
    with ray_session(min(workers, len(requests))) as capacity, stop_signals() as stop:
        remote = ray.remote(num_cpus=1, max_restarts=0)(_JobActor)

        def start() -> Any:
            return remote.remote(evaluator.model_dump(mode="json"), str(logs.resolve()), memory_gb)

        idle: list[Any] = [start() for _ in range(capacity)]
        running: dict[Any, tuple[int, int, Any]] = {}
        try:
            while waiting or running:
                if stop:
                    raise stop.error(f"after {len(outcomes)} of {len(requests)} finalists")
                while waiting and idle:
                    (index, attempt), actor = waiting.popleft(), idle.pop()
                    running[actor.evaluate.remote(requests[index], timeout_s)] = (index, attempt, actor)
                done, _ = ray.wait(list(running), num_returns=1, timeout=_LOOK_S)
                for reference in done:
                    index, attempt, actor = running.pop(reference)
                    try:
                        kind, value = ray.get(reference)
                    except RayError as error:
                        actor = start()
                        kind, value = "died", f"its Ray actor was lost ({str(error).strip().splitlines()[0]:.200})"
                    idle.append(actor)
                    if kind == "died" and attempt < _ATTEMPTS:
                        waiting.append((index, attempt + 1))
                        continue
                    outcomes[index] = value if kind == "ok" else failure(kind, value)
                    on_result(index, outcomes[index])
            if stop:  # came with the last result: what follows must not go on as if nothing had been asked
                raise stop.error(f"after all {len(requests)} finalists")
        finally:
            for actor in [*idle, *(a for _, _, a in running.values())]:
                with contextlib.suppress(RayError):
                    ray.kill(actor)
    return [outcomes[index] for index in range(len(requests))]


class _JobActor:
    """Owns one killable process; an evaluation's failure is a value, no exception."""

    def __init__(self, evaluator: dict[str, Any], logs: str, memory_gb: float) -> None:
        reference = EvaluatorReference.model_validate(evaluator)
        self._worker = KillableWorker(reference, Path(logs), memory_gb, answer=answer_device)

    def evaluate(self, request: dict[str, Any], timeout_s: float) -> tuple[str, Any]:
        """``("ok", reply)`` or ``(kind, message)``."""
        try:
            return "ok", self._worker.call(request, timeout_s)
        except WorkerError as error:
            return error.kind, str(error).partition(": ")[2]
