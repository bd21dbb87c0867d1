"""What do the rows of a benchmark say? Tables in Markdown, and a figure in SVG."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from math import inf
from statistics import fmean, median
from typing import Any

Row = dict[str, Any]
AT = (5, 10, 20, 30, 40)
MINUTES = (10, 20, 40, 60)
COLOURS = ("#1f9e77", "#3f8fe0", "#d39b00", "#f26a2e", "#b565c9", "#7a828e", "#e5404a")


def tables(rows: list[Row]) -> str:
    """Per world and strategy: within 5, 2, 1 % after so many trials and minutes; out-of-memories; seconds to 2 %."""
    out = []
    worlds = list(dict.fromkeys(r["world"] for r in rows))
    for world in [*worlds, "all"] if len(worlds) > 1 else worlds:
        here = [r for r in rows if world in ("all", r["world"])]
        out += [f"\n### {world}\n", _head(), _table(here)]
    return "\n".join(out) + "\n"


def _head() -> str:
    columns = [
        "strategy", "studies", f"within 5 % at {_list(AT)} trials", f"2 % at {_list(AT)}", f"1 % at {_list(AT)}",
        f"2 % at {_list(AT)}, by posterior mean",
        f"2 % within {_list(MINUTES)} min", "median min to 2 %", "OOM a study (most)", "mean share at 20/40",
        "trials", "controller ms a trial", "handed out after the proofs within 5/2/1 %", "more runs for that",
        "a gain claimed, and its interval holds the truth",
    ]  # fmt: skip
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _list(values: Iterable[int]) -> str:
    return "/".join(map(str, values))


def _table(rows: list[Row]) -> str:
    by: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by[row["strategy"]].append(row)
    lines = []
    for name, mine in by.items():
        n_trials = [len(r["share"]) - 1 for r in mine]
        cells = [
            name,
            str(len(mine)),
            *(" / ".join(f"{100 * within(mine, frac, at):.0f}" for at in AT) for frac in (0.05, 0.02, 0.01)),
            " / ".join(f"{100 * fmean(believed(r, at) >= 0.98 for r in mine):.0f}" for at in AT),
            " / ".join(f"{100 * fmean(share_at(r, 60 * m) >= 0.98 for r in mine):.0f}" for m in MINUTES),
            _minutes(median(seconds_to(r, 0.02) for r in mine)),
            f"{fmean(r['n_oom'] for r in mine):.1f} ({max(r['n_oom'] for r in mine)})",
            " / ".join(f"{100 * fmean(after(r, at) for r in mine):.1f}" for at in (20, 40)),
            f"{fmean(n_trials):.0f}",
            f"{1000 * sum(r['controller_s'] for r in mine) / max(1, sum(n_trials)):.0f}",
            *_proofs([r["proof"] for r in mine if "proof" in r]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _proofs(proofs: list[Row]) -> list[str]:
    """What is handed out, how many fresh runs it took, and how often a claim of a gain holds."""
    if not proofs:
        return ["-"] * 3
    gains = [p for p in proofs if p["status"] == "gain"]
    shares = " / ".join(f"{100 * fmean(p['share'] >= 1 - frac for p in proofs):.0f}" for frac in (0.05, 0.02, 0.01))
    claimed = f"{100 * len(gains) / len(proofs):.0f} %" + (f", {100 * fmean(map(holds, gains)):.1f} %" if gains else "")
    return [shares, f"{fmean(p['n_runs'] for p in proofs):.0f}", claimed]


def holds(proof: Row) -> bool:
    """Is the true speedup of what was handed out within the interval that was claimed?"""
    _, lo, hi = proof["claim"]
    return bool(lo <= proof["speedup"] <= hi)


def within(rows: list[Row], frac: float, at: int) -> float:
    """Share of studies whose incumbent is truly within `frac` of the best after so many trials."""
    return fmean(after(r, at) >= 1 - frac for r in rows)


def after(row: Row, n_trials: int) -> float:
    """The incumbent's true share of the best after so many trials; a search that has ended keeps it."""
    share: list[float] = row["share"]
    return share[min(n_trials, len(share) - 1)]


def believed(row: Row, n_trials: int) -> float:
    """The same where the incumbent is chosen by its posterior mean."""
    found: float = row["believed"].get(str(n_trials), row["believed"]["end"])
    return found


def share_at(row: Row, seconds: float) -> float:
    """The same at a time, the controller's own included."""
    now = 0.0
    for share, at_s in zip(row["share"], times(row), strict=True):
        if at_s > seconds:
            break
        now = share
    return now


def times(row: Row) -> list[float]:
    """When each trial ended: the world's clock and the controller's share."""
    per_trial = row["controller_s"] / max(1, len(row["at_s"]))
    return [at + per_trial * (i + 1) for i, at in enumerate(row["at_s"])]


def seconds_to(row: Row, frac: float) -> float:
    """Until the incumbent is within `frac` for the first time; infinite when never."""
    return next((t for s, t in zip(row["share"], times(row), strict=True) if s >= 1 - frac), inf)


def _minutes(seconds: float) -> str:
    return "-" if seconds == inf else f"{seconds / 60:.0f}" if seconds >= 600 else f"{seconds / 60:.1f}"


def figure(rows: list[Row]) -> str:
    """Share of studies within 2 %, against trials and against minutes, all worlds pooled."""
    names = list(dict.fromkeys(r["strategy"] for r in rows))
    by = {name: [r for r in rows if r["strategy"] == name] for name in names}
    most_min = max(times(r)[-1] for r in rows) / 60
    grid_min = [most_min * i / 80 for i in range(81)]
    most = max(len(r["share"]) for r in rows) - 1
    left = _panel(by, list(range(most + 1)), lambda r, x: after(r, int(x)), "trials", 0)
    right = _panel(by, grid_min, lambda r, x: share_at(r, 60 * x), "minutes, set-up and controller included", 460)
    legend = "".join(
        f'<text x="{60 + 115 * (i % 8)}" y="20" fill="{COLOURS[i % len(COLOURS)]}">{name}</text>'
        for i, name in enumerate(names)
    )
    style = '<style>text{font:12px system-ui,sans-serif}</style><rect width="100%" height="100%" fill="white"/>'
    size = 'width="940" height="330" viewBox="0 0 940 330"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{legend}{left}{right}</svg>\n'


def _panel(
    by: dict[str, list[Row]], xs: list[float] | list[int], of: Callable[[Row, float], float], label: str, x0: int
) -> str:
    def px(x: float) -> float:
        return x0 + 50 + 400 * x / max(xs[-1], 1e-9)

    def py(y: float) -> float:
        return 280 - 240 * y

    parts = []
    for y in (0, 0.25, 0.5, 0.75, 1.0):
        parts.append(f'<line x1="{px(0)}" x2="{px(xs[-1])}" y1="{py(y)}" y2="{py(y)}" stroke="#ddd"/>')
        parts.append(f'<text x="{px(0) - 6}" y="{py(y) + 4}" text-anchor="end" fill="#555">{100 * y:.0f} %</text>')
    for i in range(5):
        x = xs[-1] * i / 4
        parts.append(f'<text x="{px(x)}" y="298" text-anchor="middle" fill="#555">{x:.0f}</text>')
    parts.append(f'<text x="{px(xs[-1] / 2)}" y="318" text-anchor="middle" fill="#555">{label}</text>')
    for i, mine in enumerate(by.values()):
        points = " ".join(f"{px(x):.1f},{py(fmean(of(r, x) >= 0.98 for r in mine)):.1f}" for x in xs)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[i % len(COLOURS)]}" stroke-width="2"/>')
    return "".join(parts)
