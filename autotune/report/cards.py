"""What is a card of the report, and how do all cards look alike?"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from autotune.contract import TrialResult
from autotune.report.load import RunData

# Readable on white and on near-black; every colour has its own mark as well, for readers who see no colour.
OUTCOME_COLOURS = {
    "ok": "#1f9e77",
    "unstable": "#d39b00",
    "pruned": "#8a93a3",
    "oom": "#f26a2e",
    "timeout": "#b565c9",
    "crash": "#e5404a",
    "invalid": "#9b6bf0",
    "mismatch": "#3f8fe0",
    "interrupted": "#7a828e",
}
OUTCOME_MARKS = {
    "ok": "circle",
    "unstable": "circle-open",
    "pruned": "line-ns-open",
    "oom": "x",
    "timeout": "hourglass",
    "crash": "cross",
    "invalid": "square-x-open",
    "mismatch": "triangle-up",
    "interrupted": "diamond-tall-open",
}
BASELINE, BEST, BEST_YAML = "#7d8aa0", "#1f9e77", "#3f8fe0"
_GRID = "rgba(128,138,150,0.22)"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell: the text shown, what it sorts by, a CSS class, a remark below it, and lines that unfold below that."""

    text: str
    key: float | str | None = None
    css: str = ""
    remark: str = ""
    more: tuple[str, ...] = ()
    more_title: str = "more"
    """What is to be clicked to see them."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table as shown; `numeric` names the columns that stand to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    numeric: tuple[str, ...] = ()
    sortable: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One answer: a sentence with the finding, the data behind it, and a figure or a table, or why there is none."""

    title: str
    note: str
    df: pd.DataFrame = field(default_factory=pd.DataFrame)
    figure: Any | None = None
    """plotly.graph_objects.Figure."""
    table: Table | None = None
    reason: str | None = None

    @property
    def drawn(self) -> bool:
        """True where there is something to look at."""
        return self.figure is not None or self.table is not None


def make_card(
    run: RunData, title: str, note: str, df: pd.DataFrame, *, figure: Any = None, table: Table | None = None
) -> Card:
    """A card that says in its title when nothing real was measured."""
    return Card(title=_title(run, title), note=note, df=df, figure=figure, table=table)


def no_card(run: RunData, title: str, reason: str, df: pd.DataFrame | None = None) -> Card:
    """A card that cannot be drawn, and why."""
    reason = f"{reason[0].upper()}{reason[1:].rstrip('.')}."
    return Card(title=_title(run, title), note="", df=pd.DataFrame() if df is None else df, reason=reason)


def _title(run: RunData, title: str) -> str:
    return f"{title} ({run.info.label.lower()})" if run.info.label else title


def plain(text: str) -> str:
    """Text for plotly, which reads tags (links among them) in every label."""
    return html.escape(text, quote=False)


def rows_of(df: pd.DataFrame, *columns: str) -> list[tuple[Any, ...]]:
    """The rows of some columns, as Python values."""
    return list(zip(*(df[c].tolist() for c in columns), strict=True))


def base_figure(height: int, **layout: Any) -> Any:
    """An empty figure in the page's style: no template (6 kB each), no background (light and dark), no dragging."""
    figure = go.Figure()
    axis = {"gridcolor": _GRID, "zeroline": False, "automargin": True, "linecolor": _GRID, "title": {"font_size": 12}}
    figure.update_layout(
        template=go.layout.Template(),
        height=height,
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 12},
        hoverlabel={"font": {"family": "system-ui, sans-serif"}, "align": "left"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        dragmode=False,
        xaxis=axis,
        yaxis=axis,
    )
    figure.update_layout(**layout)
    return figure


def time_axis(run: RunData) -> tuple[float, str]:
    """Seconds per unit, and the unit, of this run's clock."""
    return (3600.0, "hours") if run.info.budget_s > 3 * 3600 else (60.0, "minutes")


@dataclass(frozen=True, slots=True)
class Measure:
    """How this run's objective is shown: a column of RunData.trials, divided by `scale`, in `unit`."""

    column: str
    label: str
    unit: str
    scale: float
    lower_is_better: bool

    def of(self, result: TrialResult) -> float | None:
        """The shown number of one trial."""
        x: float | None = getattr(result, self.column)
        return None if x is None else x / self.scale

    def gain(self, x: float, reference: float) -> float:
        """How many times better than the reference `x` is."""
        return reference / x if self.lower_is_better else x / reference


def measure_of(run: RunData) -> Measure:
    """The objective: the time of the user's whole job, or images/s where that was asked for or is all there is."""
    measured = run.tried[run.tried["outcome"].isin(["ok", "unstable"])]
    job_s = measured["job_s"].dropna()
    if run.info.objective == "energy" and measured["energy_j_per_image"].notna().any():
        return Measure("energy_j_per_image", "energy per image (J)", "J/image", 1.0, lower_is_better=True)
    if run.info.objective == "images_per_s" or job_s.empty:
        return Measure("images_per_s", "images/s", "img/s", 1.0, lower_is_better=False)
    largest = float(job_s.max())
    unit, scale = ("s", 1.0) if largest < 180 else ("min", 60.0) if largest < 3 * 3600 else ("h", 3600.0)
    return Measure("job_s", f"time of your whole job ({unit})", unit, scale, lower_is_better=True)
