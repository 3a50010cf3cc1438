"""How removal and training alternate: the schedules of a plan.

Units are cut and blocks left out before, except where the cut itself goes in rounds. Whatever a schedule does, its
network has in the end exactly the zeros that the plan's masks ask for; every one is checked for it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from autocompress.compress.factorize import factorize
from autocompress.compress.fit import Hook
from autocompress.compress.fresh import redrawn
from autocompress.compress.gradual import MovingMasks, cubic
from autocompress.compress.masks import FixedMasks, Masks, known_layer, make_masks, masked_weight
from autocompress.compress.patterns import at_level, check_fits, zeros_asked
from autocompress.compress.prune import cut_channels
from autocompress.compress.sparse_training import Rewiring
from autocompress.compress.statistics import Statistics, collect_statistics
from autocompress.compress.train import Trainer
from autocompress.errors import CompressionError, InfeasibleError
from autocompress.inputs import Inputs
from autocompress.records import (
    Adaptive,
    ChannelCut,
    FromScratch,
    Gradual,
    Iterative,
    LotteryTicket,
    OneShot,
    Plan,
    SparseTraining,
    Structure,
    WeightMask,
)
from autocompress.rng import derive_seed

#: Criteria that need gradients of the network whose weights they score.
_OF_GRADIENTS = frozenset({"taylor", "hessian"})


def recover(
    module: nn.Module,
    plan: Plan,
    structure: Structure,
    statistics: Statistics,
    trainer: Trainer,
    *,
    example: Inputs,
    seed: int,
) -> tuple[nn.Module, Masks | None]:
    """Mask and train a network as the plan's schedule says.

    One-shot and from-scratch schedules need no masks: the network just trains. From scratch, sparse training and
    lottery tickets draw the weights anew and train at the recipe's learning rate; the others recover at the task's.

    Args:
        module: the dense network, or what is left of it after cuts (of none for an iterative schedule); left alone.
        plan: its masks and its schedule are used; an iterative one also cuts and factorizes, see `iterative`.
        structure: of the dense network.
        statistics: of the dense network.
        trainer: its epochs are divided among the schedule's trainings, except where the schedule's own text says that
            each is a full one (lottery ticket).
        example: a batch of inputs.
        seed: of criteria, random masks and fresh weights.

    Returns:
        A new module in evaluation mode, and its masks; None if the plan has none.

    Raises:
        InfeasibleError: the schedule needs masks and the plan has none, or a layer cannot have the pattern.
        CompressionError: training failed, or the zeros are not those that were asked.
    """
    schedule = plan.schedule
    if isinstance(schedule, Iterative):
        return iterative(module, plan, structure, statistics, trainer, example=example, seed=seed)
    _check_masks(plan, structure, {m.layer: tuple(masked_weight(module, m.layer).shape) for m in plan.masks})
    work = _Work(plan.masks, structure, statistics, trainer, seed)
    match schedule:
        case OneShot():
            result, masks = work.fixed(module, work.masks_of(module))
        case FromScratch():
            masks = work.masks_of(module)  # chosen by the trained weights
            result, masks = work.fixed(redrawn(module, seed=derive_seed(seed, "fresh")), masks, peak=work.base_rate)
        case Gradual() | Adaptive():
            result, masks = _moving(module, work, schedule)
        case SparseTraining():
            result, masks = _sparse(module, work, schedule)
        case LotteryTicket():
            result, masks = _ticket(module, work, schedule)
    return _checked(result, masks, plan.masks)


def iterative(
    module: nn.Module,
    plan: Plan,
    structure: Structure,
    statistics: Statistics,
    trainer: Trainer,
    *,
    example: Inputs,
    seed: int,
) -> tuple[nn.Module, Masks | None]:
    """Cut and mask in the rounds of an iterative schedule, training after each with an equal share of the epochs.

    Round r of R leaves :math:`w^{1 - r/R} k^{r/R}` of the w units of which k are to stay, and the share
    :math:`(1 - s)^{r/R}` of the weights of a layer that is to have the share s of zeros: an equal share of what is
    left each time. Factorization, which cannot go in rounds, happens in the last.

    Args:
        module: the dense network, with blocks already left out; left alone.
        plan: its cuts, ranks and masks are used, and its order: with ``"mask-cut"`` a round's masks are applied before
            its units are ranked; zeros that are then too many for what is left may grow again.
        structure: of the dense network.
        statistics: of the dense network.
        trainer: its epochs are divided.
        example: a batch of inputs.
        seed: of criteria.

    Returns:
        A new module in evaluation mode, and its masks; None if the plan has none.

    Raises:
        InfeasibleError: the plan's schedule is not iterative, or it cannot be built.
        CompressionError: a cut or training failed, or the zeros are not those that were asked.
    """
    if not isinstance(plan.schedule, Iterative):
        raise InfeasibleError(f"plan.schedule: expected an iterative one, got {plan.schedule.kind!r}")
    _check_masks(plan, structure, structure.shapes((cut.group, cut.keep) for cut in plan.cuts))
    work = _Work(plan.masks, structure, statistics, trainer, seed)
    rounds = plan.schedule.rounds
    widths = {cut.group: structure.group(cut.group).width for cut in plan.cuts}
    masks: Masks | None = None
    for number in range(1, rounds + 1):
        cuts = _cuts_of_round(plan.cuts, structure, number / rounds, widths)
        if cuts:
            ranked = work.masked(module, number / rounds) if plan.order == "mask-cut" else module
            cut_seed = derive_seed(seed, "cut", number)
            module = cut_channels(
                ranked,
                cuts,
                structure,
                statistics,
                example=example,
                seed=cut_seed,
                reconstruction=plan.reconstruction,
            )
        if number == rounds:
            module = factorize(module, plan.ranks)
        masks = work.masks_of(module, number / rounds)
        module, masks = work.fixed(module, masks, key=f"round {number}", share=1.0 / rounds)
    return _checked(module, masks, plan.masks)


@dataclass(frozen=True)
class _Work:
    """What every schedule needs."""

    asked: Sequence[WeightMask]
    structure: Structure
    statistics: Statistics
    trainer: Trainer
    seed: int

    @property
    def base_rate(self) -> float:
        """Peak learning rate of weights that start anew."""
        return self.trainer.task.recipe.learning_rate

    def masks_of(self, module: nn.Module, share: float = 1.0, statistics: Statistics | None = None) -> Masks | None:
        """Masks that leave (1 - sparsity)^share of the weights, by the plan's criteria; None if it has no masks.

        A pattern that does not fit the widths on the way waits for those at the end.
        """
        if not self.asked:
            return None
        levels = [at_level(mask, 1.0 - (1.0 - mask.sparsity) ** share) for mask in self.asked]
        now = [mask for mask in levels if mask is not None and (share == 1.0 or self._fits(module, mask))]
        return make_masks(module, now, self.structure, statistics or self.statistics, seed=self.seed)

    def masked(self, module: nn.Module, share: float) -> nn.Module:
        """A copy of the network under the masks of that level."""
        result = copy.deepcopy(module)
        if (masks := self.masks_of(module, share)) is not None:
            masks.apply(result)
        return result

    def fixed(
        self,
        module: nn.Module,
        masks: Masks | None,
        *,
        key: str = "recover",
        share: float = 1.0,
        peak: float | None = None,
        watchers: Sequence[Hook] = (),
    ) -> tuple[nn.Module, Masks | None]:
        """Train under masks that stay."""
        hooks = [*watchers, *([FixedMasks(masks)] if masks is not None else [])]
        return self.trainer.train(module, key=key, share=share, hooks=hooks, peak=peak), masks

    def _fits(self, module: nn.Module, mask: WeightMask) -> bool:
        shape = tuple(masked_weight(module, mask.layer).shape)
        try:
            check_fits(mask, known_layer(self.structure, mask.layer), shape)
        except InfeasibleError:
            return False
        return True


def _moving(module: nn.Module, work: _Work, schedule: Gradual | Adaptive) -> tuple[nn.Module, Masks | None]:
    """Masks are chosen anew during one training, from the weights as they are then."""
    initial = schedule.initial if isinstance(schedule, Gradual) else 0.0

    def choose(network: nn.Module, progress: float) -> Masks:
        levels = [at_level(mask, cubic(initial, mask.sparsity, progress)) for mask in work.asked]
        now = [mask for mask in levels if mask is not None]
        return make_masks(network, now, work.structure, work.statistics, seed=work.seed)

    hook = MovingMasks(choose, schedule, feedback=isinstance(schedule, Adaptive))
    result = work.trainer.train(module, key="recover", hooks=[hook])
    return result, hook.masks


def _sparse(module: nn.Module, work: _Work, schedule: SparseTraining) -> tuple[nn.Module, Masks | None]:
    """Random masks on fresh weights; the plan's sparsities are the layers', its criteria have no say."""
    patterned = [mask for mask in work.asked if mask.pattern != "element"]
    if patterned and schedule.method != "static":
        raise InfeasibleError(
            f"plan.schedule: {schedule.method} moves single weights, expected pattern 'element', got "
            f"{patterned[0].pattern!r} for {patterned[0].layer!r}; use the method 'static', or no pattern"
        )
    fresh = redrawn(module, seed=derive_seed(work.seed, "fresh"))
    random = [mask.model_copy(update={"criterion": "random"}) for mask in work.asked]
    start = make_masks(fresh, random, work.structure, work.statistics, seed=derive_seed(work.seed, "start"))
    hook = Rewiring(start, schedule, seed=work.seed)
    result = work.trainer.train(fresh, key="recover", hooks=[hook], peak=work.base_rate)
    return result, hook.masks


def _ticket(module: nn.Module, work: _Work, schedule: LotteryTicket) -> tuple[nn.Module, Masks | None]:
    """Every round trains in full: rounds + 1 trainings of the trainer's epochs, each one whole cycle."""
    fresh = redrawn(module, seed=derive_seed(work.seed, "fresh"))
    steps = work.trainer.steps()
    early = _Snapshot(min(round(schedule.rewind * steps), max(0, steps - 1)))
    trained, masks = work.fixed(fresh, None, key="round 0", peak=work.base_rate, watchers=[early])
    for number in range(1, schedule.rounds + 1):
        masks = work.masks_of(trained, number / schedule.rounds, _own_statistics(trained, work))
        if schedule.reinitialize:
            start = redrawn(module, seed=derive_seed(work.seed, "fresh", number))
        else:
            start = early.of(fresh)
        trained, masks = work.fixed(start, masks, key=f"round {number}", peak=work.base_rate)
    return trained, masks


