"""Plans from outside of a search: files of a person's, and the front of an earlier study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autocompress.compress.factorize import rank_for_energy
from autocompress.config import Study, find_study
from autocompress.errors import ConfigError, InfeasibleError
from autocompress.pipeline.finalists import Finals
from autocompress.pipeline.folder import StudyFolder, read_record
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.trials import load_trials, search_front
from autocompress.records import Plan, TrialRecord
from autocompress.search.ledger import OWN
from autocompress.space.explain import validate
from autocompress.space.plan_entries import PlanFile
from autocompress.space.plan_file import load_plan
from autocompress.space.yaml import read_document

#: Names of seeds of an earlier study's begin so.
WARM = "warm-"


def check_seeds(study: Study) -> None:
    """Refuse what can be refused of a study's seeds before the network is known.

    Raises:
        ConfigError: a plan file is missing or wrong in itself, there are more of them than trials, or the earlier
            study is not there.
    """
    plans, trials = study.search.seeds.plans, study.search.trials
    if len(plans) > trials:
        raise ConfigError(
            f"search.seeds.plans: expected at most {trials} files, as many as search.trials, got {len(plans)}; raise "
            "search.trials"
        )
    for file in plans:
        validate(PlanFile, read_document(Path(file)))
    if study.search.seeds.warm_start is not None:
        _earlier(study, study.search.seeds.warm_start)


def plan_files(bench: Workbench, files: Sequence[str]) -> list[tuple[str, Plan]]:
    """Pairs of a name and the plan in each file, for the study's network and target.

    Raises:
        ConfigError: a file is wrong, or its plan is none of the study's space.
    """
    found = []
    for file in files:
        plan = load_plan(
            Path(file),
            bench.prepared.structure,
            round_to=bench.target.round_to,
            bits=bench.target.bits,
            energies=lambda layer, energy: rank_for_energy(bench.dense, layer, energy),
        )
        try:
            meant = bench.space.plan(bench.space.params(plan))
        except InfeasibleError as error:
            raise _outside(file, str(error)) from error
        if meant != plan:
            parts = [name for name in type(plan).model_fields if getattr(meant, name) != getattr(plan, name)]
            raise _outside(file, f"one of which the space has only another form of: {', '.join(parts)}")
        found.append((f"{OWN}{Path(file).stem}", plan))
    return found


def _outside(file: str, got: str) -> ConfigError:
    return ConfigError(
        f"search.seeds.plans: {file}: expected a plan that the study's space can express, got {got}; open this choice "
        "in the space, or take the file out"
    )


def earlier_plans(study: Study, reference: str) -> list[tuple[str, Plan]]:
    """Pairs of a name and a plan: the finalists of an earlier study, or the front of its search so far.

    Args:
        study: the new one.
        reference: the earlier one's name, beside the new one, or its folder.

    Raises:
        ConfigError: there is no such study, its ledger cannot be read from here, or it has no candidates yet.
    """
    earlier = _earlier(study, reference)
    if isinstance(earlier, Finals):
        plans = [finalist.plan for finalist in earlier.finalists]
    else:
        front = search_front(load_trials(earlier), earlier.objectives, earlier.metrics)
        plans = [trial.plan for trial in front if trial.plan is not None]
    if not plans:
        raise ConfigError(
            f"search.seeds.warm_start: expected a study with finished candidates, got {reference!r}, which has none yet"
        )
    # By what they are: places on the front of a study that goes on would be others at the next look.
    return [(f"{WARM}{Path(reference).name}-{plan.key[:8]}", plan) for plan in plans]


def not_tried(bench: Workbench, trials: Sequence[TrialRecord]) -> list[str]:
    """Names of a person's plans, and of those of an earlier study's that the space can express, that no trial has.

    Raises:
        ConfigError: as `plan_files` and `earlier_plans`.
    """
    settings = bench.study.search.seeds
    asked = plan_files(bench, settings.plans)
    if settings.warm_start:
        asked += earlier_plans(bench.study, settings.warm_start)
    names, keys = {t.origin for t in trials}, {t.plan.key for t in trials if t.plan is not None}
    return [
        name for name, plan in asked if f"seed:{name}" not in names and plan.key not in keys and _expresses(bench, plan)
    ]


def _expresses(bench: Workbench, plan: Plan) -> bool:
    try:
        bench.space.params(plan)
    except InfeasibleError:
        return False
    return True


def _earlier(study: Study, reference: str) -> Finals | Study:
    """What an earlier study ended with, which is in its folder; before that the study, whose ledger has to be read."""
    folder = Path(reference) if "/" in reference else study.output / reference
    if folder.absolute() == study.folder:
        raise ConfigError(f"search.seeds.warm_start: expected another study, got this one, {reference!r}")
    if not (folder / "study.json").is_file():
        raise ConfigError(
            f"search.seeds.warm_start: expected the name of a study in {study.output}, or a study's folder, got "
            f"{reference!r}: there is no {folder / 'study.json'}"
        )
    try:
        return read_record(StudyFolder(folder).finalists, Finals) or find_study(
            folder.name, [f"output={folder.parent}"]
        )
    except ConfigError as error:
        raise ConfigError(
            f"search.seeds.warm_start: expected a study that has ended, or whose ledger can be read from here, got "
            f"{reference!r}: {error}"
        ) from error
