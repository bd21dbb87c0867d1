"""What does the user see on a terminal? One panel: budget, baseline, best, the last three trials, the running one."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from autotune.contract import Event, Outcome, RunEnded, RunStarted, TrialEnded, TrialResult
from autotune.report import words
from autotune.report.lines import is_trouble, say, say_end, say_trouble, say_warnings, trial_line
from autotune.report.progress import State

REDRAW_PER_S = 2
"""Nothing on the measured machine spins (DESIGN 8.7)."""
_LAST = 3
_STYLES = {
    "baseline": "bold",
    "best": "bold green",
    "unstable": "yellow",
    "pruned": "dim",
    "oom": "red",
    "timeout": "magenta",
    "crash": "bold red",
}
_WIDE, _MEDIUM = 96, 72
"""Columns of terminal below which peak and wait, then the half-width, are left out; counts get their own line."""
_ECHO = 2
"""Columns left free at the right: the terminal echoes `^C` there; if it wrapped, the next drawing began too low."""


class LiveView:
    """A panel redrawn twice a second; everything else is printed above it."""

    def __init__(self, console: Console, state: State, clock: Callable[[], float]) -> None:
        self._console, self._state, self._clock = console, state, clock
        self._lock = threading.Lock()
        self._heard_at = clock()
        self._live: Live | None = None

    def __call__(self, event: Event) -> None:
        """Take an event in; rich's thread draws it."""
        with self._lock:
            self._state.add(event)
            self._heard_at = self._clock()
        if isinstance(event, RunStarted):
            say(self._console, event.headline)
            say_warnings(self._console, event)
            self._live = Live(
                console=self._console,
                get_renderable=self.render,
                refresh_per_second=REDRAW_PER_S,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        elif isinstance(event, TrialEnded) and is_trouble(event.result):
            say(self._console, trial_line(self._state, event))
            say_trouble(self._console, self._state, event.result)
        elif isinstance(event, RunEnded):
            self.close()
            say_end(self._console, event)

    def close(self) -> None:
        """Leave the last panel on the screen and give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def render(self) -> RenderableType:
        """The panel as of now; also called by rich's own thread."""
        with self._lock:
            now_s = self._state.now_s
            if self._state.running is not None or not self._state.over:
                now_s += self._clock() - self._heard_at
            return panel(self._state, now_s, self._console.width - _ECHO)


def panel(state: State, now_s: float, width: int) -> Panel:
    """The panel at a moment, `width` columns wide."""
    foot = Table.grid(expand=True, padding=(0, 2))
    foot.add_column(ratio=1, overflow="ellipsis", no_wrap=True)
    foot.add_column(no_wrap=True)
    stop = "Ctrl-C: stop, keep everything, report" if width >= _WIDE else "Ctrl-C: stop, keep all"
    foot.add_row(Text(state.folder, style="dim"), Text("" if state.over else stop, style="dim"))
    phase = f" {state.phase} " if state.phase and not state.over else ""
    return Panel(
        Group(_budget(state, now_s, width), _trials(state, now_s, width), foot),
        title="autotune search",
        title_align="left",
        subtitle=Text(f"{phase}{state.phase_note} ") if phase and state.phase_note else Text(phase) if phase else None,
        subtitle_align="left",
        width=width,
    )


def _budget(state: State, now_s: float, width: int) -> Table:
    share = now_s / state.budget_s if state.budget_s else 0.0
    row = Table.grid(expand=True, padding=(0, 2))
    row.add_column(ratio=1, min_width=8)
    for _ in range(2):
        row.add_column(no_wrap=True)
    clocks = f"{min(100 * share, 999):.0f} %  {words.clock(now_s)} of {words.clock(state.budget_s)}"
    more = state.n_more()
    counts = state.counts() + ("" if more is None else f"  ~{more} more")
    if width >= _WIDE:
        row.add_row(ProgressBar(total=1.0, completed=min(share, 1.0)), Text(clocks), Text(counts))
        return row
    outer = Table.grid(expand=True)
    row.columns.pop()
    row.add_row(ProgressBar(total=1.0, completed=min(share, 1.0)), Text(clocks))
    outer.add_row(row)
    outer.add_row(Text(counts))
    return outer


def _trials(state: State, now_s: float, width: int) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1), header_style="dim", pad_edge=False)
    wide, medium = width >= _WIDE, width >= _MEDIUM
    # rich takes space from every column that may shrink: without min_width a number becomes `1...` (PRODUCT B3).
    columns = [("#", 4, True), ("outcome", 11, True), ("img/s", 6, True), ("+-", 5, medium), ("x base", 6, True)]
    columns += [("peak", 8, wide), ("wait", 5, wide), ("took", 7, True)]
    shown = [name for name, _, on in columns if on]
    for name, min_width, on in columns:
        if on:
            left = name == "outcome"
            table.add_column(name, min_width=min_width, no_wrap=True, justify="left" if left else "right")
    table.add_column("differs from yours in", ratio=1, overflow="ellipsis", no_wrap=True)
    for label, ended in _rows(state):
        cells = _cells(state, ended.result)
        changes = Text(words.assignments(ended.changes) + (f": {ended.result.error}" if ended.result.error else ""))
        table.add_row(
            str(ended.result.number),
            Text(label),
            *(cells[name] for name in shown[2:]),
            changes,
            style=_STYLES.get(label, ""),
        )
    if state.running is not None:
        live = state.progress
        speed = live.images_per_s if live else None
        cells = dict.fromkeys(shown, "")
        cells |= {
            "img/s": words.number(speed) if speed else "",
            "x base": words.times(state.ratio(speed)) if speed and state.running.role != "probe" else "",
        }
        cells["took"] = words.seconds(float(int(max(0.0, now_s - state.running.t_s)))).replace(".0", "")
        table.add_row(
            str(state.running.number),
            Text((live.phase if live else "starting")[:11]),
            *(cells[name] for name in shown[2:]),
            Text(words.assignments(state.running.changes)),
            style="cyan",
        )
    return table


def _rows(state: State) -> list[tuple[str, TrialEnded]]:
    """Baseline, best, and the last three, each once."""
    baseline, best = state.baseline, state.best
    rows: list[tuple[str, TrialEnded]] = []
    for ended in state.ended:
        is_baseline = baseline is not None and ended.result.number == baseline.number
        is_best = best is not None and ended.result.number == best.result.number
        role = ended.result.role
        if is_baseline or is_best:
            rows.append(("baseline" if is_baseline else "best", ended))
        elif ended in state.ended[-_LAST:]:
            ok = ended.result.outcome is Outcome.OK
            label = words.PROBES.get(ended.result.probe or "", role)
            rows.append((label if ok and role != "trial" else ended.result.outcome.value, ended))
    return rows


def _cells(state: State, r: TrialResult) -> dict[str, str]:
    speed = r.images_per_s if r.outcome.measured else None
    half = words.half_width(r.ci95_lo, r.ci95_hi) if speed else None
    return {
        "img/s": words.number(speed) if speed else "",
        "+-": words.number(half) if half is not None else "",
        "x base": words.times(state.ratio(speed)) if speed and r.role != "probe" else "",
        "peak": words.size(max(r.peak_mem_bytes)) if r.peak_mem_bytes else "",
        "wait": words.percent(r.wait_frac) if r.wait_frac is not None else "",
        "took": words.seconds(r.took_s),
    }
