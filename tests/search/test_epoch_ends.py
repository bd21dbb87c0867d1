"""The whole job decides, not the step: searches on the synthetic backend, in this process."""

import shutil
from dataclasses import replace

import optuna
import pytest
from search_world import FakeClock, FakeSpace, make_info, make_plan

from autotune.contract import Outcome, RankRecord, RunDir, RunInfo, TrialResult, read_json, write_json
from autotune.run.outcome import classify
from autotune.run.statistics import build_result
from autotune.run.supervise import Exit
from autotune.search.budget import Budget
from autotune.search.controller import search
from autotune.search.past import read_past
from autotune.search.session import Session
from autotune.worker.machines import draw
from autotune.worker.recorder import Recorder
from autotune.worker.synthetic import Synthetic

DRY = draw("dry_run")
JOB = {"model": "yolo11n.yaml", "data": "mine.yaml", "batch": 16, "cache": False}
COMPILED = {"compile": (False, "default")}


class InProcess:
    """run_trial of the synthetic backend, on the search's own clock."""

    def __init__(self, clock, fails=lambda spec: None):
        self.clock, self.fails = clock, fails
        self.specs = []

    def __call__(self, spec, directory, *, started_s, watch=None):
        self.specs.append(spec)
        why = self.fails(spec)
        if isinstance(why, BaseException):
            raise why
        directory.path.mkdir(parents=True, exist_ok=True)
        write_json(directory.spec, spec)
        recorder = Recorder(spec, directory)
        backend = Synthetic(recorder)
        backend.build(spec)
        if why is None:
            backend.train(recorder)
        recorder.write(RuntimeError("simulated") if why else None)
        record = read_json(directory.rank(0), RankRecord)
        took_s = sum(record.phases_s.values())
        self.clock.advance(took_s)
        judgement = classify(spec, [record], Exit(0, took_s, None), [])
        result = build_result(spec, [record], judgement, started_s=started_s, took_s=took_s)
        write_json(directory.result, result)
        return result


def run(folder, *, epochs, domain=None, budget_s=3000.0, fails=lambda spec: None, objective="job_time", **job):
    clock = FakeClock()
    train_args = {**JOB, "epochs": epochs, **job}
    info = make_info(budget_s=budget_s, backend="synthetic", train_args=train_args, objective=objective)
    space = FakeSpace(domain=domain or COMPILED)
    plan = make_plan(folder, clock, space=space, info=info, budget_s=budget_s)
    plan = replace(plan, trial_args={"plots": False, "val": False, "save": False}, max_trials=6)
    trainer = InProcess(clock, fails)
    return search(plan, trainer), trainer, plan


def results_of(plan):
    found = (read_json(d.result, TrialResult) for _, d in plan.run_dir.numbered())
    return {r.number: r for r in found}


def probes(trainer):
    return [s for s in trainer.specs if s.probe == "epoch_end"]


def test_the_length_of_the_job_decides_who_wins(tmp_path):
    """Compiling takes 40 s, the step is 14 % shorter: hopeless for 2 epochs of 12 s, too dear for 20, fine for 200."""
    tiny, trainer, _ = run(tmp_path / "tiny", epochs=2)
    assert tiny.best_number == 0
    assert "cannot repay" in tiny.not_tried[0].reason
    short, trainer, plan = run(tmp_path / "short", epochs=20)
    assert short.best_number == 0
    assert short.verdict.status == "no_gain"
    tried = [r for r in results_of(plan).values() if r.role == "trial"]
    assert [r.params["compile"] for r in tried] == ["default"], "it was measured"
    assert tried[0].images_per_s > results_of(plan)[0].images_per_s, "and its step is shorter"
    assert tried[0].job_s > results_of(plan)[0].job_s

    long, _, plan = run(tmp_path / "long", epochs=200)
    assert long.verdict.status == "gain"
    best = next(f for f in long.verdict.finalists if f.name == "best")
    assert best.params["compile"] == "default"
    assert len(probes(trainer)) == 1, "there were no finalists"


