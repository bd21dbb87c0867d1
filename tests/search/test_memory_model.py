"""The memory model: what it says is safe, what it calls hopeless, and where it does not know."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from autotune.contract import Outcome, TrialResult
from autotune.run.signs import SIGNS
from autotune.search.memory import FAR, HEADROOM_FRAC, MemoryModel, fit

MIB = 2**20
GIB = 2**30


def ran(batch, peak_bytes=None, *, outcome=Outcome.OK, error=None, effective=None, **params):
    return TrialResult(
        number=0,
        role="trial",
        outcome=outcome,
        params={"batch_per_gpu": batch, **params},
        effective=effective or {},
        started_s=0.0,
        took_s=1.0,
        n_steps=10 if peak_bytes else 0,
        peak_mem_bytes=(peak_bytes // 2, peak_bytes) if peak_bytes else (),
        error=error,
    )


def model(*results, limit=3 * GIB, on_cpu=True):
    made = MemoryModel(limit, on_cpu=on_cpu)
    for r in results:
        made.learn(r)
    return made


def affine(batch, base=500 * MIB, slope=100 * MIB):
    return base + slope * batch


def test_one_batch_says_nothing():
    m = model(ran(4, affine(4)), ran(4, affine(4) + MIB))
    assert m.predict({"batch_per_gpu": 64}) is None
    assert m.largest_safe({"batch_per_gpu": 4}, 999) is None
    assert m.why_not({"batch_per_gpu": 1000}) is None


def test_two_batches_make_a_line_of_the_worst_rank():
    m = model(ran(4, affine(4)), ran(8, affine(8)))
    p = m.predict({"batch_per_gpu": 16})
    assert p.mem_bytes == pytest.approx(affine(16))
    assert p.lower_bytes < p.mem_bytes < p.upper_bytes
    assert m.why_not({"batch_per_gpu": 16}) is None
    assert m.why_not({"batch_per_gpu": 32}) == "predicted 3.6 GiB, limit 3.0 GiB"


def test_the_interval_is_that_of_the_textbook():
    """Against scipy's own regression, with the variance as stated."""
    from scipy import stats

    points = [(2, 710), (4, 890), (8, 1310), (16, 2090)]
    line = fit(points)
    x, y = zip(*points, strict=True)
    ols = stats.linregress(x, y)
    assert line.per_image_bytes == pytest.approx(ols.slope)
    assert line.base_bytes == pytest.approx(ols.intercept)
    sse = sum((p - ols.intercept - ols.slope * b) ** 2 for b, p in points)
    mean = sum(y) / 4
    sigma = ((4 * (0.02 * mean) ** 2 + sse) / 6) ** 0.5
    sxx = sum((b - 7.5) ** 2 for b in x)
    half = stats.t.ppf(0.95, 6) * sigma * (1 + 1 / 4 + (32 - 7.5) ** 2 / sxx) ** 0.5
    p = line.predict(32)
    assert (p.upper_bytes - p.lower_bytes) / 2 == pytest.approx(half)


def test_more_points_narrow_it_and_scatter_widens_it():
    def width(*points):
        p = fit(points).predict(32)
        return p.upper_bytes - p.lower_bytes

    two = width((4, affine(4)), (8, affine(8)))
    four = width(*((b, affine(b)) for b in (4, 8, 16, 24)))
    scattered = width(*((b, round(affine(b) * f)) for b, f in ((4, 0.8), (8, 1.25), (16, 0.8), (24, 1.2))))
    assert four < two
    assert scattered > four


def test_noise_about_a_flat_line_never_falls():
    line = fit([(4, 1000 * MIB), (8, 990 * MIB)])
    assert line.per_image_bytes == 0
    assert line.predict(64).mem_bytes == 995 * MIB


def test_settings_that_move_the_line_have_their_own():
    m = model(ran(4, affine(4), workers=0), ran(8, affine(8), workers=0), ran(8, affine(20), workers=2))
    assert m.predict({"batch_per_gpu": 16, "workers": 0})
    assert m.predict({"batch_per_gpu": 16, "workers": 2}) is None
    on_gpu = model(ran(4, affine(4), workers=0), ran(8, affine(8), workers=2), on_cpu=False)
    assert on_gpu.predict({"batch_per_gpu": 16, "workers": 5}), "a loader worker has no device memory"
    kinds = model(ran(4, affine(4), amp=True), ran(8, affine(8), amp="bf16"))
    assert kinds.predict({"batch_per_gpu": 16, "amp": True}) is None


def test_what_really_ran_counts():
    m = model(ran(4, affine(4)), ran(32, affine(8), outcome=Outcome.MISMATCH, effective={"batch_per_gpu": 8}))
    assert m.predict({"batch_per_gpu": 16}).mem_bytes == pytest.approx(affine(16))


