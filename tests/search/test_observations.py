"""What does a trial teach the model, and how noisy does it hold it to be?"""

import math

import pytest

from autotune.contract import Outcome, TrialResult
from autotune.search import observations
from autotune.search.observations import NOISE_FRAC, PRUNED_SD, backward_per_forward, exchange_frac, pooled_noise
from autotune.search.ran import Ran

PARAMS = {"batch_per_gpu": 16, "workers": 4}
GIB = 2**30


def ran(number=1, role="trial", outcome=Outcome.OK, *, rate=100.0, params=None, probe=None, **fields):
    result = TrialResult(
        number=number, role=role, outcome=outcome, params=PARAMS if params is None else params, started_s=0.0,
        took_s=1.0, images_per_s=rate, probe=probe, n_steps=40, **fields,
    )  # fmt: skip
    return Ran(result, {}, None)


def observe(ran, *, on_cpu=True):
    return observations.observe(ran, on_cpu=on_cpu)


def one(*args, **fields):
    (seen,) = observe([ran(*args, **fields)])
    return seen


def test_a_trial_teaches_its_rate_its_waiting_and_its_peak():
    seen = one(wait_frac=0.2, peak_mem_bytes=(3 * GIB, 4 * GIB))
    assert seen.params == PARAMS
    assert seen.image_s == pytest.approx(0.01)
    assert (seen.wait_frac, seen.mem_bytes, seen.oom) == (0.2, 4 * GIB, False)
    assert seen.exchange_frac is None, "one rank, or nobody knows"


def test_what_really_ran_counts():
    assert one(effective={"workers": 2, "optimizer": "SGD"}).params == {"batch_per_gpu": 16, "workers": 2}


def test_a_trial_that_ran_out_of_memory_teaches_that_and_nothing_else():
    seen = one(outcome=Outcome.OOM, rate=None, peak_mem_bytes=(5 * GIB,))
    assert (seen.oom, seen.image_s, seen.mem_bytes) == (True, None, None)


def test_the_hosts_memory_says_nothing_of_the_gpus():
    lost = {"outcome": Outcome.OOM, "rate": None, "peak_mem_bytes": (5 * GIB,)}
    runs = [ran(1, error="CUDA ran out of GPU memory", **lost), ran(2, error="a loader worker was killed", **lost)]
    assert [o.oom for o in observe(runs, on_cpu=False)] == [True]
    assert [o.oom for o in observe(runs)] == [True, True], "on a CPU it is one memory"


@pytest.mark.parametrize("outcome", [Outcome.CRASH, Outcome.TIMEOUT, Outcome.INTERRUPTED, Outcome.INVALID])
def test_a_trial_that_failed_teaches_nothing(outcome):
    assert observe([ran(outcome=outcome, rate=None)]) == []


def test_probes_are_no_trials_but_their_peak_of_memory_is_one():
    probes = [
        ran(i, "probe", probe=probe, peak_mem_bytes=(GIB,)) for i, probe in enumerate(("data", "memory", "no_sync"))
    ]
    (seen,) = observe(probes)
    assert (seen.image_s, seen.wait_frac, seen.mem_bytes) == (None, None, GIB)


def test_a_wide_interval_and_a_cut_segment_are_believed_less():
    plain, wide, pruned = one(), one(ci95_lo=80.0), one(outcome=Outcome.PRUNED)
    assert plain.noise_frac == pytest.approx(NOISE_FRAC)
    assert wide.noise_frac == pytest.approx(math.hypot(NOISE_FRAC, math.log(100 / 80) / 1.96))
    assert pruned.noise_frac == pytest.approx(math.hypot(NOISE_FRAC, PRUNED_SD))
    assert pruned.image_s == pytest.approx(0.01)


def test_noise_is_pooled_over_what_ran_more_than_once():
    other = {"batch_per_gpu": 32}
    assert pooled_noise([ran(rate=100.0), ran(rate=200.0, params=other)]) == pytest.approx(NOISE_FRAC), "none did"
    quiet = [ran(i, rate=100.0) for i in range(40)]
    noisy = [ran(i, rate=100.0 * math.exp(0.1 * (-1) ** i)) for i in range(40)]
    assert pooled_noise(quiet) < 0.3 * NOISE_FRAC
    assert pooled_noise(noisy) == pytest.approx(0.1, rel=0.1)
    assert pooled_noise(
        [*noisy, *(ran(rate=10.0 * i, params={"batch_per_gpu": i}) for i in range(1, 9))]
    ) == pooled_noise(noisy), "different configurations are not noise"
    assert pooled_noise([ran(i, role="probe", rate=10.0**i) for i in range(3)]) == pytest.approx(NOISE_FRAC)
    assert one().noise_frac < observe(noisy)[0].noise_frac


def test_what_the_ranks_exchange_is_what_backward_takes_beyond_its_share():
    """Without exchange backward takes twice as long as forward; here it takes 3.5 times as long."""
    alone = ran(1, "probe", probe="no_sync", parts_s={"forward": 1.0, "backward": 2.0})
    trial = ran(2, parts_s={"forward": 2.0, "backward": 7.0, "optimizer": 1.0})
    hidden = ran(3, parts_s={"forward": 2.0, "backward": 3.9, "optimizer": 1.0})
    assert backward_per_forward([trial]) is None
    assert backward_per_forward([alone, trial]) == 2.0
    assert exchange_frac(trial.result, 2.0) == pytest.approx(0.3)
    assert exchange_frac(trial.result, None) is None
    assert exchange_frac(ran().result, 2.0) is None
    assert [o.exchange_frac for o in observe([alone, trial, hidden])] == [pytest.approx(0.3), 0.0]
    lost = ran(1, "probe", Outcome.CRASH, probe="no_sync", parts_s={"forward": 1.0, "backward": 2.0})
    assert backward_per_forward([lost]) is None
