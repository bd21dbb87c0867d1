import pytest

from autotune.contract import JOB_TERMS, Outcome, TrialResult
from autotune.search.job_time import job_s, with_job
from autotune.search.objective import OBJECTIVES


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
    assert [f(dead) for f in OBJECTIVES.values()] == [None, None]


def test_objectives_are_minimised():
    done = with_job(result())
    assert OBJECTIVES["job_time"](done) == 1019.0
    assert OBJECTIVES["images_per_s"](done) == pytest.approx(0.01)


def test_an_epoch_without_its_last_incomplete_batch_trains_fewer_images():
    job = {"n_images": 1000, "epochs": 100, "n_closed_epochs": 10, "batch": 64}
    dropped = job_terms(result(effective={"compile": "default"}, job={**job, "n_batches": 15}))
    assert dropped["mosaic_epochs_s"] == pytest.approx(90 * 960 / 100.0)
    kept = job_terms(result(job={**job, "n_batches": 16}))
    assert kept["mosaic_epochs_s"] == pytest.approx(90 * 1000 / 100.0)


def test_more_closed_epochs_than_epochs():
    terms = job_terms(result(job={"n_images": 1000, "epochs": 3, "n_closed_epochs": 10}))
    assert (terms["mosaic_epochs_s"], terms["closed_epochs_s"]) == (0.0, 30.0)
