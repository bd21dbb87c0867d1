"""What does the search leave on disk while it runs? events.jsonl, trials.csv, and the observers told."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence

from autotune.contract import TRIALS_CSV_COLUMNS, Event, Observer, Params, RunDir, TrialProgress, TrialResult, to_dict
from autotune.errors import writing


def emit(run_dir: RunDir, observers: Sequence[Observer], event: Event) -> None:
    """Append the event to events.jsonl and pass it on; live progress is only passed on.

    Raises:
        MachineError: it cannot be written.
    """
    if not isinstance(event, TrialProgress):
        with writing(run_dir.events), run_dir.events.open("a", encoding="utf-8") as f:
            f.write(json.dumps(to_dict(event), ensure_ascii=False, allow_nan=False) + "\n")
            f.flush()
    for observer in observers:
        observer(event)


def write_trials_csv(run_dir: RunDir, results: Iterable[TrialResult], knobs: Sequence[str]) -> None:
    """One row a trial that was run, in order; knob columns last. Whole or not at all.

    Missing is an empty field; True and False are written as such; peak_mem_bytes is the largest rank's.
    """
    tmp = run_dir.trials_csv.with_name(f".{run_dir.trials_csv.name}.{os.getpid()}.tmp")
    with tmp.open("w", encoding="utf-8", newline="") as f:
        writer = csv.writer(f)
        writer.writerow([*TRIALS_CSV_COLUMNS, *knobs])
        for result in results:
            writer.writerow([*_row(result), *(_knob(result.params, name) for name in knobs)])
    tmp.replace(run_dir.trials_csv)


def _row(result: TrialResult) -> list[object]:
    fields = to_dict(result) | {"peak_mem_bytes": max(result.peak_mem_bytes, default=None)}
    return [fields[column] for column in TRIALS_CSV_COLUMNS]


def _knob(params: Params, name: str) -> object:
    """An inert knob (None) and one that the trial does not have look the same: empty."""
    return params.get(name)
