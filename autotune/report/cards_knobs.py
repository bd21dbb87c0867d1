"""Which knob matters, and what does each of its values do?"""

from __future__ import annotations

import pandas as pd

from autotune.contract import Value
from autotune.report import words
from autotune.report.cards import (
    BEST,
    OUTCOME_COLOURS,
    Card,
    base_figure,
    make_card,
    no_card,
    plain,
    rows_of,
)
from autotune.report.cards_search import differs
from autotune.report.load import RunData

FEW_TRIALS = 30
"""Below this many feasible trials an importance is an impression (PRODUCT B7)."""


def importance(run: RunData) -> Card:
    """What to search next? Share of each knob in the differences between trials (PED-ANOVA)."""
    title = "Which settings mattered in the search"
    summary = run.summary
    if summary is None or not summary.importance:
        why = "The run was interrupted before it was computed." if summary is None else summary.importance_note
        return no_card(run, title, why or "Too few trials gave a number.")
    shares = sorted(summary.importance.items(), key=lambda kv: kv[1])
    df = pd.DataFrame(shares[::-1], columns=["knob", "share"])
    figure = base_figure(70 + 30 * len(shares))
    figure.add_bar(
        x=[100 * s for _, s in shares],
        y=[plain(k) for k, _ in shares],
        orientation="h",
        marker={"color": BEST},
        text=[words.percent(s) for _, s in shares],
        textposition="auto",
        customdata=[plain(run.docs.get(k, "")) for k, _ in shares],
        hovertemplate="%{y}: %{text}<br>%{customdata}<extra></extra>",
    )
    figure.update_layout(showlegend=False, bargap=0.25)
    figure.update_xaxes(title_text="share of the differences, %", rangemode="tozero")
    figure.update_yaxes(showgrid=False)
    note = f"{shares[-1][0]} mattered most: {words.percent(shares[-1][1])} of the differences between trials."
    note += " A share of what the search happened to try, not the gain of a change: that is measured beside it."
    if summary.n_feasible < FEW_TRIALS:
        note += (
            f" Only {words.plural(summary.n_feasible, 'trial')} gave a number: with under {FEW_TRIALS} this is a hint."
        )
    return make_card(run, title, note, df, figure=figure)


def knob_effects(run: RunData) -> Card:
    """What happens if I change it? For each value tried: every trial a point, the median a bar.

    A measured trial ran what was asked for (else its outcome is a mismatch), so `params` are the effective values.
    """
    title = "What each setting did"
    ok = [r for r in run.results if r.outcome.measured and r.images_per_s and r.role != "probe"]
    tried: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for knob in run.knobs:
        ordered = sorted({_order(r.params.get(knob)) for r in ok})
        if len(ordered) > 1:
            tried[knob] = {text: [] for _, _, text in ordered}
            for r in ok:
                tried[knob][words.value(r.params.get(knob))].append((r.number, r.images_per_s or 0.0))
    rows = [(k, v, n, x) for k, values in tried.items() for v, points in values.items() for n, x in points]
    df = pd.DataFrame(rows, columns=["knob", "value", "number", "images_per_s"])
    if df.empty:
        return no_card(run, title, "No knob was measured at two values.", df)
    medians = df.groupby(["knob", "value"], sort=False)["images_per_s"].median()
    df["median"] = [medians[(k, v)] for k, v in rows_of(df, "knob", "value")]
    labels: list[str] = []
    at: dict[tuple[str, str], int] = {}
    for knob, values in tried.items():
        labels.append(f"<b>{plain(knob)}</b>")
        for v in values:
            at[knob, v] = len(labels)
            yours = "*" if v == words.value(run.baseline_params.get(knob)) else ""
            labels.append(f"{plain(v)}{yours}")
    figure = base_figure(90 + 23 * len(labels))
    figure.add_scatter(
        x=df["images_per_s"].tolist(),
        y=[at[k, v] for k, v in rows_of(df, "knob", "value")],
        mode="markers",
        name="trial",
        marker={"color": OUTCOME_COLOURS["ok"], "size": 8, "opacity": 0.55},
        customdata=[
            [n, plain(f"{k}={v}"), plain(differs(run, n))] for k, v, n in rows_of(df, "knob", "value", "number")
        ],
        hovertemplate="%{customdata[1]}, trial %{customdata[0]}: %{x:.4g} img/s<br>%{customdata[2]}<extra></extra>",
    )
    figure.add_scatter(
        x=[float(x) for x in medians],
        y=[at[key] for key in medians.index],
        mode="markers",
        name="median",
        marker={"symbol": "line-ns-open", "size": 17, "color": "#d39b00", "line": {"width": 3}},
        hovertemplate="median %{x:.4g} img/s<extra></extra>",
    )
    figure.update_xaxes(title_text="images/s; * your value", rangemode="tozero")
    figure.update_yaxes(
        tickvals=list(range(len(labels))), ticktext=labels, range=[len(labels) - 0.4, -0.6], showgrid=False
    )
    low, high = medians.groupby("knob").min(), medians.groupby("knob").max()
    widest = str((high / low).idxmax())
    best_value = medians[widest].idxmax()
    ratio = words.times(high[widest] / low[widest])
    note = (
        f"{widest} separates most: the median at {widest}={best_value} is {ratio} that of its slowest value. "
        "Other settings varied along with it, so this is not its effect alone."
    )
    return make_card(run, title, note, df, figure=figure)


def _order(v: Value) -> tuple[int, float, str]:
    """Sort key over mixed types: off and numbers first, by size, then words."""
    number = float(v) if isinstance(v, int | float) else 0.0
    return (1 if isinstance(v, str) else 0, number, words.value(v))
