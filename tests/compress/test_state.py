from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from autocompress.compress.state import load_module, module_digest, save_module, save_tensors, tensors_digest
from autocompress.errors import CompressionError
from autocompress.models.resnet import resnet_cifar


def test_a_saved_module_comes_back_bit_for_bit(tmp_path: Path) -> None:
    first, second = (resnet_cifar(8, (8, 8, 8), 4, 1, "projection") for _ in range(2))
    first(torch.randn(4, 1, 8, 8))
    save_module(first, tmp_path / "m.safetensors")
    assert module_digest(second) != module_digest(first)
    assert load_module(second, tmp_path / "m.safetensors") is second
    assert module_digest(second) == module_digest(first)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_digest_is_of_names_shapes_kinds_and_values_but_not_of_order() -> None:
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3])
    base = tensors_digest({"a": a, "b": b})
    assert tensors_digest({"b": b, "a": a}) == base
    changes = [{"a": a + 1, "b": b}, {"c": a, "b": b}, {"a": a.view(1, 2), "b": b}, {"a": a.double(), "b": b}, {"a": a}]
    assert len({base, *(tensors_digest(change) for change in changes)}) == 6


def test_damaged_foreign_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(CompressionError, match=r"m\.safetensors, which does not exist"):
        load_module(nn.Linear(2, 2), path)
    save_module(nn.Linear(2, 2), path)
    with pytest.raises(CompressionError, match=r"weight: expected shape \(3, 2\), got \(2, 2\)"):
        load_module(nn.Linear(2, 3), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CompressionError, match="the file was changed after it was written"):
        load_module(nn.Linear(2, 2), path)
    path.write_bytes(whole[:-3])
    with pytest.raises(CompressionError, match="cannot be read as safetensors"):
        load_module(nn.Linear(2, 2), path)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "inner").touch()
    with pytest.raises(OSError, match="folder"):  # a folder is in the way of the rename
        save_tensors({"a": torch.zeros(1)}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
    with pytest.raises(FileNotFoundError, match=r"a\.safetensors: expected a folder .*gone to write to, got none"):
        save_tensors({"a": torch.zeros(1)}, tmp_path / "gone" / "a.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]
