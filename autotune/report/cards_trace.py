"""What did the machine do while the baseline and the best were measured? Throttled, starved, or crowded?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from autotune.contract import GPU_COLUMNS, Meanwhile, TrialResult
from autotune.report import words
from autotune.report.cards import BASELINE, BEST, Card, base_figure, make_card, no_card
from autotune.report.load import RunData

MOST_ROWS: Final = 600
"""Of one trial in the page; samples.csv has them all."""
SLOWED: Final = 0x8 | 0x20 | 0x40 | 0x80
"""Bits of nvmlDeviceGetCurrentClocksEventReasons: hardware slow-down, heat twice, power brake (KNOBS 4, 9)."""
_WINDOW: Final = "rgba(63,143,224,0.13)"
_SLOWED: Final = "#e5404a"
_GIB: Final = 2.0**30
_SUBJECTS: Final = {"your arguments": "your arguments keep", "best": "the best keeps"}
_STYLES: Final = {"solid": "\u2014", "dash": "- -", "dot": "\u00b7\u00b7\u00b7"}


@dataclass(frozen=True, slots=True)
class _Panel:
    """One row of the figure; `lines` is name -> column, scale and dash."""

    label: str
    lines: dict[str, tuple[str, float, str]]


def trace(run: RunData) -> Card:
    """GPUs (or, on the CPU, the machine) over time: yours and the best side by side, the measured window shaded."""
    title = "What the machine did meanwhile"
    sides = [side for side in _sides(run) if side[1].number in run.samples]
    if not sides:
        what = "replay" if run.info.replayed else "simulation"
        why = f"a {what} has no machine to look at" if run.info.simulated else "neither your arguments nor the best"
        return no_card(run, title, why if run.info.simulated else f"{why} left a samples.csv")
    frames = {name: _thinned(run.samples[r.number]) for name, r, _ in sides}
    df = pd.concat([frame.assign(trial=name) for name, frame in frames.items()], ignore_index=True)
    df = df[["trial", *df.columns.drop("trial")]]
    panels = [p for p in _panels(df, run.machine.n_cores) if p.lines]
    if not panels:
        return no_card(run, title, "Not one reading of its GPUs or of the machine could be taken.", df)
    figure = _figure(panels, [(name, frames[name], colour) for name, _, colour in sides])
    return make_card(run, title, _words(run, [(name, r) for name, r, _ in sides]), df, figure=figure)


def _sides(run: RunData) -> list[tuple[str, TrialResult, str]]:
    """What is drawn from left to right, and in which colour."""
    best = run.result(run.summary.best_number) if run.summary else None
    sides = [("your arguments", run.baseline, BASELINE)] if run.baseline else []
    if best is not None and best.role == "trial":
        sides.append(("best", best, BEST))
    return sides


def _thinned(df: pd.DataFrame) -> pd.DataFrame:
    """Every n-th row, and every one in which a GPU was slowed down."""
    every, slowed = 1 + len(df) // MOST_ROWS, _slowed(df).tolist()
    return df.iloc[[i for i in range(len(df)) if i % every == 0 or slowed[i]]]


def _slowed(df: pd.DataFrame) -> pd.Series:
    """Rows in which the hardware lowered the clock of some GPU."""
    slowed = pd.Series(False, index=df.index)
    for i in range(_n_gpus(df)):
        slowed |= _bits(df, i) > 0
    return slowed


def _bits(df: pd.DataFrame, gpu: int) -> pd.Series:
    return df[f"gpu{gpu}_reasons"].fillna(0).astype(int) & SLOWED


def _n_gpus(df: pd.DataFrame) -> int:
    return sum(column.startswith("gpu") and column.endswith(GPU_COLUMNS[0]) for column in df.columns)


def _panels(df: pd.DataFrame, n_cores: float) -> list[_Panel]:
    """What there is to draw: of the GPUs when it ran on some, else of the machine."""
    n = _n_gpus(df)
    if n:
        rows = {
            "GPU use (%)": ("util_frac", 100.0),
            "SM clock (MHz)": ("sm_hz", 1e-6),
            "power (W)": ("power_w", 1.0),
            "memory (GiB)": ("mem_bytes", 1 / _GIB),
        }
        all_panels = [
            _Panel(label, {f"GPU {i}": (f"gpu{i}_{column}", scale, "solid") for i in range(n)})
            for label, (column, scale) in rows.items()
        ]
    else:
        all_panels = [
            _Panel(
                "CPU use (%)",
                {
                    "the whole machine": ("cpu_frac", 100.0, "dot"),
                    "the trial": ("tree_cores", 100.0 / n_cores, "solid"),
                },
            ),
            _Panel("memory (GiB)", {"of its processes": ("tree_rss_bytes", 1 / _GIB, "solid")}),
            _Panel("disk reads (MB/s)", {"disk reads": ("disk_read_bytes_per_s", 1e-6, "solid")}),
            _Panel(
                "waiting (%)",
                {
                    "for a CPU": ("psi_cpu", 1.0, "solid"),
                    "for a disk": ("psi_io", 1.0, "dash"),
                    "for memory": ("psi_memory", 1.0, "dot"),
                },
            ),
        ]
    return [
        _Panel(p.label, {name: line for name, line in p.lines.items() if df[line[0]].notna().any()}) for p in all_panels
    ]


def _figure(panels: list[_Panel], sides: list[tuple[str, pd.DataFrame, str]]) -> Any:
    """A row a panel, a column a trial; a row's axes are the same in all columns."""
    figure = base_figure(60 + 130 * len(panels))
    axis = figure.layout.xaxis.to_plotly_json()
    figure.set_subplots(
        rows=len(panels),
        cols=len(sides),
        shared_xaxes="all",
        shared_yaxes="rows" if len(sides) > 1 else False,
        vertical_spacing=0.05,
        horizontal_spacing=0.03,
        column_titles=[name for name, _, _ in sides],
    )
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_yaxes(rangemode="tozero")
    for col, (name, df, colour) in enumerate(sides, start=1):
        window = df.loc[df["measuring"] == 1, "t_s"]
        for row, panel in enumerate(panels, start=1):
            for line, (column, scale, dash) in panel.lines.items():
                figure.add_scatter(
                    x=df["t_s"].tolist(),
                    y=[None if pd.isna(x) else round(scale * x, 3) for x in df[column]],
                    mode="lines",
                    line={"color": colour, "dash": dash, "width": 1.5},
                    hovertemplate=f"{name}, {line}: %{{y:.4g}} after %{{x:.1f}} s<extra></extra>",
                    showlegend=False,
                    row=row,
                    col=col,
                )
            if len(window):
                figure.add_vrect(
                    x0=window.min(), x1=window.max(), fillcolor=_WINDOW, line_width=0, layer="below", row=row, col=col
                )
        _mark_slowdowns(figure, panels, df, col)
    for row, panel in enumerate(panels, start=1):
        figure.update_yaxes(title_text=panel.label, row=row, col=1)
        if len({dash for _, _, dash in panel.lines.values()}) > 1:
            keys = ", ".join(f"{_STYLES[dash]} {line}" for line, (_, _, dash) in panel.lines.items())
            figure.add_annotation(
                **{"text": keys, "showarrow": False, "font_size": 10, "row": row, "col": len(sides)},
                **{"xref": "x domain", "yref": "y domain", "x": 1, "y": 1, "xanchor": "right", "yanchor": "bottom"},
            )
    figure.update_xaxes(title_text="seconds since its start; shaded: measured", row=len(panels))
    figure.update_layout(margin_t=34)
    return figure


