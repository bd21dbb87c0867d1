"""Was the promise kept? What full trainings and rechecks found after the run had ended."""

from __future__ import annotations

from typing import Final

import pandas as pd

from autotune.report import words
from autotune.report.cards import Card, Cell, Table, make_card
from autotune.report.load import RunData
from autotune.report.promises import all_promises
from autotune.report.rechecks import all_rechecks

ANSWERS: Final = {
    "kept": "kept",
    "not_kept": "not kept",
    "not_comparable": "not comparable",
    "not_judged": "not judged",
    "holds": "holds",
    "does_not_hold": "does not hold",
    "unknown": "cannot tell",
}


def promise_kept(run: RunData) -> Card | None:
    """One row a full training or recheck, oldest first; None where there was neither."""
    kept, rechecks = all_promises(run.folder.promises), all_rechecks(run.folder.rechecks)
    rows = [(k.started, "full training", ANSWERS[k.status], k.sentence, "") for k in kept]
    rows += [
        (r.started, f"recheck on {r.hostname}", ANSWERS[r.status], r.sentence, "; ".join((*r.changes, *r.notes)))
        for r in rechecks
    ]
    if not rows:
        return None
    rows.sort()
    df = pd.DataFrame(rows, columns=["when", "what", "answer", "sentence", "remarks"])
    table = Table(
        ("when", "what", "answer", "in words"),
        tuple(
            (Cell(when[:16].replace("T", " "), when), Cell(what), Cell(answer), Cell(sentence, remark=remarks))
            for when, what, answer, sentence, remarks in rows
        ),
    )
    n_kept, n_held = (sum(row[2] == ANSWERS[answer] for row in rows) for answer in ("kept", "holds"))
    said = []
    if kept:
        said.append(f"{words.plural(len(kept), 'full training')}: promise kept in {n_kept}.")
    if rechecks:
        said.append(f"{words.plural(len(rechecks), 'recheck')}: the winner holds in {n_held}.")
    return make_card(run, "Was the promise kept?", " ".join(said), df, table=table)
