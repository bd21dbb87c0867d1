"""The finalist stage where it meets the end of the budget, and what may be handed out after it."""

import pytest
from search_world import FakeClock, FakeSpace, FakeTrainer, make_plan

from autotune.contract import Outcome, TrialResult, read_json
from autotune.search.controller import search
from autotune.search.ran import cut_short

THREADS = {"torch_threads": (1, 2)}


def run(tmp_path, *, budget_s, slow_from, role, noise=0.03):
    """A search in which, from so many runs of this role and configuration on, one takes all the time that it is given.

    That is what a run is which takes longer than the block's price said.
    """
    clock = FakeClock()

    def fails(spec):
        n = sum(s.role == role and s.params == spec.params for s in trainer.specs)
        slow = spec.role == role and spec.changes and n > slow_from
        return Outcome.TIMEOUT if slow else None

    plan = make_plan(tmp_path / "run", clock, budget_s=budget_s, space=FakeSpace(domain=THREADS))
    trainer = FakeTrainer(clock, noise=noise, seed=3, fails=fails)
    summary = search(plan, trainer)
    last = [s for s in trainer.specs if s.role == role][-1]
    return summary, trainer, plan, read_json(plan.run_dir.trial(last.number).result, TrialResult)


def test_a_run_that_the_end_of_the_budget_stopped_does_not_cost_the_claim(tmp_path):
    summary, trainer, plan, last = run(tmp_path, budget_s=400.0, slow_from=3, role="finalist")
    assert last.outcome is Outcome.INTERRUPTED
    assert trainer.specs[-1].number == last.number, "nothing was begun after it"
    assert (summary.verdict.status, summary.verdict.n_blocks) == ("gain", 3)
    assert summary.best_number != 0
    assert not any("failed" in note for note in summary.notes)
    assert plan.budget.elapsed_s() <= 400.0


@pytest.mark.parametrize(
    ("outcome", "left_s", "role", "judged"),
    [
        (Outcome.TIMEOUT, 0.0, "finalist", Outcome.INTERRUPTED),
        (Outcome.TIMEOUT, 30.0, "finalist", Outcome.TIMEOUT),
        (Outcome.TIMEOUT, 0.0, "baseline", Outcome.TIMEOUT),
        (Outcome.OOM, 0.0, "finalist", Outcome.OOM),
    ],
)
def test_who_is_to_blame_at_the_end_of_the_budget(outcome, left_s, role, judged):
    result = TrialResult(number=1, role=role, outcome=outcome, params={}, started_s=0.0, took_s=1.0)
    assert cut_short(result, left_s).outcome is judged


@pytest.mark.parametrize(
    ("fresh", "said"),
    [
        (0.9, "no gain: your settings beat the best found"),
        (1.0, "no significant gain: your settings are within"),
    ],
)
def test_what_does_not_gain_in_fresh_runs_is_not_handed_over(tmp_path, fresh, said):
    """It was lucky in the search: the first run of a process that nothing else disturbed, say."""
    clock = FakeClock()
    plan = make_plan(tmp_path / "run", clock, budget_s=600.0, space=FakeSpace(domain=THREADS))
    trainer = FakeTrainer(clock, noise=0.003, rate=lambda params: 100.0)

    def lucky(spec, directory, **kwargs):
        times = {"trial": 1.2, "finalist": fresh if spec.changes else 1.0}.get(spec.role, 1.0)
        trainer.rate = lambda params: 100.0 * times
        return trainer(spec, directory, **kwargs)

    summary = search(plan, lucky)
    assert summary.verdict.sentence.startswith(said)
    assert [f.name for f in summary.verdict.finalists] == ["baseline", "second"]
    assert summary.best_number == 0
