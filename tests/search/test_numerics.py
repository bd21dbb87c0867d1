"""Is the loss of the winner's rounding compared with the baseline's, when, and what may that never touch?"""

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from search_world import BASELINE, FakeClock, FakeSpace, FakeTrainer, make_info, make_plan, rate_of

from autotune.contract import Outcome, RankRecord, Summary, TrialResult, Verdict, from_dict, read_json, to_dict
from autotune.run.trial import run_trial
from autotune.search.baseline import measure_baseline
from autotune.search.controller import search
from autotune.search.numerics import MOST_OF_BUDGET, check, compare, rounding_changes, warned
from autotune.search.resume import open_study
from autotune.search.session import Session
from tests.run import trials

MODEL = str(Path(__file__).parents[1] / "models" / "tiny-detect.yaml")


class LossTrainer(FakeTrainer):
    """Its losses fall from 10 to 8 in 50 steps; seeds move them by 1 %, torch_threads=2 by `shift`."""

    def __init__(self, clock, *, shift=0.0, **kwargs):
        super().__init__(clock, **kwargs)
        self.shift = shift

    def __call__(self, spec, directory, *, started_s, watch=None):
        if spec.probe != "losses":
            return super().__call__(spec, directory, started_s=started_s, watch=watch)
        outcome = self.fails(spec)
        self.specs.append(spec)
        self.clock.advance(8.0)
        if isinstance(outcome, BaseException):
            raise outcome
        seed, n = spec.train_args["seed"], spec.loss_steps
        factor = 1 + 0.01 * seed + (self.shift if spec.params["torch_threads"] == 2 else 0.0)
        return TrialResult(
            number=spec.number,
            role=spec.role,
            probe=spec.probe,
            outcome=outcome or Outcome.OK,
            error=None if outcome is None else "the loss is NaN or infinite",
            params=spec.params,
            started_s=started_s,
            took_s=8.0,
            losses=tuple(factor * (10 - 2 * i / 50) for i in range(n)),
            batch_ids=tuple(f"{seed}-{i}" for i in range(n)),
        )


BEST = {"torch_threads": 2, "batch_per_gpu": 64}


def run(tmp_path, *, budget_s=3000.0, shift=0.0, fails=lambda spec: None, space=None, rate=rate_of, **info):
    """A search that finds BEST at once."""
    clock = FakeClock()
    space = space or FakeSpace(seeds=(BEST,))
    fields = {"budget_s": budget_s, "simulated": False, **info}
    plan = make_plan(tmp_path / "run", clock, budget_s=budget_s, info=make_info(**fields), space=space, max_trials=2)
    trainer = LossTrainer(clock, shift=shift, fails=fails, rate=rate)
    return search(plan, trainer), trainer, plan


def checks(trainer):
    return [s for s in trainer.specs if s.probe == "losses"]


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alike"), shift=0.01)


def test_four_runs_after_the_finalists_on_the_baseline_but_for_the_rounding(alike):
    summary, trainer, _ = alike
    asked = [(s.params["torch_threads"], s.train_args["seed"]) for s in checks(trainer)]
    assert asked == [(1, 0), (2, 0), (1, 1), (1, 2)]
    roles = [s.probe or s.role for s in trainer.specs]
    last = len(roles) - roles[::-1].index("finalist")
    assert [r for r in roles[last:] if r != "ablation"][-4:] == ["losses"] * 4, "after all that is timed, but for"
    assert roles.index("losses") < roles.index("ablation"), "what only explains"
    best = next(f.params for f in summary.verdict.finalists if f.name == "best")
    assert best["batch_per_gpu"] == 64, "which is another training, and not looked at"
    assert all({**s.params, "torch_threads": 1} == BASELINE for s in checks(trainer))
    assert {s.loss_steps for s in checks(trainer)} == {50}


