"""Optuna's trials as records of our own, each converted once for each of its states."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from autocompress.records import Measurement, Plan, Record, RungResult, TrialRecord
from autocompress.records import TrialState as StateName

_STATES: dict[TrialState, StateName] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.FAIL: "failed",
    TrialState.PRUNED: "stopped",
}


class TrialRecords:
    """Converts trials, and remembers the records."""

    def __init__(self) -> None:
        self._records: dict[int, tuple[FrozenTrial, tuple[object, ...], TrialRecord]] = {}
        self._shared: dict[Record, Record] = {}

    def of(self, trial: FrozenTrial) -> TrialRecord:
        """The record of a trial as it is now; what has not changed is not converted again."""
        known = self._records.get(trial.number)
        # A journal makes a new object with each change; a database does with each reading of what has not ended.
        if known is not None and known[0] is trial:
            return known[2]
        attrs = trial.user_attrs
        # All that can still change: a trial's record is made once for each of its states.
        changing = (attrs.get(name) for name in ("promoted", "attempts", "taken_up"))
        seen = (trial.state, len(attrs), len(attrs.get("rungs", ())), *changing)
        if known is not None and known[1] == seen:
            self._records[trial.number] = trial, seen, known[2]
            return known[2]
        state = _STATES[trial.state]
        rungs = tuple(RungResult.model_validate_json(text) for text in attrs.get("rungs", ()))
        if state == "running" and len(rungs) > attrs.get("promoted", 0):
            state = "paused"
        record = TrialRecord(
            number=trial.number,
            state=state,
            origin=attrs.get("origin", "sampler"),
            params=trial.params or trial.system_attrs.get("fixed_params", {}),
            plan=Plan.model_validate_json(attrs["plan"]) if "plan" in attrs else None,
            measurement=self._sharing(attrs["measurement"]) if state == "complete" and "measurement" in attrs else None,
            rungs=rungs,
            violations=dict(trial.constraints) if state == "complete" else {},
            reason=attrs.get("reason", "") if state in ("failed", "stopped") else "",
            attempts=attempts(attrs),
            started=trial.datetime_start,
            taken_up=datetime.fromisoformat(attrs["taken_up"]) if "taken_up" in attrs else None,
            finished=trial.datetime_complete,
        )
        self._records[trial.number] = trial, seen, record
        return record

    def _sharing(self, text: str) -> Measurement:
        """A measurement that shares with the others what is equal in them: layers and the host are most of it."""
        found = stored(text)
        layers = tuple(self._shared.setdefault(layer, layer) for layer in found.artifact.layers)
        return found.model_copy(
            update={
                "artifact": found.artifact.model_copy(update={"layers": layers}),
                "host": self._shared.setdefault(found.host, found.host),
            }
        )


def attempts(attrs: Mapping[str, Any]) -> int:
    """The first attempt is not written down: it begins with the plan."""
    return int(attrs.get("attempts", 1 if "plan" in attrs else 0))


def stored(text: str) -> Measurement:
    """A measurement as the ledger keeps it."""
    return Measurement.model_validate_json(text)
