"""Who runs, who leaves, who wins, and does the claim hold after all that choosing?"""

import random
from math import exp, log, sqrt

import pytest
from scipy.stats import binomtest

from autotune.search.contest import MAX_BLOCKS, PROJECTION, Contest, Entry, simplest, slower
from autotune.search.verdict import BASELINE, MIN_BLOCKS


def hold(contest, truth, sigma, rng, fails=()):
    """Play it to the end; truth: name -> times as fast as the baseline."""
    asked = []
    while order := contest.ask():
        asked.append(order)
        block = contest.begin()
        shift = rng.gauss(0, 0.05)
        for name in order:
            if name in fails:
                contest.fail(name)
            else:
                block[name] = exp(shift + rng.gauss(0, sigma) - log(truth.get(name, 1.0)))
        contest.end()
    return asked


def contest_of(n=3, **fields):
    extra = [[exp(random.Random(5).gauss(0, 0.01)) for _ in range(2)]]
    return Contest({f"c{i}": Entry(n_changes=i + 1, **fields) for i in range(n)}, extra)


def test_one_candidate_runs_with_its_projection_from_the_first_block():
    contest = contest_of(1, projects=True)
    asked = hold(contest, {"c0": 1.5, PROJECTION: 1.2}, 0.005, random.Random(1))
    assert asked == [[BASELINE, "c0", PROJECTION]] * MIN_BLOCKS


def test_several_run_first_and_the_projection_joins_the_winner():
    contest = contest_of(2, projects=True)
    asked = hold(contest, {"c0": 1.5, "c1": 1.5, PROJECTION: 1.2}, 0.02, random.Random(6))
    assert asked[:MIN_BLOCKS] == [[BASELINE, "c0", "c1"]] * MIN_BLOCKS
    assert asked[MIN_BLOCKS] == [BASELINE, "c0", PROJECTION]
    assert sum(PROJECTION in block for block in contest.blocks) >= MIN_BLOCKS


def test_a_wide_interval_asks_for_more_blocks_up_to_the_most():
    contest = contest_of(1)
    assert len(hold(contest, {"c0": 1.5}, 0.1, random.Random(2))) == MAX_BLOCKS


def test_who_is_clearly_slower_leaves_after_two_blocks():
    contest = contest_of(3)
    asked = hold(contest, {"c0": 1.5, "c1": 1.0, "c2": 1.49}, 0.01, random.Random(3))
    assert "c1" in asked[1]
    assert all("c1" not in order for order in asked[2:])
    assert contest.winner == "c0"


def test_far_behind_leaves_without_a_test_and_nobody_else_does():
    noisy = [{"a": 1.0, "b": 1.3, "c": 1.05}, {"a": 1.3, "b": 1.31, "c": 1.30}]
    assert slower(noisy, ["a", "b", "c"]) == ["b"]
    assert slower(noisy, ["a"]) == []
    assert slower([], ["a", "b"]) == []


BLOCKS = [
    {BASELINE: 1.5, "a": 1.0, "b": 1.01},
    {BASELINE: 1.52, "a": 1.03, "b": 1.01},
    {BASELINE: 1.5, "a": 1.0, "b": 1.02},
]


@pytest.mark.parametrize(
    ("a", "b", "winner"),
    [
        (Entry(n_changes=3), Entry(n_changes=2), "b"),
        (Entry(n_changes=2), Entry(n_changes=2), "a"),
        (Entry(n_changes=2, peak_mem_bytes=2e9), Entry(n_changes=2, peak_mem_bytes=1e9), "b"),
        (Entry(n_changes=2, peak_mem_bytes=1e9), Entry(n_changes=2), "a"),
    ],
)
def test_within_the_noise_the_simplest_wins(a, b, winner):
    assert simplest(BLOCKS, {"a": a, "b": b}) == winner


def test_beyond_the_noise_the_fastest_wins():
    blocks = [
        {BASELINE: 1.5, "a": 1.0, "b": 1.1},
        {BASELINE: 1.5, "a": 1.01, "b": 1.1},
        {BASELINE: 1.5, "a": 1.0, "b": 1.09},
    ]
    assert simplest(blocks, {"a": Entry(n_changes=9), "b": Entry(n_changes=1)}) == "a"


@pytest.mark.parametrize(("behind", "winner"), [(0.4, "b"), (0.7, "a")])
def test_a_tie_is_half_a_standard_error(behind, winner):
    """Logs of which `b` is behind by so many standard errors, their variance being known beforehand."""
    sigma, n = 0.03, 3
    extra = [[exp(sigma), exp(-sigma)] * 500]
    gap = behind * sigma * sqrt(2 / n)
    blocks = [{BASELINE: 2.0, "a": 1.0, "b": exp(gap)} for _ in range(n)]
    assert simplest(blocks, {"a": Entry(n_changes=2), "b": Entry(n_changes=1)}, extra) == winner


def test_without_a_common_block_the_likeliest():
    assert simplest([{BASELINE: 1.0, "b": 0.5}], {"a": Entry(n_changes=9), "b": Entry(n_changes=1)}) == "a"


def test_a_winner_that_fails_makes_room_for_who_had_left():
    contest = contest_of(2, projects=True)
    hold(contest, {"c0": 1.5, "c1": 1.2, PROJECTION: 1.1}, 0.01, random.Random(4))
    assert contest.winner == "c0"
    contest.fail("c0")
    assert contest.alive == ["c1"]
    assert not any(PROJECTION in block for block in contest.blocks), "of another winner"
    assert contest.ask() == [BASELINE, "c1", PROJECTION]
    contest.fail("c1")
    assert (contest.ask(), contest.leader) == ([], None)


def test_runs_that_always_fail_end():
    contest = contest_of(1)
    assert len(hold(contest, {}, 0.01, random.Random(1), fails=[PROJECTION])) <= 2 * MAX_BLOCKS
    contest = contest_of(1)
    while order := contest.ask():
        contest.begin().update({n: 1.0 for n in order if n != BASELINE})
        contest.end()
    assert len(contest.blocks) == 2 * MAX_BLOCKS


@pytest.mark.parametrize("k", [1, 3])
def test_the_interval_holds_after_choosing_among_candidates(k):
    """A smoke test; tests/bench/verdict_aa.py has the figures."""
    rng, n, hits, gains = random.Random(k), 200, 0, 0
    for _ in range(n):
        contest = Contest(
            {f"c{i}": Entry(n_changes=1) for i in range(k)}, [[exp(rng.gauss(0, 0.03)) for _ in range(3)]]
        )
        hold(contest, {}, 0.03, rng)
        found = contest.judgement()
        ratio = found.ratios[contest.winner]
        hits += ratio.ci95_lo <= 1.0 <= ratio.ci95_hi
        gains += found.status == "gain"
    assert binomtest(hits, n, 0.95, alternative="less").pvalue > 0.001
    assert gains / n < 0.06
