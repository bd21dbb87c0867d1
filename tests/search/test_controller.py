import csv
import json
from dataclasses import replace

import pytest
from search_world import BASELINE, DOMAIN, FakeClock, FakeSpace, FakeTrainer, make_info, make_plan, rate_of

from autotune.contract import TRIALS_CSV_COLUMNS, Outcome, RunInfo, Summary, TrialResult, read_json
from autotune.errors import InputError, NoTrialError
from autotune.search.controller import search
from autotune.search.proposals import key_of
from autotune.search.verdict import percent


def run(tmp_path, *, trainer_args=None, observers=(), **plan_args):
    clock = FakeClock()
    plan = make_plan(tmp_path / "a run ü", clock, **plan_args)
    trainer = FakeTrainer(clock, **(trainer_args or {}))
    return search(plan, trainer, observers), trainer, plan


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One long search that several tests look at: summary, trainer, plan, events seen."""
    seen = []
    return (*run(tmp_path_factory.mktemp("whole"), budget_s=700.0, observers=[seen.append]), seen)


def study_of(plan):
    import optuna

    return optuna.load_study(study_name="autotune", storage=f"sqlite:///{plan.run_dir.study}")


def roles(trainer, role):
    return [s for s in trainer.specs if s.role == role]


def test_finds_the_gain_and_confirms_it(whole):
    summary, trainer, plan, _ = whole
    assert summary.verdict.status == "gain"
    best = {f.name: f for f in summary.verdict.finalists}
    truth = rate_of(best["best"].params) / rate_of(BASELINE)
    assert truth > 1.6
    assert best["best"].ci95_lo < truth * 1.03
    assert best["best"].ci95_hi > truth * 0.97
    assert best["best"].params["torch_threads"] == 2
    assert best["best_yaml"].params["torch_threads"] == 1
    assert best["best_yaml"].params["batch_per_gpu"] == best["best"].params["batch_per_gpu"]
    assert best["baseline"].speedup == 1.0
    assert "x faster than your settings" in summary.verdict.sentence
    assert summary.best_number in {s.number for s in roles(trainer, "trial")}
    assert read_json(plan.run_dir.summary, Summary) == summary
    assert plan.budget.elapsed_s() <= 700.0
    assert sum(summary.ledger_s.values()) == pytest.approx(summary.elapsed_s)
    assert summary.ledger_s["finalists"] > 0


def test_baseline_is_the_user_own_arguments(whole):
    _, trainer, plan, _ = whole
    first = trainer.specs[0]
    assert (first.number, first.role, first.changes, first.env, first.patches) == (0, "baseline", {}, {}, {})
    assert first.train_args == {**plan.info.train_args, "data": "farm/False.yaml", "plots": False}
    later = trainer.specs[1]
    assert later.train_args["optimizer"] == "AdamW"
    assert later.train_args["data"] == f"farm/{later.train_args['cache']}.yaml"
    info = read_json(plan.run_dir.info, RunInfo)
    assert info.resolved == {"optimizer": "AdamW", "lr0": 0.01}
    assert info.baseline_params == BASELINE
    assert plan.space.calls[-1][:2] == ({**BASELINE, "optimizer": "AdamW"}, 1280)


@pytest.mark.parametrize("budget_s", [60.0, 90.0, 150.0, 220.0])
def test_budget_is_kept(tmp_path, budget_s):
    summary, _, plan = run(tmp_path, budget_s=budget_s, report_s=10.0)
    assert plan.budget.elapsed_s() <= budget_s - 10.0
    assert summary.elapsed_s <= budget_s


def test_five_minutes_try_enough(tmp_path):
    summary, trainer, _ = run(tmp_path, budget_s=300.0)
    tried = roles(trainer, "trial")
    assert len({key_of(s.params) for s in tried}) == len(tried) >= 6
    assert len({name for s in tried for name in s.changes}) >= 3
    assert summary.verdict.n_blocks >= 3
    assert summary.stopped_because.startswith("no time for another trial")


@pytest.mark.usefixtures("study_on_disk")
def test_folders_numbers_and_study_agree(whole):
    _, trainer, plan, _ = whole
    study = study_of(plan)
    by_number = {t.number: t for t in study.trials}
    assert {int(p.name) for p in plan.run_dir.trials.iterdir()} == {s.number for s in trainer.specs}
    for spec in trainer.specs:
        result = read_json(plan.run_dir.trial(spec.number).result, TrialResult)
        told = by_number[spec.number]
        assert told.user_attrs["role"] == spec.role == result.role
        assert told.user_attrs["folder"] == f"trials/{spec.number:04d}"
        for name, value in told.params.items():
            assert spec.params[name] == value or spec.params[name] is None
        if spec.role == "probe":
            assert (told.state.name, result.job_s) == ("FAIL", None), "the sampler hears of no probe"
        elif result.outcome is Outcome.OK:
            assert told.value == result.job_s
    assert all(t.state.is_finished() for t in study.trials)
    assert study.metric_names == ["job_time"]


def test_trials_csv_and_events(whole):
    _, trainer, plan, seen = whole
    with plan.run_dir.trials_csv.open(encoding="utf-8", newline="") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0]) == [*TRIALS_CSV_COLUMNS, *BASELINE]
    assert [int(r["number"]) for r in rows] == [s.number for s in trainer.specs]
    assert float(rows[0]["job_s"]) == read_json(plan.run_dir.trial(0).result, TrialResult).job_s
    events = [json.loads(line) for line in plan.run_dir.events.read_text(encoding="utf-8").splitlines()]
    kinds = [e["kind"] for e in events]
    assert kinds.count("trial_started") == kinds.count("trial_ended") == len(trainer.specs)
    assert [e["phase"] for e in events if e["kind"] == "phase_started"] == [
        "baseline",
        "probes",
        "search",
        "search",  # why it ended
        "finalists",
        "probes",
        "certificate",
        "certificate",
        "ablation",
    ]
    notes = [e["note"] for e in events if e["kind"] == "phase_started" and e["phase"] == "search"]
    assert notes[-1] == f"ended: {read_json(plan.run_dir.summary, Summary).stopped_because}"
    assert "trial_progress" not in kinds
    assert {e.kind for e in seen} >= {"trial_progress", "trial_started", "trial_ended"}
    assert [e["t_s"] for e in events] == sorted(e["t_s"] for e in events)


def test_sentinel_every_eight_trials(whole):
    _, trainer, _, _ = whole
    order = "".join({"trial": "t", "sentinel": "s"}.get(s.role, "") for s in trainer.specs)
    assert order.count("s") >= 1
    assert all(len(part) == 8 for part in order.split("s")[:-1])
    assert len(order.split("s")[-1]) <= 8
    for spec in roles(trainer, "sentinel"):
        assert (spec.changes, spec.patches, spec.train_args["batch"]) == ({}, {}, 16)


def test_seeds_come_first(tmp_path):
    start = {k: v for k, v in BASELINE.items() if k in DOMAIN}
    seeds = (
        {**start, "batch_per_gpu": 64, "torch_threads": 2, "workers": 1, "prefetch_factor": 4},
        {**start, "batch_per_gpu": 32, "torch_threads": 2},
    )
    _, trainer, _ = run(tmp_path, space=FakeSpace(seeds=seeds))
    tried = roles(trainer, "trial")
    assert [{k: s.params[k] for k in DOMAIN} for s in tried[:2]] == list(seeds)


@pytest.mark.usefixtures("study_on_disk")
def test_small_domain_is_measured_whole_and_once(tmp_path):
    space = FakeSpace(domain={"batch_per_gpu": (16, 32), "torch_threads": (1, 2)})
    summary, trainer, plan = run(tmp_path, space=space, budget_s=1000.0)
    assert summary.stopped_because == "every configuration was measured"
    assert len(roles(trainer, "trial")) == 3
    duplicates = [t for t in study_of(plan).trials if "duplicate_of" in t.user_attrs]
    values = {t.number: t.value for t in study_of(plan).trials}
    assert all(t.value == values[t.user_attrs["duplicate_of"]] for t in duplicates)


def test_inert_values_are_one_configuration(tmp_path):
    space = FakeSpace(domain={"workers": (0, 1), "prefetch_factor": (2, 4, 8)})
    summary, trainer, _ = run(tmp_path, space=space, budget_s=1000.0)
    assert summary.stopped_because == "every configuration was measured"
    assert len(roles(trainer, "trial")) == 3  # workers 1 with each prefetch; workers 0 is the baseline


@pytest.mark.usefixtures("study_on_disk")
def test_every_outcome_is_told(tmp_path):
    outcomes = {
        (32, 1): Outcome.INVALID, (32, 2): Outcome.OOM, (64, 1): Outcome.CRASH, (64, 2): Outcome.TIMEOUT,
        (16, 2): Outcome.UNSTABLE,
    }  # fmt: skip

    def fails(spec):
        return outcomes.get((spec.params["batch_per_gpu"], spec.params["torch_threads"]))

    space = FakeSpace(domain={"batch_per_gpu": (16, 32, 64), "torch_threads": (1, 2)})
    summary, _, plan = run(tmp_path, space=space, budget_s=2000.0, trainer_args={"fails": fails})
    told = {}
    for t in study_of(plan).trials:
        if t.user_attrs["role"] == "trial" and "duplicate_of" not in t.user_attrs:
            told[t.user_attrs["outcome"]] = (t.state.name, t.constraints.get("feasible", 0.0) > 0)
    assert told == {
        "oom": ("PRUNED", True),
        "invalid": ("PRUNED", True),
        "timeout": ("PRUNED", True),
        "crash": ("FAIL", False),
        "unstable": ("COMPLETE", False),
    }
    assert summary.verdict.status == "gain"  # an unstable trial is not believed, but it may prove itself in fresh runs


class FakeMeteredTrainer(FakeTrainer):
    """Without channels_last its GPU takes three times the power."""

    def __call__(self, spec, directory, **kwargs):
        result = super().__call__(spec, directory, **kwargs)
        watts = 100.0 if spec.params["channels_last"] else 300.0
        return replace(result, energy_j_per_image=watts / result.images_per_s)


@pytest.mark.usefixtures("study_on_disk")
def test_energy_may_be_won_by_the_slower_one(tmp_path):
    space = FakeSpace(domain={"torch_threads": (1, 2), "channels_last": (False, True)})
    clock = FakeClock()
    plan = make_plan(tmp_path, clock, space=space, budget_s=900.0, info=make_info(budget_s=900.0, objective="energy"))
    trainer = FakeMeteredTrainer(clock)
    summary = search(plan, trainer)
    best = {f.name: f for f in summary.verdict.finalists}["best"].params
    assert (best["channels_last"], best["torch_threads"]) == (True, 2)
    assert "x fewer J per image than your settings" in summary.verdict.sentence
    assert "faster" not in summary.verdict.sentence
    assert not [t for t in study_of(plan).trials if t.user_attrs.get("outcome") == "pruned"], "slower is no reason"


@pytest.mark.usefixtures("study_on_disk")
def test_racing_prunes_with_its_value(tmp_path):
    space = FakeSpace(domain={"torch_threads": (1, 2), "channels_last": (False, True)})
    fast = {"torch_threads": 2, "channels_last": False}
    slow = {"torch_threads": 1, "channels_last": True}
    space.seeds = (fast, slow)
    summary, _, plan = run(tmp_path, space=space, budget_s=600.0)
    trial = next(t for t in study_of(plan).trials if t.user_attrs["role"] == "trial" and t.params == slow)
    assert trial.user_attrs["outcome"] == "pruned"
    assert trial.state.name == "PRUNED"
    assert trial.value == pytest.approx(1280 * 100 / 70, rel=0.1)
    assert trial.constraints == {"feasible": -1.0}
    assert "img/s after 10 steps, needs" in trial.user_attrs["error"]
    assert summary.verdict.status == "gain"


def test_mismatch_leads_to_what_really_ran(tmp_path):
    asked = {"batch_per_gpu": 16, "torch_threads": 2, "workers": 2}

    def fails(spec):
        return Outcome.MISMATCH if spec.params["workers"] == 2 else None

    space = FakeSpace(domain={"batch_per_gpu": (16, 32), "torch_threads": (1, 2), "workers": (0, 1, 2)}, seeds=(asked,))
    _, trainer, _ = run(tmp_path, space=space, trainer_args={"fails": fails})
    tried = roles(trainer, "trial")
    assert tried[0].params["workers"] == 2
    assert tried[1].params == {**tried[0].params, "workers": 1}


def test_dear_configurations_are_listed_as_not_tried(tmp_path):
    seen = []
    space = FakeSpace(domain={**DOMAIN, "compile": (False, True)})
    summary, trainer, _ = run(tmp_path, space=space, observers=[seen.append], budget_s=330.0)
    assert all(not s.params.get("compile") for s in trainer.specs)
    assert summary.not_tried
    assert all(n.params["compile"] and n.price_s > 60 for n in summary.not_tried)
    assert all("would take" in n.reason for n in summary.not_tried)
    assert [e.not_tried for e in seen if e.kind == "trial_skipped"] == list(summary.not_tried)


@pytest.mark.usefixtures("study_on_disk")
def test_baseline_out_of_memory_is_halved_and_labelled(tmp_path):
    def fails(spec):
        return Outcome.OOM if spec.train_args["batch"] > 16 else None

    info = make_info(train_args={"batch": 64, "cache": False, "data": "x"})
    summary, trainer, plan = run(tmp_path, info=info, trainer_args={"fails": fails})
    assert [(s.number, s.role, s.train_args["batch"]) for s in trainer.specs[:3]] == [
        (0, "baseline", 64), (1, "baseline", 32), (2, "baseline", 16),
    ]  # fmt: skip
    assert any("batch=64 runs out of memory" in n and "batch=16" in n for n in summary.notes)
    info = read_json(plan.run_dir.info, RunInfo)
    assert info.train_args["batch"] == 16
    assert info.baseline_params["batch_per_gpu"] == 16
    assert {s.train_args["batch"] for s in roles(trainer, "finalist")} >= {16}
    assert study_of(plan).trials[2].state.name == "COMPLETE"


@pytest.mark.usefixtures("study_on_disk")
def test_a_baseline_that_hangs_once_is_run_again(tmp_path):
    summary, trainer, plan = run(
        tmp_path, budget_s=2400.0, trainer_args={"fails": lambda spec: Outcome.TIMEOUT if spec.number == 0 else None}
    )
    assert [(s.number, s.role, s.train_args) for s in trainer.specs[:2]] == [
        (0, "baseline", trainer.specs[0].train_args),
        (1, "baseline", trainer.specs[0].train_args),
    ]
    assert any("hung once" in note for note in summary.notes)
    assert read_json(plan.run_dir.trial(0).result, TrialResult).outcome is Outcome.TIMEOUT
    assert study_of(plan).trials[1].state.name == "COMPLETE"
    assert len([s for s in trainer.specs if s.role == "trial"]) > 2


@pytest.mark.parametrize(("budget_s", "n_runs"), [(2400.0, 2), (700.0, 1)])
def test_a_baseline_that_always_hangs_ends_the_search(tmp_path, budget_s, n_runs):
    """Twice at most, and once where the budget has no time for a second hang."""
    with pytest.raises(NoTrialError, match="it was timeout") as e:
        run(tmp_path, budget_s=budget_s, trainer_args={"fails": lambda spec: Outcome.TIMEOUT})
    assert e.value.message.count("it was timeout") == n_runs


def test_no_trial_succeeded(tmp_path):
    with pytest.raises(NoTrialError, match="it was crash") as e:
        run(tmp_path, trainer_args={"fails": lambda spec: Outcome.CRASH})
    assert e.value.exit_code == 4
    assert e.value.hint == "a hint"


def test_baseline_never_fits_names_every_reason(tmp_path):
    with pytest.raises(NoTrialError, match=r"trial 0: oom.*trial 4: oom"):
        run(tmp_path, trainer_args={"fails": lambda spec: Outcome.OOM})
    folder = tmp_path / "a run ü"
    assert read_json(folder / "summary.json", Summary).best_number is None
    assert len((folder / "trials.csv").read_text().splitlines()) == 6


@pytest.mark.parametrize("role", ["baseline", "trial", "finalist"])
@pytest.mark.usefixtures("study_on_disk")
def test_interrupt(tmp_path, role):
    _, trainer, _ = run(tmp_path / "whole", budget_s=200.0)
    number = next(s.number for s in reversed(trainer.specs) if s.role == role)

    def fails(spec):
        return KeyboardInterrupt() if spec.number == number else None

    summary, trainer, plan = run(tmp_path, trainer_args={"fails": fails}, budget_s=200.0)
    assert trainer.specs[-1].number == number
    assert trainer.specs[-1].role == role
    assert summary.stopped_because == "interrupted"
    assert summary.verdict.status == "unconfirmed"
    assert "interrupted" in summary.verdict.sentence or role == "baseline"
    last = study_of(plan).trials[number]
    assert last.state.name == "FAIL"
    assert last.user_attrs["outcome"] == "interrupted"
    assert read_json(plan.run_dir.trial(number).result, TrialResult).outcome is Outcome.INTERRUPTED
    assert read_json(plan.run_dir.summary, Summary) == summary
    assert (summary.best_number is None) == (role == "baseline")


@pytest.mark.usefixtures("study_on_disk")
def test_interrupt_while_the_first_is_written_down(tmp_path):
    def observer(event):
        if event.kind == "trial_ended" and event.result.outcome is Outcome.INTERRUPTED:
            raise KeyboardInterrupt

    calls = []

    def twice(event):
        calls.append(event)
        observer(event)

    def fails(spec):
        return KeyboardInterrupt() if spec.number == 3 else None

    summary, _, plan = run(tmp_path, trainer_args={"fails": fails}, observers=[twice])
    assert summary.stopped_because == "interrupted"
    assert all(t.state.is_finished() for t in study_of(plan).trials)


def test_a_baseline_whose_energy_nobody_counted_says_so(tmp_path):
    with pytest.raises(NoTrialError, match="trial 0: ok: no energy was counted"):
        run(tmp_path, info=make_info(objective="energy"))


def test_no_gain_when_nothing_is_faster(tmp_path):
    """Fresh runs say how far the user's settings may be from the best; these win, being the simplest."""
    equal = {"rate": lambda params: 100.0, "noise": 0.002, "seed": 1}
    summary, _, _ = run(tmp_path, budget_s=400.0, trainer_args=equal)
    assert summary.verdict.status == "no_gain"
    assert summary.best_number == 0
    assert [f.name for f in summary.verdict.finalists] == ["baseline", "second"]
    most = summary.verdict.finalists[1].ci95_hi
    assert f"your settings are within {percent(most - 1)} % of the best found" in summary.verdict.sentence


