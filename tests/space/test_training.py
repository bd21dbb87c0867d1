from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.space.training import (
    accumulate,
    batch_allowed,
    decay_product,
    effective_batch,
    pin_optimizer,
    pins,
)

JOBS = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 512),
        "nbs": st.integers(1, 512),
        "weight_decay": st.one_of(st.just(0.0), st.floats(1e-6, 0.1)),
    }
)


@pytest.mark.parametrize(
    ("batch", "effective"), [(1, 64), (16, 64), (24, 72), (48, 48), (64, 64), (128, 128), (43, 43)]
)
def test_effective_batch_is_that_of_ultralytics(batch, effective):
    assert effective_batch(batch, 64) == effective


def test_round_is_half_to_even():
    assert accumulate(2, 5) == 2  # round(2.5), where half up would say 3
    assert accumulate(2, 7) == 4


@given(JOBS, st.integers(1, 1024))
def test_same_keeps_effective_batch_and_decay(job, batch):
    if batch_allowed(batch, job["batch"], job["nbs"], "same") is not None:
        return
    new = job | pins(job, batch)
    assert effective_batch(batch, new["nbs"]) == effective_batch(job["batch"], job["nbs"])
    before = decay_product(job["weight_decay"], job["batch"], job["nbs"])
    assert math.isclose(decay_product(new["weight_decay"], batch, new["nbs"]), before, rel_tol=1e-12)


@given(JOBS)
def test_same_offers_exactly_the_divisors(job):
    target = effective_batch(job["batch"], job["nbs"])
    offered = [b for b in range(1, target + 2) if batch_allowed(b, job["batch"], job["nbs"], "same") is None]
    assert offered == [b for b in range(1, target + 2) if target % b == 0]
    assert job["batch"] in offered  # the user's own batch always is


@given(JOBS, st.integers(1, 2048))
def test_bounded_keeps_decay_and_at_most_doubles(job, batch):
    if batch_allowed(batch, job["batch"], job["nbs"], "bounded") is not None:
        return
    new = job | pins(job, batch, "bounded")
    assert effective_batch(batch, new["nbs"]) <= 2 * effective_batch(job["batch"], job["nbs"])
    before = decay_product(job["weight_decay"], job["batch"], job["nbs"])
    assert math.isclose(decay_product(new["weight_decay"], batch, new["nbs"]), before, rel_tol=1e-12)


def test_reasons_name_the_effective_batch():
    assert batch_allowed(128, 16, 64, "same") == "does not divide the job's effective batch of 64 (--training same)"
    assert batch_allowed(128, 16, 64, "bounded") is None
    assert "more than twice" in batch_allowed(256, 16, 64, "bounded")
    assert batch_allowed(4096, 16, 64, "any") is None


def test_pins_are_empty_for_the_own_batch_and_exact_otherwise():
    job = {"batch": 16, "nbs": 64, "weight_decay": 0.0005}
    assert pins(job, 16) == {}
    assert pins(job, 64) == {"nbs": 64, "weight_decay": 0.0005}
    job = {"batch": 128, "nbs": 64, "weight_decay": 0.0005}
    assert pins(job, 64) == {"nbs": 128, "weight_decay": 0.001}


def test_any_pins_only_what_can_be_kept():
    job = {"batch": 48, "nbs": 64, "weight_decay": 0.0005}
    assert pins(job, 24, "any")["nbs"] == 48
    assert pins(job, 256, "any") == {}


def test_pin_optimizer():
    adam = {"optimizer": "AdamW", "lr0": 0.001667, "momentum": 0.9, "warmup_bias_lr": 0.0}
    assert pin_optimizer({"optimizer": "auto"}, adam) == adam
    muon = {"optimizer": "MuSGD", "lr0": 0.01, "momentum": 0.9, "warmup_bias_lr": 0.0}
    assert pin_optimizer({"optimizer": "auto"}, muon) == {"optimizer": "MuSGD", "lr0": 0.01, "warmup_bias_lr": 0.0}
    assert pin_optimizer({"optimizer": "SGD"}, adam) == {}
    assert pin_optimizer({"optimizer": "auto"}, {}) == {}
