"""Hashes of what a value depends on: data, weights, code."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

import torch

import autocompress
from autocompress.inputs import named
from autocompress.task import fetch, fixed_randomness, plain

#: Libraries whose version can change a measured value.
VERSIONED = ("autocompress", "torch", "onnx", "onnxruntime", "optuna", "ray", "mlflow", "prefect")


def dataset_digest(dataset: Any) -> str:
    """sha256 over the values of all inputs and targets, in order, without augmentation.

    Args:
        dataset: map-style; if it augments, it offers ``plain()``, the same data without.
    """
    data = plain(dataset)
    total = hashlib.sha256()
    # A dataset that augments without offering `plain` draws the same every time.
    with fixed_randomness(0):
        for indices in torch.split(torch.arange(len(dataset)), 1000):
            inputs, targets = fetch(data, indices)
            for part in (*named(inputs).values(), targets):
                total.update(f"{part.dtype}{tuple(part.shape)}".encode())
                total.update(part.contiguous().numpy().tobytes())
    return total.hexdigest()


def code_digest(task_reference: str) -> str:
    """sha256 over the source files of autocompress and of the module that holds the task function."""
    total = hashlib.sha256()
    for path in [*sorted(Path(autocompress.__path__[0]).rglob("*.py")), _source(task_reference.partition(":")[0])]:
        if path is not None:
            total.update(path.name.encode())
            total.update(path.read_bytes())
    return total.hexdigest()


def task_code_digest(task_reference: str) -> str:
    """sha256 of the source file that holds the task function; empty if it has no source."""
    path = _source(task_reference.partition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path is not None else ""


def versions() -> dict[str, str]:
    """Installed versions of the libraries that a value depends on."""
    return {name: importlib.metadata.version(name) for name in VERSIONED}


def _source(module_name: str) -> Path | None:
    if module_name.endswith(".py"):
        return Path(module_name)
    spec = importlib.util.find_spec(module_name)
    return Path(spec.origin) if spec is not None and spec.origin is not None else None
