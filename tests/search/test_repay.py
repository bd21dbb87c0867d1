"""A compile that the job is too short for is not tried, and the summary says why."""

import re
from dataclasses import replace

import pytest
from search_world import BASELINE, FakeClock, FakeSpace, FakeTrainer, make_info, make_plan, rate_of

from autotune.contract import Outcome, Summary, TrialSkipped, read_json
from autotune.search import repay
from autotune.search.controller import search
from autotune.search.in_memory import study_in_memory
from autotune.search.left_out import never_tried
from autotune.search.situation import situation_of

DOMAIN = {"batch_per_gpu": (16, 32, 64), "torch_threads": (1, 2), "compile": (False, "default")}
BUDGET_S = 6000.0
COMPILE_S = 40.0
SHORT, LONG = 40, 20_000
"""Images of an epoch: a job whose steps take less than a minute, and one of hours."""


class CompilingTrainer(FakeTrainer):
    """A compiled step is faster by a third, and its first takes COMPILE_S."""

    def __init__(self, clock, n_images):
        super().__init__(clock, rate=lambda params: rate_of(params) * (1.3 if params["compile"] else 1.0))
        self.n_images = n_images

    def __call__(self, spec, directory, **kwargs):
        compile_s = COMPILE_S if spec.params["compile"] else 0.0
        self.clock.advance(compile_s)
        result = super().__call__(spec, directory, **kwargs)
        phases = {**result.phases_s, "first_step": result.phases_s["first_step"] + compile_s}
        job = {**result.job, "n_images": self.n_images}
        return replace(result, phases_s=phases, job=job, took_s=result.took_s + compile_s)


def plan_of(folder, clock, *, strategy="random", objective="job_time", seeds=(), budget_s=BUDGET_S, **fields):
    info = make_info(strategy=strategy, budget_s=budget_s, objective=objective)
    return make_plan(folder, clock, space=FakeSpace(DOMAIN, seeds), budget_s=budget_s, info=info, **fields)


def studied(tmp_path, *, n_images, seen=None, n_trials=9, **plan_args):
    """A session, and what it tried."""
    clock = FakeClock()
    plan = plan_of(tmp_path / "none", clock, max_trials=n_trials, **plan_args)
    trainer = CompilingTrainer(clock, n_images)
    session = study_in_memory(replace(plan, run_dir=None), trainer, [seen.append] if seen is not None else [])
    return session, [s.params for s in trainer.specs if s.role == "trial"]


@pytest.mark.parametrize("strategy", ["tpe", "structured", "random"])
def test_a_compile_that_cannot_repay_is_left_out_and_listed(tmp_path, strategy):
    seed, seen = {"compile": "default", "torch_threads": 2, "batch_per_gpu": 32}, []
    session, tried = studied(tmp_path, strategy=strategy, n_images=SHORT, seeds=(seed,), seen=seen)
    assert tried, "the others are"
    assert not any(params["compile"] for params in tried)
    left_out = [n for n in never_tried(session) if n.params["compile"]]
    assert left_out[0].params == {**BASELINE, **seed}
    for n in left_out:
        assert re.fullmatch(r"compiling takes about \d+ s, all steps of your job \d+ s: it cannot repay", n.reason)
        assert not n.predicted_oom
    assert [e.not_tried for e in seen if isinstance(e, TrialSkipped)] == list(never_tried(session))


@pytest.mark.parametrize("strategy", ["tpe", "structured", "random"])
def test_one_that_can_is_tried(tmp_path, strategy):
    session, tried = studied(tmp_path, strategy=strategy, n_images=LONG)
    assert any(params["compile"] for params in tried)
    assert session.best().result.params["compile"] == "default"
    assert never_tried(session) == ()


def test_the_summary_names_what_was_left_out(tmp_path):
    clock = FakeClock()
    plan = plan_of(tmp_path / "run", clock, seeds=({"compile": "default", "torch_threads": 2},), budget_s=250.0)
    summary = search(plan, CompilingTrainer(clock, SHORT))
    assert any(n.reason.endswith("it cannot repay") for n in read_json(plan.run_dir.summary, Summary).not_tried)
    assert summary.n_predicted_oom == 0


def test_a_rate_is_compared_without_the_compile(tmp_path):
    _, tried = studied(tmp_path, strategy="random", n_images=SHORT, objective="images_per_s")
    assert any(params["compile"] for params in tried)


@pytest.fixture
def situation(tmp_path):
    return situation_of(studied(tmp_path, n_images=SHORT, n_trials=2)[0])


def test_only_of_what_compiles(situation):
    params = {**BASELINE, "torch_threads": 2}
    assert repay.why_not(situation, params) is None
    assert repay.why_not(situation, {**params, "compile": "default"})


def test_what_it_costs_when_it_is_cold_decides(situation):
    params = {**BASELINE, "compile": "default"}
    quick = replace(situation, cold=lambda p: replace(situation.cold(p), compile_s=0.1))
    assert repay.why_not(quick, params) is None


def test_the_users_own_compile_is_theirs(situation):
    own = replace(situation.baseline.result, params={**BASELINE, "compile": "default"})
    s = replace(situation, baseline=replace(situation.baseline, result=own))
    assert repay.why_not(s, {**BASELINE, "compile": "default"}) is None


def test_nothing_measured_says_nothing(situation):
    lost = [replace(r, result=replace(r.result, outcome=Outcome.OOM)) for r in situation.ran]
    assert repay.why_not(replace(situation, ran=lost), {**BASELINE, "compile": "default"}) is None
