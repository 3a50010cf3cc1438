"""The settings of each stage of a study: what it searches for, how finalists are judged, where winners go."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from autocompress.measure.metrics import MetricConfig, OutputKind
from autocompress.records import Metric
from autocompress.search.samplers import Auto, SamplerConfig

#: What a name may be made of.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_HIDDEN = str(SecretStr("any"))

Count = Annotated[int, Field(strict=True, ge=1)]
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Amount = Annotated[float, Field(strict=True, ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0.0, allow_inf_nan=False)]


def checked_name(value: str) -> str:
    """The name itself.

    Raises:
        ValueError: it is not made of 1 to 100 letters, digits, ``-`` and ``_``.
    """
    if not NAME.fullmatch(value):
        raise ValueError(
            f"expected 1 to 100 letters, digits, '-' and '_', the first a letter or digit, got {value[:120]!r}"
        )
    return value


class _Part(BaseModel):
    # Inputs are hidden because the address of a ledger may hold a password.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class Limit(_Part):
    """Smallest and largest acceptable value of an objective, in its own unit; at least one is given."""

    min: Finite | None = None
    max: Finite | None = None

    @model_validator(mode="after")
    def _reachable(self) -> Limit:
        if self.min is None and self.max is None:
            raise ValueError("expected min, max or both, got neither")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"expected min <= max, got min {self.min} and max {self.max}")
        return self


class SeedsConfig(_Part):
    """Which candidates a search begins with.

    At most half of its trials and sixteen, but for `warm_start` and `plans`, all of which are tried.

    Attributes:
        budgets: latencies, from where as good as nothing is lost to where no short recovery helps, for each of which
            the candidate is found that loses least by the profile; 0 for none.
        uniform: also the same request for every group and layer, and a mild setting of each other kind of choice.
        warm_start: an earlier study of the same network, by name or folder, whose front is tried again.
        plans: plan files that are tried first. Relative paths of both start from the study file's folder.
    """

    budgets: Annotated[int, Field(strict=True, ge=0, le=200)] = 40
    uniform: Annotated[bool, Field(strict=True)] = True
    warm_start: Annotated[str, Field(min_length=1)] | None = None
    plans: tuple[Annotated[str, Field(min_length=1)], ...] = ()


class SearchConfig(_Part):
    """How candidates are proposed and run.

    Attributes:
        trials: candidates to evaluate, seeds included; a failed one counts.
        time_s: seconds that the search may take, over all runs; null for as long as its trials take.
        workers: candidates evaluated at the same time.
        sampler: what proposes them.
        seeds: what it begins with.
        storage: the ledger's address for Optuna; null is a journal file in the study's folder. Never shown or kept.
        recovery_epochs: passes over the training split after compression; 0 recalibrates batch norm only.
        rungs: passes, fewer and rising, after which candidates are judged, so that only the best of like latency go on
            to `recovery_epochs`; empty: every candidate does; null: 0 and a quarter of them.
        reduction: of so many candidates judged at a rung, one goes on.
        bands: of latency within which they are compared, at most.
        early_stop: end a recovery whose loss falls no more by a short fall of the learning rate.
        timeout_s: seconds after which a candidate is killed, at each rung.
        memory_gb: memory beyond which a candidate is killed.
        max_failures: share of failures in a run, among trials that had passed as many rungs, five at least, beyond
            which the search stops.
    """

    trials: Count = 50
    time_s: Positive | None = None
    workers: Count = 1
    sampler: SamplerConfig = Auto()
    seeds: SeedsConfig = SeedsConfig()
    storage: SecretStr | None = None
    recovery_epochs: Amount = 0.25
    rungs: tuple[Amount, ...] | None = None
    reduction: Annotated[int, Field(strict=True, ge=2)] = 3
    bands: Count = 4
    early_stop: Annotated[bool, Field(strict=True)] = False
    timeout_s: Positive = 600.0
    memory_gb: Positive = 8.0
    max_failures: Annotated[float, Field(strict=True, gt=0.0, le=1.0)] = 0.5

    @field_validator("rungs")
    @classmethod
    def _rises(cls, value: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        full = info.data.get("recovery_epochs")
        if value and full is not None and any(a >= b for a, b in pairwise((*value, full))):
            raise ValueError(
                f"expected rising numbers of epochs below search.recovery_epochs, {full:g}, got {list(value)}"
            )
        return value

    @property
    def ladder(self) -> tuple[float, ...]:
        """Epochs of all rungs, the last one included."""
        full = self.recovery_epochs
        early = self.rungs if self.rungs is not None else (0.0, full / 4.0) if full > 0.0 else ()
        return (*early, full)

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


class MeasureConfig(_Part):
    """How candidates are measured, on whichever target.

    Attributes:
        rounds: blocks of inferences per network in a latency reading.
        block_s: shortest time of a block, in seconds.
        repeats: how often a noisy reading is taken again before it is marked.
        dispersion: interquartile range of the rounds' ratios, as a share of their median, beyond which a reading is
            noisy.
        drift: of the dense baseline within a reading, as a share of its median, beyond which the reading is noisy.
        exclusive: how training keeps out of a reading's way: it waits, or moves to the cores that do not measure.
        batch_sizes: examples per inference at which the throughput of finalists is measured.
        metrics: measured beside the task's own: scikit-learn's by name, or functions.
        outputs: what the network's outputs are taken for by scikit-learn's classification metrics.
        latency_model: ``sketch``: learn from twenty networks of the space how the target's latency follows a plan, in
            seconds, so that the search knows where to look. ``auto``: learn it from some seventy, in minutes, and let
            it also take the place of readings below the last rung, if it proves good enough on networks that it has
            not seen. ``off``: multiply-adds guide the search.
        latency_model_error: largest median error on those, a share, with which ``auto`` does.
        latency_model_tau_gap: most that Kendall's τ of its order may lie under that of two measurements.
    """

    rounds: Annotated[int, Field(strict=True, ge=10)] = 20
    block_s: Positive = 0.005
    repeats: Annotated[int, Field(strict=True, ge=0)] = 2
    dispersion: Positive = 0.1
    drift: Positive = 0.1
    exclusive: Literal["wait", "move"] = "wait"
    batch_sizes: tuple[Count, ...] = (1, 8)
    metrics: tuple[MetricConfig, ...] = ()
    outputs: OutputKind = "logits"
    latency_model: Literal["auto", "sketch", "off"] = "sketch"
    latency_model_error: Positive = 0.05
    latency_model_tau_gap: Positive = 0.1

    @field_validator("batch_sizes")
    @classmethod
    def _distinct(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"expected distinct batch sizes, got {list(value)}")
        return value

    @field_validator("metrics")
    @classmethod
    def _told_apart(cls, value: tuple[MetricConfig, ...]) -> tuple[MetricConfig, ...]:
        names = [config.metric().name for config in value]
        if len(set(names)) != len(names):
            raise ValueError(f"expected metrics of distinct names, got {', '.join(names)}")
        return value

    @property
    def known_metrics(self) -> tuple[Metric, ...]:
        """Name, direction and source of every metric."""
        return tuple(config.metric(self.outputs) for config in self.metrics)


class RegistryConfig(_Part):
    """Where the winners go.

    Attributes:
        model: name of the registered model; the study's name if null.
    """

    model: Annotated[str, BeforeValidator(lambda v: checked_name(v) if isinstance(v, str) else v)] | None = None
