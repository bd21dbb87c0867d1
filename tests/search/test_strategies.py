"""Every strategy passes the first half; a new row of STRATEGIES is tested by being there."""

import itertools
import re

import pytest
from search_world import BASELINE, DOMAIN, FakeClock, FakeSpace, FakeTrainer, make_info, make_plan, rate_of

from autotune.contract import Outcome
from autotune.errors import InputError
from autotune.search.controller import search
from autotune.search.proposals import changes_of, key_of
from autotune.search.strategies import STRATEGIES, check_strategy

SMALL = {"torch_threads": (1, 2), "batch_per_gpu": (16, 32, 64)}
BUDGET_S = {"grid": 900.0}
"""The grid has no idea where to look; the others have enough with DEFAULT_S."""
DEFAULT_S = 500.0
QUICK = [name for name in STRATEGIES if name != "gp"]
"""gp imports torch: seconds."""
EVERY = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in STRATEGIES]


def run(folder, strategy, *, domain=DOMAIN, seeds=(), budget_s=None, seed=0, **trainer):
    budget_s = budget_s or BUDGET_S.get(strategy, DEFAULT_S)
    clock = FakeClock()
    info = make_info(strategy=strategy, budget_s=budget_s, seed=seed)
    plan = make_plan(folder, clock, budget_s=budget_s, info=info, space=FakeSpace(domain, seeds))
    trainer = FakeTrainer(clock, **trainer)
    return search(plan, trainer), [s.params for s in trainer.specs if s.role == "trial"]


@pytest.mark.parametrize("strategy", EVERY)
def test_finds_a_gain_and_tries_nothing_twice(tmp_path, strategy):
    summary, tried = run(tmp_path / "run", strategy)
    assert summary.verdict.status == "gain"
    best = next(f for f in summary.verdict.finalists if f.name == "best")
    assert rate_of(best.params) > 1.4 * rate_of(BASELINE)
    keys = [key_of(params) for params in tried]
    assert len(set(keys)) == len(keys)
    assert all(params[name] in (*values, None) for params in tried for name, values in DOMAIN.items())


@pytest.mark.parametrize("strategy", EVERY)
def test_says_when_all_is_measured(tmp_path, strategy):
    summary, tried = run(tmp_path / "run", strategy, domain=SMALL, budget_s=3000.0)
    if strategy == "structured" and len(tried) < 5:  # it has a model, which may say that the rest is not worth it
        assert re.search(r"expected .*; to go on costs about \d+ s a trial$", summary.stopped_because)
        return
    assert summary.stopped_because == "every configuration was measured"
    assert len(tried) == 5, "six, and one of them is the baseline"


@pytest.mark.parametrize("strategy", EVERY)
def test_the_seeds_come_first(tmp_path, strategy):
    seeds = ({"torch_threads": 2, "batch_per_gpu": 32}, {"torch_threads": 2, "batch_per_gpu": 64})
    _, tried = run(tmp_path / "run", strategy, domain=SMALL, seeds=seeds, budget_s=400.0)
    assert [changes_of(params, BASELINE) for params in tried[:2]] == list(seeds)


@pytest.mark.parametrize("strategy", EVERY)
def test_what_runs_out_of_memory_does_not_end_it(tmp_path, strategy):
    def fails(spec):
        return Outcome.OOM if spec.params["batch_per_gpu"] == 64 else None

    summary, _ = run(tmp_path / "run", strategy, fails=fails)
    best = next(f for f in summary.verdict.finalists if f.name == "best")
    assert best.params["batch_per_gpu"] < 64
    assert best.params["torch_threads"] == 2


@pytest.mark.parametrize("strategy", QUICK)
def test_the_same_seed_is_the_same_search(tmp_path, strategy):
    (_, one), (_, two) = (run(tmp_path / name, strategy, seed=3, budget_s=250.0) for name in "ab")
    assert one == two


def test_simple_changes_one_thing_at_a_time_and_keeps_what_is_faster(tmp_path):
    _, tried = run(tmp_path / "run", "simple", noise=0.0, budget_s=900.0)
    best, n_single = BASELINE, 0
    for params in tried:
        if len(changes_of({k: v for k, v in params.items() if v is not None}, best)) > 2:  # workers bring a prefetch
            break
        n_single += 1
        if rate_of(params) > rate_of(best):
            best = params
    assert n_single >= 10
    assert rate_of(best) == max(rate_of(dict(zip(DOMAIN, v, strict=True))) for v in itertools.product(*DOMAIN.values()))


def test_simple_climbs_from_where_its_seed_stands(tmp_path):
    seed = {"torch_threads": 2, "batch_per_gpu": 32}
    _, tried = run(tmp_path / "run", "simple", domain=SMALL, seeds=(seed,), noise=0.0, budget_s=400.0)
    assert changes_of(tried[0], BASELINE) == seed
    assert sum(json_differs for json_differs in (tried[1][k] != tried[0][k] for k in SMALL)) == 1


def test_grid_goes_in_the_order_of_the_file(tmp_path):
    _, tried = run(tmp_path / "run", "grid", domain=SMALL, budget_s=3000.0)
    whole = [dict(zip(SMALL, values, strict=True)) for values in itertools.product(*SMALL.values())]
    assert [{k: params[k] for k in SMALL} for params in tried] == whole[1:]


def test_names():
    assert [check_strategy(name) for name in STRATEGIES] == ["structured", "tpe", "random", "gp", "simple", "grid"]
    with pytest.raises(InputError, match="unknown strategy 'ramdom'") as e:
        check_strategy("ramdom")
    assert e.value.hint == "did you mean random?"
