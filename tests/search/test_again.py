"""A void window: measured again once, then flagged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autotune.contract import Deadlines, Meanwhile, Outcome, RunDir, TrialDir, TrialResult, TrialSpec, read_json
from autotune.search.again import once_more
from autotune.search.controller import search
from tests.search.search_world import FakeClock, FakeSpace, FakeTrainer, make_plan

HEAT = "GPU 0 was slowed down by heat in 40% of the samples"
WINNER = ({"batch_per_gpu": 64, "torch_threads": 2},)
SPEC = TrialSpec(
    number=3, role="trial", backend="fake", task="detect", params={}, changes={}, train_args={}, deadlines=Deadlines()
)


class Voided:
    """A run_trial whose first `n_void` runs of each number are void; each leaves a log and takes `took_s`."""

    def __init__(self, run_trial: Any = None, *, n_void: int = 1, took_s: float = 10.0) -> None:
        self.run_trial, self.n_void, self.took_s = run_trial, n_void, took_s
        self.specs: list[TrialSpec] = []

    def __call__(self, spec: TrialSpec, directory: TrialDir, *, started_s: float, watch: Any = None) -> TrialResult:
        self.specs.append(spec)
        n = sum(s.number == spec.number for s in self.specs)
        directory.path.mkdir(parents=True, exist_ok=True)
        directory.log.write_text(f"run {n}")
        if self.run_trial:
            result = self.run_trial(spec, directory, started_s=started_s, watch=watch)
        else:
            common = {"number": spec.number, "role": spec.role, "params": {}, "started_s": started_s}
            result = TrialResult(outcome=Outcome.OK, took_s=self.took_s, images_per_s=100.0, **common)
        if n > self.n_void or not result.outcome.measured:
            return result
        void = Meanwhile(n_samples=40, voided_by=HEAT)
        return replace(result, outcome=Outcome.UNSTABLE, meanwhile=void, error=f"{HEAT} while it was measured")


def test_a_void_trial_is_run_again_in_its_own_folder(tmp_path: Path) -> None:
    trainer, notes = Voided(), list[str]()
    directory = TrialDir(tmp_path / "0003")
    result = once_more(trainer, lambda: 500.0, notes.append)(SPEC, directory, started_s=100.0)
    assert (result.outcome, result.number, result.started_s) == (Outcome.OK, 3, 110.0)
    assert directory.log.read_text() == "run 2"
    assert (tmp_path / "0003-void" / "log.txt").read_text() == "run 1", "nothing is lost"
    assert notes == [f"trial 3 was measured again: the first time, {HEAT}"]
    assert [s.deadlines.total_s for s in trainer.specs] == [600.0, 500.0], "what is left of the budget"
    assert [n for n, _ in RunDir(tmp_path.parent).numbered()] == []


def test_the_second_time_it_stays_as_it_is(tmp_path: Path) -> None:
    trainer = Voided(n_void=9)
    result = once_more(trainer, lambda: 500.0)(SPEC, TrialDir(tmp_path / "0003"), started_s=0.0)
    assert len(trainer.specs) == 2
    assert result.outcome is Outcome.UNSTABLE
    assert result.meanwhile is not None
    assert result.meanwhile.voided_by == HEAT


@pytest.mark.parametrize(("n_void", "took_s"), [(0, 10.0), (1, 334.0)])
def test_it_is_not_run_again_without_a_reason_or_the_time(tmp_path: Path, n_void: int, took_s: float) -> None:
    trainer = Voided(n_void=n_void, took_s=took_s)
    once_more(trainer, lambda: 500.0)(SPEC, TrialDir(tmp_path / "0003"), started_s=0.0)
    assert len(trainer.specs) == 1
    assert not (tmp_path / "0003-void").exists()


def test_a_search_measures_whatever_was_void_once_more(tmp_path: Path) -> None:
    clock = FakeClock()
    trainer = Voided(FakeTrainer(clock))
    plan = make_plan(tmp_path / "run", clock, space=FakeSpace(seeds=WINNER), budget_s=500.0, max_trials=1)
    summary = search(plan, trainer)
    results = [read_json(d.result, TrialResult) for _, d in plan.run_dir.numbered()]
    assert [r.number for r in results] == list(range(len(results)))
    again = {n for n, d in plan.run_dir.numbered() if d.log.read_text() == "run 2"}
    whole = [r for r in results if r.role in ("baseline", "trial", "finalist")]
    assert {r.role for r in whole} == {"baseline", "trial", "finalist"}
    assert {r.outcome for r in whole} == {Outcome.OK}
    assert {r.number for r in whole} <= again
    assert sum("measured again" in note for note in summary.notes) == len(again)


def test_a_search_whose_every_window_is_void_still_answers_and_flags_them(tmp_path: Path) -> None:
    clock = FakeClock()
    plan = make_plan(tmp_path / "run", clock, space=FakeSpace(seeds=WINNER), budget_s=300.0, max_trials=1)
    summary = search(plan, Voided(FakeTrainer(clock), n_void=9))
    results = [read_json(d.result, TrialResult) for _, d in plan.run_dir.numbered()]
    assert {r.outcome for r in results} == {Outcome.UNSTABLE}
    assert all(r.error == f"{HEAT} while it was measured" for r in results)
    assert summary.verdict.sentence
