"""Networks of other widths and depths by a task's own builder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from autocompress.errors import TaskError
from autocompress.task import Task, fixed_randomness
from autocompress.tasks.digits import digits
from autocompress.tasks.sequences import reverse


class Net(nn.Module):
    def __init__(self, width: int = 8, classes: int = 3, inputs: int = 4) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(inputs, width), nn.Linear(width, classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.hidden(x).relu()))


def task_of(model: Callable[..., Any]) -> Task:
    data = TensorDataset(torch.randn(8, 4), torch.arange(8) % 3)
    return Task(name="toy", model=model, train=data, validation=data, selection=data, test=data)


def sized(width: float = 1.0, depth: int = 1) -> nn.Module:
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(depth)), Net(round(8 * width)))


def test_a_builder_gets_what_it_takes() -> None:
    task = task_of(sized)
    assert task.sizes == {"width": 1.0, "depth": 1.0}
    assert task.build(width=0.5)[-1].hidden.out_features == 4
    assert len(task.build(depth=3)) == 4
    assert len(task.build(width=0.25, depth=2)) == 3
    assert task.build()[-1].hidden.out_features == 8


def test_what_is_built_depends_on_the_global_stream_alone_and_leaves_modes_and_the_task() -> None:
    task = task_of(sized)
    with fixed_randomness(3):
        first = task.build(width=0.5)
    with fixed_randomness(3):
        again = task.build(width=0.5)
    with fixed_randomness(4):
        other = task.build(width=0.5)
    assert torch.equal(first[-1].hidden.weight, again[-1].hidden.weight)
    assert not torch.equal(first[-1].hidden.weight, other[-1].hidden.weight)
    assert all(part.training for part in first.modules())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize(("model", "asked", "message"), [
    (lambda: Net(), {"width": 0.5},
     "task 'toy': expected a model function that takes 'width' .a multiplier, 1.0 for the dense network., got one that "
     "takes neither width nor depth; write it as 'def model.width=1.0.', or leave architecture.width out"),
    (lambda width=1.0: Net(), {"depth": 2}, "that takes 'depth' .*, got one that takes width; write it as"),
    (lambda **sizes: Net(), {"width": 0.5}, "got one that takes neither width nor depth"),
    (Net, {"width": 0.5},
     "the argument 'width' of its model function: expected the default of a multiplier, 1.0 for the dense network, got "
     "the default 8; wrap it: 'def model.width=1.0.'"),
    (lambda width=1.0, depth=None: Net(), {"depth": 2}, "argument 'depth' .* got no default"),
    (lambda width=True: Net(), {"width": 0.5}, "got the default True"),
    (lambda width=1.0: Net(round(0.9 * width)), {"width": 0.5},
     r"with width=0.5: expected layers with one unit at least, got hidden.weight of shape \(0, 4\); let it round up"),
    (lambda width=1.0: None if width < 1 else Net(), {"width": 0.5},
     "expected its model function with width=0.5 to return a torch.nn.Module, got NoneType"),
    (lambda width=1.0: Net(classes=3 if width == 1 else 2), {"width": 0.5},
     r"with width=0.5: expected outputs of the dense model's shape \(1, 3\) for one example, got \(1, 2\)"),
    (lambda width=1.0: Net(inputs=round(4 * width)), {"width": 0.5},
     "the module that its model function returns with width=0.5 does not take an example: RuntimeError"),
    (lambda width=1.0: 1 / 0 if width < 1 else Net(), {"width": 0.5},
     "its model function with width=0.5 raised ZeroDivisionError: division by zero"),
])  # fmt: skip
def test_a_builder_that_cannot_is_refused(model: Callable[..., Any], asked: dict[str, float], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task_of(model).build(**asked)


def test_what_a_builder_cannot_be_asked_for_is_no_size() -> None:
    assert task_of(Net).sizes == {}
    assert task_of(lambda width=1.0, depth=20: Net()).sizes == {"width": 1.0, "depth": 20.0}


@pytest.mark.parametrize("task", [digits(), reverse(examples=40, depth=2)], ids=["digits", "reverse"])
def test_built_in_tasks_build_smaller_networks_with_fresh_weights(task: Task) -> None:
    def weights(**sizes: float) -> int:
        return sum(p.numel() for p in task.build(**sizes).parameters())

    assert weights(width=0.25) < weights(width=0.5) < weights(width=1.0) == weights()
    assert weights(depth=0.34) < weights(depth=1.0)
    drawn = []
    for seed in (0, 1, 1):
        with fixed_randomness(seed):
            drawn.append(next(iter(task.build(width=0.5).parameters())).detach())
    assert torch.equal(drawn[1], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])
    dense = [next(iter(task.build().parameters())).detach() for _ in range(2)]
    assert torch.equal(dense[0], dense[1])