class _Snapshot:
    """Keeps the weights as they are before a step, as a hook."""

    def __init__(self, step: int) -> None:
        self._step = step
        self._state: dict[str, Tensor] = {}

    def of(self, module: nn.Module) -> nn.Module:
        """A copy of `module` with the weights that were kept; with its own if there was no step."""
        result = copy.deepcopy(module)
        if self._state:
            result.load_state_dict(self._state, strict=True)
        return result

    def before_forward(self, module: nn.Module, step: int, steps: int) -> None:
        if step == self._step:
            self._state = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    def before_update(self, module: nn.Module, step: int, steps: int) -> None:
        pass

    def after_update(self, module: nn.Module, step: int, steps: int) -> None:
        pass

    def finish(self, module: nn.Module) -> None:
        pass


def _own_statistics(module: nn.Module, work: _Work) -> Statistics | None:
    """Gradients of a network that was trained from fresh weights: the dense network's say nothing about it."""
    if not any(mask.criterion in _OF_GRADIENTS for mask in work.asked):
        return None
    with work.trainer.guard():
        # Masks are chosen by gradients; nothing is cut, so that no inputs have to be known.
        nothing = Structure(groups=(), layers=())
        return collect_statistics(module, work.trainer.task, nothing, seed=derive_seed(work.seed, "statistics"))


