from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from spied import network, spied
from torch.utils.data import TensorDataset

from autocompress.errors import MeasurementError
from autocompress.pipeline.judge import check_classes


def test_a_drop_of_classes_needs_classes_and_leaves_the_network_alone() -> None:
    task, module = spied(), network().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    check_classes(task, module)
    assert module.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    inputs = task.example_input()
    numbers = replace(task, validation=TensorDataset(inputs.repeat(8, 1, 1, 1), torch.rand(8, 2)))
    with pytest.raises(
        MeasurementError,
        match=r"worst_class_drop: expected .* got outputs \(2, 2\) and torch.float32 targets \(2, 2\); leave",
    ):
        check_classes(numbers, module)
