"""What is the time of the whole job made of, and which part of it was not measured?"""

from __future__ import annotations

from statistics import fmean
from typing import Final

import pandas as pd

from autotune.contract import JOB_TERMS, TrialResult
from autotune.report import words
from autotune.report.cards import Card, Cell, Table, make_card, no_card
from autotune.report.load import RunData

LABELS: Final = {
    "start_s": "start: imports, model, dataset scan",
    "compile_s": "compile",
    "cache_build_s": "building the image cache",
    "mosaic_epochs_s": "epochs with mosaic",
    "closed_epochs_s": "last epochs without mosaic",
    "val_s": "validation",
    "save_s": "checkpoints",
    "epoch_end_s": "the rest of the epochs' ends",
    "warmup_s": "optimizer steps that only the warm-up has",
    "final_s": "final evaluation and plots",
}


def job_time(run: RunData) -> Card:
    """Terms of T(job) for the user's arguments and for the best (MEASURING 4)."""
    title = "The time of your whole job"
    own, best = _runs(run, "baseline"), _runs(run, "best")
    if not own:
        return no_card(run, title, "your own arguments were not measured")
    rows: list[tuple[str, float | None, float | None]] = [
        (LABELS[term], _mean(own, term), _mean(best, term)) for term in JOB_TERMS
    ]
    yours_s, best_s = sum(r[1] or 0.0 for r in rows), sum(r[2] or 0.0 for r in rows)
    rows.append(("known terms together", yours_s, best_s if best else None))
    df = pd.DataFrame(rows, columns=["term", "yours_s", "best_s"])
    table = Table(
        ("term", "yours", "best"),
        tuple((Cell(label), _cell(yours), _cell(other) if best else Cell(words.DASH)) for label, yours, other in rows),
        numeric=("yours", "best"),
    )
    missing = [label for label, yours, _ in rows if yours is None]
    epochs = own[0].job.get("epochs")
    note = f"For {epochs} epochs of {own[0].job.get('n_images')} images." if epochs else ""
    if missing:
        note = f"{note} Not measured yet, and in neither figure: {', '.join(missing)}.".strip()
    return make_card(run, title, note, df, table=table)


def _runs(run: RunData, name: str) -> list[TrialResult]:
    """Finalist runs of this name where there are some, else the search's own."""
    finalist = next((f for f in run.summary.verdict.finalists if f.name == name), None) if run.summary else None
    runs = [run.result(n) for n in finalist.numbers] if finalist else []
    measured = [r for r in runs if r and r.outcome.measured]
    if measured:
        return measured
    one = run.baseline if name == "baseline" else run.result(run.summary.best_number) if run.summary else None
    return [one] if one and one.outcome.measured else []


def _mean(runs: list[TrialResult], term: str) -> float | None:
    known = [s for r in runs if (s := r.job_terms.get(term)) is not None]
    return fmean(known) if known else None


def _cell(seconds: float | None) -> Cell:
    return Cell("not measured" if seconds is None else words.seconds(seconds), key=seconds)
