from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

from autocompress.compress.distil import attention_map, class_axis, feature_distance, lesson, response_loss
from autocompress.compress.state import module_digest
from autocompress.compress.taps import captured, find_taps
from autocompress.compress.train import Trainer
from autocompress.errors import InfeasibleError
from autocompress.models.resnet import resnet_cifar
from autocompress.records import AttentionTransfer, Distillation, Features, NoDistillation, Response, SequenceLevel
from autocompress.task import Recipe, Task

X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 3, 0, 1])


def task_of(build: Callable[[], nn.Module], inputs: Tensor = X, targets: Tensor = Y, **change: object) -> Task:
    data = TensorDataset(inputs, targets)
    fields: dict[str, object] = {"recipe": Recipe(epochs=1, batch_size=3), **change}
    return Task(
        name="t", model=build, train=data, validation=data, selection=data, test=data, **fields  # type: ignore[arg-type]
    )  # fmt: skip


def resnet(width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return resnet_cifar(depth=8, widths=(width, width, width), classes=4, shortcut="projection")


TEACHER, STUDENT = resnet(8, 0), resnet(4, 1)


def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 throughout, to compare with a naive loop."""
    monkeypatch.setattr("autocompress.compress.fast._has_bfloat16", lambda: False)


def kl(teacher: np.ndarray, student: np.ndarray, temperature: float) -> float:
    """Of one prediction's logits."""
    p, q = (np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (teacher, student))
    return float(sum(p[j] * np.log(p[j] / q[j]) for j in range(len(p))))


@pytest.mark.parametrize(("temperature", "alpha"), [(3.0, 0.9), (1.0, 0.5), (5.0, 1.0)])
def test_response_is_hintons_formula(temperature: float, alpha: float) -> None:
    s, t = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    y = torch.tensor([0, 1, 2, 3, 0])
    hard = functional.cross_entropy(s, y)
    soft = sum(kl(t[i].numpy(), s[i].numpy(), temperature) for i in range(5)) / 5
    got = response_loss(s, t, y, hard, temperature=temperature, alpha=alpha)
    assert float(got) == pytest.approx((1 - alpha) * float(hard) + alpha * temperature**2 * soft, rel=1e-6)
    zero = response_loss(s, s, y, torch.tensor(0.0), temperature=temperature, alpha=alpha)
    assert float(zero) == pytest.approx(0.0, abs=1e-9)


def test_positions_are_predictions_and_ignored_ones_do_not_count() -> None:
    s, t = torch.randn(2, 3, 5).double(), torch.randn(2, 3, 5).double()
    y = torch.tensor([[0, 1, -100], [4, -100, -100]])
    each = [kl(t[i, j].numpy(), s[i, j].numpy(), 2.0) for i in range(2) for j in range(3) if y[i, j] >= 0]
    got = response_loss(s, t, y, torch.tensor(0.0), temperature=2.0, alpha=1.0)
    assert float(got) == pytest.approx(4 * sum(each) / 3, rel=1e-6)
    maps = response_loss(
        s.movedim(-1, 1)[..., None],
        t.movedim(-1, 1)[..., None],
        y[..., None],
        torch.tensor(0.0),
        temperature=2,
        alpha=1,
    )
    assert float(maps) == pytest.approx(float(got), rel=1e-9)


@pytest.mark.parametrize(
    ("outputs", "targets", "axis"),
    [
        ((6, 4), torch.zeros(6, dtype=torch.int64), 1),
        ((6, 5, 4), torch.zeros(6, 5, dtype=torch.int64), 2),
        ((6, 4, 5), torch.zeros(6, 5, dtype=torch.int64), 1),
        ((6, 4, 5, 7), torch.zeros(6, 5, 7, dtype=torch.int64), 1),
        ((6, 5, 7, 4), torch.zeros(6, 5, 7, dtype=torch.int64), 3),
        ((6, 1), torch.zeros(6, dtype=torch.int64), None),
        ((6,), torch.zeros(6, dtype=torch.int64), None),
        ((6, 4), torch.zeros(6, 4), None),
        ((6, 4), torch.zeros(6, 4, dtype=torch.bool), None),
    ],
)
def test_the_axis_of_classes_is_told_by_the_targets(
    outputs: tuple[int, ...], targets: Tensor, axis: int | None
) -> None:
    assert class_axis(torch.zeros(outputs), targets) == axis


def test_outputs_that_are_no_logits_are_compared_by_their_squares() -> None:
    s, t = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [4.0]])
    got = response_loss(s, t, torch.zeros(2, 1), torch.tensor(1.0), temperature=3.0, alpha=0.9)
    assert float(got) == pytest.approx(0.1 + 0.9 * 2.5)


def test_feature_distance_is_half_the_mean_square() -> None:
    assert float(feature_distance(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 2.0]]))) == 0.5 * 9 / 2


