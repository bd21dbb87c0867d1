"""Which knob matters, what does each of its values do, and what does speed cost in memory?"""

from __future__ import annotations

import pandas as pd

from autotune.contract import Value
from autotune.report import words
from autotune.report.cards import (
    BASELINE,
    BEST,
    OUTCOME_COLOURS,
    OUTCOME_MARKS,
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


def throughput_memory(run: RunData) -> Card:
    """What if the memory is shared? Speed against peak memory; what ran out of it stands at the wall."""
    title = "Speed against memory"
    df = run.tried[["number", "role", "outcome", "images_per_s", "peak_mem_bytes"]].copy()
    on_gpu = bool(run.info.gpus) and bool(run.machine.gpus)
    ranks = max(1, run.info.n_ranks)
    on_cpu = run.info.mem_limit_bytes or run.machine.ram_bytes // ranks
    wall = min(g.mem_bytes for g in run.machine.gpus) if on_gpu else on_cpu
    ok = df[df["outcome"].isin(["ok", "unstable"]) & df["images_per_s"].notna() & df["peak_mem_bytes"].notna()]
    oom = df[df["outcome"] == "oom"]
    if ok.empty:
        return no_card(run, title, "Peak memory was not measured in any trial that gave a number.", df)
    df["pareto"] = df["number"].isin(_pareto(ok))
    figure = base_figure(340)
    front = ok[ok["number"].isin(_pareto(ok))].sort_values("peak_mem_bytes")
    figure.add_scatter(
        x=(front["peak_mem_bytes"] / 2**30).tolist(),
        y=front["images_per_s"].tolist(),
        mode="lines",
        line={"shape": "hv", "color": BEST, "width": 1.5, "dash": "dot"},
        name="fastest for less",
        hoverinfo="skip",
    )
    for name, rows, colour in (
        ("your arguments", ok[ok["role"].isin(["baseline", "sentinel"])], BASELINE),
        ("trial", ok[~ok["role"].isin(["baseline", "sentinel"])], OUTCOME_COLOURS["ok"]),
    ):
        figure.add_scatter(
            x=(rows["peak_mem_bytes"] / 2**30).tolist(),
            y=rows["images_per_s"].tolist(),
            mode="markers",
            name=name,
            marker={"color": colour, "size": 9, "symbol": "diamond" if colour == BASELINE else "circle"},
            customdata=[[n, plain(differs(run, n))] for n in rows["number"]],
            hovertemplate="trial %{customdata[0]}: %{y:.4g} img/s, %{x:.3g} GiB<br>%{customdata[1]}<extra></extra>",
        )
    if not oom.empty:
        figure.add_scatter(
            x=[wall / 2**30] * len(oom),
            y=[0.0] * len(oom),
            mode="markers",
            name="out of memory",
            cliponaxis=False,
            marker={"color": OUTCOME_COLOURS["oom"], "size": 11, "symbol": OUTCOME_MARKS["oom"]},
            customdata=[[n, plain(differs(run, n))] for n in oom["number"]],
            hovertemplate="trial %{customdata[0]}: out of memory<br>%{customdata[1]}<extra></extra>",
        )
    largest = float(ok["peak_mem_bytes"].max())
    if not oom.empty or wall < 3 * largest:
        figure.add_vline(x=wall / 2**30, line={"color": OUTCOME_COLOURS["oom"], "width": 1})
    where = "GPU memory" if on_gpu else "memory of all processes" if ranks == 1 else "memory of a rank and its loaders"
    figure.update_xaxes(title_text=f"peak {where}, GiB", rangemode="tozero")
    figure.update_yaxes(title_text="images/s", rangemode="tozero")
    top = ok.sort_values("images_per_s").iloc[-1]
    note = (
        f"The fastest trial took {words.size(top['peak_mem_bytes'])} of {words.size(wall)}{' a rank' * (ranks > 1)}; "
        f"{words.plural(len(oom), 'trial') if len(oom) else 'none'} ran out of memory."
    )
    return make_card(run, title, note, df, figure=figure)


def _pareto(ok: pd.DataFrame) -> list[int]:
    """Numbers of the trials that nothing beats with less memory."""
    best = 0.0
    numbers: list[int] = []
    ordered = ok.sort_values(["peak_mem_bytes", "images_per_s"], ascending=[True, False])
    for number, images_per_s in rows_of(ordered, "number", "images_per_s"):
        if images_per_s > best:
            best = images_per_s
            numbers.append(number)
    return numbers
