"""How far is the best from what this machine could do, and what is a step's time made of?"""

from __future__ import annotations

from typing import Final

import pandas as pd

from autotune.contract import UNFELT, Params, Probe, TrialResult
from autotune.report import words
from autotune.report.cards import BASELINE, BEST, Card, base_figure, make_card, no_card, plain, rows_of
from autotune.report.load import RunData

N_OTHERS: Final = 3
"""Bars beside yours and the best: the fastest of the other trials."""
NEAR_FRAC: Final = 0.05
"""Ceilings that lie nearer to each other are one: a probe is known to a few per cent."""
_OFF_SCALE: Final = 2.0
"""A ceiling so many times as high as bars and lowest ceiling is in the legend only: drawn, it would squeeze them."""
_OTHER = "#b9c0cb"
_LINES: Final = {"loader alone": ("#f26a2e", "dash"), "step alone": ("#9b6bf0", "dot"), "in turn": ("#3f8fe0", "solid")}
_PARTS: Final = {
    "wait": ("waiting for data", "#f26a2e", "/"),
    "prepare": ("to the device", "#d39b00", "\\"),
    "forward": ("forward, loss", "#3f8fe0", ""),
    "backward": ("backward", "#1f9e77", "x"),
    "optimizer": ("optimizer, EMA", "#9b6bf0", "-"),
    "rest": ("rest", "#8a93a3", "."),
}
"""Part of TrialResult.parts_s -> label, colour, and a pattern for who sees no colour."""
_STROKES: Final = {"fillmode": "overlay", "fgcolor": "rgba(255,255,255,0.7)", "solidity": 0.15, "size": 7}


def ceilings(run: RunData) -> Card:
    """Throughput of the trials below what the loader alone and the step alone can do with the best settings."""
    title = "What this machine could do"
    best = run.best_params or run.baseline_params
    probes = {probe: r for probe in ("data", "compute") if (r := probe_of(run, probe, best))}
    bars = named_bars(run)
    if not probes or not bars:
        why = "no trial gave a number" if not bars else "neither the loader nor the step was measured alone"
        return no_card(run, title, f"{why} with the best settings.")
    lines = {"loader alone" if p == "data" else "step alone": r.images_per_s or 0.0 for p, r in probes.items()}
    if len(lines) == 2 and probes["data"].effective.get("workers") == 0:
        lines["in turn"] = 1 / sum(1 / x for x in lines.values())
    rows = [("trial", name, r.number, r.images_per_s, r.ci95_lo, r.ci95_hi) for name, r in bars]
    rows += [
        ("ceiling", words.PROBES[r.probe or ""], r.number, r.images_per_s, r.ci95_lo, r.ci95_hi)
        for r in probes.values()
    ]
    df = pd.DataFrame(rows, columns=["kind", "name", "number", "images_per_s", "ci95_lo", "ci95_hi"])
    figure = base_figure(150 + 44 * len(bars))
    figure.add_bar(
        x=[r.images_per_s for _, r in bars],
        y=list(range(len(bars))),
        orientation="h",
        width=0.6,
        marker={"color": [{"best": BEST, "your arguments": BASELINE}.get(name, _OTHER) for name, _ in bars]},
        text=[words.number(r.images_per_s) for _, r in bars],
        textposition="auto",
        customdata=[f"trial {r.number}, {plain(_changes(run, r))}" for _, r in bars],
        hovertemplate="%{customdata}: %{x:.4g} img/s<extra></extra>",
        showlegend=False,
    )
    near = max(min(lines.values()), *(r.images_per_s or 0.0 for _, r in bars))
    seen = [x for x in lines.values() if x <= _OFF_SCALE * near]
    for name, x in lines.items():
        colour, dash = _LINES[name]
        figure.add_scatter(
            x=[x, x],
            y=[-0.6, len(bars) - 0.4],
            mode="lines",
            line={"color": colour, "dash": dash, "width": 2.5},
            name=f"{name} {words.number(x)}{'' if x in seen else ', off the scale'}",
            hovertemplate=f"{name}: {words.rate(x)}<extra></extra>",
        )
    figure.update_yaxes(
        tickvals=list(range(len(bars))),
        ticktext=[name for name, _ in bars],
        range=[len(bars) - 0.4, -0.6],
        showgrid=False,
    )
    figure.update_xaxes(title_text="images/s", range=[0, 1.06 * max(near, *seen)])
    return make_card(run, title, _ceiling_words(run, lines, bars), df, figure=figure)


def probe_of(run: RunData, probe: Probe, params: Params) -> TrialResult | None:
    """The last probe that stands for this configuration."""
    wanted = _felt(probe, params)
    fit = [r for r in run.probes if r.probe == probe and r.outcome.measured and r.images_per_s]
    return next((r for r in reversed(fit) if _felt(probe, r.params) == wanted), None)


