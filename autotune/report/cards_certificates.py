"""What of the winner was checked beside its speed, and does it hold? Memory, numerics, semantics, accuracy."""

from __future__ import annotations

from typing import Any, Final

import pandas as pd

from autotune.contract import Accuracy
from autotune.report import words
from autotune.report.cards import BASELINE, BEST, Card, Cell, Table, base_figure, make_card, no_card
from autotune.report.certificates import HOLDS, certificate_rows, verdict_word
from autotune.report.load import RunData
from autotune.report.yolo_yaml import winner_args

_CSS: Final[dict[bool | None, str]] = {True: "strong", False: "strong bad", None: ""}
_FIRST: Final = (HOLDS[False], HOLDS[None])
"""What a reader must see is said first."""
_COLUMNS: Final = ("certificate", "verdict", "evidence")


def certificates(run: RunData) -> Card:
    """A row a certificate; the curves of the accuracy check, where it was asked for."""
    title = "Certificates"
    if run.summary is None or run.best_params is None:
        return no_card(run, title, "There is no winner to certify.")
    rows = certificate_rows(run.summary, run.info, _best_args(run))
    if not rows:
        return no_card(run, title, "Your own settings are the best that was found: there is nothing to certify.")
    shown = [(name, verdict_word(name, holds), evidence) for name, holds, evidence in rows]
    df = pd.DataFrame(shown, columns=list(_COLUMNS))
    cells = tuple(
        (Cell(name, css="name"), Cell(word, css=_CSS[holds]), Cell(evidence))
        for (name, word, evidence), (_, holds, _) in zip(shown, rows, strict=True)
    )
    of_word = {word: [name for name, w, _ in shown if w == word] for word in (*_FIRST, *(w for _, w, _ in shown))}
    note = "; ".join(f"{word}: {', '.join(names)}" for word, names in of_word.items() if names) + "."
    accuracy = run.summary.accuracy
    figure = _curves(accuracy) if accuracy and (accuracy.baseline_s or accuracy.winner_s) else None
    return make_card(run, title, note, df, table=Table(_COLUMNS, cells), figure=figure)


def _best_args(run: RunData) -> dict[str, Any] | None:
    """YOLO arguments of the winner; None where it is the baseline."""
    best = run.result(run.summary.best_number) if run.summary else None
    if best is None or run.baseline is None or not words.differences(best.params, run.baseline_params):
        return None
    spec, base = run.specs.get(best.number), run.specs.get(run.baseline.number)
    return winner_args(run.info, spec, base) if spec and base else None


def _curves(accuracy: Accuracy) -> Any:
    """The validation metric against wall clock."""
    figure = base_figure(320)
    runs = (
        ("your settings", BASELINE, "circle", accuracy.baseline_s, accuracy.baseline_value),
        ("best", BEST, "diamond", accuracy.winner_s, accuracy.winner_value),
    )
    for name, colour, mark, seconds, values in runs:
        figure.add_scatter(
            x=list(seconds),
            y=list(values),
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"color": colour, "size": 7, "symbol": mark},
            customdata=[f"epoch {i + 1}" for i in range(len(values))],
            hovertemplate="%{customdata}: %{y:.4f} after %{x:.0f} s<extra>" + name + "</extra>",
        )
    figure.update_xaxes(title_text="seconds of training", rangemode="tozero")
    figure.update_yaxes(title_text=accuracy.metric)
    return figure
