"""What does speed cost in memory and in energy, and which trials does none beat in both?"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

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
    no_card,
    plain,
    rows_of,
)
from autotune.report.cards_search import differs
from autotune.report.load import RunData

NEARLY_FRAC: Final = 0.9
"""A trial of this share of the best's speed may be worth its savings."""
WORTH_FRAC: Final = 0.05
"""Smaller savings are within what two runs of one configuration differ by (results/LOG.md)."""
GAP_FRAC: Final = 0.14
"""Of the figure's height, between two panels."""
COSTS: Final = {"peak_mem_bytes": "memory", "energy_j_per_image": "energy per image"}
"""Column of a cost -> its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """A trial that is nearly as fast as the fastest, for less."""

    number: int
    speed_frac: float
    """Of the fastest trial's."""
    saved_frac: float
    """Of the fastest trial's cost."""


def front(rows: Iterable[tuple[int, float | None, float | None]]) -> tuple[int, ...]:
    """The Pareto front, the least cost first: trials that no other beats in speed or cost without losing in the other.

    Args:
        rows: number, speed (more is better) and cost (less is better); with None in it a trial takes no part.

    Returns:
        Their numbers; trials that are equal in both are all there, or none of them.
    """
    known = [(cost, -speed, number) for number, speed, cost in rows if speed is not None and cost is not None]
    numbers: list[int] = []
    least, fastest = float("inf"), 0.0
    for cost, slowness, number in sorted(known):
        if slowness < fastest:
            least, fastest = cost, slowness
        elif (cost, slowness) != (least, fastest):
            continue
        numbers.append(number)
    return tuple(numbers)


def saving(rows: Iterable[tuple[int, float | None, float | None]]) -> Saving | None:
    """The trial of least cost among those of nearly the best speed; None when that is the fastest, or saves nothing.

    Args:
        rows: as of `front`.
    """
    known = [(speed, cost, number) for number, speed, cost in rows if speed and cost]
    if not known:
        return None
    best, price, _ = max(known, key=lambda row: (row[0], -row[1]))
    speed, cost, number = min((r for r in known if r[0] >= NEARLY_FRAC * best), key=lambda row: (row[1], -row[0]))
    saved = 1 - cost / price
    return Saving(number=number, speed_frac=speed / best, saved_frac=saved) if saved >= WORTH_FRAC else None


def throughput_memory(run: RunData) -> Card:
    """What if the memory is shared, or the power paid for? Speed against both; what ran out of memory at the wall."""
    df = run.tried[["number", "role", "outcome", "images_per_s", *COSTS]].copy()
    ok = df[(df["outcome"] == "ok") & df["images_per_s"].notna()]
    shown = [cost for cost in COSTS if ok[cost].notna().any()]
    title = "Speed against memory and energy" if "energy_j_per_image" in shown else "Speed against memory"
    if not shown:
        return no_card(run, title, "Neither memory nor energy was measured in any trial that was ok.", df)
    for cost in shown:
        df[f"front_{COSTS[cost].split()[0]}"] = df["number"].isin(front(_rows(ok, cost)))
    oom = df[df["outcome"] == "oom"]
    figure = base_figure(340 if len(shown) == 1 else 660)
    for i, cost in enumerate(shown):
        _panel(run, figure, df[df[cost].notna()], cost, i, len(shown))
    if "peak_mem_bytes" in shown:
        _wall(run, figure, oom, float(ok["peak_mem_bytes"].max()))
    return make_card(run, title, _note(run, ok, shown, len(oom)), df, figure=figure)


def _rows(ok: pd.DataFrame, cost: str) -> list[tuple[int, float, float]]:
    known = ok[ok[cost].notna()]
    return rows_of(known, "number", "images_per_s", cost)


