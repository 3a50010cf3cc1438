"""The study file: every setting of a study, checked before anything is imported, created or run.

Nothing heavy is imported here: samplers and targets are frozen settings that import their library when built.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from autocompress.config.stages import (
    NAME,
    FinalistsConfig,
    Limit,
    MeasureConfig,
    RegistryConfig,
    SearchConfig,
    checked_name,
)
from autocompress.errors import ConfigError
from autocompress.measure.metrics import FunctionMetric
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.measure.targets import TargetConfig
from autocompress.records import FIXED, Bound, Metric, ObjectiveName
from autocompress.space.config import SpaceConfig, load_space, read_space
from autocompress.space.explain import Described, alternatives, nearest, validate
from autocompress.space.reference import TaskConfig, anchored, reference_problem
from autocompress.space.yaml import Document, KeyPath, flatten, key_text, override, read_document

#: Settings of the search that no value depends on: how much of it there is, and with what it begins.
_BUDGET = (
    "trials", "time_s", "workers", "seeds", "reduction", "bands", "timeout_s", "memory_gb", "storage", "max_failures",
)  # fmt: skip
#: Where studies are kept unless the study file says otherwise.
OUTPUT = Path("autocompress-runs")


def _known(name: str, info: ValidationInfo) -> str:
    """The name of an objective that this study has."""
    measure = info.data.get("measure")
    if measure is None:  # is wrong itself
        return name
    known = (*FIXED, *(metric.name for metric in measure.known_metrics))
    if name not in known:
        natural = name.removeprefix("neg_")
        guess = f" (did you mean {natural!r}?)" if natural in known else nearest(name, known)
        raise ValueError(f"expected {alternatives(known)}{guess}, got {name!r}")
    return name


#: A fixed objective, or one of the study's metrics.
Objective = Annotated[ObjectiveName, AfterValidator(_known), Described(f"{alternatives(FIXED)}, or a metric's name")]


class Study(BaseModel):
    """Everything that one study needs; made by `load_study` or in Python.

    Attributes:
        name: letters, digits, ``-`` and ``_``.
        task: the model and data; from Python, a function or its name may be given.
        seed: root of every random stream.
        output: folder of all studies; made absolute.
        space: what is searched; given as a packaged name, a path, or the space itself.
        target: where latency is measured.
        measure: how.
        objectives: what the front is between.
        constraints: what a candidate must meet, by objective.
        search, finalists, registry: settings of these stages.

    Raises:
        pydantic.ValidationError: a value is not what is expected; `load_study` raises ConfigError instead.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    name: str
    task: TaskConfig
    seed: Annotated[int, Field(strict=True, ge=0, lt=2**31)] = 0
    output: Path = Field(default=OUTPUT, validate_default=True)
    space: SpaceConfig = Field(default_factory=lambda: load_space("joint"))
    target: TargetConfig = OnnxRuntimeCpu()
    measure: MeasureConfig = MeasureConfig()
    # After `measure`, whose metrics their names are checked against.
    objectives: Annotated[tuple[Objective, ...], Field(min_length=1)] = ("accuracy", "latency_ms")
    constraints: dict[Objective, Limit] = {}
    search: SearchConfig = SearchConfig()
    finalists: FinalistsConfig = FinalistsConfig()
    registry: RegistryConfig = RegistryConfig()

    @field_validator("task", mode="before")
    @classmethod
    def _task_by_name(cls, value: Any) -> Any:
        return {"factory": value} if isinstance(value, str) or callable(value) else value

    @field_validator("space", mode="before")
    @classmethod
    def _space_by_name(cls, value: Any) -> Any:
        if not isinstance(value, str | Path):
            return value
        try:
            return load_space(str(value))
        except ConfigError as error:
            raise ValueError(str(error)) from error

    @field_validator("name")
    @classmethod
    def _stays_in_its_folder(cls, value: str) -> str:
        return checked_name(value)

    @field_validator("output")
    @classmethod
    def _fixed(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"expected distinct objectives, got {list(value)}")
        return value

    @field_validator("constraints")
    @classmethod
    def _reachable(cls, value: dict[str, Limit], info: ValidationInfo) -> dict[str, Limit]:
        limit = value.get("accuracy", Limit(min=0.0))
        for bound in (limit.min, limit.max):
            if bound is not None and bound > 1.0:
                raise ValueError(f"expected an accuracy from 0 to 1, got {bound}")
        drop = value.get("worst_class_drop", Limit(max=0.0)).max
        if drop is not None and drop < -1.0:
            raise ValueError(f"expected worst_class_drop.max >= -1, the best that there is, got {drop}")
        costs = set(FIXED) - {"worst_class_drop"}
        for name, limit in value.items():
            for side, bound in (("min", limit.min), ("max", limit.max)):
                if name in costs and bound is not None and bound < 0.0:
                    raise ValueError(f"expected {name}.{side} >= 0, as {name} is never below, got {bound}")
            if name in costs and name != "accuracy" and limit.max == 0.0:
                raise ValueError(f"expected {name}.max > 0, as {name} never is 0, got 0")
        measure = info.data.get("measure")
        for metric in measure.known_metrics if measure is not None else ():
            side = "min" if metric.maximize else "max"
            bound = getattr(value[metric.name], side) if metric.name in value else None
            if bound is None or metric.best is None:
                continue
            if bound > metric.best if metric.maximize else bound < metric.best:
                raise ValueError(
                    f"expected {metric.name}.{side} {'<=' if metric.maximize else '>='} {metric.best:g}, the best "
                    f"{metric.name} that there is, got {bound:g}"
                )
        return value

    @property
    def folder(self) -> Path:
        """Where everything of this study lies; absolute."""
        return self.output / self.name

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """The constraints one by one, in the file's order, min before max."""
        found: list[Bound] = []
        for objective, limit in self.constraints.items():
            if limit.min is not None:
                found.append(Bound(objective=objective, min=limit.min))
            if limit.max is not None:
                found.append(Bound(objective=objective, max=limit.max))
        return tuple(found)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics beside the task's own; any of them may be an objective or be bounded."""
        return self.measure.known_metrics

    @property
    def wants_packed(self) -> bool:
        """The size of the packed form is an objective or bounded, so that it has to be made for every candidate."""
        return "packed_bytes" in (*self.objectives, *self.constraints)

    @property
    def model_name(self) -> str:
        """Name of the registered model."""
        return self.registry.model or self.name

    def identity(self) -> dict[str, Any]:
        """The settings that values depend on, as JSON data: another identity means values that cannot be compared.

        Left out is what only decides where things lie, how many candidates there are and when one is given up.
        """
        data = self.model_dump(mode="json", exclude={"output", "registry"})
        for key in _BUDGET:
            del data["search"][key]
        del data["finalists"]["timeout_s"], data["target"]["node_wait_s"]
        del data["measure"]["batch_sizes"]
        return data

    @classmethod
    def from_packaged(cls, name: str, overrides: Sequence[str] = ()) -> Study:
        """A study that ships with autocompress.

        Args:
            name: one of `packaged_studies`.
            overrides: as for `load_study`.

        Raises:
            ConfigError: there is none of that name, or an override is wrong.
        """
        known = packaged_studies()
        if name not in known:
            raise ConfigError(f"expected a packaged study ({', '.join(known)}), got {name!r}{nearest(name, known)}")
        resource = importlib.resources.files("autocompress.studies") / f"{name}.yaml"
        with importlib.resources.as_file(resource) as path:
            return _build(read_document(path, f"{name}.yaml"), overrides, path.parent)


