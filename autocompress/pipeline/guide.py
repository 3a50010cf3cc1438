"""What the profile tells of a plan without building it: its predicted latency, its summed sensitivity, its shape."""

from __future__ import annotations

from collections.abc import Sequence
from math import log2, log10
from typing import Protocol

import numpy as np

from autocompress.compress.sensitivity import Sensitivity
from autocompress.errors import InfeasibleError
from autocompress.pipeline.latency_model import load_predictor
from autocompress.pipeline.losses import Losses
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.profile import Profile, cuttable
from autocompress.pipeline.work import INTEGER, LayerWork, Work
from autocompress.records import Estimate, Plan
from autocompress.space.space import Space
from autocompress.space.training import setting_words

#: Losses below this are told apart no further: log10 of it is the feature of a plan that loses nothing.
_SEEN = 1e-4
#: Latencies that are remembered.
_REMEMBERED = 20_000


class Predicts(Protocol):
    """Tells the latency of a plan."""

    def predict(self, plan: Plan) -> Estimate:
        """Milliseconds; InfeasibleError for a plan of which it knows nothing."""
        ...


class PlanGuide:
    """Implements `autocompress.search.problem.Guide` from a study's profile.

    Features, in the order of `names`: log2 of latency and of multiply-adds, as shares of the dense network's; log10 of
    the losses of cuts, bits, blocks and all of these, see `autocompress.pipeline.losses`; shares (of multiply-adds in
    integers, of weights that are zero, shared or left out by factors; mean bits of a weight over 32); what network is
    built; shares of cuts and masks by each criterion; 0 or 1 for each setting that the space offers; the share kept of
    each group that may be cut; 0 or 1 for each block that may go.

    Attributes:
        space: the study's.
        dense_ms: latency of the dense network.
        losses: of plans.
        predictor: tells latencies; None if there is no model, or it was refused.
    """

    def __init__(
        self,
        space: Space,
        sensitivity: Sensitivity,
        *,
        dense_ms: float,
        dense_macs: int | None = None,
        predictor: Predicts | None = None,
        integer: float = INTEGER,
        measure: str = "kl",
    ) -> None:
        """Take what the profile found.

        Args:
            space: the study's.
            sensitivity: of its network.
            dense_ms: latency of the dense network, milliseconds.
            dense_macs: multiply-adds of the dense artifact; those of plans are known exactly if the layers have all.
            predictor: of latencies.
            integer: what a multiply-add in integers takes beside one in floats, where there is no predictor.
            measure: of losses, ``"kl"`` or ``"loss"``.
        """
        self.space, self.dense_ms, self.predictor = space, dense_ms, predictor
        self.losses = Losses(space.structure, sensitivity, measure=measure)
        self._work, self._integer = Work(space.structure), integer
        self._exact_macs = dense_macs is not None and dense_macs == self._work.dense_macs
        self._known: dict[Plan, float | None] = {}
        cut = cuttable(space)
        self._groups = tuple((group.name, group.width) for group in space.structure.groups if group.name in cut)
        offered = [criterion for choice in space.groups for criterion in choice.criterion]
        self._criteria = tuple(dict.fromkeys([*offered, *(row.criterion for row in space.allocation.rows)]))
        self._settings = tuple(
            (knob.field, word) for knob in space.settings if len(knob.words) > 1 for word in knob.words
        )
        self._blocks = space.depth.droppable
        #: Group -> for each of its layers the blocks that it lies in.
        self._around = {
            group.name: tuple(
                frozenset(b.name for b in space.structure.blocks if layer in b.layers or layer.startswith(f"{b.name}."))
                for layer in group.layers
            )
            for group in space.structure.groups
        }

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the features; with a ``/`` what is of one group or block alone."""
        return (
            *("log2 latency", "log2 multiply-adds", "log10 loss of cuts", "log10 loss of bits"),
            *("log10 loss of blocks", "log10 loss", "integer multiply-adds", "bits", "zeros", "shared", "factorized"),
            *("built", "built width", "built depth"),
            *(f"criterion {name}" for name in self._criteria),
            *(f"{field} {word}" for field, word in self._settings),
            *(f"kept/{name}" for name, _ in self._groups),
            *(f"without/{name}" for name in self._blocks),
        )

    @property
    def latency_words(self) -> str:
        """Where latencies come from, for a reader."""
        if self.predictor is not None:
            return "latencies by the study's model"
        return f"no latency model: multiply-adds in its place, those in integers counted {self._integer:g} times"

    def costs(self, plan: Plan) -> dict[str, float]:
        """``latency_ms`` where the model knows the plan; ``macs`` where the structure tells them exactly."""
        found = {}
        latency = self._predicted(plan)
        if latency is not None:
            found["latency_ms"] = latency
        macs = self._work.macs(plan) if self._exact_macs else None
        if macs is not None:
            found["macs"] = float(macs)
        return found

    def latency_share(self, plan: Plan) -> float:
        """Latency as a share of the dense network's, > 0: predicted, or else the share of the work."""
        latency = self._predicted(plan)
        if latency is not None:
            return max(latency / self.dense_ms, 1e-6)
        return self._work.share(plan, integer=self._integer)

    def features(self, plan: Plan) -> np.ndarray:
        """Shape (d,), finite, in the order of `names`."""
        built = plan.architecture
        layers = {} if built is not None else self._work.layers(plan)
        macs = sum(layer.macs for layer in layers.values())
        share = self._work.share(plan, integer=1.0) if built is not None else macs / max(self._work.dense_macs, 1)
        losses = self.losses.of(plan)
        keeps = {cut.group: cut.keep for cut in plan.cuts}
        gone = frozenset(drop.block for drop in plan.drops)
        return np.array(
            [
                log2(self.latency_share(plan)),
                log2(max(share, 1e-6)),
                *(log10(value + _SEEN) for value in (losses.cuts, losses.bits, losses.drops, losses.total)),
                *self._shares(plan, layers, macs),
                float(built is not None),
                (built.width or 1.0) if built is not None else 1.0,
                (built.depth or 0.0) if built is not None else 0.0,
                *self._by_criterion(plan),
                *(float(setting_words(getattr(plan, field)) == word) for field, word in self._settings),
                *(self._kept(plan, name, width, keeps, gone) for name, width in self._groups),
                *(float(name in gone) for name in self._blocks),
            ],
            dtype=float,
        )

    def _predicted(self, plan: Plan) -> float | None:
        """Milliseconds by the model; None if it knows nothing of the plan."""
        if self.predictor is None:
            return None
        if plan not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            try:
                self._known[plan] = self.predictor.predict(plan).value
            except InfeasibleError:
                self._known[plan] = None
        return self._known[plan]

    def _shares(self, plan: Plan, layers: dict[str, LayerWork], macs: float) -> Sequence[float]:
        """Of multiply-adds in integers; mean bits over 32; of weights that are zero, shared, or left out by factors."""
        if plan.architecture is not None:
            return (float(plan.architecture.bits < 16), plan.architecture.bits / 32, 0.0, 0.0, 0.0)
        weights = sum(layer.weights for layer in layers.values()) or 1.0
        integers = sum(layer.macs for layer in layers.values() if layer.bits < 16)
        bits = sum(layer.weights * layer.bits for layer in layers.values()) / (32 * weights)
        zeros = sum(layers[mask.layer].weights * mask.sparsity for mask in plan.masks if mask.layer in layers)
        shared = sum(layers[entry.layer].weights for entry in plan.codebooks if entry.layer in layers)
        left_out = 0.0
        if plan.ranks:
            whole = self._work.layers(plan.model_copy(update={"ranks": ()}))
            full = sum(layer.weights for layer in whole.values()) or 1.0
            left_out = 1.0 - weights / full
        return (integers / max(macs, 1.0), bits, zeros / weights, shared / weights, left_out)

    def _by_criterion(self, plan: Plan) -> Sequence[float]:
        used = [cut.criterion for cut in plan.cuts] + [mask.criterion for mask in plan.masks]
        return [used.count(name) / max(1, len(used)) for name in self._criteria]

    def _kept(self, plan: Plan, name: str, width: int, keeps: dict[str, int], gone: frozenset[str]) -> float:
        if plan.architecture is not None:
            return min(plan.architecture.width or 1.0, 1.0)
        if gone and all(not gone.isdisjoint(around) for around in self._around[name]):
            return 0.0
        return keeps.get(name, width) / width


def study_guide(bench: Workbench, profile: Profile, *, measure: str = "kl") -> PlanGuide:
    """The guide of a prepared and profiled study.

    Args:
        bench: the study.
        profile: what its profile found.
        measure: of losses, ``"kl"`` or ``"loss"``.

    Raises:
        AutocompressError: the study's latency model is damaged or gone.
    """
    baseline, model = bench.prepared.baseline, profile.latency_model
    return PlanGuide(
        bench.space,
        profile.sensitivity,
        dense_ms=baseline.latency_ms,
        dense_macs=baseline.artifact.macs,
        predictor=load_predictor(bench, model) if model is not None else None,
        integer=INTEGER if 8 in bench.target.computes else 1.0,
        measure=measure,
    )
