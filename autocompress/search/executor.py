"""Run a search: Ray Tune executes the ledger's candidates, each in a process that may be killed."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import ray
from ray import tune
from ray.exceptions import OutOfMemoryError, RayError

from autocompress.cluster.interrupt import Stop, stop_signals
from autocompress.cluster.session import ray_session
from autocompress.errors import SearchError
from autocompress.records import EvaluatorReference, ParamValue, TrialRecord
from autocompress.rng import derive_seed
from autocompress.search.choose import Choice, build_proposer, choose_sampler
from autocompress.search.fallback import SafeProposer, SafeSampler
from autocompress.search.ledger import ENDED, Ledger, SearchSpace
from autocompress.search.problem import Problem, Proposer
from autocompress.search.rungs import Ladder
from autocompress.search.samplers import Surrogate
from autocompress.search.scheduler import RungScheduler
from autocompress.search.searcher import LedgerSearcher
from autocompress.search.settings import SearchSettings
from autocompress.search.surrogate_data import busy_s
from autocompress.search.trainable import CandidateTrainable


def search(
    space: SearchSpace,
    evaluator: EvaluatorReference,
    settings: SearchSettings,
    ledger: Ledger,
    on_trial: Callable[[TrialRecord], None] = lambda trial: None,
    *,
    problem: Problem | None = None,
    seeds: Sequence[tuple[str, dict[str, ParamValue]]] | None = None,
    on_message: Callable[[str], None] = lambda message: None,
    on_choice: Callable[[Choice], None] = lambda choice: None,
) -> None:
    """Bring the ledger to `settings.trials` ended trials, or as far as `settings.time_s` allows.

    Trials that an earlier driver left open are taken up again under their numbers; ended ones are never run again. Only
    one process may run this on a ledger at a time.

    Args:
        space: asked for seeds, parameters and plans.
        evaluator: how a candidate's process builds its ``evaluate(request) -> reply``. A request holds the plan, the
            fidelity, the role ``"validation"`` and whether the rung is `partial`, below the last: the reply is the JSON
            of a `RungResult` then, else of a `Measurement`.
        settings: how many trials, on which rungs, in which limits.
        ledger: opened by the caller.
        on_trial: called in this process whenever a trial begins, goes on, waits or ends.
        problem: what is optimized; candidates of several rungs cannot be compared without.
        seeds: named parameters to begin with; the space's own by default.
        on_message: told what a person should know, in a sentence.
        on_choice: told which sampler proposes, and why.

    Raises:
        InterruptedStudyError: SIGINT or SIGTERM came. Candidates are killed, their trials stay open.
        SearchError: too many trials failed, all of them did, no time is left for any, or Ray cannot be used. The
            message has the first cause.
    """
    if problem is None:
        if len(settings.rungs) > 1:
            raise SearchError(f"search: expected a problem to compare {len(settings.rungs)} rungs by, got none")
        problem = Problem(objectives=ledger.objectives, dense={})
    ledger.enqueue(space.seeds() if seeds is None else seeds, settings.trials)
    ladder = Ladder(settings.rungs, settings.reduction, settings.bands, problem)
    ended = ledger.count(*ENDED)
    if ended < settings.trials:
        proposer = _proposer(space, settings, ledger, problem, on_message, on_choice)
        with ray_session(settings.workers) as workers, stop_signals() as stop:
            searcher = LedgerSearcher(ledger, space, settings, ladder, workers, proposer, on_trial, on_message)
            searcher.stopping = lambda: bool(stop)
            while searcher.left:
                _run_tune(searcher, evaluator, settings, stop)
                if searcher.error is not None:
                    raise searcher.error
                if stop:
                    done = ledger.count(*ENDED)
                    raise stop.error(f"after {done} of {settings.trials} trials")
            searcher.close()
            if stop:  # came with the last result: what follows must not go on as if nothing had been asked
                raise stop.error(f"after all {ledger.count(*ENDED)} trials")
    trials = ledger.trials()
    if any(t.measurement is not None or t.rungs for t in trials if t.state != "failed"):
        return
    failed = [t for t in trials if t.state == "failed"]
    late = f"no candidate was judged within search.time_s, {settings.time_s or 0.0:g} seconds"
    # Seeds that time left none for may still be recovered in full.
    if any(t.is_unseen_seed for t in trials):
        on_message(f"{late}: the finalists are seeds that nothing is known of yet; give the search more time")
    elif not failed:
        raise SearchError(f"{late}; give the search more time")
    else:
        raise SearchError(
            f"all {len(failed)} trials failed; mend the cause, then the same command goes on; the first, trial "
            f"{failed[0].number}: {failed[0].reason}"
        )


def _proposer(
    space: SearchSpace,
    settings: SearchSettings,
    ledger: Ledger,
    problem: Problem,
    on_message: Callable[[str], None],
    on_choice: Callable[[Choice], None],
) -> Proposer | None:
    """What proposes beyond the seeds: one of our own, or the ledger's sampler from now on. Neither stops the search."""
    fresh = [t for t in ledger.trials() if t.measurement is not None and not t.measurement.cached]
    took = [seconds for trial in fresh if (seconds := busy_s(trial)) is not None]
    asked, unknown = settings.sampler, sorted(set(problem.objectives) - problem.dense.keys())
    if unknown and isinstance(asked, Surrogate):
        raise SearchError(
            f"sampler surrogate: expected the dense model's value of every objective, got none of {unknown}; take "
            "another sampler, or leave the objective out"
        )
    choice = choose_sampler(
        settings.sampler,
        trials=settings.trials,
        rungs=len(settings.rungs),
        reduction=settings.reduction,
        space_log10_size=space.size(),
        seconds_per_trial=median(took) if took else None,
        problem=problem,
    )
    on_choice(choice)
    kind, seed = choice.config.kind, derive_seed(settings.seed, "sampler")
    found = build_proposer(choice.config, space, problem, seed)
    # Of Optuna's samplers none looks at how many trials there are: the same seed would propose the same again.
    own = derive_seed(settings.seed, "sampler", ledger.count(*ENDED))
    # Beside a proposer it draws what a proposal leaves open.
    ledger.use(SafeSampler(choice.config.build(own), kind, own, on_message))
    return SafeProposer(found, kind, space, seed, on_message) if found is not None else None


