"""A task that trains in a second: scikit-learn's digits, two convolutions."""

import time

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from autocompress import Recipe, Task


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


def tiny(delay: float = 0.0) -> Task:
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16.0
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, validation, selection, test = (TensorDataset(x[i], y[i]) for i in order.split([1000, 250, 250, 297]))

    def loss(outputs, targets):
        time.sleep(delay)  # makes a candidate slow enough to be interrupted
        return nn.functional.cross_entropy(outputs, targets)

    return Task(
        name="tiny",
        model=network,
        train=train,
        validation=validation,
        selection=selection,
        test=test,
        loss=loss,
        recipe=Recipe(epochs=4, learning_rate=0.1),
    )


def unprunable() -> Task:
    """A model that exports with a fixed batch: its reshape is hard-coded."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = network()

        def forward(self, x):
            return self.body(x).reshape(1, 10)

    task = tiny()
    return Task(
        name="fixed",
        model=Fixed,
        train=task.train,
        validation=task.validation,
        selection=task.selection,
        test=task.test,
        trained=True,
    )
