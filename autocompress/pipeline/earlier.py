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
from autocompress.records import Plan
from autocompress.space.explain import validate
from autocompress.space.plan_entries import PlanFile
from autocompress.space.plan_file import load_plan
from autocompress.space.yaml import read_document


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
            bench.space.params(plan)
        except InfeasibleError as error:
            raise ConfigError(
                f"search.seeds.plans: {file}: expected a plan that the study's space can express, got {error}; open "
                "this choice in the space, or take the file out"
            ) from error
        found.append((f"plan-{Path(file).stem}", plan))
    return found


def earlier_plans(study: Study, reference: str) -> list[tuple[str, Plan]]:
    """Pairs of a name and a plan: the finalists of an earlier study, or the front of its search so far.

    Args:
        study: the new one.
        reference: the earlier one's name, beside the new one, or its folder.

    Raises:
        ConfigError: there is no such study, its ledger cannot be read from here, or it has no candidates yet.
    """
    earlier = _earlier(study, reference)
    finals = read_record(StudyFolder(earlier.folder).finalists, Finals)
    if finals is not None:
        plans = [finalist.plan for finalist in finals.finalists]
    else:
        front = search_front(load_trials(earlier), earlier.objectives, earlier.metrics)
        plans = [trial.plan for trial in front if trial.plan is not None]
    if not plans:
        raise ConfigError(
            f"search.seeds.warm_start: expected a study with finished candidates, got {reference!r}, which has none yet"
        )
    return [(f"{earlier.name}-{number}", plan) for number, plan in enumerate(plans)]


def _earlier(study: Study, reference: str) -> Study:
    folder = Path(reference) if "/" in reference else study.output / reference
    if folder.absolute() == study.folder:
        raise ConfigError(f"search.seeds.warm_start: expected another study, got this one, {reference!r}")
    if not (folder / "study.json").is_file():
        raise ConfigError(
            f"search.seeds.warm_start: expected the name of a study in {study.output}, or a study's folder, got "
            f"{reference!r}: there is no {folder / 'study.json'}"
        )
    return find_study(folder.name, [f"output={folder.parent}"])
