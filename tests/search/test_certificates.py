"""When is the winner's memory looked at, what is said of it, and what may that never touch?"""

import time
from dataclasses import replace
from pathlib import Path

import pytest
from search_world import FakeClock, FakeSpace, FakeTrainer, make_info, make_plan

from autotune.contract import (
    MemoryCertificate,
    Outcome,
    RankRecord,
    Summary,
    TrialResult,
    from_dict,
    read_json,
    to_dict,
)
from autotune.machine.memory import MemoryLimit
from autotune.run.trial import run_trial
from autotune.search.baseline import measure_baseline
from autotune.search.certificates import MOST_OF_BUDGET, check, judge, warned
from autotune.search.controller import search
from autotune.search.resume import open_study
from autotune.search.session import Session
from tests.run import trials

GIB = 2**30
MAY_RUN_OUT = "MAY RUN OUT OF MEMORY"
MODEL = str(Path(__file__).parents[1] / "models" / "tiny-detect.yaml")
BEST = {"torch_threads": 2, "batch_per_gpu": 64}
LIMIT = MemoryLimit(per_rank_bytes=8 * GIB, says="8.0 GiB of memory")


class MemoryTrainer(FakeTrainer):
    """Its certificate takes `peaks`, one a rank."""

    def __init__(self, clock, *, peaks=(6 * GIB,), **kwargs):
        super().__init__(clock, **kwargs)
        self.peaks = peaks

    def __call__(self, spec, directory, *, started_s, watch=None):
        if spec.probe != "certificate":
            return super().__call__(spec, directory, started_s=started_s, watch=watch)
        self.specs.append(spec)
        self.clock.advance(9.0)
        outcome = self.fails(spec)
        if isinstance(outcome, BaseException):
            raise outcome
        return probe(outcome or Outcome.OK, () if outcome else self.peaks, number=spec.number, params=spec.params)


def probe(outcome=Outcome.OK, peaks=(6 * GIB,), **fields):
    given = {"number": 7, "params": BEST, **fields}
    error = None if outcome is Outcome.OK else "CUDA out of memory"
    return TrialResult(
        role="probe",
        probe="certificate",
        outcome=outcome,
        error=error,
        started_s=0.0,
        took_s=9.0,
        peak_mem_bytes=peaks,
        certificate={"imgsz": 96, "n_objects": 300},
        **given,
    )


def run(tmp_path, *, budget_s=3000.0, peaks=(6 * GIB,), fails=lambda spec: None):
    """A search that finds BEST at once."""
    clock = FakeClock()
    info = make_info(budget_s=budget_s, simulated=False)
    space = FakeSpace(seeds=(BEST,))
    plan = make_plan(tmp_path / "run", clock, budget_s=budget_s, info=info, space=space, max_trials=2, memory=LIMIT)
    trainer = MemoryTrainer(clock, peaks=peaks, fails=lambda s: fails(s) if s.probe == "certificate" else None)
    return search(plan, trainer), trainer, plan


def certificates(trainer):
    return [s for s in trainer.specs if s.probe == "certificate"]


def test_it_runs_once_on_the_winner_after_the_finalists(tmp_path):
    summary, trainer, plan = run(tmp_path)
    (spec,) = certificates(trainer)
    best = next(f for f in summary.verdict.finalists if f.name == "best")
    assert spec.params == best.params
    assert all(n < spec.number for f in summary.verdict.finalists for n in f.numbers)
    assert spec.deadlines.stall_s == spec.deadlines.total_s, "crowded images take their time"
    found = summary.memory
    assert (found.holds, found.number, found.peak_bytes, found.limit_bytes) == (True, spec.number, (6 * GIB,), 8 * GIB)
    assert found.evidence == {"imgsz": 96, "n_objects": 300}
    assert found.sentence.endswith("took 6.0 GiB: 2.0 GiB (25%) of 8.0 GiB stay free")
    assert read_json(plan.run_dir.summary, Summary) == summary
    assert MAY_RUN_OUT not in summary.verdict.sentence


def test_a_winner_that_runs_out_of_memory_is_not_handed_over_silently(tmp_path):
    summary, _, _ = run(tmp_path, fails=lambda s: Outcome.OOM)
    assert summary.memory.holds is False
    assert summary.verdict.status == "gain", "its speed is what it is"
    assert f"; {MAY_RUN_OUT}: it ran out of memory" in summary.verdict.sentence
    assert summary.memory.sentence in summary.notes


def test_a_crash_says_nothing_of_the_memory(tmp_path):
    summary, _, _ = run(tmp_path, fails=lambda s: Outcome.CRASH)
    assert summary.memory.holds is None
    assert MAY_RUN_OUT not in summary.verdict.sentence
    assert "was not checked (trial" in summary.memory.sentence


