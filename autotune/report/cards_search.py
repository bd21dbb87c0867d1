"""How did the search go: was the time needed, where did it go, and what did it try to no avail?"""

from __future__ import annotations

from typing import Any

import pandas as pd

from autotune.report import words
from autotune.report.cards import (
    BASELINE,
    BEST,
    OUTCOME_COLOURS,
    OUTCOME_MARKS,
    Card,
    base_figure,
    make_card,
    measure_of,
    no_card,
    plain,
    rows_of,
    time_axis,
)
from autotune.report.load import RunData

_ROLE_MARKS = {
    "baseline": "diamond",
    "sentinel": "diamond-open",
    "finalist": "square-open",
    "ablation": "triangle-up-open",
}
_KINDS = {
    "baseline": "your arguments",
    "sentinel": "yours again",
    "finalist": "finalist",
    "ablation": "best without one change",
    "ok": "trial",
    "unstable": "noisy trial",
}
_PURPOSES = (
    "setup",
    "baseline",
    "trials_ok",
    "trials_lost",
    "sentinels",
    "probes",
    "finalists",
    "report",
    "accuracy",
    "overhead",
)
_PURPOSE_WORDS = {
    "trials_ok": "trials with a number",
    "trials_lost": "trials without one",
    "sentinels": "yours again (drift)",
    "probes": "probes",
    "finalists": "confirming and explaining the winner",
    "accuracy": "verifying the accuracy",
    "overhead": "the search itself",
}
_SPENT_ON = {
    "baseline": "baseline",
    "sentinel": "sentinels",
    "probe": "probes",
    "finalist": "finalists",
    "ablation": "finalists",
}


def best_so_far(run: RunData) -> Card:
    """Was the time needed? Every trial a point on the clock; those without a number stand in the strip below."""
    title = "Best so far"
    if run.tried.empty:
        return no_card(run, title, "Not one trial was run.")
    m = measure_of(run)
    shown = ["number", "role", "outcome", "started_s", "ended_s", "images_per_s", "job_s"]
    df = run.tried[list(dict.fromkeys([*shown, m.column]))].copy()
    measured = df["outcome"].isin(["ok", "unstable"]) & df[m.column].notna()
    df["value"] = (df[m.column] / m.scale).where(measured)
    searched = df["value"].where(df["role"].isin(["baseline", "trial"]))
    df["best_so_far"] = (searched.cummin() if m.lower_is_better else searched.cummax()).ffill()
    df["differs"] = [differs(run, n) for n in df["number"]]
    lost = df[df["value"].isna()]
    per, clock = time_axis(run)
    lanes = [o for o in OUTCOME_COLOURS if o in set(lost["outcome"])]
    figure = base_figure(380 + 26 * len(lanes))
    _points(figure, df[df["value"].notna()], m.unit, per)
    line = df[df["best_so_far"].notna()]
    end_s = max(float(df["ended_s"].max()), run.summary.elapsed_s if run.summary else 0.0)
    if not line.empty:
        figure.add_scatter(
            x=[*(line["ended_s"] / per), end_s / per],
            y=[*line["best_so_far"], line["best_so_far"].iloc[-1]],
            mode="lines",
            line={"shape": "hv", "color": BEST, "width": 2},
            name="best so far",
            hoverinfo="skip",
        )
    for outcome in lanes:
        rows = lost[lost["outcome"] == outcome]
        figure.add_scatter(
            x=(rows["ended_s"] / per).tolist(),
            y=[outcome] * len(rows),
            yaxis="y2",
            mode="markers",
            marker={
                "symbol": OUTCOME_MARKS[outcome],
                "size": 10,
                "color": OUTCOME_COLOURS[outcome],
                "line": {"width": 2 if OUTCOME_MARKS[outcome].endswith("open") else 0},
            },
            customdata=[[n, plain(d)] for n, d in rows_of(rows, "number", "differs")],
            hovertemplate=f"trial %{{customdata[0]}} {outcome}<br>%{{customdata[1]}}<extra></extra>",
            showlegend=False,
        )
    if lanes:
        share = (26 * len(lanes) + 10) / (300 + 26 * len(lanes))
        figure.update_layout(
            yaxis={"domain": [share + 0.04, 1]},
            yaxis2={"domain": [0, share], "showgrid": False, "automargin": True, "range": [-0.7, len(lanes) - 0.3]},
        )
    figure.add_vline(x=run.info.budget_s / per, line={"color": "#8a93a3", "dash": "dot", "width": 1})
    figure.update_xaxes(title_text=f"{clock} since the start (dotted: budget)", rangemode="tozero")
    figure.update_layout(xaxis_anchor="y2" if lanes else "y", yaxis_title_text=m.label)
    return make_card(run, title, _progress_words(df, m.lower_is_better, m.unit), df, figure=figure)


