"""Is the formula off, or are the beliefs? And which settings are alike?"""

import numpy as np
import pytest

from autotune.search.misfit import MISFIT, WIDER, counts, likeliest, quadratic, similarity


def test_similarity_falls_with_the_settings_that_differ():
    rows = np.array([[0, 0, 0], [1, 0, 0], [1, 2, 0], [1, 2, 3]])
    s = similarity(rows, rows, np.ones(3))
    assert (np.diag(s) == 1).all()
    assert s == pytest.approx(s.T)
    assert s[0, 1] > s[0, 2] > s[0, 3] > 0
    assert s[0, 2] == pytest.approx(s[0, 1] ** 2)


def test_a_setting_that_runs_other_kernels_makes_more_of_a_difference():
    rows = np.array([[0, 0], [1, 0], [0, 1]])
    s = similarity(rows, rows, counts(("compile", "nccl_buffsize")))
    assert s[0, 1] < s[0, 2] < 1


def worlds(*, effect, odd, n=40, seed=0, mean=0.0, believed=0.0):
    """Observations of n configurations of 12 switches, each believed to move them by 5 %, give or take."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 2, (n, 12))
    beliefs = 0.05 * rows
    similar = similarity(rows, rows, np.ones(12))
    off = rows @ (effect * rng.standard_normal(12) + np.tile([mean, -mean], 6))
    off = off + odd * np.linalg.cholesky(similar + 1e-9 * np.eye(n)) @ rng.standard_normal(n)
    noise = np.full(n, 0.01)
    seen = off + noise * rng.standard_normal(n)
    # What is believed of the mean, if it is: half of the switches gain, and half lose.
    off = {1.0: seen - rows @ np.tile([believed, -believed], 6), 0.0: seen}
    return off, np.ones((n, n)), beliefs @ beliefs.T, similar, noise


@pytest.mark.parametrize("seed", range(5))
def test_beliefs_that_are_wrong_are_widened_and_the_formula_is_kept(seed):
    _, wider, misfit = likeliest(*worlds(effect=0.25, odd=0.0, seed=seed))
    assert wider == max(WIDER)
    assert misfit <= 0.04


@pytest.mark.parametrize("seed", range(5))
def test_a_formula_that_is_off_is_trusted_less(seed):
    assert likeliest(*worlds(effect=0.05, odd=0.15, seed=seed))[2] >= 0.08


@pytest.mark.parametrize("seed", range(5))
def test_where_all_is_as_believed_little_is_widened(seed):
    _, wider, misfit = likeliest(*worlds(effect=0.05, odd=0.0, seed=seed))
    assert wider <= 1.5
    assert misfit <= 0.02
    assert misfit in MISFIT


@pytest.mark.parametrize("seed", range(5))
def test_folklore_is_dropped_where_it_is_reversed_and_kept_where_it_holds(seed):
    """All settings do the opposite of what is believed, or just that; without a sign either way it is kept."""
    said = {"effect": 0.03, "odd": 0.0, "seed": seed, "believed": 0.15}
    assert likeliest(*worlds(mean=-0.15, **said))[0] == 0.0
    assert likeliest(*worlds(mean=0.15, **said))[0] == 1.0
    assert likeliest(*worlds(mean=0.1, **said))[0] == 1.0, "weaker than is believed"
    assert likeliest(*worlds(effect=0.03, odd=0.0, seed=seed))[0] == 1.0, "nothing speaks against it"


def test_quadratic_is_that_of_each_row():
    rng = np.random.default_rng(0)
    x, a = rng.normal(size=(5, 3)), rng.normal(size=(3, 3))
    assert quadratic(x, a) == pytest.approx([row @ a @ row for row in x])
