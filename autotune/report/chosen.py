"""Which trial is exported, and what may be said about its speed?"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Final

import autotune
from autotune.contract import Finalist, Machine, RunDir, RunInfo, Summary, TrialResult, TrialSpec, Winner, read_json
from autotune.errors import FormatError, InputError
from autotune.report.yolo_yaml import changes_training, job_args, keeps_training, winner_args

NOT_CONFIRMED: Final = "search measurement, not confirmed by finalist runs"
SIMULATED: Final = "SIMULATED, no real training was measured: "


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """One trial of a run, with all that is said about it."""

    info: RunInfo
    summary: Summary
    machine: Machine | None
    spec: TrialSpec
    base: TrialSpec
    """Of the baseline that was measured: what run.json's train_args are."""
    result: TrialResult
    confirmed: bool
    """The verdict speaks of this trial, from finalist runs."""

    @property
    def args(self) -> dict[str, Any]:
        """YOLO arguments of this configuration."""
        return winner_args(self.info, self.spec, self.base)

    def finalist(self, name: str) -> Finalist | None:
        """Fresh runs of `baseline`, `best` or `best_yaml`, when they are about this trial."""
        finalists = self.summary.verdict.finalists if self.confirmed else ()
        return next((f for f in finalists if f.name == name), None)

    @property
    def claim(self) -> str:
        """What is known about its speed, in one line, with its labels."""
        label = SIMULATED if self.info.simulated else ""
        if self.confirmed:
            return label + self.summary.verdict.sentence.removeprefix("SIMULATED: ")  # said once is enough
        r = self.result
        figure = f"{r.images_per_s:.5g} images/s" if r.images_per_s is not None else "not measured"
        if r.ci95_lo is not None and r.ci95_hi is not None:
            figure += f" (95 % interval within the run {r.ci95_lo:.5g} to {r.ci95_hi:.5g})"
        memory = self.summary.memory if r.number == self.summary.best_number else None
        return f"{label}trial {r.number}: {figure}; {NOT_CONFIRMED}{memory.warning if memory else ''}"


def choose(run: RunDir, number: int | None) -> Chosen:
    """Read the trial that is asked for and what the verdict says about it."""
    info, summary = read_json(run.info, RunInfo), read_json(run.summary, Summary)
    if info.replayed:
        raise InputError(f"{run.path} is a replay of {info.replayed}: nothing in it was measured", "export that run")
    best = summary.best_number
    if number is None and best is None:
        raise InputError(f"{run.path} has no best trial to export: {summary.verdict.sentence}", "choose one: --trial N")
    wanted = best if number is None else number
    assert wanted is not None
    if not run.trial(wanted).spec.is_file():
        known = [number for number, directory in run.numbered() if directory.spec.is_file()]
        span = f"it has {known[0]} to {known[-1]}" if known else "it has none"
        raise InputError(f"{run.path} has no trial {wanted}", span)
    result = read_json(run.trial(wanted).result, TrialResult)
    if result.role == "probe":
        raise InputError(f"trial {wanted} is a probe: it measured a part of the step, not a training", "choose another")
    if not result.outcome.measured:
        raise InputError(
            f"trial {wanted} has no speed to export: {': '.join(filter(None, (result.outcome.value, result.error)))}",
            "choose one that ended `ok`; `trials.csv` lists them",
        )
    return Chosen(
        info=info,
        summary=summary,
        machine=read_json(run.machine, Machine) if run.machine.is_file() else None,
        spec=read_json(run.trial(wanted).spec, TrialSpec),
        base=_baseline(run),
        result=result,
        confirmed=wanted == best and summary.verdict.status != "unconfirmed",
    )


def _baseline(run: RunDir) -> TrialSpec:
    """The first baseline that has a speed: when the user's batch did not fit, that is not trial 0. Else trial 0."""
    for _, directory in run.numbered():
        with contextlib.suppress(FormatError):
            result = read_json(directory.result, TrialResult)
            if result.role == "baseline" and result.outcome.measured:
                return read_json(directory.spec, TrialSpec)
    return read_json(run.trial(0).spec, TrialSpec)