@pytest.mark.usefixtures("study_on_disk")
def test_every_trial_is_compared_by_the_same_terms(tmp_path):
    summary, trainer, plan = run(tmp_path, epochs=100, domain={"torch_threads": (1, 2), "workers": (0, 1, 2)})
    results = results_of(plan)
    known = {tuple(t for t, s in r.job_terms.items() if s is not None) for r in results.values() if r.role != "probe"}
    assert len(known) == 1
    assert {"val_s", "save_s", "epoch_end_s", "final_s", "closed_epochs_s"} < set(next(iter(known)))
    base = results[0]
    assert base.job_estimated == (), "its own probe has measured them"
    assert base.job_terms["val_s"] == pytest.approx(100 * DRY.n_val * DRY.val_image_s)
    assert base.job_terms["save_s"] == pytest.approx(100 * DRY.save_s)
    assert base.job_terms["epoch_end_s"] == pytest.approx(100 * DRY.end_s)
    study = optuna.load_study(study_name="autotune", storage=f"sqlite:///{plan.run_dir.study}")
    told = {t.number: t.value for t in study.trials if t.value is not None}
    assert told[0] == pytest.approx(base.job_s), "the study heard of the baseline with all terms"
    searched = [r for r in results.values() if r.role == "trial" and r.outcome is Outcome.OK]
    finalists = {key(s.params) for s in probes(trainer)}
    assert len(finalists) == len(probes(trainer)) >= 2, "the baseline, and each finalist once"
    others = [r for r in searched if key(r.params) not in finalists]
    assert others
    for r in others:
        assert set(r.job_estimated) >= {"val_s", "save_s", "epoch_end_s", "final_s", "closed_epochs_s"}
        assert r.job_terms["val_s"] == base.job_terms["val_s"]
        assert told[r.number] == pytest.approx(r.job_s)
    fresh = [r for r in results.values() if r.role == "finalist"]
    assert {f.name for f in summary.verdict.finalists} >= {"baseline", "best", "second", "best_yaml"}
    for r in fresh:
        assert not {"val_s", "closed_epochs_s"} & set(r.job_estimated)


def key(params):
    return str(sorted(params.items()))


def test_the_users_own_val_save_and_plots_are_used(tmp_path):
    _, trainer, plan = run(tmp_path, epochs=100, val=False, plots=True)
    [first, *_] = probes(trainer)
    assert {k: first.train_args[k] for k in ("val", "save", "plots")} == {"val": False, "save": True, "plots": True}
    assert all(s.train_args["val"] is False and s.train_args["save"] is False for s in trainer.specs if not s.probe)
    assert results_of(plan)[0].job_terms["val_s"] == pytest.approx(DRY.n_val * DRY.val_image_s), "the last epoch alone"


def test_without_time_for_it_nobody_has_these_terms(tmp_path):
    _, trainer, plan = run(tmp_path, epochs=100, budget_s=120.0)
    assert probes(trainer) == []
    for r in results_of(plan).values():
        assert r.job_terms.get("val_s") is None
        assert r.job_estimated == ()


def test_when_the_time_is_over_no_finalist_is_probed(tmp_path):
    """A trial may take longer than its price; what is left then is the finalists' own."""

    def fails(spec):
        if spec.role == "trial":
            plan.budget.skip(max(0.0, plan.budget.left_s() - 40.0))

    clock = FakeClock()
    info = make_info(budget_s=600.0, backend="synthetic", train_args={**JOB, "epochs": 100})
    plan = make_plan(tmp_path, clock, space=FakeSpace(domain={"torch_threads": (1, 2)}), info=info, budget_s=600.0)
    trainer = InProcess(clock, fails)
    search(plan, trainer)
    assert [s.role for s in trainer.specs if s.role == "trial"]
    assert len(probes(trainer)) == 1, "the baseline's"


def test_an_interrupt_finds_all_trials_compared_by_the_same_terms(tmp_path, monkeypatch):
    valued = Session.valued

    def interrupted(session, result, changes):
        trials = [r.number for r in session.ran if r.result.role == "trial"]
        if sum(r.result.probe == "epoch_end" for r in session.ran) >= 2 and result.number == trials[-1]:
            raise KeyboardInterrupt
        return valued(session, result, changes)

    monkeypatch.setattr(Session, "valued", interrupted)
    summary, _, plan = run(tmp_path, epochs=100, domain={"torch_threads": (1, 2), "workers": (0, 1)})
    assert summary.stopped_because == "interrupted"
    trials = [r for r in results_of(plan).values() if r.role == "trial" and r.outcome.measured]
    assert len(trials) > 1
    assert all("val_s" in r.job_estimated for r in trials), "none is at its own place already"


