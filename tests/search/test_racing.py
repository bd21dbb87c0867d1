import random

import pytest

from autotune.contract import Outcome, StepColumns, TrialResult
from autotune.search.racing import batch_means, hopeless

BEST = TrialResult(
    number=0, role="baseline", outcome=Outcome.OK, params={}, started_s=0.0, took_s=1.0, images_per_s=100.0,
    job_s=1010.0, job={"n_images": 1000, "epochs": 100},
    job_terms={"start_s": 10.0, "mosaic_epochs_s": 900.0, "closed_epochs_s": 100.0, "val_s": None},
)  # fmt: skip


def steps(seconds):
    return StepColumns(step_s=list(seconds), images=[10] * len(seconds))


def test_batch_means_are_ten_of_one_length():
    assert batch_means(steps([9.0] * 3 + [0.1] * 20)) == pytest.approx([0.01] * 10)


def test_clearly_slower_is_stopped_and_says_why():
    assert hopeless(steps([0.2] * 40), BEST, by_job=True) == "50 img/s after 40 steps, needs 86.96"


@pytest.mark.parametrize("n_steps", [0, 9])
def test_too_few_steps(n_steps):
    assert hopeless(steps([1.0] * n_steps), BEST, by_job=False) is None


def test_no_incumbent():
    assert hopeless(steps([1.0] * 40), None, by_job=False) is None


def test_noise_saves_it():
    assert hopeless(steps([0.1, 0.1, 0.1, 0.5] * 5), BEST, by_job=False) is None


def test_equally_good_is_never_stopped():
    rng = random.Random(1)
    runs = [[0.1 * rng.lognormvariate(0.0, 0.15) for _ in range(100)] for _ in range(200)]
    assert not any(hopeless(steps(run[:n]), BEST, by_job=False) for run in runs for n in (10, 20, 50, 100))


def test_a_short_job_may_be_won_at_a_lower_rate():
    import dataclasses

    short = dataclasses.replace(BEST, job_terms={"start_s": 90.0, "mosaic_epochs_s": 10.0}, job_s=100.0)
    assert hopeless(steps([0.2] * 40), short, by_job=True) is None
    assert hopeless(steps([0.2] * 40), short, by_job=False) is not None


def test_time_between_the_epochs_wins_nobody_a_lower_rate():
    import dataclasses

    job = {"start_s": 10.0, "mosaic_epochs_s": 100.0, "closed_epochs_s": 0.0}
    heavy = dataclasses.replace(BEST, job_terms={**job, "val_s": 5000.0, "save_s": 50.0}, job_s=5160.0)
    light = dataclasses.replace(BEST, job_terms={**job, "start_s": 5060.0}, job_s=5160.0)
    assert hopeless(steps([0.2] * 40), heavy, by_job=True) is not None, "every configuration validates as long"
    assert hopeless(steps([0.2] * 40), light, by_job=True) is None, "a start may be shorter"
