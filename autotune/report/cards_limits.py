"""What limits the training as it was, and as it is now, and what would lift it further?"""

from __future__ import annotations

import pandas as pd

from autotune.contract import TrialResult
from autotune.report import words
from autotune.report.advice import Advice, advise, ceiling
from autotune.report.cards import Card, Cell, Table, make_card, no_card
from autotune.report.cards_step import named_bars, probe_of
from autotune.report.limits import Rates
from autotune.report.load import RunData

_COLUMNS = ("settings", "img/s", "what limits them", "without it", "what would lift it", "what more of a thing gives")


def limits(run: RunData) -> Card:
    """Yours and the best: a sentence each, and how much more of each resource could give at most."""
    title = "What limits it"
    found = [
        (name, r, advice)
        for name, r in named_bars(run)
        if name in ("your arguments", "best") and (advice := advice_of(run, r))
    ]
    if not found:
        return no_card(run, title, "No trial has recorded how long its steps waited for data.")
    rows = [
        (name, r.number, a.limit, a.most, resource.name, resource.most, resource.why)
        for name, r, a in found
        for resource in a.resources
    ]
    df = pd.DataFrame(rows, columns=["name", "number", "limit", "without_it", "resource", "at_most", "why"])
    table = Table(columns=_COLUMNS, rows=tuple(_row(name, r, a) for name, r, a in found), numeric=("img/s",))
    note = " ".join(f"{name[0].upper()}{name[1:]}: {a.says}." for name, _, a in found)
    return make_card(run, title, note, df, table=table)


def advice_of(run: RunData, result: TrialResult) -> Advice | None:
    """The verdict on a trial of this run, with the probes of its configuration."""

    def rate(probe: TrialResult | None) -> float | None:
        return probe.images_per_s if probe else None

    rates = Rates(
        data=rate(probe_of(run, "data", result.params)),
        compute=rate(probe_of(run, "compute", result.params)),
        no_sync=rate(probe_of(run, "no_sync", result.params)),
    )
    return advise(result, run.machine, gpus=run.info.gpus, n_ranks=run.info.n_ranks, rates=rates)


def _row(name: str, r: TrialResult, a: Advice) -> tuple[Cell, ...]:
    return (
        Cell(name),
        Cell(words.number(r.images_per_s)),
        Cell(a.limit, remark=f"cannot be told: {'; '.join(a.unknown)}" if a.unknown else ""),
        Cell(ceiling(a.most)),
        Cell(a.lifts[0], more=a.lifts[1:]),
        Cell(f"{a.resources[0].name}: {ceiling(a.resources[0].most)}", more=_others(a)),
    )


def _others(a: Advice) -> tuple[str, ...]:
    return tuple(f"{r.name}: {ceiling(r.most)}{'' if r.most is None else f' ({r.why})'}" for r in a.resources[1:])