def test_without_time_to_look_again_no_gain_is_what_the_search_saw(tmp_path):
    clock = FakeClock()
    plan = make_plan(tmp_path / "run", clock, budget_s=185.0, space=FakeSpace(domain={"workers": (0, 2)}))
    dearer = {"fails": lambda spec: clock.advance(70.0) if spec.role == "trial" else None}  # than anybody thought
    trainer = FakeTrainer(clock, rate=lambda params: 100.0, noise=0.002, seed=1, **dearer)
    summary = search(plan, trainer)
    assert roles(trainer, "trial")
    assert (summary.verdict.status, summary.best_number, summary.verdict.finalists) == ("no_gain", 0, ())
    assert "in the search" in summary.verdict.sentence or "none of 1 other" in summary.verdict.sentence


def test_finalist_blocks_are_interleaved_fresh_runs(whole):
    summary, trainer, _, _ = whole
    finals = roles(trainer, "finalist")
    n = len(summary.verdict.finalists)
    blocks = [finals[i : i + n] for i in range(0, len(finals), n)]
    assert 3 <= len(blocks) <= 5
    wanted = sorted(key_of(f.params) for f in summary.verdict.finalists)
    assert all(sorted(key_of(s.params) for s in block) == wanted for block in blocks)
    assert len({tuple(key_of(s.params) for s in block) for block in blocks}) > 1
    assert len({s.number for s in trainer.specs}) == len(trainer.specs)
    numbers = {x for f in summary.verdict.finalists for x in f.numbers}
    assert numbers == {s.number for s in finals}
    yaml = [s for s in finals if not s.patches and s.changes]
    assert len(yaml) == len(blocks)


