"""Drift is told from noise, by repeats of whatever ran more than once."""

import numpy as np
import pytest

from autotune.drift import drift_of


def recorded(seed: int, *, drift: float, noise: float, n_cells: int = 60, n_blocks: int = 2):
    """Cells in shuffled blocks with a sentinel before every eighth; (configurations, log rates, true drift)."""
    rng = np.random.default_rng(seed)
    level = rng.normal(4.0, 0.4, n_cells)
    names: list[int] = []
    for _ in range(n_blocks):
        for i, cell in enumerate(rng.permutation(n_cells)):
            names += [0, int(cell)] if i % 8 == 0 else [int(cell)]
    n = len(names)
    true = drift * np.sin(np.arange(n) / n * 2 * np.pi)
    return names, level[names] + true + rng.normal(0, noise, n), true


@pytest.mark.parametrize("seed", range(3))
def test_noise_alone_is_no_drift(seed: int) -> None:
    names, rates, _ = recorded(seed, drift=0.0, noise=0.08)
    assert np.std(drift_of(names, list(rates))) < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_a_slow_drift_is_found_in_the_noise(seed: int) -> None:
    names, rates, true = recorded(seed, drift=0.2, noise=0.05)
    found = np.array(drift_of(names, list(rates)))
    assert np.std(found - (true - true.mean())) < 0.05
    assert np.corrcoef(found, true)[0, 1] > 0.95


def test_nothing_repeated_tells_nothing() -> None:
    assert drift_of(["a", "b", "a", "b"], [1.0, 2.0, 1.5, 2.5]) == [0.0] * 4
    assert drift_of([], []) == []
