"""Which figures does the report have? To add one: a function of RunData -> Card, and a row here."""

from __future__ import annotations

from collections.abc import Callable

from autotune.report.before_after_table import before_after_table
from autotune.report.cards import Card
from autotune.report.cards_ablation import ablation
from autotune.report.cards_certificates import certificates
from autotune.report.cards_job import job_time
from autotune.report.cards_knobs import importance, knob_effects
from autotune.report.cards_limits import limits
from autotune.report.cards_model import model
from autotune.report.cards_pareto import throughput_memory
from autotune.report.cards_promise import promise_kept
from autotune.report.cards_ranks import ranks
from autotune.report.cards_result import before_after, sentinels, what_changed
from autotune.report.cards_search import best_so_far, ledger
from autotune.report.cards_step import ceilings, step_anatomy
from autotune.report.cards_tables import environment, trials
from autotune.report.cards_trace import trace
from autotune.report.load import RunData

FIGURES: dict[str, Callable[[RunData], Card]] = {
    "before_after_table": before_after_table,
    "before_after": before_after,
    "what_changed": what_changed,
    "ablation": ablation,
    "importance": importance,
    "certificates": certificates,
    "job_time": job_time,
    "ceilings": ceilings,
    "step_anatomy": step_anatomy,
    "limits": limits,
    "ranks": ranks,
    "trace": trace,
    "best_so_far": best_so_far,
    "knob_effects": knob_effects,
    "model": model,
    "throughput_memory": throughput_memory,
    "ledger": ledger,
    "sentinels": sentinels,
    "trials": trials,
    "environment": environment,
}
"""In the order of the page."""

LATER: dict[str, Callable[[RunData], Card | None]] = {"promise_kept": promise_kept}
"""After those: what came after the run, left out while nothing has."""