def _cuts_of_round(
    cuts: Sequence[ChannelCut], structure: Structure, share: float, widths: dict[str, int]
) -> list[ChannelCut]:
    """The cuts that leave :math:`w^{1 - share} k^{share}` units; `widths`, which is brought up to date, is before."""
    found = []
    for cut in cuts:
        dense = structure.group(cut.group).width
        keep = max(cut.keep, round(dense ** (1.0 - share) * cut.keep**share))
        if keep < widths[cut.group]:
            found.append(cut.model_copy(update={"keep": keep}))
            widths[cut.group] = keep
    return found


def _check_masks(plan: Plan, structure: Structure, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse, before any training, a schedule without what it is for, and masks that layers of these shapes lack."""
    if isinstance(plan.schedule, Gradual | Adaptive | SparseTraining | LotteryTicket) and not plan.masks:
        raise InfeasibleError(
            f"plan.schedule: {plan.schedule.kind!r} needs masks, plan.masks is empty; mask layers, or choose one-shot, "
            "iterative or from-scratch"
        )
    for mask in plan.masks:
        layer = known_layer(structure, mask.layer)
        check_fits(mask, layer, shapes[mask.layer])


def _checked(module: nn.Module, masks: Masks | None, asked: Sequence[WeightMask]) -> tuple[nn.Module, Masks | None]:
    """What is returned, once every layer is known to have its zeros."""
    if masks is None:
        return module, None
    counts = masks.counts()
    for mask in asked:
        expected = zeros_asked(mask, tuple(masked_weight(module, mask.layer).shape))
        if counts.get(mask.layer, 0) != expected:
            raise CompressionError(
                f"mask of {mask.layer!r}: expected {expected} zeros at the end of training, got "
                f"{counts.get(mask.layer, 0)}"
            )
    masks.check(module)
    return module, masks
