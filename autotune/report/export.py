"""What does the user take away from a run? best/: the configuration as files that run as they are (PRODUCT B6).

Made from the run folder alone, whole or not at all.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import autotune
from autotune.contract import (
    FORMAT,
    Finalist,
    Machine,
    RunDir,
    RunInfo,
    Summary,
    TrialResult,
    TrialSpec,
    Winner,
    read_json,
    to_dict,
    write_json,
)
from autotune.errors import FormatError, InputError, MachineError
from autotune.report.shell import env_sh, launch_sh, one_line
from autotune.report.yolo_yaml import (
    changes_training,
    check_with_yolo,
    job_args,
    keeps_training,
    winner_args,
    yolo_yaml,
)

NOT_CONFIRMED: Final = "search measurement, not confirmed by finalist runs"
SIMULATED: Final = "SIMULATED, no real training was measured: "


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chosen:
    """One trial of a run, with all that is said about it."""

    info: RunInfo
    summary: Summary
    machine: Machine | None
    spec: TrialSpec
    base: TrialSpec
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
            return label + self.summary.verdict.sentence
        r = self.result
        figure = f"{r.images_per_s:.5g} images/s" if r.images_per_s is not None else "not measured"
        if r.ci95_lo is not None and r.ci95_hi is not None:
            figure += f" (95 % interval within the run {r.ci95_lo:.5g} to {r.ci95_hi:.5g})"
        return f"{label}trial {r.number}: {figure}; {NOT_CONFIRMED}"


def export(run: RunDir, *, number: int | None = None, out: Path | None = None) -> Path:
    """Write the files of a configuration.

    Args:
        run: the run folder; nothing else is read.
        number: a trial; the run's best when None.
        out: where to; RUN/best when None. An earlier export of the same run is replaced, nothing else is.

    Returns:
        The folder written.

    Raises:
        InputError: no such trial, it has no speed, or `out` holds something else.
        FormatError: a file of the run folder is missing or damaged.
        AutotuneError: Ultralytics refuses the YAML.
        MachineError: `out` cannot be written.
    """
    chosen = _choose(run, number)
    target = (out or run.path / run.best.name).absolute()
    _refuse_foreign(target, chosen.info)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as name:
            tmp = Path(name) / "new"
            tmp.mkdir()
            _write_all(tmp, chosen, run)
            if target.exists():
                target.rename(Path(name) / "old")
            tmp.rename(target)
    except OSError as e:
        raise MachineError(f"cannot write {target}: {e}", "give another folder") from e
    return target


def _choose(run: RunDir, number: int | None) -> _Chosen:
    """Read the trial that is asked for and what the verdict says about it."""
    info, summary = read_json(run.info, RunInfo), read_json(run.summary, Summary)
    best = summary.best_number
    if number is None and best is None:
        raise InputError(f"{run.path} has no best trial to export: {summary.verdict.sentence}", "choose one: --trial N")
    wanted = best if number is None else number
    assert wanted is not None
    if not run.trial(wanted).spec.is_file():
        known = sorted(int(p.name) for p in run.trials.glob("[0-9]*") if (p / "spec.json").is_file())
        span = f"it has {known[0]} to {known[-1]}" if known else "it has none"
        raise InputError(f"{run.path} has no trial {wanted}", span)
    result = read_json(run.trial(wanted).result, TrialResult)
    if not result.outcome.measured:
        raise InputError(
            f"trial {wanted} has no speed to export: {result.outcome.value}{f', {result.error}' if result.error else ''}",
            "choose one that ended `ok`; `trials.csv` lists them",
        )
    return _Chosen(
        info=info,
        summary=summary,
        machine=read_json(run.machine, Machine) if run.machine.is_file() else None,
        spec=read_json(run.trial(wanted).spec, TrialSpec),
        base=read_json(run.trial(0).spec, TrialSpec),
        result=result,
        confirmed=wanted == best and summary.verdict.status != "unconfirmed",
    )


def _refuse_foreign(target: Path, info: RunInfo) -> None:
    """Replace only what an export of this very run wrote."""
    if not target.exists():
        return
    if not target.is_dir():
        raise InputError(f"{target} is a file", "give a folder")
    names = {p.name for p in target.iterdir()}
    if not names:
        return
    try:
        receipt = json.loads((target / "receipt.json").read_text(encoding="utf-8"))
        ours = receipt["run"] == info.name and receipt["started"] == info.started
        foreign = names - set(receipt["files"])
    except (OSError, ValueError, KeyError, TypeError):
        ours, foreign = False, names
    if not ours:
        raise InputError(f"{target} is not empty and not an export of this run", "give another folder, or remove it")
    if foreign:
        raise InputError(
            f"{target} holds files that are not ours: {', '.join(sorted(foreign))}", "move them away first"
        )


def _write_all(folder: Path, chosen: _Chosen, run: RunDir) -> None:
    """Every file of best/ into an empty folder."""
    info, args, best = chosen.info, chosen.args, chosen.finalist("best")
    winner = Winner(
        task=info.task,
        train_args=args,
        env=dict(chosen.spec.env),
        patches=dict(chosen.spec.patches),
        n_ranks=chosen.spec.n_ranks,
        params=dict(chosen.spec.params),
        versions=dict(info.versions),
        fingerprint=chosen.machine.fingerprint if chosen.machine else "",
        images_per_s=best.images_per_s if best else None,
        sentence=chosen.claim,
        simulated=info.simulated,
    )
    write_json(folder / "winner.json", winner)
    yamls = {"best.yaml": yolo_yaml(args, info, _header("best.yaml", chosen, winner))}
    keeper = _keeper(run, chosen)
    if keeper is not None:
        yamls["keep-training.yaml"] = yolo_yaml(keeper.args, info, _header("keep-training.yaml", keeper, None))
    for name, text in yamls.items():
        (folder / name).write_text(text, encoding="utf-8")
    check_with_yolo([folder / name for name in yamls])
    (folder / "env.sh").write_text(env_sh(winner, chosen.claim), encoding="utf-8", errors="surrogateescape")
    (folder / "launch.sh").write_text(launch_sh(winner, chosen.claim), encoding="utf-8")
    (folder / "launch.sh").chmod(0o755)
    files = sorted([*(p.name for p in folder.iterdir()), "README.md", "receipt.json"])
    (folder / "README.md").write_text(_readme(files, chosen), encoding="utf-8")
    write_json(folder / "receipt.json", _receipt(files, chosen, winner))


def _keeper(run: RunDir, chosen: _Chosen) -> _Chosen | None:
    """The fastest trial that keeps the training the same, when the chosen one does not (--training bounded, any)."""
    job = job_args(chosen.info)
    if chosen.info.training == "same" or keeps_training(chosen.args, job):
        return None
    found: list[tuple[float, _Chosen]] = []
    for path in sorted(run.trials.glob("[0-9]*")):
        try:
            other = _choose(run, int(path.name))
        except (InputError, FormatError):
            continue  # interrupted before it had a result, or without a speed
        score = _score(other.result, chosen.info.objective)
        if score is not None and keeps_training(other.args, job):
            found.append((score, other))
    return min(found, key=lambda f: f[0])[1] if found else None


def _score(result: TrialResult, objective: str) -> float | None:
    """Smaller is better: seconds of the job, or seconds per image."""
    if objective != "images_per_s" and result.job_s is not None:
        return result.job_s
    return 1 / result.images_per_s if result.images_per_s else None


def _header(name: str, chosen: _Chosen, winner: Winner | None) -> list[str]:
    """Comment lines at the top of a YAML: how fast, on what, how to run it, and what it cannot hold."""
    info = chosen.info
    versions = ", ".join(f"{k} {info.versions[k]}" for k in ("ultralytics", "torch") if k in info.versions)
    lines = [f"autotune {autotune.__version__}, {info.started[:10]}: {chosen.claim}"]
    lines += _figures(chosen)
    lines.append(f"Run:  yolo train cfg={name}    Later arguments win:  yolo train cfg={name} epochs=300")
    fingerprint = f" Machine fingerprint {chosen.machine.fingerprint}." if chosen.machine else ""
    lines.append(f"Made with {versions or 'unknown versions'} on {_where(chosen)}.{fingerprint}")
    if warning := changes_training(chosen.args, job_args(info)):
        lines.append(warning)
    if winner is not None and (winner.env or winner.patches):
        rest = ", ".join(f"{k}={v}" for k, v in (winner.env | winner.patches).items())
        alone = chosen.finalist("best_yaml")
        speed = (
            "has no figure of its own" if alone is None else f"made {_speed(alone)}, from fresh runs of this file alone"
        )
        lines.append(f"Not in this file, which {speed}: {rest}. launch.sh sets them.")
    return lines


def _figures(chosen: _Chosen) -> list[str]:
    """One line of numbers from finalist runs, when there are any."""
    best, base = chosen.finalist("best"), chosen.finalist("baseline")
    if best is None or base is None:
        return []
    return [f"{_speed(best)}; your baseline {_speed(base)}; {chosen.summary.verdict.n_blocks} interleaved blocks."]


def _speed(f: Finalist) -> str:
    """images/s and, against the baseline, the ratio with its interval."""
    text = f"{f.images_per_s:.5g} images/s" if f.images_per_s is not None else "no images/s"
    if f.name != "baseline" and f.speedup is not None:
        text += f" ({f.speedup:.3g} x"
        if f.ci95_lo is not None and f.ci95_hi is not None:
            text += f", 95 % interval {f.ci95_lo:.3g} to {f.ci95_hi:.3g}"
        text += ")"
    return text


def _where(chosen: _Chosen) -> str:
    """The hardware in a few words."""
    m, info = chosen.machine, chosen.info
    if info.device == "cpu":
        return f"{m.n_cores} cores of {m.cpu}" if m else "CPU"
    names = [g.name for g in m.gpus if g.uuid in info.gpus] if m else []
    return f"{max(info.n_ranks, 1)} x {names[0] if names else 'GPU'}"


def _commands(chosen: _Chosen) -> dict[str, str]:
    """What was typed, and what to type next."""
    return {
        "search": chosen.info.command,
        "launch": "bash launch.sh",
        "yolo": "yolo train cfg=best.yaml",
        "train": "python -m autotune train winner.json",
    }


def _receipt(files: list[str], chosen: _Chosen, winner: Winner) -> dict[str, Any]:
    """receipt.json: what the claim rests on."""
    info, verdict, r = chosen.info, chosen.summary.verdict, chosen.result
    return {
        "format": FORMAT,
        "run": info.name,
        "started": info.started,
        "files": files,
        "number": r.number,
        "confirmed": chosen.confirmed,
        "simulated": info.simulated,
        "claim": chosen.claim,
        "objective": info.objective,
        "training": info.training,
        "changes_training": changes_training(chosen.args, job_args(info)),
        "fingerprint": winner.fingerprint,
        "machine": to_dict(chosen.machine),
        "verdict": to_dict(verdict) if chosen.confirmed else None,
        "search_measurement": {
            k: getattr(r, k) for k in ("images_per_s", "ci95_lo", "ci95_hi", "job_s", "wait_frac", "n_steps")
        },
        "params": to_dict(r.params),
        "baseline_params": to_dict(info.baseline_params),
        "effective": to_dict(r.effective),
        "resolved": to_dict(info.resolved),
        "commands": _commands(chosen),
        "versions": dict(info.versions),
        "git": info.git,
        "budget_s": info.budget_s,
        "seed": info.seed,
    }


def _readme(files: list[str], chosen: _Chosen) -> str:
    """README.md: what each file is."""
    what = {
        "winner.json": "the configuration, whole: YOLO arguments, environment, patches; read by `autotune train`",
        "best.yaml": "its part that plain YOLO understands: `yolo train cfg=best.yaml`",
        "keep-training.yaml": "the fastest configuration that keeps the training the same as yours",
        "env.sh": "its environment variables",
        "launch.sh": "starts the full training: `bash launch.sh`, `bash launch.sh epochs=300`",
        "receipt.json": "figures with their intervals, machine, versions, commands",
    }
    lines = [f"# {one_line(chosen.info.name)}", "", one_line(chosen.claim), ""]
    lines += [f"- `{name}`: {what[name]}" for name in files if name in what]
    return "\n".join(lines) + "\n"