def test_without_time_it_is_left_out_and_said(tmp_path, monkeypatch):
    monkeypatch.setattr("autotune.search.certificates.EXTRA_S", 100.0)
    summary, trainer, plan = run(tmp_path, budget_s=400.0)
    assert summary.verdict.n_blocks >= 3
    assert certificates(trainer) == []
    assert summary.memory.holds is None
    assert any("not checked for lack of time" in n and "memory" in n for n in summary.notes)
    assert plan.budget.elapsed_s() <= 400.0


def test_an_interrupt_in_it_leaves_the_result_as_it_is(tmp_path):
    summary, trainer, _ = run(tmp_path, fails=lambda s: KeyboardInterrupt())
    assert summary.stopped_because == "interrupted"
    assert len(certificates(trainer)) == 1
    assert (summary.verdict.status, summary.memory) == ("gain", None)


def test_what_an_earlier_part_found_of_the_same_winner_holds(tmp_path):
    """A resumed search has all results of its earlier part; one that said nothing is run again."""
    clock, outcomes = FakeClock(), [Outcome.CRASH, None]
    plan = make_plan(tmp_path / "run", clock, budget_s=3000.0, memory=LIMIT)
    trainer = MemoryTrainer(clock, fails=lambda s: outcomes.pop(0) if s.probe == "certificate" else None)
    study, _ = open_study(plan)
    session = Session(plan, trainer, [], study)
    measure_baseline(session)
    params = {**session.proposals.baseline, **BEST}
    found = [check(session, params) for _ in range(4)]
    assert [f.holds for f in found] == [None, True, True, True]
    assert found[1] == found[2] == found[3]
    assert len(certificates(trainer)) == 2
    study.close()


def test_it_takes_no_more_than_its_share(tmp_path):
    _, trainer, plan = run(tmp_path, budget_s=400.0)
    (spec,) = certificates(trainer)
    assert spec.deadlines.total_s <= 3 * MOST_OF_BUDGET * 400
    assert plan.budget.elapsed_s() <= 400.0


@pytest.mark.parametrize(
    ("result", "limit", "holds", "says"),
    [
        (probe(), LIMIT, True, "2.0 GiB (25%)"),
        (probe(peaks=(6 * GIB, 7 * GIB)), LIMIT, True, "7.0 GiB a rank at most: 1.0 GiB (12%)"),
        (probe(peaks=(9 * GIB,)), LIMIT, False, "9.0 GiB, more than can be counted on: 8.0 GiB of memory"),
        (probe(Outcome.OOM), LIMIT, False, "CUDA out of memory"),
        (probe(peaks=()), LIMIT, None, "it recorded no peak"),
        (probe(Outcome.TIMEOUT), LIMIT, None, "timeout"),
        (probe(), MemoryLimit(), True, "nobody knows"),
    ],
)
def test_what_is_said(result, limit, holds, says):
    found = judge(result, limit)
    assert found.holds is holds
    assert says in found.sentence


def test_only_a_failed_certificate_changes_the_verdict(tmp_path):
    verdict = run(tmp_path)[0].verdict
    for holds in (True, None):
        assert warned(verdict, MemoryCertificate(holds=holds, sentence="x")) == verdict
    assert warned(verdict, None) == verdict


@pytest.mark.slow
def test_a_real_winner_fits_or_does_not(tmp_path, tiny):
    args = {**trials.spec(tiny, model=MODEL).train_args, "workers": 0, "cache": False}
    info = make_info(simulated=False, backend="yolo", budget_s=3000.0, train_args=args)
    space = FakeSpace(domain={"channels_last": (False, True)})
    plan = make_plan(tmp_path / "run", time.monotonic, budget_s=3000.0, info=info, space=space, memory=LIMIT)
    plan = replace(plan, data_for=lambda _: str(tiny), trial_args={}, segment=trials.SHORT)
    plan.run_dir.trials.mkdir()
    session = Session(plan, run_trial, (), open_study(plan)[0])
    measure_baseline(session)
    winner = {**session.proposals.baseline, "channels_last": True}
    found = check(session, winner)
    assert found.holds is True, found.sentence
    assert 0 < found.peak_bytes[0] < 8 * GIB
    assert found.evidence["n_optimizer_steps"] >= 2
    assert found.evidence["n_objects"] > 0
    assert session.ran[-1].result.probe == "certificate"
    little = MemoryLimit(per_rank_bytes=found.peak_bytes[0] // 2, says="--mem-limit", enforced=True)
    session.plan = replace(plan, memory=little)
    assert "more than can be counted on" in check(session, winner).sentence, "what is known is not run again"
    session.ran.pop()
    over = check(session, winner)
    assert over.holds is False, over.sentence
    assert "memory limit" in over.sentence or "its limit is" in over.sentence
    session.study.close()


def test_records_without_it_still_read():
    record = to_dict(RankRecord(rank=0, status="done"))
    del record["certificate"]
    assert from_dict(RankRecord, record).certificate == {}
    result = to_dict(probe())
    del result["certificate"]
    assert from_dict(TrialResult, result) == replace(probe(), certificate={})
