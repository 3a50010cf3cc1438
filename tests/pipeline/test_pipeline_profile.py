from __future__ import annotations

import pytest

from autocompress.pipeline.profile import enough_examples


@pytest.mark.parametrize(
    ("changes", "macs", "examples"),
    [
        (49, 162_366_720, 384),  # ResNet-20x2: 3.1e12 for all
        (47, 344_459_520, 198),  # MiniLM on 32 tokens
        (160, 4_100_000_000, 128),  # ResNet-50: as few as still order
        (0, 10, 384),
        (10, 0, 384),
    ],
)
def test_large_networks_are_judged_on_fewer_examples(changes: int, macs: int, examples: int) -> None:
    assert enough_examples(changes, macs) == examples