def test_what_it_found_stands_in_the_summary(alike):
    summary, trainer, plan = alike
    found = summary.numerics
    assert (found.within, found.n_steps, found.changes) == (True, 50, {"torch_threads": 2})
    assert found.numbers == tuple(s.number for s in checks(trainer))
    assert found.difference_frac == pytest.approx(0.01)
    assert found.spread_frac == pytest.approx(0.02)
    assert "within your settings' own spread: 1 % apart, 2 % over 3 seeds" in found.sentence
    assert read_json(plan.run_dir.summary, Summary) == summary
    assert summary.verdict.status == "gain"
    assert not [n for n in summary.notes if "loss" in n]


def test_only_knobs_that_change_the_rounding_of_a_step_are_looked_at():
    session = SimpleNamespace(proposals=SimpleNamespace(baseline=BASELINE))
    others = {"workers": 2, "prefetch_factor": 4, "batch_per_gpu": 64, "cache": "ram"}  # the last changes the images
    assert rounding_changes(session, {**BASELINE, **others}) == {}
    rounding = {"compile": "default", "channels_last": True}
    assert rounding_changes(session, {**BASELINE, **others, **rounding}) == rounding


def test_five_minutes_keep_their_finalists_and_say_what_was_left_out(tmp_path):
    summary, trainer, plan = run(tmp_path, budget_s=300.0)
    assert summary.verdict.status == "gain"
    assert summary.verdict.n_blocks >= 3
    assert checks(trainer) == []
    assert any("not checked for lack of time" in n and "torch_threads=2" in n for n in summary.notes)
    assert plan.budget.elapsed_s() <= 300.0


def test_with_less_time_there_are_fewer_steps(tmp_path):
    slow = lambda p: 0.05 * rate_of(p)  # noqa: E731
    summary, trainer, plan = run(tmp_path, budget_s=6000.0, rate=slow)
    n = summary.numerics.n_steps
    assert 10 <= n < 50
    assert f"of {n} steps" in summary.numerics.sentence
    assert {s.loss_steps for s in checks(trainer)} == {n}
    assert plan.budget.elapsed_s() <= 6000.0
    assert sum(s.deadlines.total_s for s in checks(trainer)) <= 2 * MOST_OF_BUDGET * 6000


def test_an_interrupt_in_it_leaves_the_result_as_it_is(tmp_path):
    summary, trainer, _ = run(tmp_path, fails=lambda s: KeyboardInterrupt() if s.probe == "losses" else None)
    assert summary.stopped_because == "interrupted"
    assert len(checks(trainer)) == 1
    assert (summary.verdict.status, summary.numerics) == ("gain", None)
    assert summary.best_number is not None


def test_a_run_that_fails_ends_the_check_and_nothing_else(tmp_path):
    summary, trainer, _ = run(tmp_path, fails=lambda s: Outcome.TIMEOUT if s.probe == "losses" else None)
    assert len(checks(trainer)) == 1
    assert (summary.verdict.status, summary.numerics.within) == ("gain", None)
    assert "was not checked (trial" in summary.numerics.sentence
    assert summary.numerics.sentence in summary.notes


def losses(number, values, ids=None):
    values = tuple(float(v) for v in values)
    return TrialResult(
        number=number,
        role="probe",
        probe="losses",
        outcome=Outcome.OK,
        params={},
        started_s=0.0,
        took_s=1.0,
        losses=values,
        batch_ids=tuple(ids or map(str, range(len(values)))),
    )


def test_a_loss_that_goes_elsewhere_is_told():
    seeds = [losses(2, [10.1] * 40), losses(3, [9.9] * 40)]
    found = compare({"amp": "bf16"}, [losses(0, [10] * 40), losses(1, [10.5] * 40), *seeds])
    assert (found.within, found.difference_frac) == (False, pytest.approx(0.05))
    assert "with amp=bf16 differs by 5 % from your settings', more than their own spread (2 % over 3" in found.sentence


