from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from autocompress.compress.train import train_base
from autocompress.errors import TaskError
from autocompress.models.lenet import simple_cnn
from autocompress.task import Task, fetch, load_task
from autocompress.tasks.digits import digits
from autocompress.tasks.images import ImageTensors, images

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def pixels(n: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (n, channels, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_pixels_are_normalized_by_channel_as_the_formula_says() -> None:
    x = pixels()
    data = ImageTensors(x, torch.arange(6), mean=MEAN, std=STD)
    for i in range(6):
        for c in range(3):
            expected = (x[i, c].double() / 255 - MEAN[c]) / STD[c]
            torch.testing.assert_close(data[i][0][c].double(), expected, rtol=1e-5, atol=1e-5)
    assert data[4][1] == 4


def test_items_batches_and_fetch_agree() -> None:
    data = ImageTensors(pixels(), torch.arange(6), mean=MEAN, std=STD)
    x, y = fetch(data, torch.tensor([5, 0, 3]))
    assert torch.equal(x, torch.stack([data[5][0], data[0][0], data[3][0]]))
    assert y.tolist() == [5, 0, 3]
    assert torch.equal(data[-1][0], data[5][0])


def test_an_index_beyond_the_end_stops_iteration() -> None:
    data = ImageTensors(pixels(), torch.arange(6), mean=MEAN, std=STD)
    assert len(list(data)) == 6  # type: ignore[call-overload]
    with pytest.raises(IndexError, match="below 6, got 6"):
        data[6]


def test_a_crop_is_a_shift_of_the_padded_image_and_a_flip_its_mirror() -> None:
    x = pixels(n=1).expand(64, -1, -1, -1)
    plain = ImageTensors(x, torch.zeros(64, dtype=torch.int64), mean=MEAN, std=STD)[0][0]
    padded = torch.nn.functional.pad(plain, (2, 2, 2, 2))
    allowed = [padded[:, r : r + 8, c : c + 8] for r in range(5) for c in range(5)]
    allowed += [view.flip(2) for view in allowed]
    data = ImageTensors(x, torch.zeros(64, dtype=torch.int64), mean=MEAN, std=STD, crop=2, flip=True)
    torch.manual_seed(0)
    batch, _ = data.batch(torch.arange(64))
    found = {next(i for i, view in enumerate(allowed) if torch.equal(view, image)) for image in batch}
    assert len(found) > 20
    assert min(found) < 25 <= max(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(6, 3, 8, 8)}, "expected uint8 of shape"),
        ({"targets": torch.arange(5)}, "targets: expected 6 integers"),
        ({"mean": (0.5,)}, "expected 3 values each"),
        ({"std": (0.1, 0.0, 0.1)}, "expected positive values"),
        ({"crop": -1}, "number of pixels >= 0, got -1"),
    ],
)
def test_disagreeing_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"images": pixels(), "targets": torch.arange(6), "mean": MEAN, "std": STD, **change}
    with pytest.raises(TaskError, match=message):
        ImageTensors(**arguments)


def roles(task: Task) -> dict[str, ImageTensors]:
    found = {r: getattr(task, r) for r in ("train", "validation", "selection", "test")}
    assert all(isinstance(part, ImageTensors) for part in found.values())
    return found


def test_the_digits_are_split_into_four_disjoint_stratified_roles() -> None:
    parts = roles(digits())
    assert {role: len(part) for role, part in parts.items()} == {
        "train": 1000,
        "validation": 250,
        "selection": 250,
        "test": 297,
    }
    for part in parts.values():
        shares = torch.bincount(part.targets, minlength=10) / len(part)
        assert shares.min() > 0.09
        assert shares.max() < 0.112
    everything = torch.cat([part.images for part in parts.values()]).flatten(1)
    original = load_digits().images.reshape(1797, -1).astype(np.uint8)
    assert sorted(map(bytes, everything.numpy())) == sorted(map(bytes, original))


def test_the_digits_depend_on_their_seed_and_on_nothing_else() -> None:
    torch.manual_seed(1)
    first = digits(3)
    weights = first.build().state_dict()
    torch.manual_seed(2)
    second = digits(3)
    state = torch.random.get_rng_state()
    again = second.build().state_dict()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(roles(first)["train"].images, roles(second)["train"].images)
    assert all(torch.equal(weights[k], again[k]) for k in weights)
    assert not torch.equal(roles(first)["train"].images, roles(digits(4))["train"].images)


@pytest.mark.slow
def test_the_digits_reach_97_percent() -> None:
    task = digits()
    module = train_base(task, task.build(), seed=0)
    x, y = fetch(task.test, torch.arange(297))
    with torch.no_grad():
        assert (module(x).argmax(1) == y).float().mean() >= 0.97


