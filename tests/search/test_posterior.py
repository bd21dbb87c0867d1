"""What is believed of the measured configurations: lucky numbers shrink, good company counts."""

import math

import pytest
from search_world import FakeClock, FakeTrainer, make_plan

from autotune.search.contest import holm
from autotune.search.posterior import regress


def believed(logs, changes, n_runs=None, sd=0.02):
    noise = {key: sd**2 / (n_runs or {}).get(key, 1) for key in logs}
    return regress(logs, noise, changes, sd**2)


def grid():
    """3 x 3 x 2 settings with additive effects, and no noise."""
    logs, changes = {}, {}
    for a in (0, 1, 2):
        for b in (0, 1, 2):
            for c in (0, 1):
                key = f"{a}{b}{c}"
                logs[key] = 5.0 - 0.2 * a - 0.1 * b + 0.05 * c
                changes[key] = {n: v for n, v in (("a", a), ("b", b), ("c", c)) if v}
    return logs, changes


def test_without_noise_the_numbers_are_believed():
    logs, changes = grid()
    found = believed(logs, changes, sd=1e-4)
    assert found.means == pytest.approx(logs, abs=1e-3)
    assert found.gain("a", 2) == pytest.approx(0.4, abs=0.05)
    assert found.gain("c", 1) < 0.0
    assert found.gain("a", 7) == 0.0


def test_a_lucky_number_shrinks_towards_what_its_settings_did_elsewhere():
    logs, changes = grid()
    truth = logs["200"]
    lucky = {**logs, "200": truth - 0.3}
    found = believed(lucky, changes, sd=0.05)
    assert found.means["200"] > lucky["200"] + 0.1
    assert min(lucky, key=lucky.get) == "200"
    assert min(found.means, key=found.means.get) == "220"


def test_a_number_that_was_repeated_is_believed_more():
    logs, changes = grid()
    lucky = {**logs, "100": logs["100"] - 0.15}
    once = believed(lucky, changes, sd=0.05).means["100"]
    often = believed(lucky, changes, {"100": 16}, sd=0.05).means["100"]
    assert lucky["100"] < often < once


def test_few_trials_are_plain_means():
    logs = {"a": 1.0, "b": 0.5, "c": math.log(2)}
    found = believed(logs, {key: {"x": key} for key in logs})
    assert found.means == logs
    assert found.gain("x", "a") == 0.0
    assert regress({}, {}, {}, 0.01).means == {}


def test_holm_by_hand():
    # 0.01 <= 0.05/3, 0.02 <= 0.05/2, 0.06 > 0.05
    assert holm({"a": 0.02, "b": 0.01, "c": 0.06}) == {"a", "b"}
    assert holm({"a": 0.03, "b": 0.03}) == set(), "Bonferroni's first step fails, so no later one counts"
    assert holm({}) == set()


def test_the_lucky_trial_is_no_candidate_before_the_better_ones(tmp_path):
    from autotune.search.controller import search

    clock = FakeClock()
    summary = search(make_plan(tmp_path / "r", clock, budget_s=4000.0, max_trials=20), FakeTrainer(clock, noise=0.03))
    names = [f.name for f in summary.verdict.finalists]
    assert names[:3] == ["baseline", "best", "second"]
    params = [tuple(sorted(f.params.items(), key=str)) for f in summary.verdict.finalists]
    assert len(set(params)) == len(params), "nothing runs under two names"
    by_name = {f.name: f for f in summary.verdict.finalists}
    assert by_name["best"].params["torch_threads"] == 2
    assert {len(f.numbers) for f in summary.verdict.finalists if f.name in ("second", "third")} <= {2, 3}
    assert len(by_name["best_yaml"].numbers) >= 3
    ran = [set(f.numbers) for f in summary.verdict.finalists]
    assert sum(map(len, ran)) == len(set().union(*ran))