def test_out_of_memory_settles_every_larger_batch_of_the_same_settings():
    m = model(ran(32, outcome=Outcome.OOM, error="rank 0 is over", workers=0))
    for batch in (32, 33, 4000):
        assert (
            m.why_not({"batch_per_gpu": batch, "workers": 0})
            == "batch_per_gpu=32 ran out of memory with these settings"
        )
    assert m.why_not({"batch_per_gpu": 31, "workers": 0}) is None
    assert m.why_not({"batch_per_gpu": 64, "workers": 1}) is None
    m.learn(ran(16, outcome=Outcome.OOM, error="again", workers=0))
    assert "batch_per_gpu=16" in m.why_not({"batch_per_gpu": 31, "workers": 0})


def test_host_memory_says_nothing_of_a_gpu():
    host = [s for s in SIGNS.values() if s.outcome is Outcome.OOM and "GPU" not in s.says]
    device = [s for s in SIGNS.values() if s.outcome is Outcome.OOM and "GPU" in s.says]
    assert len(device) >= 4
    assert any("shared memory" in s.says for s in host)
    for sign in host:
        assert model(ran(8, outcome=Outcome.OOM, error=sign.says), on_cpu=False).why_not({"batch_per_gpu": 9}) is None
    for sign in device:
        assert model(ran(8, outcome=Outcome.OOM, error=sign.says), on_cpu=False).why_not({"batch_per_gpu": 9})


def test_far_beyond_what_was_measured_nothing_is_certain():
    """A line far over the limit does not forbid a batch that is more than FAR times the largest: that one is tried."""
    m = model(ran(4, affine(4)), ran(8, affine(8)))
    edge = int(FAR * 8)
    assert m.why_not({"batch_per_gpu": edge})
    assert m.why_not({"batch_per_gpu": edge + 1}) is None
    roomy = model(ran(4, affine(4)), ran(8, affine(8)), limit=10**15)
    assert roomy.largest_safe({"batch_per_gpu": 4}, 999) == edge, "and none of them is called safe"


def test_without_a_limit_only_failures_count():
    m = model(ran(4, affine(4)), ran(8, affine(8)), limit=None)
    assert m.why_not({"batch_per_gpu": 32}) is None
    assert m.largest_safe({"batch_per_gpu": 4}, 99) is None


def test_a_space_without_the_batch():
    m = model(TrialResult(number=0, role="trial", outcome=Outcome.OOM, params={"workers": 2}, started_s=0, took_s=1))
    assert m.why_not({"workers": 2}) is None


@given(
    base=st.integers(1, 8 * GIB),
    slope=st.integers(0, GIB),
    batches=st.lists(st.integers(1, 512), min_size=2, max_size=8),
    limit=st.integers(1, 80 * GIB),
    failed_at=st.none() | st.integers(1, 600),
)
def test_largest_safe_is_safe_and_the_next_is_not(base, slope, batches, limit, failed_at):
    assume(len(set(batches)) > 1)
    m = model(*(ran(b, base + slope * b) for b in batches), limit=limit)
    if failed_at:
        m.learn(ran(failed_at, outcome=Outcome.OOM, error="out"))
    most = 1024
    found = m.largest_safe({"batch_per_gpu": 1}, most)
    assert found is not None
    assert 0 <= found <= min(most, FAR * max(batches))
    allowed = (1 - HEADROOM_FRAC) * limit
    if found:
        assert m.predict({"batch_per_gpu": found}).upper_bytes <= allowed
        assert m.why_not({"batch_per_gpu": found}) is None
        assert base + slope * found <= limit
    following = m.predict({"batch_per_gpu": found + 1})
    at_failure = failed_at is not None and found + 1 >= failed_at
    assert at_failure or not following.near or found == most or following.upper_bytes > allowed


@given(
    points=st.lists(st.tuples(st.integers(1, 512), st.integers(1, 100 * GIB)), min_size=2, max_size=6),
    batch=st.integers(1, 2048),
    limit=st.integers(1, 100 * GIB),
)
def test_whatever_was_measured_nothing_is_both_safe_and_hopeless(points, batch, limit):
    m = model(*(ran(b, p) for b, p in points), limit=limit)
    why_not = m.why_not({"batch_per_gpu": batch})
    safe = m.largest_safe({"batch_per_gpu": 1}, 2048)
    if why_not and safe:
        assert safe < batch
    p = m.predict({"batch_per_gpu": batch})
    assert p is None or p.lower_bytes <= p.mem_bytes <= p.upper_bytes