def test_projection_that_is_the_baseline_is_said(tmp_path):
    summary, _, _ = run(tmp_path, space=FakeSpace(domain={"torch_threads": (1, 2)}))
    assert [f.name for f in summary.verdict.finalists] == ["baseline", "best"]
    assert any("best.yaml alone is the baseline" in note for note in summary.notes)


def test_a_best_finalist_that_fails_is_replaced_by_the_runner_up(tmp_path):
    broken = []

    def fails(spec):
        if spec.role == "finalist" and spec.patches and not broken:
            broken.append(key_of(spec.params))
        return Outcome.CRASH if spec.role == "finalist" and key_of(spec.params) in broken else None

    summary, trainer, plan = run(tmp_path, trainer_args={"fails": fails}, budget_s=700.0)
    best = {f.name: f for f in summary.verdict.finalists}
    assert summary.verdict.status == "gain"
    assert summary.verdict.n_blocks >= 3
    assert key_of(best["best"].params) not in broken
    assert sum(key_of(s.params) in broken for s in roles(trainer, "finalist")) == 1
    assert read_json(plan.run_dir.trial(summary.best_number).result, TrialResult).params == best["best"].params
    assert any("it was crash" in note and "left out" in note for note in summary.notes)
    if len(best) == 3:  # there was time for one candidate only
        assert any("the runner-up, trial" in note for note in summary.notes)


