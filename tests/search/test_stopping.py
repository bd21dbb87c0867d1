"""When is another trial not worth its time?"""

import pytest

from autotune.search import stopping
from autotune.search.situation import Proposal
from autotune.search.stopping import Stopping

TINY, LARGE = 1e-5, 0.2
LATE = max(stopping.MIN_TRIALS, stopping.MIN_TRIALS_PAID) + 5


def ask(rule, gain_frac, *, n_trials=LATE, misfit_frac=0.01, price_s=20.0, job_s=None):
    proposal = Proposal(gain_frac=gain_frac, misfit_frac=misfit_frac)
    return rule.why(proposal, n_trials=n_trials, price_s=price_s, job_s=job_s)


def answers(gains, **given):
    """One rule asked after each of some trials."""
    rule = Stopping()
    return [ask(rule, gain, **{"n_trials": LATE + i, **given}) for i, gain in enumerate(gains)]


def test_a_small_gain_ends_it_when_it_is_expected_twice_in_a_row():
    assert [bool(a) for a in answers([TINY, LARGE, TINY, TINY])] == [False, False, False, True]


def test_asked_again_without_a_new_trial_it_has_learned_nothing():
    """A proposal that was known already, or left out, is asked for again: that is one opinion, not two."""
    rule = Stopping()
    assert [ask(rule, TINY) for _ in range(4)] == [None] * 4
    assert ask(rule, TINY, n_trials=LATE + 1)


def test_not_before_there_were_some_trials():
    early = stopping.MIN_TRIALS - 3
    rule = Stopping()
    said = [ask(rule, TINY, n_trials=n) for n in range(early, stopping.MIN_TRIALS + 1)]
    assert [bool(a) for a in said] == [False, False, False, True]


def test_a_model_that_is_far_off_has_to_expect_less():
    gain = 0.7 * stopping.GAIN_FRAC
    assert answers([gain, gain])[-1]
    assert answers([gain, gain], misfit_frac=4 * stopping.TRUSTED_MISFIT_FRAC) == [None, None]
    assert answers([gain / 8, gain / 8], misfit_frac=4 * stopping.TRUSTED_MISFIT_FRAC)[-1]


def test_a_job_that_is_too_short_for_another_trial_ends_it_twice_in_a_row():
    short = {"job_s": 90.0, "price_s": 20.0}
    assert [bool(a) for a in answers([LARGE, LARGE], **short)] == [False, True]
    assert answers([LARGE, LARGE], job_s=500.0, price_s=20.0) == [None, None], "100 s may be saved with 20"
    assert answers([LARGE, LARGE], job_s=None) == [None, None], "the objective is no time"
    assert answers([LARGE, LARGE], n_trials=stopping.MIN_TRIALS_PAID - 1, **short) == [None, None]
    mixed = Stopping()
    said = [ask(mixed, g, n_trials=LATE + i, **short) for i, g in enumerate((LARGE, 0.9, LARGE, LARGE))]
    assert [bool(a) for a in said] == [False, False, False, True]


@pytest.mark.parametrize("gains", [[TINY, TINY], [-1.0, -1.0]])
def test_says_why_and_what_it_would_cost_to_go_on(gains):
    said = answers(gains, price_s=37.2, misfit_frac=0.023)[-1]
    assert said
    assert said.endswith("to go on costs about 37 s a trial")
    assert "the model is 2% off" in said
    assert "0.00%" in said, "less than nothing is not expected"


def test_says_what_it_would_save_of_the_job():
    said = answers([0.1, 0.1], job_s=90.0, price_s=20.0)[-1]
    assert said == (
        "another trial may be expected to save 9.0 s of your job of 90 s, less than it takes; "
        "to go on costs about 20 s a trial"
    )


def test_without_a_model_it_never_ends():
    assert answers([None] * 50, job_s=1.0, price_s=1e6) == [None] * 50
