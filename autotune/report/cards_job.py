"""What is the time of the whole job made of, which part was estimated or not measured, and what pays when?"""

from __future__ import annotations

from statistics import fmean
from typing import Final

import pandas as pd

from autotune.contract import JOB_TERMS, TrialResult
from autotune.report import words
from autotune.report.break_even import runs_of, sentences
from autotune.report.cards import Card, Cell, Table, make_card, no_card
from autotune.report.load import RunData

ESTIMATED: Final = "about"
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
    own, best = runs_of(run, "baseline"), runs_of(run, "best")
    if not own:
        return no_card(run, title, "your own arguments were not measured")
    rows = [(label, _mean(own, term), _mean(best, term)) for term, label in _labels(own, best).items()]
    yours_s, best_s = sum(r[1] or 0.0 for r in rows), sum(r[2] or 0.0 for r in rows)
    rows.append(("known terms together", yours_s, best_s if best else None))
    df = pd.DataFrame(rows, columns=["term", "yours_s", "best_s"])
    marks = [(_estimated(own, term), _estimated(best, term)) for term in JOB_TERMS] + [(False, False)]
    table = Table(
        ("term", "yours", "best"),
        tuple(
            (Cell(label), _cell(yours, mine), _cell(other, theirs) if best else Cell(words.DASH))
            for (label, yours, other), (mine, theirs) in zip(rows, marks, strict=True)
        ),
        numeric=("yours", "best"),
    )
    missing = [label for label, yours, _ in rows if yours is None]
    epochs = own[0].job.get("epochs")
    notes = [f"For {epochs} epochs of {own[0].job.get('n_images')} images."] if epochs else []
    notes += [f"Not measured, and in neither figure: {', '.join(missing)}."] if missing else []
    notes += [f"{ESTIMATED}: estimated from a measurement with your settings."] if any(map(any, marks)) else []
    notes += [f"{said[0].upper()}{said[1:]}." for said in sentences(run)]
    return make_card(run, title, " ".join(notes), df, table=table)


def _labels(own: list[TrialResult], best: list[TrialResult]) -> dict[str, str]:
    """Term -> label; where nobody measured the steps without mosaic, that is said."""
    closed_epochs = any(r.job_terms.get("closed_epochs_s") for r in own)
    at_same_rate = closed_epochs and all(r.job_terms.get("epoch_end_s") is None for r in (*own, *best))
    return {
        term: f"{LABELS[term]} (at the same rate)" if term == "closed_epochs_s" and at_same_rate else LABELS[term]
        for term in JOB_TERMS
    }


def _estimated(runs: list[TrialResult], term: str) -> bool:
    return any(term in r.job_estimated for r in runs)


def _mean(runs: list[TrialResult], term: str) -> float | None:
    known = [s for r in runs if (s := r.job_terms.get(term)) is not None]
    return fmean(known) if known else None


def _cell(seconds: float | None, estimated: bool) -> Cell:
    if seconds is None:
        return Cell("not measured", key=seconds)
    return Cell(f"{ESTIMATED} {words.seconds(seconds)}" if estimated else words.seconds(seconds), key=seconds)
