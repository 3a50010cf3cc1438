"""One study from start to end: the six stages, in order, with what each hands on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from autocompress.cluster.session import ray_session
from autocompress.config import Study
from autocompress.errors import AutocompressError
from autocompress.pipeline.earlier import check_seeds, plan_files
from autocompress.pipeline.finalists import Finals, finalists
from autocompress.pipeline.folder import StudyFolder
from autocompress.pipeline.prepare import Workbench, check_task, prepare
from autocompress.pipeline.profile import Profile, profile
from autocompress.pipeline.publish import publish, write_report
from autocompress.pipeline.search import search_candidates
from autocompress.pipeline.times import front_times
from autocompress.pipeline.views import FrontView, study_front
from autocompress.records import Record, TrialRecord, Version

T = TypeVar("T")


class Outcome(Record):
    """What a finished study leaves.

    Attributes:
        front: the final front, fastest first, each member with its registered version.
        versions: the registered versions.
        page: path of the report.
        tracking: where the versions are registered, without credentials.
        seconds: stage -> wall time of this run.
    """

    study: str
    front: FrontView
    versions: tuple[Version, ...]
    page: str
    tracking: str
    seconds: dict[str, float]


class StudyRun:
    """A study being run. Stages are called in order; each takes up what an earlier run left."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.seconds: dict[str, float] = {}
        self._bench: Workbench | None = None
        self._profile: Profile | None = None
        self._trials: tuple[TrialRecord, ...] | None = None
        self._finals: Finals | None = None
        self._tracking = ""
        self._versions: tuple[Version, ...] | None = None
        self._page: Path | None = None
        self._ray = contextlib.ExitStack()
        self._ray_started = False

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the study for this process. A task that cannot be loaded is refused before anything is created."""
        check_task(self.study)
        check_seeds(self.study)
        with StudyFolder(self.study.folder).driving(), self._ray:
            yield

    def _start_ray(self) -> None:
        """One Ray session for search and finalists: it takes seconds to start."""
        if not self._ray_started:
            self._ray.enter_context(ray_session(self.study.search.workers))
            self._ray_started = True

    def prepare(self) -> None:
        """Task, dense model, baseline."""
        with self._timed("prepare"):
            self._bench = prepare(self.study)
            # Here already, though the search reads them: nothing is profiled for a study whose own plans are wrong.
            plan_files(self.bench, self.study.search.seeds.plans)

    def profile(self) -> Profile:
        """Latency per layer, sensitivity per group."""
        with self._timed("profile"):
            self._profile = profile(self.bench)
            return self._profile

    def search(self) -> None:
        """The trials that are left."""
        with self._timed("search"):
            self._trials = search_candidates(self.bench, _made(self._profile, "profile"), self._start_ray)

    def find_finalists(self) -> None:
        """Full recovery, fresh measurement, selection, and the test split once."""
        with self._timed("finalists"):
            self._finals = finalists(self.bench, _made(self._trials, "search"), self._start_ray)

    def register(self) -> None:
        """Tracking, versions and aliases."""
        with self._timed("register"):
            published = publish(self.bench, _made(self._trials, "search"), self.finals)
            self._versions, self._tracking = published.versions, published.tracking

    def report(self) -> None:
        """The page."""
        with self._timed("report"):
            self._page = write_report(
                self.bench,
                _made(self._trials, "search"),
                self.finals,
                _made(self._versions, "register"),
                self.seconds,
                front_times(self.bench),
            )

    @property
    def bench(self) -> Workbench:
        """What `prepare` made."""
        return _made(self._bench, "prepare")

    @property
    def finals(self) -> Finals:
        """What `find_finalists` found."""
        return _made(self._finals, "finalists")

    def outcome(self) -> Outcome:
        """What the study leaves, after all stages."""
        return Outcome(
            study=self.study.name,
            front=study_front(self.study),
            versions=_made(self._versions, "register"),
            page=str(_made(self._page, "report")),
            tracking=self._tracking,
            seconds=self.seconds,
        )

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[stage] = time.monotonic() - started


def _made(value: T | None, stage: str) -> T:
    if value is None:
        raise AutocompressError(f"expected stage {stage!r} to have run before")
    return value
