"""A search that died at any moment goes on: nothing measured is lost, nothing is measured twice without a reason."""

import dataclasses
import json
import shutil
from collections import Counter

import optuna
import pytest
from search_world import FakeClock, FakeSpace, FakeTrainer, make_info, make_plan

from autotune.contract import Outcome, RunDir, RunInfo, Summary, TrialResult, Verdict, read_json, write_json
from autotune.search.budget import Budget
from autotune.search.controller import search
from autotune.search.past import DIED, mend_journal, read_events, read_past
from autotune.search.proposals import key_of
from autotune.search.stopping import MIN_TRIALS

pytestmark = pytest.mark.usefixtures("study_on_disk")

MOMENTS = (
    ("trial_started", "baseline", 1),
    ("trial_started", "trial", 3),
    ("trial_ended", "trial", 5),
    ("trial_started", "sentinel", 1),
    ("trial_started", "finalist", 4),
    ("trial_ended", "finalist", 4),
)
"""While that trial ran, or when its result was written and the study was not told."""


def search_and_die(first, moments, target, *, budget_s=300.0, space=None, trainer_args=None, info=None):
    """A search, with copies of its folder as a kill -9 would have left it at these moments."""
    clock = FakeClock()
    plan = make_plan(first, clock, budget_s=budget_s, space=space, info=info)
    trainer = FakeTrainer(clock, **(trainer_args or {}))
    heard = Counter()

    def passed(kind, role):
        heard[kind, role] += 1
        if (kind, role, heard[kind, role]) in moments:
            shutil.copytree(first, target((kind, role, heard[kind, role])))

    def run_trial(spec, directory, **kwargs):
        write_json(directory.spec, spec)
        passed("trial_started", spec.role)
        return trainer(spec, directory, **kwargs)

    search(plan, run_trial, [lambda e: passed(e.kind, e.result.role) if e.kind == "trial_ended" else None])


def died(tmp_path, *moment, **args):
    """A folder of a search that died at one moment."""
    target = tmp_path / "died"
    search_and_die(tmp_path / "first", [moment], lambda _: target, **args)
    assert target.exists(), "the moment never came"
    return target


def test_a_copy_of_a_trial_folder_is_no_trial(tmp_path):
    folder = died(tmp_path, "trial_ended", "trial", 5)
    before = read_past(RunDir(folder)).results
    shutil.copytree(folder / "trials" / "0003", folder / "trials" / "0003-mine")
    assert read_past(RunDir(folder)).results == before


@pytest.fixture(scope="module")
def deaths(tmp_path_factory):
    """One search that died at every moment."""
    home = tmp_path_factory.mktemp("deaths")
    search_and_die(home / "first", MOMENTS, lambda m: home / "-".join(map(str, m)), budget_s=400.0)

    def one(tmp_path, *moment):
        return shutil.copytree(home / "-".join(map(str, moment)), tmp_path / "died")

    return one


def go_on(folder, *, budget_s=220.0, space=None, trainer_args=None, observers=()):
    run_dir = RunDir(folder)
    mend_journal(run_dir.events)
    past = read_past(run_dir)
    clock = FakeClock()
    info = read_json(run_dir.info, RunInfo) if run_dir.info.exists() else make_info(budget_s=budget_s)
    plan = make_plan(folder, clock, space=space, info=info)
    budget = Budget(past.elapsed_s + budget_s, clock, started=clock() - past.elapsed_s)
    for purpose, seconds in past.ledger_s.items():
        budget.book(purpose, seconds)
    plan = dataclasses.replace(plan, budget=budget, past=past)
    trainer = FakeTrainer(clock, **{"seed": 1, **(trainer_args or {})})

    def run_trial(spec, directory, **kwargs):
        write_json(directory.spec, spec)
        return trainer(spec, directory, **kwargs)

    return search(plan, run_trial, observers), trainer, past


def study_of(folder):
    return optuna.load_study(study_name="autotune", storage=f"sqlite:///{folder}/study.db")


def results_of(folder):
    found = (read_json(p, TrialResult) for p in sorted((folder / "trials").glob("*/result.json")))
    return {r.number: r for r in found}