def test_when_the_runner_up_fails_too_nothing_is_claimed(tmp_path):
    def fails(spec):
        return Outcome.CRASH if spec.role == "finalist" and spec.patches else None

    space = FakeSpace(domain={"torch_threads": (1, 2), "workers": (0, 1, 2)})  # every gain needs a patch
    summary, trainer, _ = run(tmp_path, space=space, trainer_args={"fails": fails}, budget_s=700.0)
    assert summary.verdict.status == "unconfirmed"
    assert "failed when it ran again" in summary.verdict.sentence
    failed = {key_of(s.params) for s in roles(trainer, "finalist") if s.patches}
    assert 2 <= len(failed) <= 3, "all candidates and one runner-up"
    assert sum(bool(s.patches) for s in roles(trainer, "finalist")) == len(failed), "none of them twice"
    assert summary.verdict.finalists == ()


@pytest.mark.parametrize(
    ("strategy", "objective"), [("structured", "images_per_s"), ("tpe", "images_per_s"), ("random", "job_time")]
)
def test_same_seed_same_search(tmp_path, strategy, objective):
    info = make_info(strategy=strategy, objective=objective, seed=3)
    a, first, _ = run(tmp_path / "a", info=info, budget_s=200.0)
    b, second, _ = run(tmp_path / "b", info=info, budget_s=200.0)
    assert [s.params for s in first.specs] == [s.params for s in second.specs]
    assert a.verdict == b.verdict


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match="unknown objective"):
        run(tmp_path, info=make_info(objective="speed"))
    with pytest.raises(InputError, match="unknown strategy 'tep'") as e:
        run(tmp_path, info=make_info(strategy="tep"))
    assert e.value.hint == "did you mean tpe?"


