"""Is an estimate from all runs nearer to the truth than the mean of a configuration's own two?"""

from __future__ import annotations

import sys
from dataclasses import replace
from math import exp, log
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from estimated import estimate

from autotune.recording import Recorded, Recording, read_recording
from tests.recorded_table import rate_of, write_table


def noisy(recording: Recording, seed: int, noise: float) -> Recording:
    """Two runs of every configuration, each with noise on the formula's rate."""
    rng = np.random.default_rng(seed)
    cells = {}
    for key, runs in recording.cells.items():
        result = runs[0].result
        if result.outcome.measured:
            rates = [rate_of(result.params) * exp(rng.normal(0, noise)) for _ in range(2)]
            cells[key] = tuple(Recorded(replace(result, images_per_s=x), runs[0].steps) for x in rates)
    return replace(recording, cells=cells)


@pytest.mark.parametrize("seed", range(3))
def test_nearer_than_the_mean_of_two(tmp_path: Path, seed: int) -> None:
    recording = noisy(read_recording(str(write_table(tmp_path / "t"))), seed, 0.08)
    found = estimate(recording)
    true = {key: rate_of(runs[0].result.params) for key, runs in recording.cells.items()}
    by_mean = [log((recording.truth(runs[0].result.params) or 0) / true[k]) for k, runs in recording.cells.items()]
    by_all = [log(found.images_per_s[key] / true[key]) for key in true]
    assert np.std(by_all) < 0.9 * np.std(by_mean)
    assert 0.04 < found.noise_frac <= 0.12
    off = np.array([by_all[i] / max(found.sd_frac[key], 1e-9) for i, key in enumerate(true)])
    assert np.sqrt(np.mean(off**2)) < 2, "it knows how well it knows"


def test_without_noise_it_is_what_was_measured(tmp_path: Path) -> None:
    recording = noisy(read_recording(str(write_table(tmp_path / "t"))), 0, 0.0)
    found = estimate(recording)
    for runs in recording.cells.values():
        result = runs[0].result
        key = next(k for k, rs in recording.cells.items() if rs is runs)
        assert found.images_per_s[key] == pytest.approx(result.images_per_s, rel=0.01)