def agree(folder):
    """The study, the results, the table and the journal say the same."""
    results = results_of(folder)
    trials = {t.number: t for t in study_of(folder).trials}
    assert all(t.state.is_finished() for t in trials.values())
    for number, result in results.items():
        told = trials[number]
        assert told.user_attrs["role"] == result.role
        if result.outcome is Outcome.OK and result.role != "probe":
            assert (told.state.name, told.value) == ("COMPLETE", result.job_s)
        if result.outcome is Outcome.INTERRUPTED:
            assert told.state.name == "FAIL"
    rows = (folder / "trials.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [int(r.split(",")[0]) for r in rows] == sorted(results)
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [e["t_s"] for e in events] == sorted(e["t_s"] for e in events)
    ended = Counter(e["result"]["number"] for e in events if e["kind"] == "trial_ended")
    assert ended == dict.fromkeys(results, 1)


@pytest.mark.parametrize(("kind", "role", "nth"), MOMENTS, ids=lambda x: str(x))
def test_goes_on_after_a_death(deaths, tmp_path, kind, role, nth):
    folder = deaths(tmp_path, kind, role, nth)
    before = {n: r for n, r in results_of(folder).items() if r.images_per_s}
    summary, trainer, past = go_on(folder)
    agree(folder)
    after = results_of(folder)
    assert {n: after[n] for n in before} == before, "what was measured stays as it was"
    assert summary.verdict.status == "gain"
    assert summary.elapsed_s <= past.elapsed_s + 220.0
    assert sum(summary.ledger_s.values()) == pytest.approx(summary.elapsed_s)
    stopped = [r for r in after.values() if r.outcome is Outcome.INTERRUPTED]
    assert [(r.role, r.error) for r in stopped] == ([(role, DIED)] if kind == "trial_started" else [])
    first = trainer.specs[0]
    if role == "baseline" and stopped:
        assert (first.role, first.number) == ("baseline", 1)
    else:
        assert first.role == "sentinel", "is the machine as it was?"
    tried = Counter(key_of(r.params) for r in after.values() if r.role == "trial")
    again = [key_of(r.params) for r in stopped if r.role == "trial"]
    assert {k for k, n in tried.items() if n > 1} == set(again)
    if again:
        assert next(key_of(s.params) for s in trainer.specs if s.role == "trial") == again[0]
    finalists = {s.number for s in trainer.specs if s.role == "finalist"}
    assert {n for f in summary.verdict.finalists for n in f.numbers} == finalists, "the claim is from fresh runs"


def test_one_hour_more(deaths, tmp_path):
    folder = deaths(tmp_path, "trial_ended", "finalist", 4)
    n_before = len(results_of(folder))
    shown = []
    summary, trainer, past = go_on(folder, budget_s=400.0, observers=[shown.append])
    assert min(s.number for s in trainer.specs) >= n_before
    assert sum(s.role == "trial" for s in trainer.specs) >= 3
    heard = [e for e in shown if e.kind == "trial_ended"]
    assert heard[0].result.role == "baseline", "the views learn what the new trials are compared with"
    assert heard[1].changes
    assert all(e.t_s >= past.elapsed_s for e in shown)
    assert read_json(folder / "summary.json", Summary) == summary


@pytest.mark.slow
def test_a_model_goes_on_from_all_that_was_measured(tmp_path):
    """It expects the right thing of the very first trial, and may end the search by what the earlier part has tried."""
    info = make_info(strategy="structured", objective="images_per_s")
    folder = died(tmp_path, "trial_ended", "trial", 4, info=info)
    heard = []
    summary, trainer, _ = go_on(folder, budget_s=400.0, observers=[heard.append])
    tried = Counter(key_of(r.params) for r in results_of(folder).values() if r.role == "trial")
    assert set(tried.values()) == {1}
    assert any(s.role == "trial" for s in trainer.specs), summary.stopped_because
    first = next(e for e in heard if e.kind == "trial_started" and e.role == "trial")
    value = 1 / results_of(folder)[first.number].images_per_s
    assert first.guess.value == pytest.approx(value, rel=0.3)


@pytest.mark.slow
def test_a_model_may_end_it_by_the_trials_of_both_parts(tmp_path):
    domain = {
        "torch_threads": (1, 2),
        "batch_per_gpu": (16, 32, 64),
        "workers": (0, 1, 2),
        "channels_last": (False, True),
    }
    info = make_info(strategy="structured", objective="images_per_s", budget_s=700.0)
    first = FakeSpace(domain)
    folder = died(tmp_path, "trial_ended", "finalist", 2, space=first, info=info, budget_s=700.0)
    n_before = sum(r.role == "trial" for r in results_of(folder).values())
    assert n_before >= MIN_TRIALS, "enough for a model to say so"
    summary, trainer, _ = go_on(folder, space=FakeSpace(domain), budget_s=900.0)
    assert "to go on costs about" in summary.stopped_because
    assert sum(s.role == "trial" for s in trainer.specs) < MIN_TRIALS


def test_the_accuracy_of_an_earlier_part_stays_in_the_ledger(deaths, tmp_path):
    """Its trainings leave no trial that could tell their time."""
    folder = deaths(tmp_path, "trial_ended", "finalist", 4)
    verdict = Verdict(status="unconfirmed", sentence="")
    ledger = {"setup": 1.0, "report": 2.0, "accuracy": 60.0}
    given = {"stopped_because": "", "elapsed_s": 300.0, "best_number": 0, "verdict": verdict, "importance": {}}
    write_json(folder / "summary.json", Summary(**given, ledger_s=ledger))
    past = read_past(RunDir(folder))
    assert {name: past.ledger_s[name] for name in ledger} == ledger


def test_interrupted_twice_is_not_tried_again(deaths, tmp_path):
    folder = deaths(tmp_path, "trial_started", "trial", 3)
    number = max(int(p.name) for p in (folder / "trials").iterdir())
    once = results_of(folder)
    spec = json.loads((folder / "trials" / f"{number:04d}" / "spec.json").read_text())
    assert number not in once

    def dies(spec_):
        return KeyboardInterrupt() if key_of(spec_.params) == key_of(spec["params"]) else None

    summary, trainer, _ = go_on(folder, trainer_args={"fails": dies})
    assert summary.stopped_because == "interrupted"
    assert trainer.specs[-1].params == spec["params"]
    summary, trainer, _ = go_on(folder, trainer_args={"fails": dies})
    assert summary.stopped_because != "interrupted"
    assert spec["params"] not in [s.params for s in trainer.specs]
    assert [n.reason for n in summary.not_tried if n.params == spec["params"]] == [
        "the search ended 2 times while it ran"
    ]
    agree(folder)


@pytest.mark.parametrize("fault", ["garbage", "cut", "missing", "another study"])
def test_a_lost_study_is_made_again(deaths, tmp_path, fault):
    folder = deaths(tmp_path, "trial_ended", "trial", 5)
    before = {t.number: (t.state, t.value, t.params) for t in study_of(folder).trials if t.value is not None}
    db = folder / "study.db"
    if fault == "garbage":
        db.write_bytes(b"this is no database " * 400)
    elif fault == "cut":
        db.write_bytes(db.read_bytes()[: db.stat().st_size // 2])
    elif fault == "missing":
        db.unlink()
    else:
        db.unlink()
        optuna.create_study(study_name="somebody", storage=f"sqlite:///{db}")
    lost = db.read_bytes() if db.exists() else b""
    summary, _, _ = go_on(folder, budget_s=60.0)
    agree(folder)
    after = {t.number: (t.state, t.value, t.params) for t in study_of(folder).trials}
    for number, (state, value, params) in before.items():
        assert after[number][:2] == (state, value)
        # Inert values are drawn anew; the others are what ran.
        ran = results_of(folder)[number].params
        assert {k: v for k, v in after[number][2].items() if ran[k] is not None} == {
            k: v for k, v in params.items() if ran[k] is not None
        }
    if fault in ("garbage", "cut"):
        assert any("study.db could not be read" in note for note in summary.notes)
        (aside,) = folder.glob("study.db.unreadable-*")
        assert aside.read_bytes() == lost
    if fault == "missing":
        assert any("study.db was missing" in note for note in summary.notes)


def test_torn_lines_and_half_files_are_survived(deaths, tmp_path):
    folder = deaths(tmp_path, "trial_started", "trial", 3)
    journal = folder / "events.jsonl"
    whole = read_events(journal)
    journal.write_bytes(journal.read_bytes() + b'{"t_s": 3, "kind": "trial_en')
    number = max(results_of(folder))
    (folder / "trials" / f"{number:04d}" / "result.json").write_text('{"number": 3, "outc')
    (folder / "trials" / "notes").mkdir()
    _, trainer, past = go_on(folder)
    shutil.rmtree(folder / "trials" / "notes")
    assert past.results[number].outcome is Outcome.INTERRUPTED
    assert read_events(journal)[: len(whole)] == whole
    assert all(json.loads(line) for line in journal.read_text(encoding="utf-8").splitlines())
    assert any(s.role == "trial" for s in trainer.specs)


def test_a_waiting_trial_of_the_dead_is_nobodys(deaths, tmp_path):
    folder = deaths(tmp_path, "trial_started", "trial", 3)
    study_of(folder).enqueue_trial({"batch_per_gpu": 64, "torch_threads": 1})
    go_on(folder)
    agree(folder)
    trials = {t.number: t for t in study_of(folder).trials}
    for number, result in results_of(folder).items():
        for name, value in trials[number].params.items():
            assert result.params[name] in (value, None)


def test_a_halved_baseline_stays_halved(tmp_path):
    def fails(spec):
        return Outcome.OOM if spec.train_args["batch"] > 16 else None

    info = make_info(train_args={"batch": 64, "cache": False, "data": "x"})
    folder = died(tmp_path, "trial_started", "trial", 2, info=info, trainer_args={"fails": fails})
    asked = dataclasses.replace(read_json(folder / "run.json", RunInfo), train_args=dict(info.train_args))
    write_json(folder / "run.json", asked)
    summary, trainer, _ = go_on(folder, trainer_args={"fails": fails})
    assert read_json(folder / "run.json", RunInfo).train_args["batch"] == 16
    assert {s.train_args["batch"] for s in trainer.specs if s.role == "sentinel"} == {16}
    assert any("batch=64 runs out of memory" in n for n in summary.notes)
    assert all(s.role != "baseline" for s in trainer.specs)
    agree(folder)


def test_the_domain_stays_when_the_space_would_give_more_now(tmp_path):
    folder = died(
        tmp_path, "trial_started", "trial", 3, space=FakeSpace(domain={"torch_threads": (1, 2), "workers": (0, 1)})
    )
    wider = FakeSpace(domain={"torch_threads": (1, 2), "workers": (0, 1, 2), "channels_last": (False, True)})
    summary, trainer, _ = go_on(folder, space=wider, budget_s=600.0)
    assert {(s.params["workers"], s.params["channels_last"]) for s in trainer.specs} <= {(0, False), (1, False)}
    assert summary.stopped_because == "every configuration was measured"


def test_a_configuration_that_was_too_dear_may_be_affordable_now(tmp_path):
    space = FakeSpace(domain={"torch_threads": (1, 2), "compile": (False, True)})
    folder = died(tmp_path, "trial_ended", "finalist", 2, space=space, budget_s=200.0)
    assert any(e["kind"] == "trial_skipped" for e in read_events(folder / "events.jsonl"))
    again = FakeSpace(domain=space.domain)
    summary, trainer, _ = go_on(folder, space=again, budget_s=3000.0)
    assert any(s.params["compile"] for s in trainer.specs)
    assert summary.not_tried == ()


def test_a_winner_that_failed_is_not_tried_as_a_finalist_again(tmp_path):
    broken = []

    def fails(spec):
        if spec.role == "finalist" and spec.patches and not broken:
            broken.append(key_of(spec.params))
        return Outcome.CRASH if spec.role == "finalist" and key_of(spec.params) in broken else None

    folder = died(tmp_path, "trial_ended", "finalist", 4, trainer_args={"fails": fails})
    assert broken
    _, trainer, _ = go_on(folder, trainer_args={"fails": fails})
    assert all(key_of(s.params) not in broken for s in trainer.specs if s.role == "finalist")
