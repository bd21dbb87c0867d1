"""What stands in a run folder? Run folder -> RunData; the report sees nothing else."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from autotune.contract import (
    GPU_COLUMNS,
    HOST_COLUMNS,
    TRIALS_CSV_COLUMNS,
    Machine,
    NotTried,
    Params,
    RunDir,
    RunInfo,
    Summary,
    TrialDir,
    TrialResult,
    TrialSpec,
    from_dict,
    read_json,
    sample_columns,
)
from autotune.errors import FormatError, InputError
from autotune.space.knobs import KNOBS

EXTRA_COLUMNS = ("started_s", "ended_s", "n_steps", "steady", "hint", "energy_j_per_image")
"""Columns of RunData.trials after those of trials.csv; from result.json. Seconds count from the start of the run."""
_TEXT = ("role", "outcome", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """All of a run that a figure may look at.

    `trials` has one row a row of trials.csv, sorted by number: TRIALS_CSV_COLUMNS, one column a knob, EXTRA_COLUMNS.
    """

    folder: RunDir
    info: RunInfo
    machine: Machine
    summary: Summary | None
    """None when the run was interrupted before it could conclude."""
    results: tuple[TrialResult, ...]
    specs: dict[int, TrialSpec]
    trials: pd.DataFrame
    knobs: tuple[str, ...]
    events: tuple[dict[str, Any], ...]
    docs: dict[str, str]
    """Knob -> what it does, one sentence."""
    samples: dict[int, pd.DataFrame] = field(default_factory=dict)
    """Number -> samples.csv, of the baseline and of the best search trial; without those that left none."""

    def result(self, number: int | None) -> TrialResult | None:
        """The trial of that number, None when there is no such result."""
        return next((r for r in self.results if r.number == number), None)

    @property
    def baseline(self) -> TrialResult | None:
        """The first measured run of the user's own arguments."""
        return next((r for r in self.results if r.role == "baseline" and r.outcome.measured), None)

    @property
    def probes(self) -> tuple[TrialResult, ...]:
        """Runs of the loader alone or of the step alone: no trials, whatever their numbers."""
        return tuple(r for r in self.results if r.role == "probe")

    @property
    def tried(self) -> pd.DataFrame:
        """The rows of `trials` that are whole trainings."""
        return self.trials[self.trials["role"] != "probe"]

    @property
    def baseline_params(self) -> Params:
        """What the user's own arguments give here."""
        return self.baseline.params if self.baseline else self.info.baseline_params

    @property
    def best_params(self) -> Params | None:
        """The winner's configuration: the finalist's, else that of the best search trial."""
        if self.summary is None:
            return None
        final = next((f for f in self.summary.verdict.finalists if f.name == "best"), None)
        best = self.result(self.summary.best_number)
        return final.params if final else best.params if best else None

    @property
    def not_tried(self) -> tuple[NotTried, ...]:
        """Configurations that were not started; from the journal when there is no summary."""
        if self.summary is not None:
            return self.summary.not_tried
        skipped = (e.get("not_tried") for e in self.events if e.get("kind") == "trial_skipped")
        return tuple(from_dict(NotTried, s) for s in skipped if isinstance(s, dict))


def load_run(path: Path) -> RunData:
    """Read a run folder; nothing in it is changed.

    Raises:
        InputError: there is no such folder, or it is not a run folder.
        FormatError: a file in it is damaged, or written by a newer autotune.
    """
    folder = RunDir(Path(path))
    if not folder.path.is_dir():
        raise InputError(f"{path} is not a folder", "give the run folder that `autotune search` made")
    if not folder.info.is_file():
        raise InputError(f"{path} is not a run folder: it has no {folder.info.name}", "a run folder holds run.json")
    info = read_json(folder.info, RunInfo)
    trial_dirs = [directory for _, directory in folder.numbered()]
    results = tuple(sorted((read_json(t.result, TrialResult) for t in trial_dirs if t.result.exists()), key=_number))
    specs = [read_json(t.spec, TrialSpec) for t in trial_dirs if t.spec.exists()]
    rows, knobs = _csv_rows(folder.trials_csv)
    knobs = tuple(dict.fromkeys((*knobs, *info.baseline_params, *(k for r in results for k in r.params))))
    summary = read_json(folder.summary, Summary) if folder.summary.exists() else None
    run = RunData(
        folder=folder,
        info=info,
        machine=read_json(folder.machine, Machine),
        summary=summary,
        results=results,
        specs={s.number: s for s in specs},
        trials=_trials(rows, results, knobs),
        knobs=knobs,
        events=_events(folder.events),
        docs=_docs(),
    )
    shown = {run.baseline.number if run.baseline else None, summary.best_number if summary else None} - {None}
    return replace(
        run, samples={n: df for n in shown if n is not None and (df := _samples(folder.trial(n))) is not None}
    )


