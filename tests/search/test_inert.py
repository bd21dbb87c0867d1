"""What cannot matter now is left as it is, until it matters again."""

import pytest

from autotune.contract import Outcome, TrialResult
from autotune.search.inert import EXCHANGE_FRAC, MIN_TRIALS, WAIT_FRAC, frozen
from autotune.search.ran import Ran

DOMAIN = ("workers", "cache", "batch_per_gpu", "bucket_cap_mb", "no_sync")
BEST = {"workers": 4, "cache": "ram", "batch_per_gpu": 32, "bucket_cap_mb": 16, "no_sync": None}
LITTLE, MUCH = 0.3 * WAIT_FRAC, 5 * WAIT_FRAC


def ran(number, value, *, wait=LITTLE, params=None, outcome=Outcome.OK, role="trial"):
    result = TrialResult(
        number=number, role=role, outcome=outcome, params=BEST if params is None else params, started_s=0.0, took_s=1.0,
        wait_frac=wait,
    )  # fmt: skip
    return Ran(result, {}, value)


def near(n=MIN_TRIALS, **fields):
    """The best, which has other params than those behind it, and some that are as fast."""
    rest = [ran(i, 100.0 + i, params={**BEST, "workers": 2}, **fields) for i in range(1, n)]
    return [*rest, ran(0, 99.0, **fields)]


def test_a_loader_that_nobody_waits_for_stays_as_the_best_has_it():
    fixed, why = frozen(near(), {}, DOMAIN)
    assert fixed == {"workers": 4, "cache": "ram"}
    assert list(why) == ["loader"]
    assert f"the {MIN_TRIALS} fastest trials wait for data" in why["loader"]


def test_it_thaws_when_a_fast_trial_waits_again():
    assert frozen([*near(), ran(9, 98.0, wait=MUCH)], {}, DOMAIN) == ({}, {})
    slow = [*near(), ran(9, 200.0, wait=MUCH)]
    assert frozen(slow, {}, DOMAIN)[0], "what is far from the best says nothing of it"
    faster = [*near(), ran(9, 60.0), ran(10, 61.0, wait=LITTLE)]
    assert len(near()) == MIN_TRIALS
    assert frozen(faster, {}, DOMAIN) == ({}, {}), "a new best with too few beside it"


@pytest.mark.parametrize(
    "runs",
    [
        [],
        near(MIN_TRIALS - 1),
        near(wait=None),
        near(outcome=Outcome.PRUNED),
        near(outcome=Outcome.OOM),
        near(role="probe"),
        [*near()[:-1], ran(0, 99.0, params={**BEST, "workers": 0})],
        [ran(i, None) for i in range(5)],
    ],
    ids=["nothing", "few", "unknown", "pruned", "oom", "probes", "no workers: it is waited for", "no value"],
)
def test_nothing_is_frozen_on_too_little(runs):
    assert frozen(runs, {}, DOMAIN) == ({}, {})


def test_communication_that_is_hidden():
    runs = near(wait=MUCH)
    hidden = {r.number: 0.3 * EXCHANGE_FRAC for r in runs}
    fixed, why = frozen(runs, hidden, DOMAIN)
    assert fixed == {"bucket_cap_mb": 16}, "no_sync is inert there: the sampler need not be told"
    assert list(why) == ["communication"]
    assert frozen(runs, {**hidden, 0: 10 * EXCHANGE_FRAC}, DOMAIN) == ({}, {})
    assert frozen(runs, {n: e for n, e in hidden.items() if n}, DOMAIN) == ({}, {}), "unknown of one"


def test_only_what_is_searched():
    assert frozen(near(), {}, ("batch_per_gpu", "cache"))[0] == {"cache": "ram"}
