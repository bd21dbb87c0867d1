"""What was it before, and what is it now? Epoch time, memory and speed-up: your settings, tuned, and their ratio.

A ratio stands here only when the finalist runs confirm it (MEASURING 5), and a cell that nothing measured says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import geometric_mean
from typing import Final, Literal

import pandas as pd

from autotune.contract import Finalist, Machine, RunInfo, Summary, TrialResult
from autotune.report import words
from autotune.report.cards import Card, Cell, Table, make_card, no_card
from autotune.report.load import RunData

NOT_MEASURED: Final = "not measured"
NOT_CONFIRMED: Final = "not confirmed"
SAME: Final = "the same"
COLUMNS: Final = ("", "your settings", "tuned", "ratio (95 % CI)")
_SPEEDUPS: Final = {
    "job_time": "speed-up of the whole job",
    "images_per_s": "speed-up, images/s",
    "energy": "times fewer joules per image",
}
_EPOCH_TERMS: Final = ("mosaic_epochs_s", "closed_epochs_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One comparison; None: not measured."""

    name: Literal["epoch_one", "epoch", "memory", "speedup"]
    label: str
    yours: float | None
    """Seconds, share of the memory, or a ratio."""
    tuned: float | None
    ratio: float | None = None
    """How many times as fast, or as much memory; None: not measured, or not confirmed."""
    ci95_lo: float | None = None
    ci95_hi: float | None = None

    absent: str = NOT_CONFIRMED
    """Why there is no ratio, where both sides were measured."""

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """As text, in the order of COLUMNS."""
        say = {"memory": words.percent, "speedup": words.times}.get(self.name, words.seconds)
        yours, tuned = (NOT_MEASURED if x is None else say(x) for x in (self.yours, self.tuned))
        return self.label, yours, self.absent if self.name == "speedup" and self.tuned is None else tuned, self._ratio()

    def _ratio(self) -> str:
        if self.ratio is None:
            return self.absent if self.name == "speedup" or None not in (self.yours, self.tuned) else NOT_MEASURED
        if self.name == "memory":
            return f"{words.times(self.ratio)} as much"
        interval = "" if self.ci95_lo is None else f" ({words.number(self.ci95_lo)} to {words.number(self.ci95_hi)})"
        return f"{words.times(self.ratio)}{interval}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One column: the runs that speak for it."""

    runs: tuple[TrialResult, ...]
    one_rank: TrialResult | None


def before_after_rows(
    info: RunInfo,
    machine: Machine | None,
    summary: Summary | None,
    results: Sequence[TrialResult],
    number: int | None = None,
) -> tuple[Row, ...]:
    """The rows of the table.

    Args:
        info: the question.
        machine: for the memory that there is; None: unknown.
        summary: the verdict; None: interrupted before it.
        results: of all trials.
        number: the trial that is `tuned`; None: the run's best.
    """
    finalists = _confirmed(summary, number)
    best = number if number is not None else summary.best_number if summary else None
    yours = _side(info, results, finalists.get("baseline"), _first_baseline(results))
    tuned = _side(info, results, finalists.get("best"), next((r for r in results if r.number == best), None))
    final = finalists.get("best")
    limit = _limit_bytes(info, machine)
    rows = []
    if info.n_ranks > 1:
        one = f"one epoch on 1 {_rank(info)}, as many images a step as each of {info.n_ranks} has"
        rows.append(Row(name="epoch_one", label=one, yours=_alone_s(info, yours), tuned=_alone_s(info, tuned)))
    epochs = _epoch_s(info, yours), _epoch_s(info, tuned)
    ratio = _speed_ratio(yours, tuned, summary) if final else (None, None, None)
    if info.objective == "energy":  # the verdict's spread is of joules, which tells nothing of throughput's
        ratio = ratio[0], None, None
    if final and info.objective == "images_per_s":
        ratio = final.speedup, final.ci95_lo, final.ci95_hi
    label = f"one epoch on {_ranks(info)}"
    row = Row(name="epoch", label=label, yours=epochs[0], tuned=epochs[1])
    rows.append(replace(row, ratio=ratio[0], ci95_lo=ratio[1], ci95_hi=ratio[2]) if None not in epochs else row)
    shares = _peak_frac(yours, limit), _peak_frac(tuned, limit)
    memory = Row(name="memory", label=f"peak memory, share of {words.size(limit)}", yours=shares[0], tuned=shares[1])
    rows.append(
        replace(memory, ratio=shares[1] / shares[0]) if final and shares[0] and shares[1] is not None else memory
    )
    label = _SPEEDUPS.get(info.objective, f"gain in {info.objective}")
    row = Row(name="speedup", label=label, yours=1.0 if yours.runs else None, tuned=final.speedup if final else None)
    rows.append(replace(row, ratio=final.speedup, ci95_lo=final.ci95_lo, ci95_hi=final.ci95_hi) if final else row)
    absent = NOT_CONFIRMED if yours.runs and tuned.runs else NOT_MEASURED
    return tuple(replace(row, absent=SAME if yours.runs and yours.runs == tuned.runs else absent) for row in rows)