def _run_tune(searcher: LedgerSearcher, evaluator: EvaluatorReference, settings: SearchSettings, stop: Stop) -> None:
    """One run of Tune: until nothing is left, an error is in `searcher.error`, a signal came, or Ray lost something."""
    scratch = settings.folder / "tune"
    watch = _Watch(searcher, stop)
    searcher.why_lost = watch.why_lost
    tuner = tune.Tuner(
        CandidateTrainable,
        param_space={"worker": _worker_config(evaluator, settings)},
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=RungScheduler(searcher),
            num_samples=-1,
            reuse_actors=True,
            trial_name_creator=_trial_name,
            trial_dirname_creator=_trial_name,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(scratch.resolve()),
            verbose=0,
            callbacks=[watch],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )
    try:
        with _quiet_tune():
            tuner.fit()
    except _HaltError:
        pass
    except Exception as error:
        cause = _cause(error, RayError)
        if isinstance(cause, OutOfMemoryError):
            watch.blame_memory(str(cause))
        elif cause is None and searcher.error is None:
            raise SearchError(f"Ray Tune failed: {type(error).__name__}: {error}") from error
    finally:
        watch.kill_actors()
        shutil.rmtree(scratch, ignore_errors=True)
    if not stop and searcher.error is None and not searcher.late:
        searcher.abandon()


class _HaltError(Exception):
    """Ends Tune's loop from within."""


class _Watch(tune.Callback):
    """Looks for a reason to stop before each of Tune's steps, ten times a second; knows the actors."""

    def __init__(self, searcher: LedgerSearcher, stop: Stop) -> None:
        self._searcher = searcher
        self._stop = stop
        self._trials: dict[str, Any] = {}
        self._actors: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, object]:
        # Tune pickles its callbacks when it starts; it is never asked to restore them.
        return {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """End the loop after a signal or an error, or in the end of time; actors first, or Tune would wait for them."""
        if self._stop or self._searcher.error is not None or self._searcher.late:
            self.kill_actors()
            raise _HaltError

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Remember where the trial runs."""
        self._trials[trial.trial_id] = trial
        self._actors[trial.trial_id] = trial.temporary_state.ray_actor

    def why_lost(self, trial_id: str) -> str:
        """What Tune noted of a trial's error, in one line."""
        path = Path(getattr(self._trials.get(trial_id), "error_file", None) or "")
        lines = [line for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []
        return f"its Ray actor was lost ({lines[-1].strip():.200})" if lines else "its Ray actor was lost"

    def kill_actors(self) -> None:
        """Kill every actor of this run; each one's process dies with it."""
        for actor in {id(a): a for a in self._actors.values() if a is not None}.values():
            with contextlib.suppress(RayError):
                ray.kill(actor)

    def blame_memory(self, message: str) -> None:
        """Fail the trial whose actor `message` names."""
        for trial_id, actor in self._actors.items():
            if actor is not None and actor._actor_id.hex() in message:
                self._searcher.lost_to_memory(trial_id, message.splitlines()[0])


def _worker_config(evaluator: EvaluatorReference, settings: SearchSettings) -> str:
    return json.dumps(
        {
            "evaluator": evaluator.model_dump(mode="json"),
            "logs": str((settings.folder / "logs").resolve()),
            "memory_gb": settings.memory_gb,
            "timeout_s": settings.timeout_s,
            "retries": settings.retries,
        }
    )


def _trial_name(trial: Any) -> str:
    return f"trial-{trial.trial_id}"


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """The first of `kind` in the chain of causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error


@contextlib.contextmanager
def _quiet_tune() -> Any:
    """What Tune logs concerns its own files, which nobody reads; what matters is raised."""
    logger = logging.getLogger("ray.tune")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