def _felt(probe: Probe, params: Params) -> dict[str, str]:
    return {k: words.value(v) for k, v in params.items() if k not in UNFELT[probe]}


def named_bars(run: RunData) -> list[tuple[str, TrialResult]]:
    """Yours, the best, and the fastest of the others: search-time runs of one kind, as the probes are."""
    best = run.result(run.summary.best_number) if run.summary else None
    named = [("your arguments", run.baseline)] if run.baseline else []
    if best and best.role == "trial":
        named.append(("best", best))
    taken = {r.number for _, r in named}
    others = [r for r in run.results if r.role == "trial" and r.outcome.measured and r.number not in taken]
    others.sort(key=lambda r: -(r.images_per_s or 0.0))
    named += [(f"trial {r.number}", r) for r in others[:N_OTHERS]]
    return [(name, r) for name, r in named if r.images_per_s]


def _changes(run: RunData, r: TrialResult) -> str:
    return words.assignments(words.differences(r.params, run.baseline_params))


def _ceiling_words(run: RunData, lines: dict[str, float], bars: list[tuple[str, TrialResult]]) -> str:
    """Both ceilings, which one is the limit, and how near the best is to it."""
    name, reached = next(((n, r) for n, r in bars if n == "best"), bars[0])
    whose = "the best settings" if run.best_params else "your arguments"
    said = " and ".join(f"the {what} {words.rate(x)}" for what, x in lines.items() if what != "in turn")
    note = f"With {whose} the {said[4:].replace(' alone ', ' alone gives ', 1)}"
    limit = min(lines.values())
    if "in turn" in lines:
        note += f"; with workers=0 they take turns, which allows {words.rate(limit)}."
    elif len(lines) == 1:
        missing = "step alone" if "loader alone" in lines else "loader alone"
        note += f"; the {missing} was not measured."
    elif max(lines.values()) <= limit * (1 + NEAR_FRAC):
        note += ": both are the limit."
    else:
        note += f": the {min(lines, key=lambda k: lines[k]).split()[0]} is the limit."
    share = (reached.images_per_s or 0.0) / limit
    part = "all" if share >= 1 else words.percent(share)
    who = "The best reaches" if name == "best" else "Your arguments reach"
    note += f" {who} {part} of {'it' if len(lines) == 1 else 'what they allow'}."
    if run.info.device == "cpu" and "in turn" not in lines and len(lines) == 2:
        note += " On a CPU loader and step share the cores: together they cannot reach all of it."
    return note


def step_anatomy(run: RunData) -> Card:
    """Where does the time of a step go? Per image, so that batches of any size compare."""
    title = "Where the time of a step goes"
    bars = [(name, r) for name, r in named_bars(run) if sum(r.parts_s.values()) > 0]
    if not bars:
        return no_card(run, title, "No trial has recorded the parts of its steps.")
    parts = [p for p in _PARTS if any(p in r.parts_s for _, r in bars)]
    rows = [
        (name, r.number, part, r.parts_s.get(part, 0.0), r.parts_s.get(part, 0.0) / sum(r.parts_s.values()))
        for name, r in bars
        for part in parts
    ]
    df = pd.DataFrame(rows, columns=["name", "number", "part", "seconds_per_step", "share"])
    speed = {r.number: r.images_per_s or 1.0 for _, r in bars}
    df["ms_per_image"] = [1000 * share / speed[n] for n, share in rows_of(df, "number", "share")]
    figure = base_figure(170 + 44 * len(bars), barmode="stack", legend_traceorder="normal")
    for part in parts:
        label, colour, pattern = _PARTS[part]
        mine = df[df["part"] == part]
        figure.add_bar(
            x=mine["ms_per_image"].tolist(),
            y=mine["name"].tolist(),
            orientation="h",
            width=0.6,
            name=label,
            marker={"color": colour, "pattern": {"shape": pattern, **_STROKES}},
            customdata=[
                [words.percent(share), f"{1000 * s:.3g} ms"] for share, s in rows_of(mine, "share", "seconds_per_step")
            ],
            hovertemplate=f"%{{y}}, {label}: %{{x:.3g}} ms per image, %{{customdata[0]}} of the step "
            "(%{customdata[1]})<extra></extra>",
        )
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_xaxes(title_text="milliseconds per image", rangemode="tozero")
    return make_card(run, title, " ".join(_anatomy_words(name, r) for name, r in bars[:2]), df, figure=figure)


def _anatomy_words(name: str, r: TrialResult) -> str:
    total = sum(r.parts_s.values())
    largest = max(r.parts_s, key=lambda p: r.parts_s[p])
    label = _PARTS[largest][0] if largest in _PARTS else largest
    wait = "" if largest == "wait" else f", {words.percent(r.parts_s.get('wait', 0.0) / total)} waiting for data"
    return f"{name[0].upper()}{name[1:]}: {words.percent(r.parts_s[largest] / total)} {label}{wait}."
