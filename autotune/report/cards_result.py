"""Is the gain real, what gives it, and does the machine hold still?"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from autotune.contract import Ablation, Finalist, TrialResult
from autotune.report import words
from autotune.report.cards import (
    BASELINE,
    BEST,
    BEST_YAML,
    Card,
    Cell,
    Table,
    base_figure,
    make_card,
    measure_of,
    no_card,
    plain,
    rows_of,
    time_axis,
)
from autotune.report.load import RunData

FINALIST_NAMES = {
    "baseline": "your arguments",
    "best": "best",
    "second": "second",
    "third": "third",
    "best_yaml": "best.yaml alone",
}
_OTHER = "#b9a06a"
_COLOURS = {"baseline": BASELINE, "best": BEST, "second": _OTHER, "third": _OTHER, "best_yaml": BEST_YAML}


def before_after(run: RunData) -> Card:
    """Is it real? Fresh, interleaved runs only: gains with their intervals, every run a dot."""
    title = "Before and after"
    finalists = run.summary.verdict.finalists if run.summary else ()
    if run.summary is None or not any(f.numbers for f in finalists):  # an interrupt may come in the first of them
        why = "the run was interrupted before it" if run.summary is None else "no finalists ran"
        return no_card(run, title, f"No fresh paired runs: {why}, so there is no claim to show.")
    df = pd.DataFrame([row for f in finalists for row in _runs_of(run, f, finalists[0])])
    figure = base_figure(96 + 62 * len(finalists))
    beside = "fewer joules per image than " if measure_of(run).column == "energy_j_per_image" else ""
    kind = "recorded run" if run.info.replayed else "fresh run"
    for f in finalists:
        name, dots = FINALIST_NAMES[f.name], df[(df["name"] == f.name) & df["gain"].notna()]
        interval = f.ci95_lo is not None and f.ci95_hi is not None and f.speedup is not None
        figure.add_bar(
            x=[f.speedup],
            y=[name],
            orientation="h",
            width=0.55,
            marker={"color": _COLOURS[f.name], "opacity": 0.4},
            error_x=_error_bar(f) if interval and f.name != "baseline" else None,
            hovertemplate=plain(_finalist_words(f, beside, kind)) + "<extra></extra>",
        )
        figure.add_scatter(
            x=dots["gain"].tolist(),
            y=[name] * len(dots),
            mode="markers",
            marker={"color": _COLOURS[f.name], "size": 10, "line": {"width": 1, "color": "rgba(255,255,255,0.8)"}},
            customdata=[f"trial {n}: {words.rate(ips)}" for n, ips in rows_of(dots, "number", "images_per_s")],
            hovertemplate="%{customdata}, %{x:.2f}x<extra></extra>",
        )
    figure.update_layout(showlegend=False, bargap=0.3)
    figure.update_xaxes(
        title_text=f"times {beside or 'the speed of '}your arguments", rangemode="tozero", ticksuffix="x"
    )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    verdict = run.summary.verdict
    note = (
        " ".join(_finalist_words(f, beside, kind) + "." for f in finalists if f.name != "baseline") or verdict.sentence
    )
    if verdict.sigma_run_frac is not None:
        note += f" Two {kind}s of one configuration differ by {words.percent(verdict.sigma_run_frac)} (sd) here."
    return make_card(run, title, note, df, figure=figure)


def _error_bar(f: Finalist) -> dict[str, Any]:
    assert f.speedup is not None
    assert f.ci95_lo is not None
    assert f.ci95_hi is not None
    return {
        "type": "data",
        "symmetric": False,
        "array": [f.ci95_hi - f.speedup],
        "arrayminus": [f.speedup - f.ci95_lo],
        "color": "#8a93a3",
        "thickness": 2.5,
        "width": 9,
    }


def _finalist_words(f: Finalist, beside: str, kind: str) -> str:
    name = FINALIST_NAMES[f.name]
    interval = "" if f.ci95_lo is None else f" (95 % CI {words.number(f.ci95_lo)} to {words.number(f.ci95_hi)})"
    gain = (
        ""
        if f.speedup is None or f.name == "baseline"
        else f", {words.times(f.speedup)} {beside}your arguments{interval}"
    )
    job = "" if f.job_s is None else f", {words.seconds(f.job_s)} for the whole job"
    runs = words.plural(len(f.numbers), kind)
    return f"{name[0].upper()}{name[1:]}: {words.rate(f.images_per_s)}{gain}{job}, {runs}"


def _runs_of(run: RunData, f: Finalist, baseline: Finalist) -> list[dict[str, Any]]:
    """Rows of one finalist's runs; the gain is against the geometric mean of the baseline's runs."""
    measure = measure_of(run)
    reference = [x for n in baseline.numbers if (x := _measured(run.result(n), measure.column))]
    middle = math.exp(sum(map(math.log, reference)) / len(reference)) if reference else None
    rows = []
    for block, n in enumerate(f.numbers):
        result = run.result(n)
        x = _measured(result, measure.column)
        rows.append(
            {
                "name": f.name,
                "block": block,
                "number": n,
                "outcome": result.outcome.value if result else None,
                "images_per_s": result.images_per_s if result else None,
                "job_s": result.job_s if result else None,
                "gain": measure.gain(x, middle) if x and middle else None,
            }
        )
    return rows


def _measured(result: TrialResult | None, column: str) -> float | None:
    x: float | None = getattr(result, column) if result is not None and result.outcome.measured else None
    return x


def what_changed(run: RunData) -> Card:
    """Which settings differ from yours, what they do, and what each is worth."""
    title = "What to change"
    best = run.best_params
    if best is None:
        return no_card(run, title, "There is no best configuration: nothing better than your arguments was measured.")
    changed = words.differences(best, run.baseline_params)
    if not changed:
        return no_card(run, title, "Nothing: your own arguments are the best configuration that was measured.")
    gains = {a.knob: a for a in run.summary.ablation} if run.summary else {}
    rows: list[dict[str, Any]] = [
        {
            "knob": knob,
            "yours": words.value(run.baseline_params.get(knob)),
            "best": words.value(new),
            "gain": gains[knob].gain if knob in gains else None,
            "doc": run.docs.get(knob, ""),
        }
        for knob, new in changed.items()
    ]
    df = pd.DataFrame(rows)
    cells = tuple(
        (
            Cell(row["knob"], css="code"),
            Cell(row["yours"], css="code"),
            Cell(row["best"], css="code strong"),
            Cell(gain_words(gains.get(row["knob"])), key=row["gain"]),
            Cell(row["doc"]),
        )
        for row in rows
    )
    table = Table(("setting", "yours", "best", "its gain alone", "what it does"), cells)
    note = f"{words.plural(len(rows), 'setting differs', 'settings differ')} from your arguments."
    if all(row["gain"] is None for row in rows):
        note += " What each gives by itself was not measured."
    if run.summary and run.summary.numerics:
        sentence = run.summary.numerics.sentence
        note += f" {sentence[0].upper()}{sentence[1:]}."
    return make_card(run, title, note, df, table=table)


def gain_words(ablation: Ablation | None) -> str:
    """`1.31x (1.25 to 1.38)`: the objective without the change over that with it."""
    if ablation is None or ablation.gain is None:
        return "not measured"
    if ablation.ci95_lo is None:
        return words.times(ablation.gain)
    shown = f"{words.times(ablation.gain)} ({words.number(ablation.ci95_lo)} to {words.number(ablation.ci95_hi)})"
    return shown if matters(ablation) else f"{shown}, not shown to matter"


def matters(ablation: Ablation) -> bool:
    """Its interval leaves out 1."""
    lo, hi = ablation.ci95_lo, ablation.ci95_hi
    return lo is not None and hi is not None and not lo <= 1.0 <= hi


def sentinels(run: RunData) -> Card:
    """Did the machine hold still? The same configuration, yours, over the whole run."""
    title = "Did the machine drift?"
    final = [f for f in (run.summary.verdict.finalists if run.summary else ()) if f.name == "baseline"]
    numbers = {n for f in final for n in f.numbers}
    df = run.trials[run.trials["role"].isin(["baseline", "sentinel"]) | run.trials["number"].isin(numbers)]
    df = df[df["outcome"].isin(["ok", "unstable"]) & df["images_per_s"].notna()]
    df = df[["number", "role", "started_s", "images_per_s", "ci95_lo", "ci95_hi"]]
    if len(df) < 2:
        return no_card(run, title, "Your own arguments were measured only once, so there is nothing to compare.", df)
    speeds = df["images_per_s"]
    change, spread = speeds.iloc[-1] / speeds.iloc[0] - 1, speeds.std() / speeds.mean()
    figure = base_figure(260)
    per, clock = time_axis(run)
    figure.add_scatter(
        x=(df["started_s"] / per).tolist(),
        y=speeds.tolist(),
        mode="lines+markers",
        line={"color": BASELINE, "width": 1, "dash": "dot"},
        marker={"color": BASELINE, "size": 9},
        error_y={
            "type": "data",
            "symmetric": False,
            "array": (df["ci95_hi"] - speeds).fillna(0).tolist(),
            "arrayminus": (speeds - df["ci95_lo"]).fillna(0).tolist(),
            "color": "#8a93a3",
        },
        customdata=[f"trial {n}, {role}" for n, role in rows_of(df, "number", "role")],
        hovertemplate=f"%{{customdata}}: %{{y:.4g}} img/s at %{{x:.2f}} {clock}<extra><extra></extra>",
    )
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text=f"{clock} since the start", rangemode="tozero")
    figure.update_yaxes(title_text="images/s", rangemode="tozero")
    note = (
        f"Your arguments ran {len(df)} times: {words.number(speeds.iloc[0])} img/s first, "
        f"{words.number(speeds.iloc[-1])} last ({'+' if change > 0 else ''}{words.percent(change)}), "
        f"spread {words.percent(spread)} (sd)."
    )
    return make_card(run, title, note, df, figure=figure)