def keeper(run: RunDir, chosen: Chosen) -> Chosen | None:
    """The fastest trial that keeps the training the same, when the chosen one does not (--training bounded, any)."""
    job = job_args(chosen.info)
    if chosen.info.training == "same" or keeps_training(chosen.args, job):
        return None
    found: list[tuple[float, Chosen]] = []
    for number, _ in run.numbered():
        try:
            other = choose(run, number)
        except (InputError, FormatError):
            continue  # interrupted before it had a result, or without a speed
        score = _score(other.result, chosen.info.objective)
        if score is not None and keeps_training(other.args, job):
            found.append((score, other))
    return min(found, key=lambda f: f[0])[1] if found else None


def _score(result: TrialResult, objective: str) -> float | None:
    """Smaller is better: seconds of the job, joules per image, or seconds per image."""
    if objective == "energy":
        return result.energy_j_per_image
    if objective != "images_per_s" and result.job_s is not None:
        return result.job_s
    return 1 / result.images_per_s if result.images_per_s else None


def yaml_header(name: str, chosen: Chosen, winner: Winner | None) -> list[str]:
    """Comment lines at the top of a YAML: how fast, on what, how to run it, and what it cannot hold."""
    info = chosen.info
    versions = ", ".join(f"{k} {info.versions[k]}" for k in ("ultralytics", "torch") if k in info.versions)
    lines = [f"autotune {autotune.__version__}, {info.started[:10]}: {chosen.claim}"]
    lines += _figures(chosen)
    lines.append(f"Run: `yolo train cfg={name}`. Later arguments win: `yolo train cfg={name} epochs=300`.")
    fingerprint = f" Machine fingerprint {chosen.machine.fingerprint}." if chosen.machine else ""
    lines.append(f"Made with {versions or 'unknown versions'} on {_where(chosen)}.{fingerprint}")
    if info.device == "cpu" and info.n_ranks > 1:
        lines.append(f"Plain YOLO trains in one process on a CPU; launch.sh starts the {info.n_ranks} ranks measured.")
    if warning := changes_training(chosen.args, job_args(info)):
        lines.append(warning)
    if winner is not None and (winner.env or winner.patches):
        rest = ", ".join(f"{k}={v}" for k, v in (winner.env | winner.patches).items())
        alone = chosen.finalist("best_yaml")
        speed = f"{_speed(alone, info.objective)}, from fresh runs" if alone is not None else "not measured"
        lines.append(f"Not in this file, launch.sh sets them: {rest}. This file alone: {speed}.")
    return lines


def _figures(chosen: Chosen) -> list[str]:
    """One line of numbers from finalist runs, when there are any."""
    best, base = chosen.finalist("best"), chosen.finalist("baseline")
    if best is None or base is None:
        return []
    yours, tuned = (_speed(f, chosen.info.objective) for f in (base, best))
    return [f"{tuned}; your baseline {yours}; {chosen.summary.verdict.n_blocks} interleaved blocks."]


def _speed(f: Finalist, objective: str) -> str:
    """images/s and, against the baseline, the ratio of what was compared with its interval."""
    text = f"{f.images_per_s:.5g} images/s" if f.images_per_s is not None else "no images/s"
    if f.name != "baseline" and f.speedup is not None:
        text += f" ({f.speedup:.3g} x{' fewer J per image' if objective == 'energy' else ''}"
        if f.ci95_lo is not None and f.ci95_hi is not None:
            text += f", 95 % interval {f.ci95_lo:.3g} to {f.ci95_hi:.3g}"
        text += ")"
    return text


def _where(chosen: Chosen) -> str:
    """The hardware in a few words."""
    m, info = chosen.machine, chosen.info
    if info.device == "cpu":
        return f"{m.n_cores} cores of {m.cpu}" if m else "CPU"
    names = [g.name for g in m.gpus if g.uuid in info.gpus] if m else []
    return f"{max(info.n_ranks, 1)} x {names[0] if names else 'GPU'}"