def _mark_slowdowns(figure: Any, panels: list[_Panel], df: pd.DataFrame, col: int) -> None:
    """Crosses on the clock, where the hardware lowered it."""
    row = next((i for i, p in enumerate(panels, start=1) if p.label.startswith("SM clock")), None)
    if row is None:
        return
    for gpu in range(_n_gpus(df)):
        slowed = df[_bits(df, gpu) > 0]
        if len(slowed):
            figure.add_scatter(
                x=slowed["t_s"].tolist(),
                y=[1e-6 * x for x in slowed[f"gpu{gpu}_sm_hz"].fillna(0.0)],
                mode="markers",
                marker={"color": _SLOWED, "symbol": "x", "size": 7},
                hovertemplate=f"GPU {gpu} slowed down at %{{x:.1f}} s<extra></extra>",
                showlegend=False,
                row=row,
                col=col,
            )


def _words(run: RunData, sides: list[tuple[str, TrialResult]]) -> str:
    """How busy GPUs (or cores) were in the measured windows, and whether something spoiled them."""
    known = [(name, r.meanwhile) for name, r in sides if r.meanwhile is not None]
    if not known:
        return "Nobody looked while a window was measured."
    said = [f"{_SUBJECTS[name]} {_busy(run, m)}" for name, m in known]
    note = ", ".join(said)
    spoiled = [f"{name}: {m.voided_by}" for name, m in known if m.voided_by]
    slowed = max((g.slowed_frac or 0.0 for _, m in known for g in m.gpus), default=None)
    if spoiled:
        note += f". Not to be trusted: {'; '.join(spoiled)}"
    elif slowed is not None:
        note += f". A GPU was slowed down in {words.percent(slowed)} of the samples" if slowed else ""
    machine = [words.percent(m.cpu_frac) for _, m in known if not m.gpus and m.cpu_frac is not None]
    if machine:
        note += f"; the whole machine was {' and '.join(machine)} busy"
    return f"{note[0].upper()}{note[1:]}."


def _busy(run: RunData, m: Meanwhile) -> str:
    if not m.gpus:
        cores = f"of {run.machine.n_cores:g} cores busy"
        return f"an unknown share {cores}" if m.tree_cores is None else f"{words.number(m.tree_cores)} {cores}"
    use = [g.util_frac for g in m.gpus if g.util_frac is not None]
    watts = [g.power_w for g in m.gpus if g.power_w is not None]
    gpus = "the GPU" if len(m.gpus) == 1 else f"{len(m.gpus)} GPUs"
    share = words.percent(sum(use) / len(use)) if use else "an unknown share"
    return f"{gpus} busy for {share} of the time{f' at {words.number(sum(watts))} W' if watts else ''}"
