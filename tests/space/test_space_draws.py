from __future__ import annotations

import numpy as np
import pytest

from autocompress.space.draws import Even, Tilted


def on_grid(value: float, step: float) -> bool:
    return abs(value / step - round(value / step)) < 1e-9


def test_parameters_of_a_network_lie_around_one_level() -> None:
    draws = Tilted(np.random.default_rng(0))
    values = [draws.suggest_float(f"sparsity/{i}", 0.0, 1.0, step=0.1) for i in range(50)]
    assert max(values) - min(values) <= 0.75
    assert all(on_grid(value, 0.1) for value in values)


@pytest.mark.parametrize("kind", [Even, Tilted])
def test_every_value_is_drawn_and_none_beside_the_grid(kind: type[Even] | type[Tilted]) -> None:
    rng = np.random.default_rng(1)
    draws = [kind(rng) for _ in range(300)]
    floats = {d.suggest_float("a/x", 0.25, 1.0, step=0.25) for d in draws}
    integers = {d.suggest_int("b/x", 2, 8, step=2) for d in draws}
    choices = {d.suggest_categorical("c/x", ["p", "q", "r"]) for d in draws}
    assert floats == {0.25, 0.5, 0.75, 1.0}
    assert integers == {2, 4, 6, 8}
    assert choices == {"p", "q", "r"}
    assert all(0.0 <= d.suggest_float("d", 0.0, 0.5) <= 0.5 for d in draws)


@pytest.mark.parametrize("kind", [Even, Tilted])
def test_a_seed_gives_the_same_draws(kind: type[Even] | type[Tilted]) -> None:
    first, second = (kind(np.random.default_rng(7)) for _ in range(2))
    for name in ("a/1", "a/2", "b"):
        assert first.suggest_float(name, 0, 1, step=0.01) == second.suggest_float(name, 0, 1, step=0.01)
        assert first.suggest_categorical("c/" + name, [1, 2, 3]) == second.suggest_categorical("c/" + name, [1, 2, 3])
