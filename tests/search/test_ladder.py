"""AutoBatch on a machine that is a formula: what it calls safe has run, and the fastest is often smaller."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.contract import Outcome, TrialResult
from autotune.errors import NoTrialError
from autotune.search.ladder import INTERRUPTED, PROOFS, Ladder, climb
from autotune.search.memory import HEADROOM_FRAC, MemoryModel

MIB = 2**20


class FakeRanks:
    """Trials that need `needs(batch)` bytes of `has_bytes` and run at `rate(batch)` images/s in `took_s` each."""

    def __init__(self, needs, rate, has_bytes, *, took_s=10.0, has_s=1e9, half_frac=0.02, fails=lambda batch: None):
        self.needs, self.rate, self.has_bytes, self.half_frac, self.fails = needs, rate, has_bytes, half_frac, fails
        self.took_s, self.left = took_s, has_s
        self.batches: list[int] = []

    def __call__(self, batch, limit_s):
        self.batches.append(batch)
        self.left -= self.took_s
        outcome = Outcome.OOM if self.needs(batch) > self.has_bytes else self.fails(batch)
        common = {
            "number": len(self.batches) - 1,
            "role": "trial",
            "params": {"batch_per_gpu": batch},
            "started_s": 0.0,
        }
        if outcome:
            return TrialResult(outcome=outcome, took_s=self.took_s, error=f"it was {outcome}", **common)
        rate = self.rate(batch)
        return TrialResult(
            outcome=Outcome.OK,
            took_s=self.took_s,
            images_per_s=rate,
            ci95_lo=rate * (1 - self.half_frac),
            ci95_hi=rate * (1 + self.half_frac),
            n_steps=20,
            peak_mem_bytes=(round(self.needs(batch)), round(self.needs(batch)) - MIB),
            effective={"batch_per_gpu": batch},
            **common,
        )

    def climb(self, most=4096) -> Ladder:
        model = MemoryModel(self.has_bytes, on_cpu=True)
        return climb(self, model, limit_bytes=self.has_bytes, most=most, left_s=lambda: self.left)


def affine(batch):
    return (500 + 20 * batch) * MIB


def saturating(batch):
    return 1000 * batch / (batch + 8)


def test_largest_and_fastest():
    ranks = FakeRanks(affine, lambda b: min(b, 32) * 10 - 0.01 * b, 5000 * MIB)
    ladder = ranks.climb()
    assert ranks.batches[:6] == [4, 8, 16, 32, 64, 128]
    assert "not faster than batch 32" in ladder.stopped_because
    largest, fastest = ladder.largest(), ladder.fastest()
    # 0.92 of 5000 MiB holds 205 images; the interval costs a few of them, and then a multiple of 8.
    assert 192 <= largest.batch <= 205
    assert largest.batch % 8 == 0
    assert fastest.batch == 32
    assert {largest.batch, fastest.batch} <= set(ranks.batches), "both have run"
    assert ladder.unproven is None


def test_growing_throughput_stops_at_the_memory():
    ladder = FakeRanks(affine, lambda b: 10.0 * b, 1000 * MIB).climb()
    assert "predicted 1.1 GiB" in ladder.stopped_because
    assert ladder.fastest() is ladder.largest()
    assert 16 <= ladder.largest().batch <= 21
    assert all(r.result.outcome.measured for r in ladder.rungs), "nothing had to die for it"


def test_within_the_noise_the_smaller_one_is_the_fastest():
    ladder = FakeRanks(affine, lambda b: {4: 50, 8: 99, 32: 99}.get(b, 100), 5000 * MIB).climb()
    assert ladder.fastest().batch == 8


def test_a_first_batch_that_does_not_fit_is_halved():
    ranks = FakeRanks(lambda b: 400 * b * MIB, saturating, 1000 * MIB)
    ladder = ranks.climb()
    assert ranks.batches[:2] == [4, 2]
    assert ladder.largest().batch == 2
    assert max(b for b in ranks.batches[2:] or [0]) < 3


def test_not_even_one_image():
    ranks = FakeRanks(lambda b: 2000 * MIB, saturating, 1000 * MIB)
    with pytest.raises(NoTrialError, match="batch 1 a rank: oom"):
        ranks.climb()
    assert ranks.batches == [4, 2, 1]


def test_a_crash_is_no_batch_too_large():
    ranks = FakeRanks(affine, saturating, 5000 * MIB, fails=lambda b: Outcome.CRASH)
    with pytest.raises(NoTrialError, match="it was crash"):
        ranks.climb()
    assert ranks.batches == [4]


def test_the_dataset_is_the_largest_batch():
    ranks = FakeRanks(affine, lambda b: 10.0 * b, 10**12)
    ladder = ranks.climb(most=21)
    assert ranks.batches[:3] == [4, 8, 16]
    assert max(ranks.batches) <= 21
    assert "21 images a rank" in ladder.stopped_because
    assert FakeRanks(affine, saturating, 10**12).climb(most=1).largest().batch == 1


def test_without_time_the_proof_is_owed():
    ranks = FakeRanks(affine, lambda b: min(b, 8) * 10, 5000 * MIB, has_s=45.0)
    ladder = ranks.climb()
    assert ranks.left >= 0
    assert ladder.unproven > max(ranks.batches)
    assert ladder.largest().batch == max(ranks.batches), "only what has run is called safe"


def test_without_time_the_climb_ends():
    ranks = FakeRanks(affine, lambda b: 10.0 * b, 10**12, has_s=35.0)
    assert ranks.climb().stopped_because == "no time for a larger batch"
    assert ranks.batches == [4, 8, 16]


def test_a_line_that_bends_is_found_out():
    """From 64 images on a rank needs twice as much for each: what was called safe dies, and a smaller one is proven."""

    def bent(batch):
        return affine(batch) + max(0, batch - 64) * 60 * MIB

    ranks = FakeRanks(bent, lambda b: 100.0, 4000 * MIB)
    ladder = ranks.climb()
    assert Outcome.OOM in {r.result.outcome for r in ladder.rungs}
    assert ladder.largest().batch >= 16
    assert bent(ladder.largest().batch) <= (1 - HEADROOM_FRAC) * ranks.has_bytes


@given(
    base=st.integers(10, 2000),
    per_image=st.integers(1, 500),
    bend=st.floats(0.5, 3.0),
    has=st.integers(100, 20000),
    noise=st.floats(0.0, 0.05),
    most=st.integers(1, 600),
    seed=st.integers(0, 99),
)
def test_on_any_machine_what_is_called_safe_has_run_with_head_room(base, per_image, bend, has, noise, most, seed):
    def needs(batch):
        rng = random.Random(f"{seed}/{batch}")
        return (base + per_image * (batch + max(0, batch - 48) * (bend - 1))) * MIB * (1 + noise * rng.random())

    ranks = FakeRanks(needs, saturating, has * MIB)
    try:
        ladder = ranks.climb(most)
    except NoTrialError:
        assert needs(1) > ranks.has_bytes
        return
    largest = ladder.largest()
    assert all(1 <= b <= most for b in ranks.batches)
    assert len(ranks.batches) <= 10 + PROOFS + 3
    if largest:
        assert needs(largest.batch) <= (1 - HEADROOM_FRAC) * ranks.has_bytes
        assert ladder.fastest().batch <= largest.batch


def test_an_interrupt_keeps_what_was_proven():
    def fails(batch):
        if batch == 16:
            raise KeyboardInterrupt

    ranks = FakeRanks(affine, lambda batch: 10.0 * batch, 4096 * MIB, fails=fails)
    ladder = ranks.climb()
    assert ladder.stopped_because == INTERRUPTED
    assert ladder.largest().batch == 8

    def at_once(batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        FakeRanks(affine, lambda batch: 10.0 * batch, 4096 * MIB, fails=at_once).climb()
