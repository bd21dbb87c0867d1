import dataclasses

import numpy as np
import pytest

from autotune.contract import JOB_TERMS, Comparison, EpochEnd, Outcome, TrialResult
from autotune.search.holds import holding
from autotune.search.job_time import Ends, EpochEnds, closed_ratio, extra_optimizer_steps, job_s, with_job
from autotune.search.objective import BETTER, OBJECTIVES
from autotune.search.verdict import judge


def result(**fields):
    defaults = {
        "number": 1, "role": "trial", "outcome": Outcome.OK, "params": {}, "started_s": 0.0, "took_s": 20.0,
        "images_per_s": 100.0, "step_p50_s": 0.5,
        "phases_s": {"import": 3.0, "build": 2.0, "cache": 4.0, "first_step": 10.5, "warmup": 3.0, "measure": 10.0},
        "job": {"n_images": 1000, "epochs": 100, "n_closed_epochs": 10},
    }  # fmt: skip
    return TrialResult(**{**defaults, **fields})


def job_terms(*args):
    return with_job(*args).job_terms


def test_terms_without_compile():
    terms = job_terms(result())
    assert tuple(terms) == JOB_TERMS
    assert terms == {
        "start_s": 15.0, "compile_s": 0.0, "cache_build_s": 4.0, "mosaic_epochs_s": 900.0, "closed_epochs_s": 100.0,
        "val_s": None, "save_s": None, "epoch_end_s": None, "warmup_s": None, "final_s": None,
    }  # fmt: skip
    assert job_s(terms) == 1019.0


def test_a_slow_first_step_is_the_compile_when_compile_is_on():
    terms = job_terms(result(effective={"compile": "default"}))
    assert (terms["start_s"], terms["compile_s"]) == (5.0, 10.0)


def test_what_was_found_warm_costs_its_cold_price():
    terms = job_terms(result(effective={"compile": True}), None, {"compile_s": 60.0, "cache_build_s": 1.0})
    assert (terms["compile_s"], terms["cache_build_s"]) == (60.0, 4.0)


def test_a_warm_trial_starts_as_slowly_as_the_job_will():
    quick = {"import": 0.01, "build": 0.4, "first_step": 1.5}
    warm = result(warm=True, phases_s=quick)
    assert job_terms(warm, result())["start_s"] == 3.0 + 2.0 + (1.5 - 0.5), "the first step is its own"
    assert job_terms(result(phases_s=quick), result())["start_s"] == 0.01 + 0.4 + (1.5 - 0.5)


def test_a_dead_trial_has_no_job_time():
    dead = with_job(result(outcome=Outcome.CRASH, images_per_s=None, phases_s={}, job={}), result())
    assert dead.job_s is None
    assert dead.job_terms == dict.fromkeys(JOB_TERMS)
    assert [f(dead) for f in OBJECTIVES.values()] == [None, None, None]


def test_objectives_are_minimised():
    done = with_job(result())
    assert OBJECTIVES["job_time"](done) == 1019.0
    assert OBJECTIVES["images_per_s"](done) == pytest.approx(0.01)
    assert OBJECTIVES["energy"](result(energy_j_per_image=1.5)) == 1.5


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ([{"baseline": 2.0 + i / 100, "best": 1.0} for i in range(3)], "x fewer J per image than your settings"),
        ([{"baseline": 1.0, "best": 2.0 + i / 100} for i in range(3)], "no gain: your settings beat the best found"),
        ([{"baseline": 1.0, "best": 1.0 + (i - 1) / 50} for i in range(3)], "no significant gain"),
    ],
)
def test_the_verdict_on_energy_does_not_speak_of_speed(blocks, said):
    sentence = judge(blocks, better=BETTER["energy"]).sentence
    assert said in sentence
    assert "fast" not in sentence


def test_every_objective_has_its_word():
    assert BETTER.keys() == OBJECTIVES.keys()


def test_a_recheck_speaks_of_no_objective():
    then = Comparison(speedup=2.0, ci95_lo=1.9, ci95_hi=2.1, n_blocks=3, sigma_run_frac=0.01, df=6)
    now = dataclasses.replace(then, speedup=0.8, ci95_lo=0.75, ci95_hi=0.85)
    said = holding(then, now).sentence
    assert "the ratio is 60 % smaller than promised" in said
    assert "your own settings are better here" in said
    assert "fast" not in said
    assert "speed" not in said


