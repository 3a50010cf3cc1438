"""Tests of measurement take real times: they run alone."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        # Reading a file into another runtime takes no times.
        if item.path.is_relative_to(HERE) and item.path.name != "test_measure_onnx_to_torch.py":
            item.add_marker(pytest.mark.alone)