def packaged_studies() -> tuple[str, ...]:
    """Names of the studies that ship with autocompress, sorted."""
    names = (item.name for item in importlib.resources.files("autocompress.studies").iterdir())
    return tuple(sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml")))


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and check all of it; the task is not imported, nothing is created.

    Args:
        path: the study file. A relative ``space`` or ``file.py:function`` in it starts from its folder.
        overrides: ``key.path=value`` each, the value in YAML; they replace what the file says.

    Raises:
        ConfigError: a line for each problem, as ``study.yaml:12: search.trials: expected an integer >= 1, got 'many'``.
    """
    file = Path(path)
    return _build(read_document(file), overrides, file.parent)


def find_study(reference: str, overrides: Sequence[str] = ()) -> Study:
    """The study that a command line means: a study file, one that was run here before, or a packaged one.

    Args:
        reference: a path (with a ``/``, or ending in ``.yaml`` or ``.yml``), or a name.
        overrides: as for `load_study`; ``output=folder`` also says where to look for one that was run before.

    Raises:
        ConfigError: there is no such study, or it is wrong.
    """
    if "/" in reference or reference.endswith((".yaml", ".yml")):
        return load_study(reference, overrides)
    outputs = [value for key, _, value in (text.partition("=") for text in overrides) if key.strip() == "output"]
    earlier = Path(outputs[-1] if outputs else OUTPUT) / reference / "study.json"
    if NAME.fullmatch(reference) and earlier.is_file():
        document = _read_kept(earlier)
        # Where it was found, not where it was made: a folder may be moved or copied.
        document.data["output"] = str(earlier.parent.parent.absolute())
        return _build(document, overrides, Path.cwd())
    try:
        return Study.from_packaged(reference, overrides)
    except ConfigError as error:
        if reference in packaged_studies():
            raise
        raise ConfigError(
            f"expected a study file (a path ending in .yaml), a study in {earlier.parent.parent} or a packaged one "
            f"({', '.join(packaged_studies())}), got {reference!r}{nearest(reference, packaged_studies())}"
        ) from error


def read_identity(path: Path) -> dict[str, Any]:
    """The identity of a study that was kept as JSON.

    Raises:
        ConfigError: the file is not a kept study.
    """
    return validate(Study, _read_kept(path)).identity()


def diff(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What differs between two identities, one line each, such as ``search.recovery_epochs: 0.25 -> 1.0``.

    Args:
        old: from `Study.identity` or `read_identity`.
        new: likewise.

    Returns:
        Empty if they are equal.
    """
    before, after = flatten(old), flatten(new)
    keys = list(dict.fromkeys([*before, *after]))
    return "\n".join(
        f"{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in keys
        if before.get(key) != after.get(key)
    )


def _read_kept(path: Path) -> Document:
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: expected a study kept as JSON, got {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a study kept as JSON, got a {type(data).__name__}")
    return Document(str(path), data)


def _build(document: Document, overrides: Sequence[str], base: Path) -> Study:
    """Study of a document; every problem of study and space is told at once."""
    for text in overrides:
        override(document, text)
    problems: list[str] = []
    data = document.data
    reference = data.get("space")
    if isinstance(reference, str):
        # Judged by itself, so that its problems carry its own file and lines.
        data["space"] = _space(reference, document, base, problems)
    _anchor(data, base)
    try:
        study = validate(Study, document)
    except ConfigError as error:
        problems += str(error).splitlines()
    else:
        functions: list[tuple[KeyPath, str]] = [(("task", "factory"), study.task.factory)]
        for i, metric in enumerate(study.measure.metrics):
            if isinstance(metric, FunctionMetric):
                functions.append((("measure", "metrics", i, "function"), metric.function))
        for path, function in functions:
            problem = reference_problem(function)
            if problem is not None:
                problems.append(f"{document.place(path)}: {key_text(path)}: expected {problem}")
        if study.search.needs_storage:
            place = document.place(("search", "storage"))
            problems.append(
                f"{place}: search.storage: expected the address of the study's database, got the mask that was kept "
                "in its place; run from the study file, or give search.storage=..."
            )
        if not problems:
            return study
    raise ConfigError("\n".join(problems))


def _space(reference: str, document: Document, base: Path, problems: list[str]) -> Any:
    try:
        found = read_space(reference, base)
    except ConfigError as error:
        problems.append(f"{document.place(('space',))}: space: {error}")
    else:
        try:
            validate(SpaceConfig, found)
            return found.data
        except ConfigError as error:
            problems += str(error).splitlines()
    # Any valid space, so that the rest of the study is judged too.
    return read_space("joint").data


def _anchor(data: dict[str, Any], base: Path) -> None:
    """Relative files of functions, plans and an earlier study start from the study file's folder."""
    task = data.get("task")
    if isinstance(task, str):
        data["task"] = anchored(task, base)
    elif isinstance(task, dict) and isinstance(task.get("factory"), str):
        task["factory"] = anchored(task["factory"], base)
    measure = data.get("measure")
    metrics = measure.get("metrics") if isinstance(measure, dict) else None
    for metric in metrics if isinstance(metrics, list) else []:
        if isinstance(metric, dict) and isinstance(metric.get("function"), str):
            metric["function"] = anchored(metric["function"], base)
    search = data.get("search")
    seeds = search.get("seeds") if isinstance(search, dict) else None
    if isinstance(seeds, dict):
        if isinstance(seeds.get("plans"), list):
            seeds["plans"] = [_path(x, base) if isinstance(x, str) and x else x for x in seeds["plans"]]
        if isinstance(seeds.get("warm_start"), str) and "/" in seeds["warm_start"]:
            seeds["warm_start"] = _path(seeds["warm_start"], base)


def _path(text: str, base: Path) -> str:
    return str((base / Path(text).expanduser()).absolute())
