"""Can the model be trusted that chose what to try? What it expected of each trial, against what was measured."""

from __future__ import annotations

from statistics import median
from typing import Any, Final

import pandas as pd

from autotune.contract import Guess, from_dict
from autotune.report.cards import BASELINE, BEST, Card, base_figure, make_card, measure_of, no_card, plain
from autotune.report.load import RunData

TITLE: Final = "Predicted against measured"
FEW: Final = 5
"""Fewer predictions say nothing of their intervals."""


def predictions(run: RunData) -> pd.DataFrame:
    """One row a trial that a model had an opinion of before it ran, and that was measured.

    Columns: number, predicted, lo, hi, measured (in the unit of the page), inside (measured within the interval),
    error_frac (measured over predicted, less 1), mem_predicted_bytes, mem_bytes (None where unknown).
    """
    m = measure_of(run)
    rows: list[dict[str, Any]] = []
    for event in run.events:
        if event.get("kind") != "trial_started" or not event.get("guess"):
            continue
        guess, result = from_dict(Guess, event["guess"]), run.result(event["number"])
        measured = m.of(result) if result and result.outcome.measured else None
        if result is None or measured is None:
            continue
        ends = [_shown(x, run, m.column, m.scale) for x in (guess.value, guess.lo, guess.hi)]
        value, lo, hi = ends[0], min(ends), max(ends)
        rows.append(
            {
                "number": result.number,
                "predicted": value,
                "lo": lo,
                "hi": hi,
                "measured": measured,
                "inside": lo <= measured <= hi,
                "error_frac": measured / value - 1,
                "mem_predicted_bytes": guess.mem_bytes,
                "mem_bytes": max(result.peak_mem_bytes, default=None),
            }
        )
    return pd.DataFrame(rows)


def _shown(value: float, run: RunData, column: str, scale: float) -> float:
    """The objective as the page shows it: of images_per_s it is seconds per image."""
    return 1.0 / value if column == "images_per_s" and run.info.objective == "images_per_s" else value / scale


def model(run: RunData) -> Card:
    """Each trial a point, with the interval that the model gave for it beforehand; on the line it was right."""
    df = predictions(run)
    if df.empty:
        return no_card(run, TITLE, "No trial was predicted: the strategy has no model, or only its seeds were tried.")
    m = measure_of(run)
    figure = base_figure(360, xaxis_title=f"predicted {m.label}", yaxis_title=f"measured {m.label}")
    ends = [min(df["lo"].min(), df["measured"].min()), max(df["hi"].max(), df["measured"].max())]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": BASELINE, "width": 1, "dash": "dot"}, name="as predicted",
        hoverinfo="skip",
    )  # fmt: skip
    figure.add_scatter(
        x=df["predicted"].tolist(),
        y=df["measured"].tolist(),
        mode="markers",
        marker={"color": BEST, "size": 8},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": (df["hi"] - df["predicted"]).tolist(),
            "arrayminus": (df["predicted"] - df["lo"]).tolist(),
            "color": BASELINE,
            "thickness": 1,
            "width": 3,
        },
        text=[plain(f"trial {n}: {e:+.1%}") for n, e in zip(df["number"], df["error_frac"], strict=True)],
        hovertemplate="%{text}<br>predicted %{x:.4g}, measured %{y:.4g}<extra></extra>",
        name="trial, with its 95 % interval",
    )
    return make_card(run, TITLE, _note(df), df, figure=figure)


def _note(df: pd.DataFrame) -> str:
    """How far off it was, whether its intervals held, and what of memory."""
    n, inside, off = len(df), int(df["inside"].sum()), median(df["error_frac"].abs())
    said = f"Before each trial ran, the model was off by {off:.1%} (median of {n})"
    said += f"; {inside} of {n} lay within its 95 % interval." if n >= FEW else "; too few to judge its intervals."
    if n >= FEW and inside < 0.8 * n:
        said += " Its intervals were too narrow."
    sized = df.dropna(subset=["mem_predicted_bytes", "mem_bytes"])
    if len(sized):
        wrong = median(
            abs(float(a) / float(b) - 1) for a, b in zip(sized["mem_bytes"], sized["mem_predicted_bytes"], strict=True)
        )
        said += f" Peak memory: {wrong:.1%} off (median of {len(sized)})."
    return said
