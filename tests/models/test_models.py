from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from autocompress.errors import TaskError
from autocompress.models.resnet import resnet_cifar
from autocompress.models.weights import load_weights


@pytest.mark.parametrize(("depth", "shortcut"), [(8, "pad"), (20, "pad"), (8, "projection"), (14, "projection")])
def test_depth_counts_the_layers_with_weights_on_the_longest_path(depth: int, shortcut: str) -> None:
    module = resnet_cifar(depth=depth, widths=(4, 8, 16), classes=7, channels=1, shortcut=shortcut)
    layers = [m for n, m in module.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and ".sc." not in n]
    assert len(layers) == depth
    assert module(torch.zeros(3, 1, 16, 16)).shape == (3, 7)


def test_the_names_are_those_of_the_published_checkpoints() -> None:
    padded = set(resnet_cifar(depth=20).state_dict())
    assert {"conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer3.2.bn2.running_var", "linear.bias"} <= padded
    assert not any("downsample" in name or ".sc." in name for name in padded)
    projected = set(resnet_cifar(depth=20, widths=(32, 64, 128), shortcut="projection").state_dict())
    assert {"stem.0.weight", "stem.1.bias", "body.0.c1.weight", "body.8.b2.weight", "fc.weight"} <= projected
    assert {n for n in projected if ".sc.0" in n} == {"body.3.sc.0.weight", "body.6.sc.0.weight"}


def test_the_known_sizes_are_met() -> None:
    assert sum(p.numel() for p in resnet_cifar(depth=20).parameters()) == 269_722
    assert sum(p.numel() for p in resnet_cifar(depth=56).parameters()) == 853_018


def test_a_padded_shortcut_subsamples_and_centres_the_channels() -> None:
    module = resnet_cifar(depth=8, widths=(2, 6, 6), shortcut="pad").eval()
    block = module.get_submodule("layer2.0")
    for part in (block.conv2.weight, block.bn2.weight, block.bn2.bias):
        nn.init.zeros_(part)
    x = torch.rand(1, 2, 8, 8)
    y = block(x)
    assert torch.equal(y[:, 2:4], x[:, :, ::2, ::2])
    assert not y[:, :2].any()
    assert not y[:, 4:].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, "expected a depth of 6 n \\+ 2 .* got 21"),
        ({"depth": 2}, "got 2"),
        ({"widths": (16, 32)}, "expected three positive widths, got \\(16, 32\\)"),
        ({"widths": (32, 16, 8)}, "widths that do not fall"),
        ({"shortcut": "none"}, "expected shortcut 'pad' or 'projection', got 'none'"),
        ({"classes": 0}, "expected classes and channels >= 1, got 0 and 3"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        resnet_cifar(**arguments)  # type: ignore[arg-type]


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))


def test_weights_come_back_exactly_and_a_missing_counter_is_no_mismatch(tmp_path: Path) -> None:
    source, target = small(), small()
    weights = {k: v for k, v in source.state_dict().items() if not k.endswith("num_batches_tracked")}
    save_file(weights, tmp_path / "w.safetensors")
    assert load_weights(target, tmp_path / "w.safetensors") is target
    assert all(torch.equal(target.state_dict()[k], v) for k, v in weights.items())


def test_every_mismatch_is_named(tmp_path: Path) -> None:
    weights = small().state_dict()
    del weights["1.bias"]
    weights["extra"] = torch.zeros(1)
    weights["0.weight"] = torch.zeros(5, 1, 3, 3)
    weights["0.bias"] = torch.full((4,), float("nan"))
    weights["1.weight"] = torch.zeros(4, dtype=torch.float64)
    path = tmp_path / "w.safetensors"
    save_file(weights, path)
    with pytest.raises(TaskError, match="does not fit Sequential") as caught:
        load_weights(small(), path)
    text = str(caught.value)
    assert "1.bias is missing" in text
    assert "extra is not part of the module" in text
    assert "0.weight: expected shape (4, 1, 3, 3), got (5, 1, 3, 3)" in text
    assert "0.bias: expected finite values" in text
    assert "1.weight: expected torch.float32, got torch.float64" in text


def test_a_failed_load_leaves_the_module_as_it_was(tmp_path: Path) -> None:
    module = small()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    weights = {k: v + 1 for k, v in before.items()}
    del weights["1.bias"]
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(TaskError):
        load_weights(module, tmp_path / "w.safetensors")
    assert all(torch.equal(module.state_dict()[k], v) for k, v in before.items())


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.marker,)


def test_a_pickle_is_refused_and_its_payload_never_runs(tmp_path: Path) -> None:
    path, marker = tmp_path / "w.safetensors", tmp_path / "ran"
    torch.save({"0.weight": Payload(marker)}, path)
    with pytest.raises(TaskError, match=r"is no safetensors file .*pickled \.pt files are never opened"):
        load_weights(small(), path)
    assert not marker.exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"nowhere\.safetensors, which does not exist"):
        load_weights(small(), tmp_path / "nowhere.safetensors")
