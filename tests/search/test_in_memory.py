"""A study that leaves nothing behind is the search that writes a folder."""

import itertools
from dataclasses import replace

import pytest
from search_world import FakeClock, FakeTrainer, make_info, make_plan

from autotune.contract import Outcome, TrialEnded
from autotune.errors import NoTrialError
from autotune.search.controller import look_around
from autotune.search.in_memory import incumbents, study_in_memory
from autotune.search.resume import open_study
from autotune.search.session import Session


def in_memory(tmp_path, *, trainer_args=None, observers=(), **plan_args):
    clock = FakeClock()
    plan = replace(make_plan(tmp_path / "nothing", clock, **plan_args), run_dir=None)
    trainer = FakeTrainer(clock, **(trainer_args or {}))
    return study_in_memory(plan, trainer, observers), trainer


@pytest.mark.parametrize(
    "strategy", ["structured", *(pytest.param(s, marks=pytest.mark.slow) for s in ("tpe", "random", "simple"))]
)
def test_the_same_seed_tries_the_same_in_memory_and_in_a_folder(tmp_path, strategy):
    def oom(spec):
        return Outcome.OOM if spec.params["batch_per_gpu"] == 64 and spec.params["workers"] == 2 else None

    info = make_info(strategy=strategy, seed=7, budget_s=500.0, objective="images_per_s")
    session, trainer = in_memory(tmp_path, info=info, budget_s=500.0, trainer_args={"fails": oom})
    clock = FakeClock()
    kept = FakeTrainer(clock, fails=oom)
    plan = make_plan(tmp_path / "kept", clock, info=info, budget_s=500.0)
    study, _ = open_study(plan)
    try:
        stopped = look_around(Session(plan, kept, (), study))
    finally:
        study.close()
    assert session.stopped_because == stopped
    tried = [(s.number, s.role, s.params) for s in trainer.specs]
    assert len(tried) > 12
    assert tried == [(s.number, s.role, s.params) for s in kept.specs]
    assert {int(p.name) for p in plan.run_dir.trials.iterdir()} == {number for number, *_ in tried}
    assert list((tmp_path / "nothing").iterdir()) == [], "nothing was written"


def test_more_can_be_run_when_the_loop_has_ended(tmp_path):
    clock = FakeClock()
    plan = replace(make_plan(tmp_path / "nothing", clock, budget_s=1e5, max_trials=3), run_dir=None)
    stopped = []

    def afterwards(session):
        stopped.append(session.stopped_because)
        session.ask_and_run("finalist", session.best().result.params)

    session = study_in_memory(plan, FakeTrainer(clock), afterwards=afterwards)
    assert stopped == ["3 trials, as many as were asked for"]
    assert [r.result.role for r in session.ran].count("finalist") == 1
    assert session.ran[-1].value


def test_incumbents_are_the_best_measured_so_far(tmp_path):
    seen = []
    session, trainer = in_memory(tmp_path, budget_s=1e5, max_trials=12, observers=[seen.append])
    found = incumbents(session)
    tried = [r for r in session.ran if r.result.role == "trial"]
    assert [i.n_trials for i in found] == list(range(13)) == list(range(len(tried) + 1))
    assert all(later.value <= earlier.value for earlier, later in itertools.pairwise(found))
    assert found[-1].value == min(r.value for r in (session.baseline, *tried) if r.result.outcome.measured)
    assert found[-1].at_s <= trainer.clock.now - 1000.0
    assert [e.result.number for e in seen if isinstance(e, TrialEnded)] == [r.number for r in session.ran]


def test_a_baseline_that_does_not_run_is_an_error(tmp_path):
    with pytest.raises(NoTrialError, match="do not run here"):
        in_memory(tmp_path, trainer_args={"fails": lambda spec: Outcome.CRASH})
