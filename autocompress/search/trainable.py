"""What runs in a Ray actor. Each one imports this module when it starts, so it needs neither Optuna nor the ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ray import tune

from autocompress.cluster.device import answer_device
from autocompress.cluster.process import KillableWorker
from autocompress.errors import WorkerError
from autocompress.records import EvaluatorReference


class CandidateTrainable(tune.Trainable):
    """A reused Ray actor that owns one killable process and hands it one candidate after another.

    Each step judges the candidate at its next rung. A candidate's failure is a result here, no exception: to Tune every
    trial succeeds, unless its actor is lost.
    """

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """One CPU of Ray's count for each candidate."""
        return tune.PlacementGroupFactory([{"CPU": 1}])

    def setup(self, config: dict[str, Any]) -> None:
        """Make the worker; its process starts with the first candidate."""
        options = json.loads(config["worker"])
        self._timeout_s, self._retries = options["timeout_s"], options["retries"]
        self._worker = KillableWorker(
            EvaluatorReference.model_validate(options["evaluator"]),
            Path(options["logs"]),
            options["memory_gb"],
            answer=answer_device,
        )
        self._rung = self._restarts = 0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next candidate."""
        self._rung = self._restarts = 0
        return True

    def step(self) -> dict[str, Any]:
        """Judge the candidate at a rung; a process that dies is started again, a limited number of times over all."""
        candidate = json.loads(self.config["candidate"])
        request = candidate["requests"][self._rung]
        self._rung += 1
        while True:
            outcome: dict[str, Any] = {}
            try:
                outcome["reply"] = self._worker.call(request, self._timeout_s)
            except WorkerError as error:
                if error.kind == "died" and self._restarts < self._retries:
                    self._restarts += 1
                    continue
                outcome["error"] = str(error)
            outcome["attempts"] = candidate["attempts"] + self._restarts
            return {"outcome": json.dumps(outcome), "done": "error" in outcome or not request["partial"]}

    def cleanup(self) -> None:
        """End the process."""
        self._worker.close()
