"""Where a search begins: plans of a person's, an earlier study's front, what a knapsack chooses, uniform requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import log
from typing import TypeVar

from autocompress.compress.knapsack import choose_levels
from autocompress.errors import InfeasibleError
from autocompress.pipeline.earlier import earlier_plans, plan_files
from autocompress.pipeline.guide import PlanGuide
from autocompress.pipeline.prepare import Workbench
from autocompress.pipeline.profile import Profile
from autocompress.pipeline.progress import reporter
from autocompress.pipeline.seed_items import Items, items_of
from autocompress.records import Plan
from autocompress.space.space import Params, Space

T = TypeVar("T")
#: Total loss up to which a cheaper candidate counts as good as the dense network, in nats: budgets end there.
NEGLIGIBLE = 0.002
#: Total divergence beyond which no short recovery brings a candidate back, in nats: budgets begin there. A network that
#: was 88.5% accurate on Fashion-MNIST was, after a quarter of an epoch, 82% at 0.4 nats, 77% at 1.4, 70% at 2.0 and 45
#: to 66% beyond.
HOPELESS = 2.0
#: Budgets by which these places are sought.
_COARSE, _HALVINGS = 12, 4
#: How near to its budget a solution has to come, as a share; and how often the budget is corrected.
_NEAR, _CORRECTIONS = 0.02, 3
#: How far from its budget a solution may be at most, likewise; beyond it counts twice.
_FAR = 0.2
#: Share of the least loss that a solution may exceed it by: losses are known far less exactly.
_GAP = 1e-3
#: The dense network comes after so many others: it is known already.
_BEFORE_DENSE = 8


@dataclass(frozen=True)
class Seed:
    """One candidate to begin with.

    Attributes:
        name: where it came from, such as ``"budget-0.214"`` for a predicted share of the dense latency.
        params: of the space.
        plan: what they mean.
        share: predicted latency, or work, as a share of the dense network's.
    """

    name: str
    params: Params
    plan: Plan
    share: float


@dataclass(frozen=True)
class Seeds:
    """What a search begins with, in order, and what it does not.

    Attributes:
        points: distinct plans of the space.
        left_out: pairs of a name and a reason.
        notes: in words, where they came from.
    """

    points: tuple[Seed, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()


@dataclass
class _Collected:
    """Validated, distinct seeds of one study."""

    space: Space
    guide: PlanGuide
    seen: set[Plan] = field(default_factory=set)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def valid(self, plans: Iterable[tuple[str, Plan]]) -> list[Seed]:
        """Seeds for the plans that the space can express and that were not there already."""
        found = []
        for name, plan in plans:
            try:
                params = self.space.params(plan)
                same = self.space.plan(params) == plan
            except InfeasibleError as error:
                self.left_out.append((name, str(error)))
                continue
            if not same:
                self.left_out.append((name, f"plan {plan.key}: the space's parameters for it mean another plan"))
            elif plan not in self.seen:
                self.seen.add(plan)
                found.append(Seed(name, params, plan, self.guide.latency_share(plan)))
        return found


def seed_points(bench: Workbench, profile: Profile, guide: PlanGuide) -> list[tuple[str, Params]]:
    """What the search begins with, in order, and tell what was left out; see `find_seeds`.

    Args:
        bench: the prepared study.
        profile: of it.
        guide: from that profile.

    Raises:
        ConfigError: a plan file is wrong or outside of the space, or the earlier study is not there.
    """
    found = find_seeds(bench, profile, guide)
    report = reporter()
    for note in found.notes:
        report.stage("search", note)
    for name, reason in found.left_out:
        report.stage("search", f"seed {name} left out: {reason}")
    return [(seed.name, seed.params) for seed in found.points]


def find_seeds(bench: Workbench, profile: Profile, guide: PlanGuide) -> Seeds:
    """All seeds of a study: a person's plans; then, in turns, an earlier study's, a knapsack's and uniform ones.

    What only rounds the dense network comes before all but a person's. Every beginning of the rest is spread over
    latency, as far as its sources are. The dense network, whose values are known, comes late.

    Raises:
        ConfigError: a plan file is wrong or outside of the space, or the earlier study is not there.
    """
    settings, space = bench.study.search.seeds, bench.space
    own = plan_files(bench, settings.plans)
    earlier = earlier_plans(bench.study, settings.warm_start) if settings.warm_start else []
    solved = knapsack(items_of(guide, profile.sensitivity.criterion), settings.budgets)
    return ordered(space, guide, own=own, earlier=earlier, solved=solved, uniform=settings.uniform)


@dataclass(frozen=True)
class Solved:
    """What a knapsack chose, from the slowest to the fastest, and where latencies and losses came from."""

    plans: tuple[tuple[str, Plan], ...]
    notes: tuple[str, ...] = ()


def ordered(
    space: Space,
    guide: PlanGuide,
    *,
    own: Sequence[tuple[str, Plan]] = (),
    earlier: Sequence[tuple[str, Plan]] = (),
    solved: Solved = Solved(()),
    uniform: bool = True,
) -> Seeds:
    """Seeds of all kinds, validated, distinct and in order.

    Args:
        space: the study's.
        guide: tells latencies.
        own: plans of a person's, which come first.
        earlier: an earlier study's.
        solved: a knapsack's.
        uniform: also those that the space makes by itself.
    """
    collected = _Collected(space, guide)
    first = collected.valid(own)
    persons = len(first)
    dense = collected.valid([("dense", space.plan(space.dense()))])
    given = [(name, space.plan(params)) for name, params in space.seeds()] if uniform else []
    # Fewer bits alone are never trained, and are where whoever compresses by hand begins.
    first += collected.valid([seed for seed in given if seed[1].bits and not seed[1].changes_weights][:1])
    warm = spread(collected.valid(earlier), _share)
    falling = collected.valid(solved.plans)
    # What loses as good as nothing is worth having before all else; then the whole range.
    chosen = [*falling[:1], *spread(falling[1:], _share)]
    simple: list[Seed] = []
    if uniform:
        # In the space's own order: the most useful first; each four of them spread.
        offered = collected.valid(given)
        simple = [seed for at in range(0, len(offered), 4) for seed in spread(offered[at : at + 4], _share)]
    rest = in_turns(in_turns(warm, chosen, 1), simple, 3)
    points = [*first, *rest]
    late = max(_BEFORE_DENSE, persons)
    points[late:late] = dense
    return Seeds(tuple(points), tuple(collected.left_out), solved.notes)


def knapsack(items: Items, budgets: int) -> Solved:
    r"""For each of several latencies the candidate that loses least, if losses added up but for those of neighbours.

    Latencies are spread geometrically between the fastest candidate that loses as good as nothing, as any slower one is
    no better, and the fastest that is not beyond hope. Each solution starts from its slower neighbour's: around that
    the latency is taken to be a sum over items, whose knapsack is solved; then the latency of the whole is predicted,
    and the budget corrected by what the sum was off.

    Args:
        items: of the space.
        budgets: how many latencies.

    Returns:
        Distinct plans, named by their predicted share of the dense latency, from the slowest to the fastest.
    """
    if not budgets:
        return Solved(())
    if not items.items:
        return Solved((), ("no seeds by budget: the space has no cut, block or bits to choose",))
    slowest, cheapest = items.dense, _cheapest(items)
    high, low = items.share(slowest), items.share(cheapest)
    if not low < high:
        return Solved((), ("no seeds by budget: no choice of the space is known to be faster",))
    begin, end = _worthwhile(items, cheapest)
    found: dict[Plan, float] = {}
    state = begin
    for budget in _geometric(items.share(begin), items.share(end), budgets):
        state = _within(items, state, budget) or state
        found.setdefault(items.plan(state), items.share(state))
    found.pop(items.plan(slowest), None)
    words = "divergence from the dense model" if items.guide.losses.measure == "kl" else "increase of the loss"
    note = f"{len(found)} seeds by budget: least {words} at {budgets} latencies; {items.guide.latency_words}"
    return Solved(tuple((f"budget-{share:.3f}", plan) for plan, share in found.items()), (note,))


def _worthwhile(items: Items, cheapest: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """The fastest levels that lose as good as nothing, and the fastest that are not beyond hope."""
    most = HOPELESS if items.guide.losses.measure == "kl" else float("inf")
    steps = _geometric(items.share(items.dense), items.share(cheapest), _COARSE)
    chain = [items.dense]
    for budget in steps[1:]:
        chain.append(_within(items, chain[-1], budget) or cheapest)

    def fastest(limit: float) -> dict[str, int]:
        best = min((state for state in chain if items.loss(state) <= limit), key=items.share)
        slow = items.share(best)
        fast = next((step for step in steps if step < slow), slow)
        if fast < slow:
            for _ in range(_HALVINGS):
                middle = (slow * fast) ** 0.5
                state = _within(items, best, middle)
                if state is not None and items.loss(state) <= limit:
                    best, slow = state, middle
                else:
                    fast = middle
        return best

    begin, end = fastest(NEGLIGIBLE), fastest(most)
    return begin, end if items.share(end) < items.share(begin) else cheapest


def _within(items: Items, start: dict[str, int], budget: float, *, again: bool = True) -> dict[str, int] | None:
    """The levels that lose least with a predicted latency near the budget; None if none are found near it."""
    costs, here = items.linear(start), items.share(start)
    best: dict[str, int] | None = None
    gap = float("inf")
    wanted = budget
    for _ in range(_CORRECTIONS):
        try:
            chosen = choose_levels(items.losses, costs, wanted - here, items.limits, pairs=items.pairs, gap=_GAP)
        except InfeasibleError:
            break
        reached = items.share(chosen)
        # Beyond the budget counts twice: another budget asks for that.
        away = log(reached / budget) * (2.0 if reached > budget else -1.0)
        if away < gap:
            best, gap = chosen, away
        if away <= _NEAR:
            break
        wanted += budget - reached
    if gap <= _FAR:
        return best
    # Sums around a place so far away tell little: once more, from where they led.
    return _within(items, best, budget, again=False) if again and best is not None else None


def _cheapest(items: Items) -> dict[str, int]:
    """Levels of the least latency, as far as turns of sums lead."""
    best = items.dense
    for _ in range(4):
        costs = items.linear(best)
        chosen = choose_levels(costs, costs, float("inf"), items.limits, gap=_GAP)
        if items.share(chosen) >= items.share(best):
            break
        best = chosen
    return best


def _geometric(high: float, low: float, count: int) -> list[float]:
    if count == 1:
        return [(high * low) ** 0.5]
    return [high * (low / high) ** (i / (count - 1)) for i in range(count)]


def _share(seed: Seed) -> float:
    return seed.share


def spread(points: Sequence[T], place: Callable[[T], float]) -> list[T]:
    """The same points in an order of which every beginning is spread over log place.

    The i-th is the nearest that is left to the i-th value of van der Corput's sequence (1/2, 1/4, 3/4, ...) between
    the least and the greatest log place; of equally near ones the earlier.

    Args:
        points: any.
        place: of a point, > 0.

    References:
        van der Corput, 1935, "Verteilungsfunktionen".
    """
    left = [(log(place(point)), at) for at, point in enumerate(points)]
    low, high = min(left, default=(0.0, 0))[0], max(left, default=(0.0, 0))[0]
    found: list[T] = []
    for turn in range(1, len(left) + 1):
        wanted = low + _radical_inverse(turn) * (high - low)
        best = min(left, key=lambda entry: (abs(entry[0] - wanted), entry[1]))
        left.remove(best)
        found.append(points[best[1]])
    return found


def _radical_inverse(number: int) -> float:
    """The binary digits of a number mirrored at the point: 1 -> 1/2, 2 -> 1/4, 3 -> 3/4."""
    found, step = 0.0, 0.5
    while number:
        found += step * (number & 1)
        number, step = number >> 1, step / 2
    return found


def in_turns(first: Sequence[T], second: Sequence[T], each: int) -> list[T]:
    """`each` of the first, one of the second, and so on; then what is left.

    Examples:
        >>> in_turns("abcde", "xy", 2)
        ['a', 'b', 'x', 'c', 'd', 'y', 'e']
    """
    found: list[T] = []
    for turn in range(max(-(-len(first) // each), len(second))):
        found += [*first[turn * each : (turn + 1) * each], *second[turn : turn + 1]]
    return found
