"""--verify-accuracy: what two curves may be said to show, and two tiny real trainings that make some."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autotune import accuracy
from autotune.accuracy import Curve, compare, last_words, measure, read_curve, verified
from autotune.contract import Outcome, RunDir, RunInfo, Summary, TrialResult, TrialSpec, Verdict, read_json, write_json
from autotune.errors import InputError
from autotune.report.chosen import Chosen
from autotune.search.budget import Budget, parse_budget
from tests.run.trials import spec

MODEL = str(Path(__file__).parent / "models" / "tiny-detect.yaml")
METRIC = "metrics/mAP50-95(B)"
CSV = f"""epoch,time,train/box_loss,metrics/mAP50(B),{METRIC},lr/pg0
1,2.5,3.1,0.1,0.05,0.01
2,4.75,2.9,0.2,0.08,0.01
3,7.1,2.7,0.2,0.1"""


def test_results_csv_is_read_up_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    assert read_curve(path, METRIC) == Curve()
    path.write_text(CSV)
    assert read_curve(path, METRIC) == Curve(seconds=(2.5, 4.75), values=(0.05, 0.08))
    path.write_text(CSV.replace("epoch,time,", "                  epoch,        time,") + "2,0.01\n")
    assert read_curve(path, METRIC).values == (0.05, 0.08, 0.12)
    assert read_curve(path, "metrics/accuracy_top1") == Curve()


OWN = Curve(seconds=(10.0, 20.0, 30.0), values=(0.1, 0.2, 0.3))
BEST = Curve(seconds=(5.0, 10.0, 15.0, 20.0, 25.0), values=(0.11, 0.19, 0.28, 0.36, 0.4))


def test_the_same_epochs_and_the_same_time() -> None:
    found = compare(OWN, BEST, METRIC, 40.0)
    assert "after 3 epochs each, mAP50-95(B) is 0.3000 with your settings (30 s) and 0.2800 with the best (15 s)" in (
        found.sentence
    )
    assert "after 25 s each, 0.2000 (2 epochs) and 0.4000 (5 epochs)" in found.sentence
    assert "two seeds" in found.sentence
    assert "no equality" in found.sentence
    assert (found.baseline_s, found.winner_value) == (OWN.seconds, BEST.values)
    assert (found.seconds_each, found.metric) == (40.0, METRIC)


@pytest.mark.parametrize(
    ("own", "best", "more", "says"),
    [
        (Curve(), BEST, {}, "not compared: with your settings no epoch was over within 40 s, give a longer"),
        (OWN, Curve(), {}, "not compared: with the best settings no epoch was over"),
        (OWN, Curve(error="the training ended: out of memory"), {}, "with the best settings the training ended: out"),
        (OWN, Curve(), {"interrupted": True}, "interrupted before an epoch of the best settings was over"),
        (OWN, BEST, {"interrupted": True}, "interrupted: after 3 epochs each"),
        (Curve(seconds=(30.0,), values=(0.1,)), Curve(seconds=(5.0,), values=(0.1,)), {}, "after 1 epoch each"),
    ],
)
def test_what_is_missing_is_said(own: Curve, best: Curve, more: dict[str, Any], says: str) -> None:
    assert says in compare(own, best, METRIC, 40.0, **more).sentence


def test_two_that_have_learned_nothing_are_not_alike() -> None:
    early = Curve(seconds=(1.0, 2.0), values=(0.0, 0.004))
    assert "too early to say anything" in compare(early, early, METRIC, 10.0).sentence
    assert "too early" not in compare(early, BEST, METRIC, 10.0).sentence, "one has"


def summary_of(**fields: Any) -> Summary:
    verdict = Verdict(status="gain", sentence="2x faster")
    given = {"stopped_because": "", "elapsed_s": 1.0, "ledger_s": {}, "best_number": 1, "verdict": verdict, **fields}
    return Summary(**given)


def test_the_last_lines_say_it() -> None:
    assert last_words(summary_of()) == "2x faster"
    found = compare(OWN, BEST, METRIC, 40.0)
    assert last_words(summary_of(accuracy=found)) == f"2x faster\naccuracy: {found.sentence}"


def asked(verify_s: float | None = 20.0, *, dry_run: bool = False) -> Any:
    return SimpleNamespace(verify_s=verify_s, request=SimpleNamespace(dry_run=dry_run))


def test_where_nothing_was_asked_nothing_happens(tmp_path: Path) -> None:
    summary, run = summary_of(), RunDir(tmp_path)
    given = (Budget(10.0), lambda _: "demo", print)
    assert verified(summary, asked(None), run, *given, lambda: False) is summary
    assert verified(summary, asked(), run, *given, lambda: True) is summary, "the search was interrupted"
    assert list(tmp_path.iterdir()) == []


def test_a_time_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"--verify-accuracy 'soon' is not a time"):
        parse_budget("soon", "--verify-accuracy")


def chosen_of(data: Path, **args: Any) -> Chosen:
    """A run whose winner has a batch of 16 in place of 8."""
    base = spec(data, model=MODEL, workers=0, **args)
    info = RunInfo(
        name="r",
        command="autotune search",
        started="2026-11-23T14:05:00+00:00",
        budget_s=60.0,
        objective="job_time",
        strategy="tpe",
        space="cpu",
        training="same",
        seed=0,
        backend="yolo",
        simulated=False,
        task="detect",
        device="cpu",
        train_args={**base.train_args, "val": True, "save": True, "warmup_epochs": 3.0},
        resolved={"optimizer": "AdamW", "lr0": 0.001, "momentum": 0.9, "warmup_bias_lr": 0.0},
    )
    best: TrialSpec = replace(base, number=1, changes={"batch_per_gpu": 16}, patches={"torch_threads": 1})
    best = replace(best, train_args={**best.train_args, "batch": 16})
    ran = TrialResult(number=1, role="trial", outcome=Outcome.OK, params={}, started_s=0.0, took_s=1.0)
    return Chosen(info=info, summary=summary_of(), machine=None, spec=best, base=base, result=ran, confirmed=True)


@pytest.mark.slow
def test_two_real_trainings(tiny: Path, tmp_path: Path) -> None:
    run, said = RunDir(tmp_path / "run"), []
    run.path.mkdir()
    found = measure(chosen_of(tiny), run, 11.0, lambda _: str(tiny), said.append, lambda: False)
    assert len(found.baseline_s) == len(found.baseline_value) > 1, found.sentence
    assert len(found.winner_s) > 1, found.sentence
    assert list(found.baseline_s) == sorted(found.baseline_s)
    assert found.baseline_s[-1] < 11.0
    assert all(0 <= v <= 1 for v in (*found.baseline_value, *found.winner_value))
    assert found.sentence.startswith("after ")
    assert [line.partition(" for")[0] for line in said] == ["training your settings", "training the best settings"]
    assert [p.name for p in run.path.iterdir()] == [], "no checkpoint is left"
    assert list(tiny.parent.glob("runs")) == []


@pytest.mark.slow
def test_an_interrupt_keeps_what_there_is(tiny: Path, tmp_path: Path) -> None:
    run, results = RunDir(tmp_path / "run"), []
    run.path.mkdir()

    def stopped() -> bool:
        """From the first epoch of the first training on, as after Ctrl-C."""
        results.extend((run.path / accuracy.FOLDER).glob("0/training/results.csv"))
        return bool(results)

    began = time.monotonic()
    found = measure(chosen_of(tiny), run, 300.0, lambda _: str(tiny), lambda _: None, stopped)
    assert time.monotonic() - began < 100.0, "not to the end of its time"
    assert found.baseline_s, "what the first had done by then"
    assert found.winner_s == ()
    assert "interrupted before an epoch of the best settings was over" in found.sentence
    assert list(run.path.iterdir()) == []


@pytest.mark.slow
def test_a_training_that_fails_says_why(tiny: Path, tmp_path: Path) -> None:
    run, chosen = RunDir(tmp_path / "run"), chosen_of(tiny)
    run.path.mkdir()
    info = replace(chosen.info, train_args={**chosen.info.train_args, "imgsz": "wide"})
    found = measure(replace(chosen, info=info), run, 60.0, lambda _: str(tiny), lambda _: None, lambda: False)
    assert found.baseline_s == ()
    assert "not compared: with your settings the training ended: " in found.sentence
    assert "imgsz" in found.sentence


def test_it_is_written_to_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    found = compare(OWN, BEST, METRIC, 10.0)
    monkeypatch.setattr(accuracy, "choose", lambda *_: chosen_of(tiny))
    monkeypatch.setattr(accuracy, "measure", lambda *_: found)
    run, events, budget = RunDir(tmp_path), [], Budget(10.0)
    write_json(run.summary, summary_of())
    done = verified(summary_of(), asked(), run, budget, lambda _: "", events.append, lambda: False)
    assert done.accuracy == found
    assert read_json(run.summary, Summary) == done
    assert [e.note for e in events] == [found.sentence]
    monkeypatch.setattr(accuracy, "choose", lambda *_: replace(chosen_of(tiny), spec=chosen_of(tiny).base))
    assert accuracy.NOTHING in verified(summary_of(), asked(), run, budget, str, print, lambda: False).notes