def npz(path: Path, **change: Any) -> str:
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(256, size=(60, 8, 8, 3), dtype=np.uint8),
        "y_train": np.arange(60, dtype=np.uint8) % 10,
        "x_test": rng.integers(256, size=(20, 8, 8, 3), dtype=np.uint8),
        "y_test": np.arange(20, dtype=np.uint8) % 10,
    }
    arrays.update(change)
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return str(path)


NETWORK = {"depth": 8, "widths": [4, 8, 8], "shortcut": "projection"}


def test_images_follow_the_permutation_that_the_weights_were_trained_with(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz")
    task = images(path, NETWORK, MEAN, STD, holdout=11, split_seed=5)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    x = torch.from_numpy(np.load(path)["x_train"]).permute(0, 3, 1, 2)
    parts = roles(task)
    assert torch.equal(parts["train"].images, x[order[:49]])
    assert torch.equal(parts["validation"].images, x[order[49:54]])
    assert torch.equal(parts["selection"].images, x[order[54:]])
    assert len(parts["test"]) == 20
    assert not task.trained


def test_only_the_training_split_is_augmented(tmp_path: Path) -> None:
    parts = roles(images(npz(tmp_path / "d.npz"), NETWORK, MEAN, STD, holdout=10))
    for role, part in parts.items():
        first, second = (part.batch(torch.arange(len(part)))[0] for _ in range(2))
        assert torch.equal(first, second) == (role != "train")


def test_grey_images_get_a_channel_and_load_task_takes_json_arguments(tmp_path: Path) -> None:
    grey = npz(tmp_path / "g.npz", x_train=np.zeros((60, 8, 8), np.uint8), x_test=np.zeros((20, 8, 8), np.uint8))
    arguments = {"data": grey, "network": {**NETWORK, "channels": 1}, "mean": [0.1], "std": [0.3], "holdout": 10}
    task = load_task("autocompress.tasks.images:images", json.loads(json.dumps(arguments)))
    assert task.example_input().shape == (1, 1, 8, 8)
    assert task.build()(task.example_input()).shape == (1, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, r"lacks \['y_test'\]"),
        ({"x_train": np.zeros((60, 8, 8, 3), np.float32)}, "x_train: expected uint8"),
        ({"x_train": np.array([{}], dtype=object)}, "cannot be read as .npz"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        images(npz(tmp_path / "d.npz", **change), NETWORK, MEAN, STD, holdout=10)


def test_missing_files_and_a_holdout_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="which does not exist"):
        images(str(tmp_path / "no.npz"), NETWORK, MEAN, STD)
    path = npz(tmp_path / "d.npz")
    with pytest.raises(TaskError, match="holdout: expected at least 2 and fewer than the 60 training images, got 60"):
        images(path, NETWORK, MEAN, STD, holdout=60)
    task = images(path, NETWORK, MEAN, STD, holdout=10, weights=str(tmp_path / "no.safetensors"))
    assert task.trained
    with pytest.raises(TaskError, match=r"no\.safetensors, which does not exist"):
        task.build()
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(TaskError, match=r"cannot be read as \.npz"):
        images(str(tmp_path / "text.npz"), NETWORK, MEAN, STD)


def test_any_function_may_build_the_network(tmp_path: Path) -> None:
    path = npz(tmp_path / "d.npz")
    network = {"kind": "autocompress.models.lenet:simple_cnn", "width": 4, "image": 8, "channels": 3}
    task = images(path, network, MEAN, STD, holdout=10, seed=2)
    module = task.build()
    assert type(module) is type(simple_cnn(width=4, image=8, channels=3))
    assert module(task.example_input()).shape == (1, 10)
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), task.build().parameters(), strict=True))
    assert network["kind"] == "autocompress.models.lenet:simple_cnn"  # the mapping is left alone
    own = tmp_path / "own.py"
    own.write_text("import torch\n\ndef net(classes):\n    return torch.nn.Linear(2, classes)\n")
    built = images(path, {"kind": f"{own}:net", "classes": 7}, MEAN, STD, holdout=10).build()
    assert isinstance(built, torch.nn.Linear)
    assert built.out_features == 7


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("autocompress.models.lenet:lenet9", "has no 'lenet9'"),
        ("lenet5", "expected 'package.module:function'"),
        ("no_such_package:net", "No module named 'no_such_package'"),
        ("builtins:dict", "expected 'builtins:dict' to return a torch.nn.Module, got dict"),
    ],
)
def test_a_kind_that_builds_no_network_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    task = images(npz(tmp_path / "d.npz"), {"kind": kind}, MEAN, STD, holdout=10)
    with pytest.raises(TaskError, match=f"network.kind: .*{message}"):
        task.build()