def test_an_attention_map_is_a_normed_mean_of_squares() -> None:
    features = torch.randn(2, 3, 4, 5)
    naive = np.zeros((2, 3, 4))
    for n, y, x in np.ndindex(2, 3, 4):
        naive[n, y, x] = np.mean([float(features[n, y, x, c]) ** 2 for c in range(5)])
    naive /= np.sqrt((naive**2).sum(axis=(1, 2), keepdims=True))
    torch.testing.assert_close(attention_map(features), torch.from_numpy(naive).float())
    assert not attention_map(torch.zeros(1, 2, 2, 3)).any()


def test_blocks_of_both_networks_are_tapped_in_order() -> None:
    taps = find_taps(TEACHER, STUDENT, X[:1])
    assert [tap.name for tap in taps] == ["body.0", "body.1", "body.2"]
    assert [(tap.teacher, tap.student) for tap in taps] == [
        ((8, 8, 8), (8, 8, 4)), ((4, 4, 8), (4, 4, 4)), ((2, 2, 8), (2, 2, 4)),
    ]  # fmt: skip
    dropped = copy.deepcopy(STUDENT)
    dropped.body[1] = nn.Identity()  # a block that is left out; what flows past it has the first stage's size
    dropped.body[2] = resnet_cifar(depth=8, widths=(4, 4, 4), shortcut="projection").body[1]
    found = {tap.name: tap.aligned for tap in find_taps(TEACHER, dropped, X[:1])}
    assert found == {"body.0": True, "body.1": False, "body.2": False}
    with captured(TEACHER, taps) as found:
        TEACHER(X)
    assert [f.shape for f in found] == [(6, 8, 8, 8), (6, 4, 4, 8), (6, 2, 2, 8)]
    assert not any(part._forward_hooks for net in (TEACHER, STUDENT) for part in net.modules())


def test_a_sequence_has_its_channels_last_and_few_layers_are_tapped_at_their_weights() -> None:
    class Tokens(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.embed, self.lstm = nn.Embedding(5, 4), nn.LSTM(4, width, batch_first=True)
            self.mid, self.out = nn.Linear(width, 6), nn.Linear(6, 5)

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.relu(self.mid(self.lstm(self.embed(ids))[0])))

    ids = torch.zeros(1, 7, dtype=torch.int64)
    taps = find_taps(Tokens(8), Tokens(3), ids)
    assert [(tap.name, tap.teacher, tap.student) for tap in taps] == [
        ("lstm", (7, 8), (7, 3)), ("mid", (7, 6), (7, 6)),
    ]  # fmt: skip


def test_features_add_the_mean_distance_of_regressed_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    exact(monkeypatch)
    task = task_of(lambda: TEACHER)
    loss = lesson(Features(weight=2.0), task, TEACHER, STUDENT, X[:1], seed=0)
    helpers = loss.parameters()
    assert [tuple(p.shape) for p in helpers] == [(8, 4), (8,)] * 3
    student, teacher = copy.deepcopy(STUDENT).train(), copy.deepcopy(TEACHER).eval()
    got = loss(student, X, Y)
    torch.autograd.backward(got)
    assert all(p.grad is not None for p in helpers)
    taps = find_taps(teacher, student, X[:1])
    with captured(teacher, taps) as shown, captured(student, taps) as answered, torch.no_grad():
        t, s = teacher(X), student(X)
    distances = []
    for i, (f_t, f_s) in enumerate(zip(shown, answered, strict=True)):
        regressed = f_s @ helpers[2 * i].detach().T + helpers[2 * i + 1].detach()  # a 1 x 1 convolution
        distances.append(0.5 * float(((f_t - regressed) ** 2).mean()))
    base = response_loss(s, t, Y, functional.cross_entropy(s, Y), temperature=3.0, alpha=0.9)
    assert got.item() == pytest.approx(float(base) + 2.0 * float(np.mean(distances)), rel=1e-4)


def test_regressors_begin_as_the_identity_where_channels_agree() -> None:
    loss = lesson(Features(), task_of(lambda: TEACHER), TEACHER, copy.deepcopy(TEACHER), X[:1], seed=0)
    assert torch.equal(loss.parameters()[0], torch.eye(8))


