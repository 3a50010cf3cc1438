"""The one ledger of a study: which candidates were asked for, what they measured, why they failed.

Everything else can be rebuilt from it. It is an Optuna study; Optuna's types do not leave this file and its sampler.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from autocompress.errors import AutocompressError, SearchError, StudyChangedError
from autocompress.records import (
    Bound,
    Measurement,
    Metric,
    ParamValue,
    Plan,
    Record,
    RungResult,
    TrialRecord,
    check_values,
    is_maximized,
)
from autocompress.records import TrialState as StateName
from autocompress.search.ledger_records import TrialRecords, attempts, stored
from autocompress.search.problem import Proposer
from autocompress.search.storage import open_storage, readable
from autocompress.space.space import Suggester

#: States of which a trial never leaves.
ENDED: tuple[StateName, ...] = ("complete", "stopped", "failed")
#: Names of seeds that are a person's own plans begin so.
OWN = "plan-"


class SearchSpace(Protocol):
    """What the search needs of a space."""

    def suggest(self, trial: Suggester) -> dict[str, ParamValue]:
        """Parameters of one candidate, asked one by one of the suggester."""
        ...

    def plan(self, params: Mapping[str, ParamValue]) -> Plan:
        """The physical candidate that the parameters mean."""
        ...

    def seeds(self) -> list[tuple[str, dict[str, ParamValue]]]:
        """Named parameters that the search begins with, the most useful first."""
        ...

    def size(self) -> float:
        """log10 of the number of configurations."""
        ...


class Candidate(Record):
    """A trial that waits for its measurement.

    Attributes:
        attempts: how often its process was started, this time included.
        begin: the rung after those that it has passed.
        own: a person asked for it, so that it is built whatever a model says of it.
    """

    number: int
    plan: Plan
    attempts: int
    begin: int = 0
    own: bool = False


class Ledger:
    """A study's trials, told through a gate that lets no value in that is missing, not finite or out of range."""

    def __init__(self, study: optuna.Study, objectives: Sequence[str], bounds: Sequence[Bound]) -> None:
        """Use `open`."""
        self._study = study
        self._objectives = tuple(objectives)
        self._bounds = tuple(bounds)
        self._records = TrialRecords()
        self._ids: dict[int, int] = {}
        self._alike: defaultdict[str, list[int]] | None = None

    @classmethod
    def open(
        cls,
        storage: str | Path,
        name: str,
        objectives: Sequence[str],
        bounds: Sequence[Bound] = (),
        metrics: Sequence[Metric] = (),
        *,
        create: bool = True,
    ) -> Ledger:
        """Open a study's ledger; make it if it is missing.

        Args:
            storage: path of a journal file, or a database URL such as ``postgresql+psycopg://...``; an URL may hold
                a password, which no message repeats.
            name: of the study, in that storage.
            objectives: names, in the order of the study's values.
            bounds: constraints; a trial that violates one is kept, and known as infeasible.
            metrics: those of the study among the objectives; they know their directions.
            create: False to refuse a ledger that is not there.

        Raises:
            SearchError: the storage cannot be reached or read, or there is no such study.
            StudyChangedError: the ledger holds the trials of other objectives.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        directions: list[Literal["maximize", "minimize"]] = [
            "maximize" if is_maximized(o, metrics) else "minimize" for o in objectives
        ]
        with readable(storage):
            if not create and isinstance(storage, Path) and not storage.is_file():
                raise SearchError(f"ledger {storage}: no such file; run the study first")
            opened = open_storage(storage)
            known = [s.study_name for s in opened.get_all_studies()]
            if name not in known and not create:
                raise SearchError(f"the ledger holds no study {name!r}, but {known or 'none'}; run the study first")
            study = optuna.create_study(storage=opened, study_name=name, directions=directions, load_if_exists=True)
            if "objectives" not in study.user_attrs:
                study.set_user_attr("objectives", list(objectives))
        found = study.user_attrs["objectives"]
        if found != list(objectives) or [d.name.lower() for d in study.directions] != directions:
            raise StudyChangedError(
                f"study {name!r}: objectives: its ledger holds trials of {found}, got {list(objectives)}; give the "
                "study another name, or its earlier objectives"
            )
        return cls(study, objectives, bounds)

    @property
    def objectives(self) -> tuple[str, ...]:
        """Names, in the order of the study's values."""
        return self._objectives

    def use(self, sampler: optuna.samplers.BaseSampler) -> None:
        """Let `sampler` propose from now on."""
        self._study.sampler = sampler

    # --- reading ------------------------------------------------------------------------------------------------

    def trials(self) -> tuple[TrialRecord, ...]:
        """Every trial, by number. What has not changed is not converted again, so that asking often costs little."""
        return tuple(map(self._records.of, self._frozen()))

    def count(self, *states: StateName) -> int:
        """How many trials are in one of `states`; without any, all of them."""
        return sum(1 for t in self.trials() if not states or t.state in states)

    def record(self, number: int) -> TrialRecord:
        """One trial."""
        return self._records.of(self._study._storage.get_trial(self._id(number)))

    def _frozen(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    def _id(self, number: int) -> int:
        """The storage's own number of a trial."""
        if number not in self._ids:
            storage, study = self._study._storage, self._study._study_id
            self._ids[number] = storage.get_trial_id_from_study_id_trial_number(study, number)
        return self._ids[number]

    def twin(self, candidate: Candidate) -> TrialRecord | None:
        """The first trial of the same physical candidate that was judged, or still may be, if that is another one.

        One that failed, that was stopped unbuilt, or that time ran out for before it was judged, stands for no other.
        """
        if self._alike is None:
            self._alike = defaultdict(list)
            for trial in self.trials():
                if trial.plan is not None and _stands(trial):
                    self._alike[trial.plan.key].append(trial.number)
        numbers = self._alike[candidate.plan.key]
        for number in numbers:
            if number < candidate.number and _stands(found := self.record(number)):
                return found
        if candidate.number not in numbers:
            numbers.append(candidate.number)
        return None

    # --- asking -------------------------------------------------------------------------------------------------

    def enqueue(self, seeds: Sequence[tuple[str, dict[str, ParamValue]]], total: int) -> list[str]:
        """Queue the seeds that are not in the ledger yet, as long as there are fewer than `total` trials.

        A seed is known by its name and its parameters: a plan file that was changed is another one.

        Returns:
            Names of those that no room was left for.
        """
        trials = self._frozen()
        present = {_identity(t.user_attrs.get("origin"), t.system_attrs.get("fixed_params")) for t in trials}
        room, without = total - len(trials), []
        for name, params in seeds:
            seed = _identity(f"seed:{name}", params)
            if seed in present:
                continue
            if room <= 0:
                without.append(name)
                continue
            present.add(seed)
            room -= 1
            self._study.enqueue_trial(params, user_attrs={"origin": f"seed:{name}"})
        return without

    def unfinished(self) -> list[int]:
        """Numbers of trials that an earlier driver left running.

        A trial whose outcome was written down before that driver ended is closed with it here, not run again.
        """
        left = []
        for trial in self._frozen():
            if trial.state != TrialState.RUNNING:
                continue
            if "measurement" in trial.user_attrs:
                self._complete(trial.number, stored(trial.user_attrs["measurement"]))
            elif "reason" in trial.user_attrs:
                self._end(trial.number, trial.user_attrs.get("ended", "failed"))
            elif self._records.of(trial).state == "running":
                left.append(trial.number)
        return left

    def ask(self, space: SearchSpace, proposer: Proposer | None = None) -> Candidate | TrialRecord:
        """A new candidate: the next seed, or what is proposed; a failed trial if the space refuses it.

        Args:
            space: that the candidate is of.
            proposer: proposes; None leaves it to the sampler in use.
        """
        trials = self.trials()
        if proposer is not None and not any(t.state == "waiting" for t in trials):
            self._study.enqueue_trial(proposer.propose(trials))
        return self._prepare(self._study.ask(), space)

    def take_up(self, number: int, space: SearchSpace, *, lost: bool = True) -> Candidate | TrialRecord:
        """A trial that is open but that nothing runs any longer, once more under its own number; else as `ask`.

        Args:
            number: of the trial.
            space: that the candidate is of.
            lost: it was running, so that this is another attempt; else it goes on after it has waited.
        """
        self._set(number, "taken_up", datetime.now().isoformat())
        return self._prepare(optuna.trial.Trial(self._study, self._id(number)), space, again=lost)

    def _prepare(self, trial: optuna.Trial, space: SearchSpace, *, again: bool = True) -> Candidate | TrialRecord:
        attrs = trial.user_attrs
        times = attempts(attrs) + again
        try:
            if "plan" in attrs:
                plan = Plan.model_validate_json(attrs["plan"])
            else:
                plan = space.plan(space.suggest(trial))
                trial.set_user_attr("plan", plan.model_dump_json())
        except AutocompressError as error:
            return self.fail(trial.number, f"{error.kind}: {error}")
        if again and times > 1:
            trial.set_user_attr("attempts", times)
        rungs = self.record(trial.number).rungs
        return Candidate(
            number=trial.number,
            plan=plan,
            attempts=times,
            begin=rungs[-1].fidelity.rung + 1 if rungs else 0,
            own=attrs.get("origin", "").startswith(f"seed:{OWN}"),
        )

    # --- telling ------------------------------------------------------------------------------------------------

    def tell(self, number: int, reply: dict[str, Any]) -> TrialRecord:
        """Close a trial with what its evaluator replied, if that passes the gate; as failed, with the reason, if not.

        Args:
            number: of a running trial.
            reply: JSON of a `Measurement`.

        Returns:
            The closed trial.
        """
        try:
            # Strict, and from JSON: "0.9" is a string and no number, however well it would convert.
            measurement = Measurement.model_validate_json(json.dumps(reply), strict=True)
            check_values(measurement.values, (*self._objectives, *(b.objective for b in self._bounds)))
            self._check_plan(number, measurement.plan_key)
        except ValueError as error:
            return self.fail(number, _refused(error))
        self._set(number, "measurement", measurement.model_dump_json())
        return self._complete(number, measurement)

    def judge(self, number: int, reply: dict[str, Any]) -> TrialRecord:
        """Write down what a candidate is worth at a rung below the last, if that passes the gate; it is paused then.

        Args:
            number: of a running trial.
            reply: JSON of a `RungResult`.

        Returns:
            The trial: paused, or failed with the reason.
        """
        try:
            result = RungResult.model_validate_json(json.dumps(reply), strict=True)
            check_values(result.values, self._objectives)
            self._check_plan(number, result.plan_key)
        except ValueError as error:
            return self.fail(number, _refused(error))
        told = result.model_copy(update={"judged": datetime.now()})
        earlier = self._study._storage.get_trial(self._id(number)).user_attrs.get("rungs", [])
        self._set(number, "rungs", [*earlier, told.model_dump_json()])
        return self.record(number)

    def promote(self, number: int) -> None:
        """A paused trial goes on."""
        self._set(number, "promoted", len(self.record(number).rungs))

    def stop(self, number: int, reason: str) -> TrialRecord:
        """Close a trial that was not trained in full; `reason` reads ``"kind: message"``."""
        self._set(number, "ended", "stopped")
        self._set(number, "reason", reason)
        return self._end(number, "stopped")

    def fail(self, number: int, reason: str) -> TrialRecord:
        """Close a trial as failed; `reason` reads ``"kind: message"``."""
        self._set(number, "reason", reason)
        return self._end(number, "failed")

    def _end(self, number: int, state: StateName) -> TrialRecord:
        self._study.tell(number, state=TrialState.PRUNED if state == "stopped" else TrialState.FAIL)
        return self.record(number)

    def note(self, key: str, value: str | int | float) -> None:
        """Write a fact about the whole search down."""
        self._study.set_user_attr(f"note:{key}", value)

    def noted(self, key: str) -> Any:
        """A fact that was written down; None if it was not."""
        return self._study.user_attrs.get(f"note:{key}")

    def _check_plan(self, number: int, key: str) -> None:
        plan = self.record(number).plan
        if plan is not None and key != plan.key:
            raise ValueError(f"plan_key: expected {plan.key}, got {key}")

    def attempted(self, number: int, attempts: int) -> None:
        """Write down how often the candidate's process was started."""
        self._set(number, "attempts", attempts)

    def _complete(self, number: int, measurement: Measurement) -> TrialRecord:
        # The measurement is in the ledger before the constraints and the state: a driver that dies in between finds
        # it there and does not measure again.
        trial = optuna.trial.Trial(self._study, self._id(number))
        known = trial.constraints
        for bound in self._bounds:
            if bound.name not in known:
                trial.set_constraint(bound.name, bound.violation(measurement.values[bound.objective].value))
        self._study.tell(number, [measurement.values[o].value for o in self._objectives])
        return self.record(number)

    def _set(self, number: int, key: str, value: Any) -> None:
        self._study._storage.set_trial_user_attr(self._id(number), key, value)


def _stands(trial: TrialRecord) -> bool:
    """Whether what the trial is worth is known, or will be, so that its network need not be built again."""
    return trial.state != "failed" and (trial.state != "stopped" or bool(trial.rungs))


def _identity(origin: str | None, params: Mapping[str, ParamValue] | None) -> tuple[str | None, str]:
    """What tells a seed from others, however its parameters are ordered."""
    return origin, json.dumps(params, sort_keys=True)


def _refused(error: ValueError) -> str:
    """Why a value did not pass the gate."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"measure: {place}: {first['msg']}, got {first['input']!r:.100}"
    return f"measure: {error}"
