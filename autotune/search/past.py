"""What did a search leave in its folder, however it ended? Results, numbers, seconds; nothing is changed here.

Only whole files are believed: result.json and spec.json are renamed into place, and of events.jsonl the lines that
can be read. What started and has no result was interrupted.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from autotune.contract import (
    NotTried,
    RunDir,
    SegmentSettings,
    Summary,
    TrialDir,
    TrialResult,
    TrialSpec,
    from_dict,
    interrupted,
    read_json,
)
from autotune.errors import FormatError
from autotune.search.budget import PURPOSE_OF, Purpose

DIED: Final = "the search was killed while this trial ran"


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """An earlier part of the same search."""

    results: tuple[TrialResult, ...]
    """By number; a trial that has none is INTERRUPTED here."""
    unheard: frozenset[int]
    """Numbers of trials whose end the journal does not know."""
    baseline_args: dict[str, Any]
    """train_args of the baseline that was measured: its batch may have been halved. Empty: none was."""
    segment: SegmentSettings | None
    """Of the baseline; numbers of one search are measured alike."""
    not_tried: tuple[NotTried, ...]
    elapsed_s: float
    ledger_s: dict[Purpose, float]

    @property
    def baseline(self) -> TrialResult | None:
        """The one that stands for the user's own settings."""
        return next((r for r in self.results if r.role == "baseline" and r.outcome.measured), None)


def read_past(run_dir: RunDir) -> Past:
    """Read what is there; damaged files count as missing."""
    events = read_events(run_dir.events)
    started = {e["number"]: e["t_s"] for e in events if e.get("kind") == "trial_started"}
    results: list[TrialResult] = []
    specs: dict[int, TrialSpec] = {}
    ended = {e["result"]["number"] for e in events if e.get("kind") == "trial_ended"}
    for number, directory in run_dir.numbered():
        with contextlib.suppress(FormatError):
            spec = specs[number] = read_json(directory.spec, TrialSpec)
            try:
                results.append(read_json(directory.result, TrialResult))
            except FormatError:
                results.append(_died(spec, directory, started.get(spec.number, 0.0)))
    summary = None
    with contextlib.suppress(FormatError):
        summary = read_json(run_dir.summary, Summary)
    times = [e["t_s"] for e in events if isinstance(e.get("t_s"), float | int)]
    ends = [r.started_s + r.took_s for r in results]
    first = next((r for r in results if r.role == "baseline" and r.outcome.measured), None)
    spec_of_first = specs[first.number] if first else None
    return Past(
        results=tuple(results),
        unheard=frozenset(r.number for r in results) - ended,
        baseline_args=dict(spec_of_first.train_args) if spec_of_first else {},
        segment=spec_of_first.segment if spec_of_first else None,
        not_tried=_not_tried(events),
        elapsed_s=max([*times, *ends, summary.elapsed_s if summary else 0.0], default=0.0),
        ledger_s=_ledger(results, summary, times),
    )


def read_events(path: Path) -> list[dict[str, Any]]:
    """The lines of the journal that can be read: a kill may tear the last one, a full disk any."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    events = []
    for line in lines:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if isinstance(event, dict):
                events.append(event)
    return events


def mend_journal(path: Path) -> None:
    """Leave only whole lines in events.jsonl: the next event must not be glued to a torn one."""
    if not path.exists():
        return
    whole = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in read_events(path)).encode()
    if whole != path.read_bytes():
        tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        tmp.write_bytes(whole)
        tmp.replace(path)


def _died(spec: TrialSpec, directory: TrialDir, started_s: float) -> TrialResult:
    """The result of a trial that nobody lived to judge; it took as long as its files were written to."""
    touched = [p.stat().st_mtime for p in directory.path.iterdir() if p.is_file()]
    took_s = max(0.0, max(touched) - directory.spec.stat().st_mtime)
    return interrupted(spec, started_s=started_s, took_s=took_s, error=DIED)


def _not_tried(events: list[dict[str, Any]]) -> tuple[NotTried, ...]:
    found = []
    for event in events:
        if event.get("kind") == "trial_skipped":
            with contextlib.suppress(FormatError, KeyError):
                found.append(from_dict(NotTried, event["not_tried"]))
    return tuple(found)


def _ledger(results: list[TrialResult], summary: Summary | None, times: list[float]) -> dict[Purpose, float]:
    """Seconds by purpose: a search that was killed wrote no ledger, but its trials say what they took."""
    ledger: dict[Purpose, float] = {"setup": times[0] if times else 0.0}
    if summary:
        # Of the accuracy, too, no trial is kept that tells it.
        ledger = {purpose: summary.ledger_s.get(purpose, 0.0) for purpose in ("setup", "report", "accuracy")}
    for r in results:
        purpose = PURPOSE_OF.get(r.role, "trials_ok" if r.outcome.measured else "trials_lost")
        ledger[purpose] = ledger.get(purpose, 0.0) + r.took_s
    return ledger