def test_nan_only_with_the_changes_is_told():
    nan = replace(losses(1, []), outcome=Outcome.CRASH, error="FloatingPointError: the loss is NaN or infinite")
    found = compare({"amp": "bf16"}, [losses(0, [10] * 40), nan])
    assert found.within is False
    assert "NaN or infinite with amp=bf16" in found.sentence
    won = Verdict(status="gain", sentence="2.00x faster")
    assert warned(won, found).sentence.startswith("2.00x faster; CHANGES THE LOSS: the loss becomes NaN")
    assert warned(won, replace(found, within=True)) == warned(won, None) == won
    assert compare({"amp": "bf16"}, [nan]).within is None, "the baseline's own"


def test_only_steps_on_the_same_batches_are_compared():
    own, seeds = losses(0, [10] * 40), [losses(2, [10.1] * 40), losses(3, [9.9] * 40)]
    ids = [*map(str, range(30)), *["other"] * 10]
    found = compare({"compile": "default"}, [own, losses(1, [10] * 30 + [99] * 10, ids), *seeds])
    assert (found.within, found.n_steps) == (True, 30)
    assert found.spread_frac == pytest.approx(0.02)
    early = compare({"compile": "default"}, [own, losses(1, [10] * 40, ["other"] * 40), *seeds])
    assert early.within is None
    assert "other batches" in early.sentence


def test_seeds_that_change_nothing_tell_nothing():
    same = [losses(n, [10] * 40) for n in (0, 2, 3)]
    assert compare({}, [same[0], losses(1, [10.01] * 40), *same[1:]]).within is None
    assert compare({}, [same[0], losses(1, [10] * 40), *same[1:]]).within is True


def test_the_first_half_does_not_count():
    own, seeds = losses(0, [10] * 20), [losses(2, [10.1] * 20), losses(3, [9.9] * 20)]
    assert compare({}, [own, losses(1, [50] * 10 + [10] * 10), *seeds]).within is True
    assert compare({}, [own, losses(1, [10] * 10 + [50] * 10), *seeds]).within is False


def test_files_of_an_older_autotune_are_still_read():
    result = to_dict(losses(0, [1.0]))
    record = to_dict(RankRecord(rank=0, status="done"))
    for name in ("losses", "batch_ids"):
        del result[name], record[name]
    del record["sizes"]
    assert from_dict(TrialResult, result) == replace(losses(0, [1.0]), losses=(), batch_ids=())
    assert from_dict(RankRecord, record).losses == []


@pytest.mark.slow
def test_real_trainings_are_compared(tmp_path, tiny):
    args = {**trials.spec(tiny, model=MODEL).train_args, "workers": 0, "cache": False}
    info = make_info(simulated=False, backend="yolo", budget_s=3000.0, train_args=args)
    space = FakeSpace(domain={"channels_last": (False, True)})
    plan = make_plan(tmp_path / "run", time.monotonic, budget_s=3000.0, info=info, space=space)
    plan = replace(plan, data_for=lambda _: str(tiny), trial_args={}, segment=trials.SHORT)
    plan.run_dir.trials.mkdir()
    session = Session(plan, run_trial, (), open_study(plan)[0])
    measure_baseline(session)
    found = check(session, {**session.proposals.baseline, "channels_last": True})
    session.study.close()
    assert found.changes == {"channels_last": True}
    assert found.n_steps == 50, "the same batches to the end"
    assert found.within is True, found.sentence
    assert 0 < found.spread_frac < 0.5
    assert abs(found.difference_frac) < found.spread_frac


class Conditional(FakeSpace):
    """torch_threads=2 acts with batch 64 only, as no_sync does with accumulation only."""

    def canonical(self, params):
        params = super().canonical(params)
        return {**params, "torch_threads": 1} if params.get("batch_per_gpu") != 64 else params


def test_a_change_that_does_not_act_in_the_check_is_not_said_to_be_checked(tmp_path):
    summary, trainer, _ = run(tmp_path, space=Conditional(seeds=(BEST,)))
    assert summary.verdict.status == "gain"
    assert checks(trainer) == []
    assert summary.numerics is None