def test_an_epoch_without_its_last_incomplete_batch_trains_fewer_images():
    job = {"n_images": 1000, "epochs": 100, "n_closed_epochs": 10, "batch": 64}
    dropped = job_terms(result(effective={"compile": "default"}, job={**job, "n_batches": 15}))
    assert dropped["mosaic_epochs_s"] == pytest.approx(90 * 960 / 100.0)
    kept = job_terms(result(job={**job, "n_batches": 16}))
    assert kept["mosaic_epochs_s"] == pytest.approx(90 * 1000 / 100.0)


def test_more_closed_epochs_than_epochs():
    terms = job_terms(result(job={"n_images": 1000, "epochs": 3, "n_closed_epochs": 10}))
    assert (terms["mosaic_epochs_s"], terms["closed_epochs_s"]) == (0.0, 30.0)


END = EpochEnd(val_s=5.0, val_n_batches=9, val_n_timed=9, save_s=1.0, rest_s=0.5, first_extra_s=2.0, reset_s=3.0,
               final_s=20.0)  # fmt: skip


def probe_of(end=END, **fields):
    phases = {"import": 3.0, "build": 5.0, "cache": 4.0, "first_step": 10.5}
    return result(**{"number": 9, "role": "probe", "probe": "epoch_end", "images_per_s": 200.0, "phases_s": phases,
                     "epoch_end": end, **fields})  # fmt: skip


def ends(own=None, of_baseline=None, **fields):
    return Ends(baseline=result(), of_baseline=of_baseline or probe_of(), own=own, own_trial=result(), **fields)


def valued(trial, known):
    return with_job(trial, result(), None, known)


def test_what_the_probe_of_this_configuration_measured():
    base = probe_of()
    done = valued(result(), ends(own=base, of_baseline=base))
    terms = done.job_terms
    assert (terms["val_s"], terms["save_s"], terms["epoch_end_s"], terms["final_s"]) == (500.0, 100.0, 52.0, 20.0)
    assert (terms["mosaic_epochs_s"], terms["closed_epochs_s"]) == (900.0, 10 * 1000 / 200.0 + 3.0)
    assert terms["start_s"] == 15.0 + 3.0, "the user's start builds the validation set too"
    assert done.job_estimated == ()
    assert done.job_s == sum(s for s in terms.values())


def test_the_users_cache_holds_the_validation_images_too():
    own = probe_of(phases_s={"import": 3.0, "build": 5.0, "cache": 6.0})
    assert valued(result(), ends(own=own)).job_terms["cache_build_s"] == 6.0
    assert valued(result(), ends(of_baseline=own)).job_terms["cache_build_s"] == 4.0, "another's cache"


def test_what_the_user_switched_off_comes_once_at_the_end():
    base = probe_of(EpochEnd(val_s=5.0, val_every_epoch=False, save_s=1.0, save_every_epoch=False, rest_s=0.5))
    terms = valued(result(), ends(own=base, of_baseline=base)).job_terms
    assert (terms["val_s"], terms["save_s"], terms["epoch_end_s"]) == (5.0, 1.0, 50.0)


def test_without_its_own_probe_the_baselines_is_the_estimate():
    other = valued(result(images_per_s=300.0), ends())
    assert other.job_terms["val_s"] == 500.0
    assert other.job_terms["closed_epochs_s"] == pytest.approx(10 * 1000 / (300.0 * 2) + 3.0), "as much faster"
    estimated = {"start_s", "val_s", "save_s", "epoch_end_s", "final_s", "closed_epochs_s"}
    assert set(other.job_estimated) == estimated
    own = valued(result(images_per_s=300.0), ends(own=probe_of(images_per_s=130.0)))
    assert own.job_terms["closed_epochs_s"] == pytest.approx(10 * 1000 / (300.0 * 1.3) + 3.0), "than its own trial"
    assert set(own.job_estimated) == {"start_s"}


@pytest.mark.parametrize(("wait_frac", "times"), [(0.0, 1.0), (0.2, 1.25), (0.9, 2.0), (None, 2.0)])
def test_no_step_becomes_shorter_than_it_is_without_its_wait(wait_frac, times):
    # The baseline waits for its loader, and is twice as fast without mosaic; this one may have nothing to win.
    other = valued(result(wait_frac=wait_frac), ends())
    assert other.job_terms["closed_epochs_s"] == pytest.approx(10 * 1000 / (100.0 * times) + 3.0)


