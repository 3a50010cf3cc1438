"""The study file: every setting of a study, checked before anything is imported, created or run.

Nothing heavy is imported here: samplers and targets are frozen settings that import their library when built.
"""

from __future__ import annotations

import importlib.resources
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)

from autocompress.errors import ConfigError
from autocompress.measure.onnxruntime_cpu import OnnxRuntimeCpu
from autocompress.records import Bound, ObjectiveName
from autocompress.search.samplers import NSGA2, SamplerConfig
from autocompress.space.config import SpaceConfig, load_space, read_space
from autocompress.space.explain import nearest, validate
from autocompress.space.reference import TaskConfig, anchored, reference_problem
from autocompress.space.yaml import Document, flatten, override, read_document

#: Where studies are kept unless the study file says otherwise.
OUTPUT = Path("autocompress-runs")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_HIDDEN = str(SecretStr("any"))

Count = Annotated[int, Field(strict=True, ge=1)]
Amount = Annotated[float, Field(strict=True, ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]


def _checked_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError(
            f"expected 1 to 100 letters, digits, '-' and '_', the first a letter or digit, got {value[:120]!r}"
        )
    return value


class _Part(BaseModel):
    # Inputs are hidden because the address of a ledger may hold a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Limit(_Part):
    """Smallest and largest acceptable value of an objective, in its own unit; at least one is given."""

    min: Amount | None = None
    max: Amount | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("expected min, max or both, got neither")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"expected min <= max, got min {self.min} and max {self.max}")
        return self


class SearchConfig(_Part):
    """How candidates are proposed and run.

    Attributes:
        trials: candidates to evaluate, seeds included; a failed one counts.
        workers: candidates evaluated at the same time.
        sampler: what proposes them.
        storage: the ledger's address for Optuna; null is a journal file in the study's folder. Never shown or kept.
        recovery_epochs: passes over the training split after compression; 0 recalibrates batch norm only.
        timeout_s: seconds after which a candidate is killed.
        memory_gb: memory beyond which a candidate is killed.
        max_failures: share of failed trials beyond which the search stops.
    """

    trials: Count = 50
    workers: Count = 1
    sampler: SamplerConfig = NSGA2()
    storage: SecretStr | None = None
    recovery_epochs: Amount = 0.25
    timeout_s: Positive = 600.0
    memory_gb: Positive = 8.0
    max_failures: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.5

    @field_validator("storage")
    @classmethod
    def _is_url(cls, value: SecretStr | None) -> SecretStr | None:
        # A kept study holds the mask in place of the address: `needs_storage`.
        secret = value.get_secret_value() if value is not None else None
        if secret not in (None, _HIDDEN) and not re.match(r"[a-z0-9+]+://.", secret or ""):
            raise ValueError(
                "expected null or an address such as postgresql+psycopg://user@host/database, got a value without "
                "'scheme://' (not shown)"
            )
        return value

    @property
    def needs_storage(self) -> bool:
        """The ledger is in a database whose address was not kept: it has to be given again."""
        return self.storage is not None and self.storage.get_secret_value() == _HIDDEN


class FinalistsConfig(_Part):
    """How the front of the search is judged.

    Attributes:
        count: at most as many members of the front are recovered in full.
        recovery_epochs: passes over the training split for each.
        timeout_s: seconds after which a finalist is killed.
        controls: what every member of the final front is held against, with as much training each: its own cuts and
            zeros chosen by ``magnitude`` or at ``random``, and its shape trained ``from-scratch``.
    """

    count: Count = 8
    recovery_epochs: Amount = 4.0
    timeout_s: Positive = 3600.0
    controls: tuple[Literal["magnitude", "random", "from-scratch"], ...] = ()

    @field_validator("controls")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"expected distinct controls, got {list(value)}")
        return value


class RegistryConfig(_Part):
    """Where the winners go.

    Attributes:
        model: name of the registered model; the study's name if null.
    """

    model: Annotated[str, BeforeValidator(lambda v: _checked_name(v) if isinstance(v, str) else v)] | None = None


class Study(BaseModel):
    """Everything that one study needs; made by `load_study` or in Python.

    Attributes:
        name: letters, digits, ``-`` and ``_``.
        task: the model and data; from Python, a function or its name may be given.
        seed: root of every random stream.
        output: folder of all studies; made absolute.
        space: what is searched; given as a packaged name, a path, or the space itself.
        target: where latency is measured.
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
    target: OnnxRuntimeCpu = OnnxRuntimeCpu()
    objectives: Annotated[tuple[ObjectiveName, ...], Field(min_length=1)] = ("accuracy", "latency_ms")
    constraints: dict[ObjectiveName, Limit] = {}
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
        return _checked_name(value)

    @field_validator("output")
    @classmethod
    def _fixed(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("objectives")
    @classmethod
    def _distinct(cls, value: tuple[ObjectiveName, ...]) -> tuple[ObjectiveName, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"expected distinct objectives, got {list(value)}")
        return value

    @field_validator("constraints")
    @classmethod
    def _accuracy_is_a_share(cls, value: dict[ObjectiveName, Limit]) -> dict[ObjectiveName, Limit]:
        limit = value.get("accuracy", Limit(min=0.0))
        for bound in (limit.min, limit.max):
            if bound is not None and bound > 1.0:
                raise ValueError(f"expected an accuracy from 0 to 1, got {bound}")
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
        for key in ("trials", "workers", "timeout_s", "memory_gb", "storage", "max_failures"):
            del data["search"][key]
        del data["finalists"]["timeout_s"]
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
    if _NAME.fullmatch(reference) and earlier.is_file():
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
    _anchor_task(data, base)
    try:
        study = validate(Study, document)
    except ConfigError as error:
        problems += str(error).splitlines()
    else:
        problem = reference_problem(study.task.factory)
        if problem is not None:
            path = ("task", "factory")
            problems.append(f"{document.place(path)}: task.factory: expected {problem}")
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


def _anchor_task(data: dict[str, Any], base: Path) -> None:
    task = data.get("task")
    if isinstance(task, str):
        data["task"] = anchored(task, base)
    elif isinstance(task, dict) and isinstance(task.get("factory"), str):
        task["factory"] = anchored(task["factory"], base)
