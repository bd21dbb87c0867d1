"""Does the winner train as well as the user's own settings? Two real trainings, for as long as the user gave.

--verify-accuracy: after the verdict and outside of --budget, the user's job and the winner are trained one after the
other, each for half of that time, start-up included, with the user's own epochs and schedule, validation and
checkpoints; then we stop them. Ultralytics' own results.csv says how accurate each was after which epoch, and when.

It is one training each. Two seeds of the very same settings differ too, by how much nobody knows here: a large loss of
accuracy shows, equality is never claimed.
"""

from __future__ import annotations

import csv
import shutil
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from autotune.contract import (
    Accuracy,
    Deadlines,
    Event,
    Outcome,
    PhaseStarted,
    RunDir,
    RunInfo,
    Summary,
    TrialDir,
    TrialSpec,
    Value,
    write_json,
)
from autotune.errors import AutotuneError
from autotune.question import Question
from autotune.report.chosen import Chosen, choose
from autotune.report.yolo_yaml import job_args
from autotune.run.transport import LOGGING
from autotune.run.trial import run_trial
from autotune.search.budget import Budget

METRIC: Final = {
    "detect": "metrics/mAP50-95(B)",
    "segment": "metrics/mAP50-95(M)",
    "pose": "metrics/mAP50-95(P)",
    "obb": "metrics/mAP50-95(B)",
    "classify": "metrics/accuracy_top1",
}
"""Task -> the column of results.csv that its fitness is made of (ultralytics/utils/metrics.py)."""
SAVED: Final = "training"
"""Not the name that a trial's has: that one is removed when its process has ended."""
FOLDER: Final = "accuracy"
"""In the run folder, while they train."""
ONE_SEED: Final = (
    "one training each, and how far two seeds of the same settings are apart is not known here: this would show a "
    "large loss of accuracy, it proves no equality"
)
EARLY: Final = 0.01
"""Below this neither model finds anything: two random ones are as near to each other."""
TOO_EARLY: Final = "too early to say anything, neither has learned to find objects: give a longer --verify-accuracy"
DRY: Final = "--verify-accuracy is left out in a dry run: there is no real training to look at"
NOTHING: Final = "--verify-accuracy had nothing to compare: your own settings are the best that was found"


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What results.csv says of one training, an entry an epoch."""

    seconds: tuple[float, ...] = ()
    """Since its first step could have begun: Ultralytics' own clock, without start-up."""
    values: tuple[float, ...] = ()
    error: str = ""
    """What ended it, when that was not our clock."""

    def at(self, seconds: float) -> int:
        """Epochs that were over by then."""
        return bisect_right(self.seconds, seconds)


def verified(
    summary: Summary,
    question: Question,
    run_dir: RunDir,
    budget: Budget,
    data_for: Callable[[Value], str],
    emit: Callable[[Event], object],
    stopped: Callable[[], bool],
) -> Summary:
    """The summary with the accuracy of both in it, on disk too; whatever becomes of the trainings, it is kept.

    Args:
        summary: of the search, as summary.json has it.
        question: with the seconds for both trainings together; none: nothing was asked.
        run_dir: of the run; its best trial is looked at.
        budget: books the time; there is none of it left for this.
        data_for: value of YOLO's `cache` -> the `data` argument, as for trials: the user's folder is not touched.
        emit: told what happens.
        stopped: true once the user has asked to stop; what there is by then is kept.
    """
    if question.verify_s is None or summary.best_number is None or stopped():
        return summary
    if question.request.dry_run:
        return _noted(summary, run_dir, DRY)
    try:
        chosen = choose(run_dir, None)
    except AutotuneError as e:
        return _noted(summary, run_dir, f"the accuracy was not verified: {e.message}")
    if not chosen.spec.changes:
        return _noted(summary, run_dir, NOTHING)

    def say(note: str) -> None:
        emit(PhaseStarted(t_s=budget.elapsed_s(), phase="accuracy", note=note))

    with budget.spend("accuracy"):
        accuracy = measure(chosen, run_dir, question.verify_s / 2, data_for, say, stopped)
    say(accuracy.sentence)
    return _kept(replace(summary, accuracy=accuracy), run_dir)


def measure(
    chosen: Chosen,
    run_dir: RunDir,
    seconds_each: float,
    data_for: Callable[[Value], str],
    say: Callable[[str], object],
    stopped: Callable[[], bool],
) -> Accuracy:
    """Train the baseline and the winner, each for so many seconds, and compare; nothing but the answer is left."""
    info, metric, root = chosen.info, METRIC[chosen.info.task], run_dir.path / FOLDER
    shutil.rmtree(root, ignore_errors=True)  # of a run that was killed
    trainings = {"your settings": (job_args(info), chosen.base), "the best settings": (chosen.args, chosen.spec)}
    curves = []
    try:
        for i, (name, (args, like)) in enumerate(trainings.items()):
            if stopped():
                break
            say(f"training {name} for {seconds_each:.0f} s, on top of --budget")
            spec = _spec(info, like, args, data_for, seconds_each)
            curves.append(_train(spec, TrialDir(root / str(i)), metric, stopped))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    own, best = (*curves, Curve(), Curve())[:2]
    return compare(own, best, metric, seconds_each, interrupted=stopped())