def _panel(run: RunData, figure: Any, df: pd.DataFrame, cost: str, i: int, n: int) -> None:
    """One cost on the x axis: its trials, and the front."""
    scale, unit = (2**30, "GiB") if cost == "peak_mem_bytes" else (1.0, "J/image")
    axes = {"xaxis": f"x{i + 1}", "yaxis": f"y{i + 1}"}
    ok = df[df["outcome"] == "ok"]
    numbers = front(_rows(ok, cost))
    best = ok.set_index("number").loc[list(numbers)]
    figure.add_scatter(
        x=(best[cost] / scale).tolist(),
        y=best["images_per_s"].tolist(),
        mode="lines",
        line={"shape": "hv", "color": BEST, "width": 1.5, "dash": "dot"},
        name="none is faster for less",
        legendgroup="front",
        showlegend=i == 0,
        hoverinfo="skip",
        **axes,
    )
    own = df["role"].isin(["baseline", "sentinel"])
    groups = {
        "your arguments": (df[own & (df["outcome"] == "ok")], BASELINE, "diamond"),
        "trial": (df[~own & (df["outcome"] == "ok")], OUTCOME_COLOURS["ok"], OUTCOME_MARKS["ok"]),
        "unstable": (df[df["outcome"] == "unstable"], OUTCOME_COLOURS["unstable"], OUTCOME_MARKS["unstable"]),
    }
    for name, (rows, colour, mark) in groups.items():
        if name == "unstable" and rows.empty:
            continue
        on_front = rows["number"].isin(numbers)
        figure.add_scatter(
            x=(rows[cost] / scale).tolist(),
            y=rows["images_per_s"].tolist(),
            mode="markers",
            name=name,
            legendgroup=name,
            showlegend=i == 0,
            marker={
                "color": colour,
                "size": [11 if best else 8 for best in on_front],
                "opacity": [1.0 if best else 0.5 for best in on_front],
                "symbol": mark,
            },
            customdata=[[number, plain(differs(run, number))] for number in rows["number"]],
            hovertemplate=f"trial %{{customdata[0]}}: %{{y:.4g}} img/s, %{{x:.3g}} {unit}<br>%{{customdata[1]}}"
            "<extra></extra>",
            **axes,
        )
    label = f"peak {_where(run)}, GiB" if cost == "peak_mem_bytes" else "energy of all GPUs, J per image"
    room = 1 / n - GAP_FRAC * (n - 1) / n
    low = (n - 1 - i) * (room + GAP_FRAC)
    layout = figure.layout
    for axis, text in (("x", label), ("y", "images/s")):
        style = layout[f"{axis}axis"].to_plotly_json() | {
            "title": {"text": text, "font_size": 12},
            "rangemode": "tozero",
        }
        layout[f"{axis}axis{i + 1}"] = style
    layout[f"xaxis{i + 1}"].anchor = axes["yaxis"]
    layout[f"yaxis{i + 1}"].update(anchor=axes["xaxis"], domain=[low, low + room])


def _wall(run: RunData, figure: Any, oom: pd.DataFrame, largest: float) -> None:
    """What ran out of memory, at the memory there is; where nothing did and the wall is far away, it is not drawn."""
    wall = _memory_bytes(run)
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
    if not oom.empty or wall < 3 * largest:
        line = {"color": OUTCOME_COLOURS["oom"], "width": 1}
        figure.add_shape(
            type="line", xref="x", yref="y domain", x0=wall / 2**30, x1=wall / 2**30, y0=0, y1=1, line=line
        )


def _note(run: RunData, ok: pd.DataFrame, shown: list[str], n_oom: int) -> str:
    """The finding: what the fastest takes, and who is nearly as fast for less."""
    said = []
    ranks = max(1, run.info.n_ranks)
    if "peak_mem_bytes" in shown:
        _, _, most_bytes = max(_rows(ok, "peak_mem_bytes"), key=lambda row: (row[1], -row[2]))
        said.append(
            f"The fastest trial took {words.size(most_bytes)} of {words.size(_memory_bytes(run))}"
            f"{' a rank' * (ranks > 1)}; {words.plural(n_oom, 'trial') if n_oom else 'none'} ran out of memory."
        )
    for cost in shown:
        less = saving(_rows(ok, cost))
        if less is not None:
            said.append(
                f"Trial {less.number} uses {words.percent(less.saved_frac)} less {COSTS[cost]} "
                f"at {words.percent(less.speed_frac)} of the best's speed."
            )
        elif cost == "energy_j_per_image":
            said.append("Nothing nearly as fast as the fastest trial takes noticeably less energy per image.")
    if "energy_j_per_image" not in shown:
        said.append("Energy is not shown: there is no GPU here that counts it.")
    return " ".join(said)


def _on_gpu(run: RunData) -> bool:
    return bool(run.info.gpus) and bool(run.machine.gpus)


def _memory_bytes(run: RunData) -> int:
    """What a rank may use."""
    if _on_gpu(run):
        return min(g.mem_bytes for g in run.machine.gpus)
    return run.info.mem_limit_bytes or run.machine.ram_bytes // max(1, run.info.n_ranks)


def _where(run: RunData) -> str:
    if _on_gpu(run):
        return "GPU memory"
    return "memory of all processes" if run.info.n_ranks <= 1 else "memory of a rank and its loaders"
