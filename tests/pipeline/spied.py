"""A task whose datasets write down who was asked for examples."""

import torch
from torch import nn
from torch.utils.data import Dataset

from autocompress import Recipe, Task

ASKED: set[str] = set()


class Spied(Dataset):
    def __init__(self, role, n, shift=0.0):
        generator = torch.Generator().manual_seed(len(role))
        self.role = role
        self.targets = torch.arange(n) % 2
        # Two classes, told apart by which half of the image is bright.
        self.inputs = torch.rand(n, 1, 8, 8, generator=generator) * 0.5 + shift
        self.inputs[self.targets == 0, :, :4] += 0.5
        self.inputs[self.targets == 1, :, 4:] += 0.5

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        ASKED.add(self.role)
        return self.inputs[index], self.targets[index]


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 2),
    )


def spied(shift: float = 0.0, trained: bool = False) -> Task:
    return Task(
        name="spied",
        model=network,
        train=Spied("train", 192, shift),
        validation=Spied("validation", 64),
        selection=Spied("selection", 64),
        test=Spied("test", 64),
        trained=trained,
        recipe=Recipe(epochs=2, learning_rate=0.05, batch_size=32),
    )
