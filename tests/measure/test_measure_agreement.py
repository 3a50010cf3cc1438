import numpy as np
import pytest

from autocompress.errors import MeasurementError
from autocompress.measure.agreement import agreement
from autocompress.measure.fairness import wilson


def scores(predictions):
    return np.eye(3)[np.array(predictions)]


def test_shares_are_of_equal_predictions_right_or_wrong():
    targets = np.array([0, 0, 0, 1, 1, 2])
    found = agreement(scores([0, 1, 0, 1, 2, 2]), scores([0, 1, 2, 1, 1, 0]), targets, scores([0, 1, 0, 1, 2, 0]))
    assert found.dense.value == 3 / 6
    assert (found.dense.low, found.dense.high) == wilson(3, 6)
    assert found.torch is not None
    assert found.torch.value == 5 / 6
    assert [(c.target, c.examples, c.dense.value, c.torch.value) for c in found.classes if c.torch] == [
        (0, 3, 2 / 3, 1.0),
        (1, 2, 0.5, 1.0),
        (2, 1, 0.0, 0.0),
    ]


def test_torch_is_left_out_where_it_is_another_network():
    found = agreement(scores([0, 1]), scores([0, 1]), np.array([0, 1]))
    assert found.torch is None
    assert all(c.torch is None for c in found.classes)


def test_what_is_no_classification_is_refused():
    with pytest.raises(MeasurementError, match=r"expected a classification.* got \(2, 3\) and float64 of shape \(2,\)"):
        agreement(scores([0, 1]), scores([0, 1]), np.array([0.0, 1.0]))
    with pytest.raises(MeasurementError, match=r"torch: expected outputs of shape \(2, 3\), got \(1, 3\)"):
        agreement(scores([0, 1]), scores([0, 1]), np.array([0, 1]), scores([0]))