def test_attention_weighs_all_pairs_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    exact(monkeypatch)
    task = task_of(lambda: TEACHER)
    loss = lesson(AttentionTransfer(weight=3.0), task, TEACHER, STUDENT, X[:1], seed=0)
    student, teacher = copy.deepcopy(STUDENT).train(), copy.deepcopy(TEACHER).eval()
    got = loss(student, X, Y)
    taps = find_taps(teacher, student, X[:1])
    with captured(teacher, taps) as shown, captured(student, taps) as answered, torch.no_grad():
        t, s = teacher(X), student(X)
    parts = vars(loss)
    total = 0.0
    with torch.no_grad():
        for n in range(6):
            for i, f_t in enumerate(shown):
                query = parts["queries"][i](f_t[n].mean((0, 1)))
                a_t = attention_map(f_t[n : n + 1])
                logits, distances = [], []
                for j, f_s in enumerate(answered):
                    key = parts["bilinear"](parts["keys"][j](f_s[n].mean((0, 1))))
                    place = parts["teacher_places"][i] @ parts["student_places"][j]
                    logits.append(float((query @ key + place) / 32**0.5))
                    a_s = attention_map(f_s[n : n + 1])
                    if a_s.shape != a_t.shape:
                        a_s = functional.interpolate(a_s[None], size=a_t.shape[1:], mode="bilinear")[0]
                        a_s = a_s / a_s.square().sum().sqrt()
                    distances.append(float((a_t - a_s).square().sum()))
                weights = np.exp(logits) / np.exp(logits).sum()
                total += float(weights @ distances)
    base = response_loss(s, t, Y, functional.cross_entropy(s, Y), temperature=3.0, alpha=0.9)
    assert got.item() == pytest.approx(float(base) + 3.0 * total / (6 * 3), rel=1e-4)


def test_sequence_level_trains_on_what_the_teacher_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    exact(monkeypatch)
    asked: list[int] = []

    class Speaker(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x)

        def generate(self, inputs: Tensor, *, beams: int) -> tuple[Tensor, Tensor]:
            assert not torch.is_grad_enabled()
            assert not self.training
            asked.append(beams)
            return 2 * inputs, self(inputs).argmax(-1)

    torch.manual_seed(0)
    teacher, student, x = Speaker().train(), Speaker(), torch.randn(5, 4)
    task = task_of(Speaker, x, torch.zeros(5, dtype=torch.int64))
    got = lesson(SequenceLevel(beams=3), task, teacher, student, x[:1], seed=0)(student, x, torch.zeros(5).long())
    expected = functional.cross_entropy(student(2 * x), teacher(x).argmax(-1))
    assert got.item() == pytest.approx(expected.item(), rel=1e-6)
    assert asked == [3]
    with pytest.raises(InfeasibleError, match=r"method generate\(inputs, \*, beams\) -> \(inputs, targets\), Linear"):
        lesson(SequenceLevel(), task, nn.Linear(4, 3), student, x[:1], seed=0)


def test_what_a_network_lacks_for_a_way_of_teaching_is_said() -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4))
    task = task_of(lambda: net, torch.randn(6, 4))
    with pytest.raises(InfeasibleError, match="attention needs an inner layer with positions"):
        lesson(AttentionTransfer(), task, net, net, torch.randn(1, 4), seed=0)
    with pytest.raises(InfeasibleError, match="features need an inner layer that dense and compressed network have"):
        lesson(Features(), task, nn.Sequential(nn.Linear(4, 4)), net, torch.randn(1, 4), seed=0)


@pytest.mark.parametrize("way", [NoDistillation(), Response(), Features(), AttentionTransfer()])
def test_only_the_student_learns_and_nothing_of_the_lesson_ships(way: Distillation) -> None:
    task = task_of(lambda: TEACHER)
    before = module_digest(TEACHER), module_digest(STUDENT)
    trainer = Trainer(task=task, teacher=TEACHER, distillation=way, epochs=1.0, seed=0)
    result = trainer.train(STUDENT, key="a")
    assert (module_digest(TEACHER), module_digest(STUDENT)) == before
    assert set(result.state_dict()) == set(STUDENT.state_dict())
    assert module_digest(result) != before[1]
    assert module_digest(trainer.train(STUDENT, key="a")) == module_digest(result)
    assert not any(part._forward_hooks for part in result.modules())
    assert all(p.grad is None for net in (TEACHER, result) for p in net.parameters())


def test_helpers_are_trained_beside_the_student() -> None:
    norms: list[float] = []

    class Spy:
        def begin(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
            self.groups = optimizer.param_groups

        def before_forward(self, module: nn.Module, step: int, steps: int) -> None: ...

        def before_update(self, module: nn.Module, step: int, steps: int) -> None: ...

        def after_update(self, module: nn.Module, step: int, steps: int) -> None:
            norms.append(float(self.groups[1]["params"][0].detach().norm()))
            assert self.groups[0]["lr"] == self.groups[1]["lr"] > 0.0

        def finish(self, module: nn.Module) -> None: ...

    trainer = Trainer(task=task_of(lambda: TEACHER), teacher=TEACHER, distillation=Features(), epochs=2.0, seed=0)
    trainer.train(STUDENT, key="a", hooks=[Spy()])
    assert len(norms) == len(set(norms)) == 4