def _samples(directory: TrialDir) -> pd.DataFrame | None:
    """samples.csv; None where there is none, or where it is none of ours: a figure less, and no more."""
    try:
        df = pd.read_csv(directory.samples)
    except (OSError, ValueError):
        return None
    n_gpus = (len(df.columns) - len(HOST_COLUMNS)) // len(GPU_COLUMNS)
    if df.empty or tuple(df.columns) != sample_columns(n_gpus):
        return None
    return pd.DataFrame({name: pd.to_numeric(df[name], errors="coerce").astype(float) for name in df})


def _number(result: TrialResult) -> int:
    return result.number


def _csv_rows(path: Path) -> tuple[dict[int, dict[str, Any]], tuple[str, ...]]:
    """trials.csv -> number -> row (text as numbers where the column is one), and its knob columns."""
    if not path.exists():
        return {}, ()
    n_fixed = len(TRIALS_CSV_COLUMNS)
    try:
        with path.open(encoding="utf-8", newline="") as f:
            reader = csv.DictReader(f)
            header = tuple(reader.fieldnames or ())
            if header[:n_fixed] != TRIALS_CSV_COLUMNS:
                raise FormatError(f"{path} has other columns than trials.csv of autotune", "was it edited?")
            rows = [{k: _cell(k, v) for k, v in row.items() if k is not None} for row in reader]
        return {int(row["number"]): row for row in rows}, header[n_fixed:]
    except (OSError, UnicodeDecodeError, csv.Error, ValueError, TypeError) as e:
        raise FormatError(f"{path} cannot be read: {e}") from e


def _cell(column: str, text: str | None) -> Any:
    if not text:
        return None
    return float(text) if column in TRIALS_CSV_COLUMNS and column not in _TEXT else text


def _trials(rows: dict[int, dict[str, Any]], results: tuple[TrialResult, ...], knobs: tuple[str, ...]) -> pd.DataFrame:
    """One row a trial. result.json wins where it exists: it has types (False is not 'False') and full precision."""
    rows = dict(rows)
    for r in results:
        rows[r.number] = {
            **{c: getattr(r, c) for c in TRIALS_CSV_COLUMNS},
            **r.params,
            "outcome": r.outcome.value,
            "peak_mem_bytes": max(r.peak_mem_bytes, default=None),
            "ended_s": r.started_s + r.took_s,
            **{c: getattr(r, c) for c in ("started_s", "n_steps", "steady", "hint", "energy_j_per_image")},
        }
    last_s = 0.0
    for _, row in sorted(rows.items()):
        # A row whose trial folder was deleted still has its place on the clock: after the trial before it.
        row.setdefault("started_s", last_s)
        row.setdefault("ended_s", row["started_s"] + (row["took_s"] or 0.0))
        last_s = row["ended_s"]
    columns = [*TRIALS_CSV_COLUMNS, *knobs, *EXTRA_COLUMNS]
    df = pd.DataFrame([rows[n] for n in sorted(rows)], columns=columns, dtype=object)
    texts = {*_TEXT, *knobs, "steady", "hint"}
    for column in columns:
        if column not in texts:
            df[column] = pd.to_numeric(df[column])
    df["number"] = df["number"].astype(int)
    return df


def _events(path: Path) -> tuple[dict[str, Any], ...]:
    """The journal; its last line may be cut where the machine stopped."""
    if not path.exists():
        return ()
    try:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise FormatError(f"{path} cannot be read: {e}") from e
    events: list[dict[str, Any]] = []
    for i, line in enumerate(lines):
        try:
            event = json.loads(line)
        except json.JSONDecodeError as e:
            if i == len(lines) - 1:
                break
            raise FormatError(f"{path}:{i + 1} is not JSON: {e}") from e
        if not isinstance(event, dict):
            raise FormatError(f"{path}:{i + 1} is not an event")
        events.append(event)
    return tuple(events)


def _docs() -> dict[str, str]:
    """Knob -> doc."""
    return {name: knob.doc for name, knob in KNOBS.items()}
