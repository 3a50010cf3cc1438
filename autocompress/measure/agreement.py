"""How often two models predict alike, whether right or wrong: what an accuracy alone does not tell."""

from __future__ import annotations

import numpy as np

from autocompress.errors import MeasurementError
from autocompress.measure.fairness import is_classification, wilson
from autocompress.records import Agreement, ClassAgreement, Estimate


def agreement(
    outputs: np.ndarray, dense: np.ndarray, targets: np.ndarray, torch_outputs: np.ndarray | None = None
) -> Agreement:
    """Compare the artifact's predictions with the dense model's and with torch's, overall and class by class.

    A prediction is the class of the largest output. Intervals of the shares are Wilson's, 95%.

    Args:
        outputs: shape (n, classes), of the artifact.
        dense: shape (n, classes), of the dense artifact on the same examples.
        targets: shape (n,), class indices.
        torch_outputs: shape (n, classes), of the torch network behind the artifact; None to leave it out.

    Raises:
        MeasurementError: the outputs are not those of a classification, or shapes disagree.
    """
    others = {"dense": dense} | ({} if torch_outputs is None else {"torch": torch_outputs})
    if not is_classification(outputs, targets) or len(targets) == 0:
        raise MeasurementError(
            "agreement: expected a classification, outputs of shape (n, classes) and integer targets of shape (n,), "
            f"got {outputs.shape} and {targets.dtype} of shape {targets.shape}"
        )
    alike: dict[str, np.ndarray] = {}
    for name, other in others.items():
        if other.shape != outputs.shape:
            raise MeasurementError(f"agreement: {name}: expected outputs of shape {outputs.shape}, got {other.shape}")
        alike[name] = other.argmax(axis=1) == outputs.argmax(axis=1)
    return Agreement(
        **{name: _share(same) for name, same in alike.items()},
        classes=tuple(
            ClassAgreement(
                target=int(c),
                examples=int(np.sum(targets == c)),
                **{name: _share(same[targets == c]) for name, same in alike.items()},
            )
            for c in np.unique(targets)
        ),
    )


def _share(alike: np.ndarray) -> Estimate:
    low, high = wilson(int(alike.sum()), len(alike))
    return Estimate(value=float(alike.mean()), low=low, high=high)
