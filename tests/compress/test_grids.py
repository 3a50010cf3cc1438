from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.compress.grids import to_integers, weight_scales


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bits=st.integers(2, 8),
    channels=st.integers(1, 5),
    size=st.integers(1, 40),
    magnitude=st.sampled_from([1e-30, 1e-4, 1.0, 1e6]),
)
def test_scales_are_no_worse_than_that_of_the_largest_weight(
    seed: int, bits: int, channels: int, size: int, magnitude: float
) -> None:
    weight = (np.random.default_rng(seed).standard_normal((channels, size)) * magnitude).astype(np.float32)
    weight[0] = 0.0
    limit = 2 ** (bits - 1) - 1

    def error(scale: np.ndarray) -> np.ndarray:
        rounded = np.clip(np.rint(weight / scale[:, None]), -limit, limit) * scale[:, None]
        return ((rounded.astype(np.float64) - weight) ** 2).sum(1)

    top = np.abs(weight).max(1)
    naive = np.where(top > 0, top / limit, 1.0).astype(np.float32)
    scale = weight_scales(weight, bits)
    assert np.all(scale > 0)
    assert scale[0] == 1.0
    assert np.all(error(scale) <= error(naive) * (1 + 1e-5))
    assert np.abs(to_integers(weight, scale, bits)).max() <= limit
    assert not to_integers(weight, scale, bits)[0].any()