@pytest.mark.parametrize(
    ("rate", "lo", "outcome", "ratio"),
    [
        (130.0, 125.0, Outcome.OK, 1.3),
        (101.5, 101.0, Outcome.OK, 1.0),
        (109.0, 100.0, Outcome.OK, 1.0),
        (70.0, 69.0, Outcome.OK, 0.7),
        (130.0, 125.0, Outcome.UNSTABLE, None),
        (None, None, Outcome.OK, None),
    ],
)
def test_a_difference_within_the_noise_is_none(rate, lo, outcome, ratio):
    trial = result(images_per_s=100.0, ci95_lo=98.0)
    assert closed_ratio(probe_of(images_per_s=rate, ci95_lo=lo, outcome=outcome), trial) == (
        None if ratio is None else pytest.approx(ratio)
    )


def test_an_unstable_probe_still_tells_the_rest():
    shaky = probe_of(outcome=Outcome.UNSTABLE)
    terms = valued(result(), ends(of_baseline=shaky, own=shaky)).job_terms
    assert terms["val_s"] == 500.0
    assert terms["closed_epochs_s"] == 103.0, "at the same rate, and the loader's restart"


def test_a_job_that_closes_no_mosaic_has_no_other_rate():
    for closed, epochs in ((0, 100), (10, 8)):
        job = {"n_images": 1000, "epochs": epochs, "n_closed_epochs": min(closed, epochs)}
        base = probe_of(dataclasses.replace(END, reset_s=None), job=job)
        done = valued(result(job=job), ends(of_baseline=base))
        assert done.job_terms["mosaic_epochs_s"] + done.job_terms["closed_epochs_s"] == epochs * 10.0
        assert "closed_epochs_s" not in done.job_estimated


def test_nothing_is_known_before_the_baselines_probe():
    known = EpochEnds({})
    known.learn(probe_of(params={"a": 1}))
    known.learn(result(params={}))
    assert known.of({"a": 1}, result(params={})) is None, "else some trials had terms that others lack"
    known.learn(probe_of(params={}))
    assert known.of({"a": 1}, result(params={})).own is not None
    assert known.of({"a": 2}, result(params={})).own is None


def loop(n_batches, epochs, warmup_epochs, accumulate):
    """Optimizer steps of the training loop in a whole job (engine/trainer.py), counted one by one."""
    n_warmup = round(min(warmup_epochs, max(epochs - 1, 0)) * n_batches)
    last, now, n_steps = -1, accumulate, 0
    for i in range(n_batches * epochs):
        if n_warmup and i <= n_warmup:
            now = max(1, int(np.interp(i, [0, n_warmup], [1, accumulate]).round()))
        if i - last >= now:
            n_steps, last = n_steps + 1, i
    return n_steps


@pytest.mark.parametrize("accumulate", [1, 2, 4, 16])
@pytest.mark.parametrize(
    ("n_batches", "epochs", "warmup_epochs"), [(16, 8, 3.0), (100, 2, 3.0), (7, 9, 0.5), (5, 1, 3)]
)
def test_the_warm_up_pays_more_optimizer_steps(n_batches, epochs, warmup_epochs, accumulate):
    more = loop(n_batches, epochs, warmup_epochs, accumulate) - loop(n_batches, epochs, 0.0, accumulate)
    assert extra_optimizer_steps(n_batches, epochs, warmup_epochs, accumulate) == pytest.approx(more, abs=1.0)


def test_its_optimizer_steps_cost_what_the_segment_measured():
    job = {"n_images": 1600, "n_batches": 100, "batch": 16, "epochs": 100, "n_closed_epochs": 10, "accumulate": 4}
    done = valued(result(job=job, parts_s={"optimizer": 0.01}), ends())
    assert done.job_terms["warmup_s"] == pytest.approx(0.04 * extra_optimizer_steps(100, 100, 3.0, 4))
    assert "warmup_s" not in done.job_estimated
    guessed = valued(result(job=job), ends(of_baseline=probe_of(job=job, parts_s={"optimizer": 0.02})))
    assert guessed.job_terms["warmup_s"] == pytest.approx(2 * done.job_terms["warmup_s"])
    assert "warmup_s" in guessed.job_estimated
    assert valued(result(job=job), ends()).job_terms["warmup_s"] is None