def _points(figure: Any, rows: pd.DataFrame, unit: str, per: float) -> None:
    """Measured trials: colour by outcome, mark by role."""
    kinds = rows["role"].where(rows["role"].isin(_ROLE_MARKS), rows["outcome"])
    for kind, name in _KINDS.items():
        mine = rows[kinds == kind]
        if mine.empty:
            continue
        figure.add_scatter(
            x=(mine["ended_s"] / per).tolist(),
            y=mine["value"].tolist(),
            mode="markers",
            name=name,
            marker={
                "symbol": _ROLE_MARKS.get(kind) or OUTCOME_MARKS[kind],
                "size": 9,
                "color": BASELINE if kind in ("baseline", "sentinel") else OUTCOME_COLOURS.get(kind, BEST),
            },
            customdata=[[n, plain(d), plain(o)] for n, d, o in rows_of(mine, "number", "differs", "outcome")],
            hovertemplate=f"trial %{{customdata[0]}} %{{customdata[2]}}: %{{y:.4g}} {unit}"
            "<br>%{customdata[1]}<extra></extra>",
        )


def differs(run: RunData, number: int) -> str:
    """What a trial sets otherwise than the user, as one line."""
    result = run.result(number)
    return words.assignments(words.differences(result.params, run.baseline_params)) if result else words.DASH


def _progress_words(df: pd.DataFrame, lower_is_better: bool, unit: str) -> str:
    n_lost = int(df["value"].isna().sum())
    lost = f"; {words.plural(n_lost, 'trial')} gave no number" if n_lost else ""
    searched = df[df["role"].isin(["baseline", "trial"]) & df["value"].notna()]
    if searched.empty:
        return f"Not one of {words.plural(len(df), 'trial')} gave a number."
    best = searched.sort_values("value", ascending=lower_is_better).iloc[0]
    return (
        f"The best of {words.plural(len(df), 'trial')} was trial {best['number']}, "
        f"{words.number(best['value'])} {unit}, known after {words.clock(best['ended_s'])} min{lost}."
    )


def ledger(run: RunData) -> Card:
    """Where did the budget go?"""
    title = "Where the budget went"
    spent = run.summary.ledger_s if run.summary else _spent(run)
    names = [*(p for p in _PURPOSES if p in spent), *(p for p in spent if p not in _PURPOSES)]
    df = pd.DataFrame([{"purpose": p, "seconds": float(spent[p])} for p in names], columns=["purpose", "seconds"])
    total = float(df["seconds"].sum())
    if total <= 0:
        return no_card(run, title, "No time was spent.", df)
    figure = base_figure(60 + 42 * len(df))
    labels = [
        f"{plain(_PURPOSE_WORDS.get(p, p))}<br><b>{words.seconds(s)}</b>, {words.percent(s / total)}"
        for p, s in rows_of(df, "purpose", "seconds")
    ]
    figure.add_bar(
        x=df["seconds"].tolist(),
        y=labels,
        orientation="h",
        marker={"color": [_purpose_colour(p) for p in names]},
        hovertemplate="%{y}<extra></extra>",
    )
    figure.update_layout(showlegend=False, bargap=0.25)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text="seconds")
    lost = float(spent.get("trials_lost", 0.0))
    most = max(names, key=lambda p: spent[p])
    note = (
        f"{words.seconds(total)} of a budget of {words.seconds(run.info.budget_s)}; most went into "
        f"{_PURPOSE_WORDS.get(most, most)}, and {words.percent(lost / total)} into trials that gave no number."
    )
    if n_oom := run.summary.n_predicted_oom if run.summary else 0:
        note += f" {words.plural(n_oom, 'configuration')} cost nothing: memory would not have sufficed."
    return make_card(run, title, note, df, figure=figure)


def _purpose_colour(purpose: str) -> str:
    if purpose == "trials_lost":
        return OUTCOME_COLOURS["oom"]
    return BEST if purpose in ("trials_ok", "finalists") else BASELINE


def _spent(run: RunData) -> dict[str, float]:
    """The ledger as far as trials tell it, for a run without a summary."""
    spent: dict[str, float] = {}
    for role, outcome, took_s in rows_of(run.trials, "role", "outcome", "took_s"):
        lost = "trials_ok" if outcome in ("ok", "unstable") else "trials_lost"
        purpose = _SPENT_ON.get(role, lost)
        spent[purpose] = spent.get(purpose, 0.0) + float(took_s)
    return spent