def as_markdown(rows: Sequence[Row], simulated: bool) -> str:
    """The table for a README.md."""
    label = "SIMULATED" if simulated else ""
    lines = [(label, *COLUMNS[1:]), ("---", "--:", "--:", "--:"), *(row.cells for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{_note(rows)}"


def before_after_table(run: RunData) -> Card:
    """The first card of the report."""
    title = "Your settings and the tuned ones"
    if run.baseline is None and (run.summary is None or run.summary.best_number is None):
        return no_card(run, title, "nothing was measured that could be compared")
    rows = before_after_rows(run.info, run.machine, run.summary, run.results)
    df = pd.DataFrame([(r.name, r.yours, r.tuned, r.ratio, r.ci95_lo, r.ci95_hi) for r in rows])
    df.columns = ["name", "yours", "tuned", "ratio", "ci95_lo", "ci95_hi"]
    cells = tuple(
        (
            Cell(text[0]),
            Cell(text[1], r.yours),
            Cell(text[2], r.tuned, css="" if r.tuned is None else "strong"),
            Cell(text[3], r.ratio),
        )
        for r in rows
        for text in (r.cells,)
    )
    table = Table(COLUMNS, cells, numeric=COLUMNS[1:])
    return make_card(run, title, _note(rows), df, table=table)


def _note(rows: Sequence[Row]) -> str:
    said = "An epoch is its training steps, without validation and checkpoint."
    absent = {r.absent for r in rows if r.name == "speedup" and r.ratio is None}
    if SAME in absent:
        said += " Nothing faster than your settings was measured: both columns are the same run."
    elif NOT_CONFIRMED in absent:
        said += " Search measurements, not confirmed by finalist runs: no ratio is claimed."
    return said


def _confirmed(summary: Summary | None, number: int | None) -> dict[str, Finalist]:
    """Finalists by name, when the verdict speaks of this trial and rests on whole blocks."""
    if summary is None or summary.verdict.status == "unconfirmed" or number not in (None, summary.best_number):
        return {}
    found = {f.name: f for f in summary.verdict.finalists if f.speedup is not None}
    return {str(k): v for k, v in found.items()} if {"baseline", "best"} <= set(found) else {}


def _side(
    info: RunInfo, results: Sequence[TrialResult], finalist: Finalist | None, searched: TrialResult | None
) -> Side:
    """Finalist runs where there are some, else the search's own run."""
    numbers = set(finalist.numbers) if finalist else {searched.number} if searched else set()
    runs = tuple(r for r in results if r.number in numbers and r.outcome.measured)
    params = finalist.params if finalist else searched.params if searched else None
    alone = [r for r in results if r.probe == "one_rank" and r.outcome.measured and r.params == params]
    return Side(runs=runs, one_rank=alone[-1] if alone else None)


def _first_baseline(results: Sequence[TrialResult]) -> TrialResult | None:
    return next((r for r in results if r.role == "baseline" and r.outcome.measured), None)


def _rates(side: Side) -> list[float]:
    return [r.images_per_s for r in side.runs if r.images_per_s]


def _epoch_s(info: RunInfo, side: Side) -> float | None:
    """Images of an epoch over images/s, the geometric mean of the runs."""
    rates = _rates(side)
    if not rates:
        return None
    first = side.runs[0]
    n_images = _n_images(info, first)
    if n_images:
        return n_images / geometric_mean(rates)
    terms, epochs = first.job_terms, first.job.get("epochs") or info.train_args.get("epochs")
    known = [terms[t] or 0.0 for t in _EPOCH_TERMS if t in terms]
    return sum(known) / int(epochs) if any(known) and epochs else None


def _n_images(info: RunInfo, result: TrialResult) -> float | None:
    """With compile the loader drops the last incomplete batch: an epoch trains that many images less."""
    n_images = result.job.get("n_images") or info.n_images
    if not n_images:
        return None
    return float(min(n_images, result.job.get("n_batches", math.inf) * result.job.get("batch", math.inf)))


def _alone_s(info: RunInfo, side: Side) -> float | None:
    """An epoch on one rank alone, from probe one_rank."""
    rate = side.one_rank.images_per_s if side.one_rank else None
    n_images = _n_images(info, side.runs[0]) if side.runs else info.n_images
    return n_images / rate if rate and n_images else None


def _speed_ratio(yours: Side, tuned: Side, summary: Summary | None) -> tuple[float | None, float | None, float | None]:
    """Throughput of tuned over yours with its interval: the verdict's run-to-run spread of log throughput, Student t.

    ratio = exp(difference of mean logs +- t(0.975, df) * sigma * sqrt(1 / n + 1 / m)), as search/verdict.py for its
    objective (MEASURING 5).
    """
    from scipy.special import stdtrit  # quantile of Student t; scipy.stats would take seconds to import

    a, b = _rates(yours), _rates(tuned)
    if not a or not b or summary is None:
        return None, None, None
    ratio = geometric_mean(b) / geometric_mean(a)
    sigma, df = summary.verdict.sigma_run_frac, summary.verdict.df
    if sigma is None or df < 1:
        return ratio, None, None
    half = float(stdtrit(df, 0.975)) * sigma * math.sqrt(1 / len(a) + 1 / len(b))
    return ratio, ratio * math.exp(-half), ratio * math.exp(half)


def _peak_frac(side: Side, limit: int | None) -> float | None:
    peaks = [p for r in side.runs for p in r.peak_mem_bytes]
    return max(peaks) / limit if peaks and limit else None


def _limit_bytes(info: RunInfo, machine: Machine | None) -> int | None:
    """What a rank may use: --mem-limit, else the smallest of its GPUs, else its part of the machine's memory."""
    if info.mem_limit_bytes or machine is None:
        return info.mem_limit_bytes
    sizes = [g.mem_bytes for g in machine.gpus if g.uuid in info.gpus]
    if info.device != "cpu":
        return min(sizes, default=None)
    return machine.ram_bytes // max(info.n_ranks, 1)


def _rank(info: RunInfo) -> str:
    return "CPU rank" if info.device == "cpu" else "GPU"


def _ranks(info: RunInfo) -> str:
    """`1 GPU`, `4 GPUs`, `the CPU`, `2 CPU ranks`."""
    if info.device == "cpu" and info.n_ranks == 1:
        return "the CPU"
    return words.plural(info.n_ranks, _rank(info))
