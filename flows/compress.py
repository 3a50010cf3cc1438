"""The flow `compress`: a study from preparation to report, in six coarse tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prefect import flow, get_run_logger, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled

from autocompress.cluster.reaper import guard_children
from autocompress.config import Study, load_study
from autocompress.errors import AutocompressError, InterruptedStudyError
from autocompress.pipeline.progress import Reporter, SearchState, Silent, Together, reporter, reporting_to
from autocompress.pipeline.run import Outcome, StudyRun
from autocompress.pipeline.views import front_rows, study_front, summary_markdown

if TYPE_CHECKING:
    from uuid import UUID


class PrefectProgress:
    """Keeps Prefect's progress artifact at the share of trials that are done."""

    def __init__(self, study: str) -> None:
        # In a task that is no coroutine the call is finished when it returns.
        self._artifact = cast(
            "UUID",
            create_progress_artifact(
                progress=0.0, key=artifact_key(study, "search"), description=f"Trials of study {study}"
            ),
        )
        self._shown = 0

    def stage(self, name: str, detail: str) -> None:
        """Stages are task runs already."""

    def searched(self, state: SearchState) -> None:
        """Update at every twentieth of the trials: an update is a request to the server."""
        share = int(20 * state.done / max(state.total, 1))
        if share > self._shown:
            self._shown = share
            try:
                update_progress_artifact(self._artifact, progress=5.0 * share)
            except Exception as error:  # noqa: BLE001 - a server that is away for a moment does not end a search
                get_run_logger().warning("the progress artifact was not updated: %s", error)


def artifact_key(study: str, what: str) -> str:
    """An artifact's key in Prefect: lower-case letters, digits and dashes."""
    return "-".join(filter(None, "".join(c if c.isalnum() else "-" for c in f"{study}-{what}".lower()).split("-")))


# Results stay in this process: a stage's own files, not Prefect's cache, say what is done already.
@task(name="prepare", cache_policy=NO_CACHE, persist_result=False)
def prepare(run: StudyRun) -> None:
    """Load the task, train or load the dense model, export and measure it."""
    run.prepare()


@task(name="profile", cache_policy=NO_CACHE, persist_result=False)
def profile(run: StudyRun) -> None:
    """Latency per layer and sensitivity per group of the dense model."""
    run.profile()


@task(name="search", cache_policy=NO_CACHE, persist_result=False)
def search(run: StudyRun) -> None:
    """Run the trials that are left."""
    with reporting_to(Together(reporter(), PrefectProgress(run.study.name))):
        run.search()


@task(name="finalists", cache_policy=NO_CACHE, persist_result=False)
def finalists(run: StudyRun) -> None:
    """Recover the front in full and judge it on data that the search never saw."""
    run.find_finalists()
    create_table_artifact(
        table=front_rows(study_front(run.study)),
        key=artifact_key(run.study.name, "front"),
        description="Final front",
    )


# Registering is idempotent and talks to a server that may be away for a moment.
@task(name="register", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=5)
def register(run: StudyRun) -> None:
    """Track the study and register every member of the final front."""
    run.register()


@task(name="report", cache_policy=NO_CACHE, persist_result=False)
def report(run: StudyRun) -> None:
    """Write the page."""
    run.report()
    create_markdown_artifact(
        markdown=summary_markdown(study_front(run.study), Path(run.outcome().page), run.outcome().tracking),
        key=artifact_key(run.study.name, "summary"),
        description="Summary of the study",
    )


@flow(name="compress", persist_result=False, validate_parameters=False)
def compress(study: Study | str) -> Any:
    """Run a study, or what is left of it.

    Args:
        study: a study, or the path of a study file; a deployment's parameter is a path.

    Returns:
        The outcome; the flow run ends as Cancelled if the user stopped it, Failed on any error.
    """
    run = StudyRun(study if isinstance(study, Study) else load_study(Path(study)))
    try:
        with run.opened():
            for stage in (prepare, profile, search, finalists, register, report):
                stage(run)
            return run.outcome()
    except InterruptedStudyError as error:
        return Cancelled(message=str(error))


def run(study: Study, listener: Reporter | None = None) -> Outcome:
    """Run or resume a study through the Prefect flow.

    Without ``PREFECT_API_URL`` a temporary server is started; with it, the run is recorded there.

    Args:
        study: from `load_study`, or made in Python.
        listener: hears the progress; nobody by default.

    Returns:
        The final front, its registered versions and the report's path.

    Raises:
        AutocompressError: what went wrong, as its own class; `InterruptedStudyError` if the user stopped it.
    """
    guard_children()
    with reporting_to(listener or Silent()):
        state = cast("State[Any]", compress(study, return_state=True))
    if state.is_cancelled():
        raise InterruptedStudyError(state.message or f"study {study.name!r} was stopped")
    result = state.result(raise_on_failure=False)
    if isinstance(result, Outcome) and state.is_completed():
        return result
    if isinstance(result, BaseException):
        raise result
    raise AutocompressError(f"study {study.name!r}: the flow run ended as {state.name}: {state.message}")