def last_words(summary: Summary) -> str:
    """The sentence of the last lines: the verdict, and what the accuracy check found."""
    sentence = summary.verdict.sentence
    return f"{sentence}\naccuracy: {summary.accuracy.sentence}" if summary.accuracy else sentence


def compare(baseline: Curve, winner: Curve, metric: str, seconds_each: float, *, interrupted: bool = False) -> Accuracy:
    """Both curves side by side: after the same number of epochs, and after the same time.

    Args:
        baseline: of the user's settings.
        winner: of the best.
        metric: its column in results.csv.
        seconds_each: of each training, start-up included.
        interrupted: the user stopped it.
    """
    name = metric.removeprefix("metrics/")
    n = min(len(baseline.values), len(winner.values))
    if not n:
        sentence = _without(baseline, winner, seconds_each, interrupted)
    else:
        until_s = min(baseline.seconds[-1], winner.seconds[-1])
        n_own, n_best = baseline.at(until_s), winner.at(until_s)
        epochs = f"after {n} epoch{'s' * (n > 1)} each, {name} is {baseline.values[n - 1]:.4f} with your settings "
        epochs += f"({baseline.seconds[n - 1]:.0f} s) and {winner.values[n - 1]:.4f} with the best "
        epochs += f"({winner.seconds[n - 1]:.0f} s)"
        time = ""
        if n_own and n_best:
            time = f"; after {until_s:.0f} s each, {baseline.values[n_own - 1]:.4f} ({n_own} epochs) and "
            time += f"{winner.values[n_best - 1]:.4f} ({n_best} epochs)"
        early = max(*baseline.values, *winner.values) < EARLY
        sentence = f"{'interrupted: ' * interrupted}{epochs}{time}; {TOO_EARLY if early else ONE_SEED}"
    return Accuracy(
        sentence=sentence,
        seconds_each=seconds_each,
        metric=metric,
        baseline_s=baseline.seconds,
        baseline_value=baseline.values,
        winner_s=winner.seconds,
        winner_value=winner.values,
    )


def _without(baseline: Curve, winner: Curve, seconds_each: float, interrupted: bool) -> str:
    """Why there is nothing to compare."""
    who = "your settings" if not baseline.values else "the best settings"
    error = (baseline if not baseline.values else winner).error
    if interrupted:
        return f"not compared: interrupted before an epoch of {who} was over"
    why = error or f"no epoch was over within {seconds_each:.0f} s, give a longer --verify-accuracy"
    return f"not compared: with {who} {why}"


def read_curve(path: Path, metric: str) -> Curve:
    """results.csv of a training, up to its last whole line; one that is not there has no epochs.

    The column `time` counts from the start of the training loop, in seconds.
    """
    seconds, values = [], []
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return Curve()
    whole = text[: text.rfind("\n") + 1]  # we may have ended it in the middle of a line
    for row in csv.DictReader(whole.splitlines()):
        by_name = {str(k).strip(): v for k, v in row.items()}
        try:
            at_s, value = float(by_name["time"]), float(by_name[metric])
        except (KeyError, TypeError, ValueError):
            break
        seconds.append(at_s)
        values.append(value)
    return Curve(seconds=tuple(seconds), values=tuple(values))


def _spec(
    info: RunInfo, like: TrialSpec, args: dict[str, Any], data_for: Callable[[Value], str], limit_s: float
) -> TrialSpec:
    """A full training as `autotune train` starts it, in a private world like a trial's."""
    own = {k: v for k, v in args.items() if k not in ("project", "name")}
    device = ",".join(map(str, range(len(info.gpus)))) or "cpu"
    given = {"data": data_for(args.get("cache", False)), "device": device, "save_dir": SAVED, "exist_ok": True}
    # Validation is what is looked at; plots are not, and they would take the time of the shorter epochs.
    return TrialSpec(
        number=0,
        role="train",
        backend="yolo",
        task=info.task,
        params=like.params,
        changes={},
        train_args={**own, **given, "val": True, "plots": False},
        env={k: v for k, v in like.env.items() if k not in LOGGING},
        patches=dict(like.patches),
        gpus=info.gpus,
        n_ranks=like.n_ranks,
        deadlines=Deadlines(total_s=limit_s),
        private=True,
    )


def _train(spec: TrialSpec, directory: TrialDir, metric: str, stopped: Callable[[], bool]) -> Curve:
    """Train until the time is over, and read how far it came."""

    def watch(_: object) -> None:
        if stopped():
            raise KeyboardInterrupt

    error = ""
    try:
        result = run_trial(spec, directory, started_s=0.0, watch=watch)
        if result.outcome is not Outcome.TIMEOUT:  # it ended before its time: well, or at once
            error = f"the training ended: {result.error}"
    except KeyboardInterrupt:
        pass
    except AutotuneError as e:
        error = e.message
    return replace(read_curve(directory.path / SAVED / "results.csv", metric), error=error)


def _noted(summary: Summary, run_dir: RunDir, note: str) -> Summary:
    return _kept(replace(summary, notes=(*summary.notes, note)), run_dir)


def _kept(summary: Summary, run_dir: RunDir) -> Summary:
    write_json(run_dir.summary, summary)
    return summary