@pytest.mark.slow
def test_another_objective_has_no_use_for_it(tmp_path):
    _, trainer, _ = run(tmp_path, epochs=100, objective="images_per_s")
    assert probes(trainer) == []


def test_a_probe_that_fails_is_said_and_all_goes_on_without(tmp_path):
    summary, trainer, plan = run(tmp_path, epochs=200, fails=lambda spec: spec.probe == "epoch_end" or None)
    assert len(probes(trainer)) == 1
    assert any("the end of an epoch was not measured (trial 1: crash" in note for note in summary.notes)
    assert summary.verdict.status == "gain"
    assert all(r.job_terms.get("val_s") is None for r in results_of(plan).values())


@pytest.mark.slow
@pytest.mark.usefixtures("study_on_disk")
def test_interrupted_in_it_and_resumed(tmp_path):
    stop = [KeyboardInterrupt()]
    summary, *_ = run(tmp_path, epochs=200, fails=lambda spec: stop.pop() if spec.probe and stop else None)
    assert summary.stopped_because == "interrupted"
    summary, trainer, plan = resume(tmp_path)
    assert trainer.specs[0].probe == "epoch_end", "the baseline itself is not run again"
    assert summary.verdict.status == "gain"
    results = results_of(plan)
    assert all(r.job_terms["val_s"] for r in results.values() if r.role in ("baseline", "trial", "finalist"))
    study = optuna.load_study(study_name="autotune", storage=f"sqlite:///{plan.run_dir.study}")
    told = {t.number: t.value for t in study.trials if t.value is not None and t.number in results}
    assert 0 not in told, "what would lack these terms was not told"
    assert all(value > results[0].job_terms["val_s"] for value in told.values())
    assert told


@pytest.mark.usefixtures("study_on_disk")
def test_killed_in_it_and_resumed(tmp_path):
    """As after kill -9: the study was told nothing of the baseline, and is not told before its probe has run."""

    class Killed(Exception):
        pass

    copies = []

    def dies(spec):
        if spec.probe == "epoch_end" and not copies:
            copies.append(shutil.copytree(tmp_path / "a", tmp_path / "b"))
            raise Killed
        return

    with pytest.raises(Killed):
        run(tmp_path / "a", epochs=200, fails=dies)
    _, trainer, plan = resume(copies[0])
    assert trainer.specs[0].probe == "epoch_end"
    study = optuna.load_study(study_name="autotune", storage=f"sqlite:///{plan.run_dir.study}")
    first = results_of_folder(plan.run_dir.path)[0]
    assert first.job_terms["val_s"]
    assert study.trials[0].value == pytest.approx(first.job_s)


@pytest.mark.slow
@pytest.mark.usefixtures("study_on_disk")
def test_resumed_after_it_nothing_changes(tmp_path):
    stop = [KeyboardInterrupt()]
    dies = lambda spec: stop.pop() if spec.role == "finalist" and spec.number > 8 and stop else None  # noqa: E731
    run(tmp_path, epochs=200, domain={"torch_threads": (1, 2), "workers": (0, 1, 2)}, fails=dies)
    assert not stop
    info = read_json(tmp_path / "run.json", RunInfo)
    before = {n: r for n, r in results_of_folder(tmp_path).items() if r.outcome is not Outcome.INTERRUPTED}
    assert any(r.epoch_end for r in before.values())
    _, trainer, _ = resume(tmp_path, domain={"torch_threads": (1, 2), "workers": (0, 1, 2)})
    after = results_of_folder(tmp_path)
    assert {n: after[n] for n in before} == before
    assert info.domain == read_json(tmp_path / "run.json", RunInfo).domain
    assert not [s for s in probes(trainer) if s.params == before[0].params]


def results_of_folder(folder):
    return {r.number: r for p in sorted(folder.glob("trials/*/result.json")) for r in [read_json(p, TrialResult)]}


def resume(folder, domain=None):
    clock = FakeClock()
    run_dir = RunDir(folder)
    past = read_past(run_dir)
    info = read_json(run_dir.info, RunInfo)
    plan = make_plan(folder, clock, space=FakeSpace(domain=domain or COMPILED), info=info)
    budget = Budget(past.elapsed_s + 3000.0, clock, started=clock() - past.elapsed_s)
    plan = replace(plan, budget=budget, past=past, max_trials=6)
    plan = replace(plan, trial_args={"plots": False, "val": False, "save": False})
    trainer = InProcess(clock)
    return search(plan, trainer), trainer, plan