def test_what_the_baseline_falls_back_to_is_noted_once(tmp_path):
    info = make_info(train_args={"batch": 16, "cache": False, "amp": True, "workers": 8, "data": "x"})
    summary, _, _ = run(tmp_path, info=info)
    assert [n for n in summary.notes if "amp" in n] == [
        "asked amp=True, runs with amp=False here: that is the baseline"
    ]
    assert sum("workers=8" in n for n in summary.notes) == 1
    assert summary.frozen == {"amp": "CPU: no autocast here"}


def test_importance_names_the_knob_that_matters(whole):
    summary, _, _, _ = whole
    assert summary.n_feasible >= 5
    assert sum(summary.importance.values()) == pytest.approx(1.0)
    assert next(iter(summary.importance)) in ("torch_threads", "channels_last", "batch_per_gpu")


def test_a_budget_too_small_to_try_anything_says_so(tmp_path):
    summary, trainer, _ = run(tmp_path, budget_s=40.0)
    assert roles(trainer, "trial") == []
    assert summary.verdict.status == "unconfirmed"
    assert summary.verdict.sentence.endswith("no time for another trial, give a longer --budget")


def test_a_compile_has_the_time_before_the_finalists_and_its_own_deadline(tmp_path):
    domain = {"compile": (False, True), "batch_per_gpu": (16, 32)}
    _, trainer, plan = run(tmp_path, space=FakeSpace(domain), budget_s=1800.0)
    compiling = [s for s in roles(trainer, "trial") if s.params["compile"]]
    assert compiling
    for spec in trainer.specs:
        limits = spec.deadlines
        if spec.params["compile"]:
            assert limits.first_step_s < limits.total_s, "it can be over before the trial's own time is"
        elif spec.role == "trial":
            assert limits.first_step_s == plan.deadlines.first_step_s
            assert limits.total_s <= 60.0
    first = compiling[0].deadlines
    assert first.total_s > first.first_step_s > 476.0, "what yolo11n took on two busy cores (ULTRALYTICS 4)"


def test_a_compile_that_never_ends_leaves_the_finalists_their_time(tmp_path):
    domain = {"compile": (False, True), "batch_per_gpu": (16, 64)}
    fails = {"fails": lambda spec: Outcome.TIMEOUT if spec.params["compile"] else None}
    summary, trainer, plan = run(tmp_path, space=FakeSpace(domain), budget_s=600.0, trainer_args=fails)
    assert any(s.params["compile"] for s in trainer.specs)
    assert summary.verdict.n_blocks >= 3
    assert plan.budget.elapsed_s() <= 600.0
