"""What compression does to single classes, and to single examples.

A compressed model of nearly the same accuracy may have lost one class for another. Dense and compressed model are
compared on the same examples, class by class.

References:
    Hooker et al., 2019, "What Do Compressed Deep Neural Networks Forget?" (class impact, pruning-identified exemplars);
    Wilson, 1927, "Probable Inference, the Law of Succession, and Statistical Inference" (interval of a share);
    Tango, 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design" (interval of a difference of paired shares).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.quality import difference
from autocompress.records import ClassChange, Estimate, Fairness
from autocompress.task import top1

#: Outside the interval, on either side.
_TAIL = 0.025


def is_classification(outputs: np.ndarray, targets: np.ndarray) -> bool:
    """True if `fairness` applies: scores of shape (n, classes >= 2), and one class index for each example."""
    return (
        outputs.ndim == 2
        and outputs.shape[1] >= 2
        and targets.shape == outputs.shape[:1]
        and np.issubdtype(targets.dtype, np.integer)
    )


def fairness(outputs_dense: np.ndarray, outputs: np.ndarray, targets: np.ndarray, *, seed: int) -> Fairness:
    """Compare the compressed with the dense model class by class.

    Recall of a class is the share of its examples whose largest output is the class; its interval is Wilson's. The
    interval of a change is Tango's, which unlike a bootstrap does not shrink to a point where no prediction changed.
    The largest drop is max_c (dense_c - compressed_c). Its upper bound is the largest of the classes' upper bounds;
    its lower bound the largest of their lower bounds, taken at a tail of 0.025 / classes, as any of them may exceed
    the truth. Classes with few examples make it wide.

    Args:
        outputs_dense: shape (n, classes), scores of the dense model.
        outputs: shape (n, classes), scores of the compressed model on the same examples.
        targets: shape (n,), class indices.
        seed: of the bootstrap behind the overall change.

    Returns:
        Changes of the classes that have examples; 95% intervals throughout.

    Raises:
        MeasurementError: the outputs are not those of a classification, shapes disagree, or a target is no class.
    """
    for name, array in (("outputs_dense", outputs_dense), ("outputs", outputs)):
        if not is_classification(array, targets):
            raise MeasurementError(
                f"fairness: expected a classification, {name} of shape (n, classes) and integer targets of shape "
                f"(n,), got {array.shape} and {targets.dtype} of shape {targets.shape}; leave worst_class_drop out "
                "of the objectives of any other task"
            )
    classes = outputs.shape[1]
    if outputs_dense.shape != outputs.shape:
        raise MeasurementError(
            f"fairness: expected outputs of one shape, got {outputs_dense.shape} and {outputs.shape}"
        )
    if len(targets) == 0 or targets.min() < 0 or targets.max() >= classes:
        found = f"{targets.min()} to {targets.max()}" if len(targets) else "none"
        raise MeasurementError(f"fairness: expected targets from 0 to {classes - 1}, got {found}")
    dense, compressed = (scores.argmax(axis=1) == targets for scores in (outputs_dense, outputs))
    present = [int(c) for c in np.unique(targets)]
    changes = tuple(_class_change(c, dense, compressed, targets == c) for c in present)
    worst = min(changes, key=lambda change: change.change.value)  # the first of equal ones
    counts = [_discordant(dense[targets == c], compressed[targets == c]) for c in present]
    lows = [tango(lost, gained, n, tail=_TAIL / len(present))[0] for lost, gained, n in counts]
    return Fairness(
        classes=changes,
        overall=difference(top1, outputs, outputs_dense, targets, seed=seed),
        worst_class=worst.target,
        worst_class_drop=Estimate(
            value=0.0 - worst.change.value, low=max(lows), high=max(0.0 - change.change.low for change in changes)
        ),
    )


def pies(dense: np.ndarray, compressed: np.ndarray) -> np.ndarray:
    """Pruning-identified exemplars: examples that most compressed models predict otherwise than most dense ones.

    Args:
        dense: shape (K, n), class indices predicted by K dense models, such as of K seeds.
        compressed: shape (L, n), by L compressed models on the same examples.

    Returns:
        Indices of the examples, ascending. Of equally frequent predictions the smallest counts.

    Raises:
        MeasurementError: shapes disagree, there is no model, or a prediction is no class index.
    """
    if dense.ndim != 2 or compressed.ndim != 2 or dense.shape[1] != compressed.shape[1] or 0 in dense.shape[:1]:
        raise MeasurementError(
            "pies: expected predictions of shape (models, n) for the same n examples, got "
            f"{dense.shape} and {compressed.shape}"
        )
    if len(compressed) == 0:
        raise MeasurementError("pies: expected at least one compressed model, got none")
    for name, array in (("dense", dense), ("compressed", compressed)):
        if not np.issubdtype(array.dtype, np.integer) or (array.size and array.min() < 0):
            raise MeasurementError(f"pies: {name}: expected class indices >= 0, got {array.dtype}")
    return np.flatnonzero(_modes(dense) != _modes(compressed))


def class_impact(dense: np.ndarray, compressed: np.ndarray, targets: np.ndarray) -> dict[int, tuple[float, float]]:
    """Class impact over several models: does a class change otherwise than the whole does?

    For model k, a_k = recall of the class - accuracy, over dense and over compressed models; impact is Welch's t
    between the two samples. `fairness` gives the counterpart for one model of each, over examples.

    Args:
        dense: shape (K, n), predictions of K >= 2 dense models.
        compressed: shape (L, n), of L >= 2 compressed models.
        targets: shape (n,), class indices.

    Returns:
        Class -> (t, two-sided p); below 0: the class loses more than the whole. A class in which neither sample
        varies has no t and is left out.

    Raises:
        MeasurementError: shapes disagree, or there are fewer than two models of a kind.
    """
    if (
        min(len(dense), len(compressed)) < 2
        or dense.shape[1:] != targets.shape
        or compressed.shape[1:] != targets.shape
    ):
        raise MeasurementError(
            "class_impact: expected predictions of shape (models >= 2, n) for n targets, got "
            f"{dense.shape}, {compressed.shape} and {targets.shape}"
        )
    impacts: dict[int, tuple[float, float]] = {}
    for target in (int(c) for c in np.unique(targets)):
        before, after = (
            (predicted == targets)[:, targets == target].mean(axis=1) - (predicted == targets).mean(axis=1)
            for predicted in (dense, compressed)
        )
        found = welch(after, before)
        if found is not None:
            impacts[target] = found
    return impacts


def wilson(right: int, count: int, tail: float = _TAIL) -> tuple[float, float]:
    """Wilson's interval of a share of which right / count was seen; `tail` is left out on either side.

    (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)
    """
    z2 = NormalDist().inv_cdf(1 - tail) ** 2
    share = right / count
    middle = share + z2 / (2 * count)
    half = math.sqrt(z2 * (share * (1 - share) / count + z2 / (4 * count**2)))
    scale = 1 + z2 / count
    # At 0 and at `count` the bounds are exactly 0 and 1, which rounding may miss.
    low = 0.0 if right == 0 else (middle - half) / scale
    return low, 1.0 if right == count else (middle + half) / scale


def tango(first_only: int, second_only: int, count: int, tail: float = _TAIL) -> tuple[float, float]:
    """Tango's score interval of the difference of two paired shares, first - second.

    All δ with abs(b - c - n δ) <= z sqrt(n (2 q + δ (1 - δ))), where q is the likeliest share of examples that only
    the second gets right, if the difference is δ.

    Args:
        first_only: b, examples that only the first gets right.
        second_only: c, examples that only the second gets right.
        count: n, all examples.
        tail: what is left out on either side.
    """
    z = NormalDist().inv_cdf(1 - tail)
    b, c, n = first_only, second_only, count

    def score(delta: float) -> float:
        """Falls as delta rises; crosses z at the lower bound, -z at the upper one."""
        linear = -b - c + (2 * n - b + c) * delta
        root = math.sqrt(max(linear**2 + 8 * n * c * delta * (1 - delta), 0.0))
        q = (root - linear) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        gap = b - c - n * delta
        if variance <= 1e-12:
            return math.copysign(math.inf, gap) if gap else 0.0
        return gap / math.sqrt(variance)

    observed = (b - c) / n
    return _crossing(score, z, -1.0, observed), _crossing(score, -z, observed, 1.0)


def welch(first: np.ndarray, second: np.ndarray) -> tuple[float, float] | None:
    """Welch's t of mean(first) - mean(second), and its two-sided p.

    Args:
        first: shape (n,).
        second: shape (m,).

    Returns:
        None if a sample has fewer than two values, or neither varies.
    """
    # Lazy: scipy is heavy, and only this needs it.
    from scipy.special import stdtr

    if min(len(first), len(second)) < 2:
        return None
    a, b = float(np.var(first, ddof=1)) / len(first), float(np.var(second, ddof=1)) / len(second)
    if a + b <= 1e-18:  # equal values differ by rounding
        return None
    t = (float(np.mean(first)) - float(np.mean(second))) / math.sqrt(a + b)
    freedom = (a + b) ** 2 / (a**2 / (len(first) - 1) + b**2 / (len(second) - 1))
    return t, float(2 * stdtr(freedom, -abs(t)))


def _class_change(target: int, dense: np.ndarray, compressed: np.ndarray, members: np.ndarray) -> ClassChange:
    lost, gained, count = _discordant(dense[members], compressed[members])
    low, high = tango(gained, lost, count)
    value = (gained - lost) / count
    moved = compressed.astype(float) - dense.astype(float)
    found = welch(moved[members], moved[~members])
    return ClassChange(
        target=target,
        examples=count,
        dense=_recall(dense[members]),
        compressed=_recall(compressed[members]),
        change=Estimate(value=value, low=min(low, value), high=max(high, value)),
        impact=found[0] if found else None,
        p_value=found[1] if found else None,
    )


def _recall(right: np.ndarray) -> Estimate:
    low, high = wilson(int(right.sum()), len(right))
    return Estimate(value=float(right.mean()), low=low, high=high)


def _discordant(dense: np.ndarray, compressed: np.ndarray) -> tuple[int, int, int]:
    """How many examples only the dense model gets right, only the compressed one, and all."""
    return int(np.sum(dense & ~compressed)), int(np.sum(compressed & ~dense)), len(dense)


def _modes(predictions: np.ndarray) -> np.ndarray:
    """Most frequent prediction of each example, shape (n,)."""
    classes = int(predictions.max(initial=0)) + 1
    votes = np.stack([(predictions == c).sum(axis=0) for c in range(classes)])
    modes: np.ndarray = votes.argmax(axis=0)
    return modes


def _crossing(falling: Callable[[float], float], level: float, low: float, high: float) -> float:
    """Where a falling function passes `level` between two points, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        if falling(middle) > level:
            low = middle
        else:
            high = middle
    return (low + high) / 2
