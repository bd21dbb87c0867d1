"""Which change of the winner mattered? Each is set back to the user's value alone, in fresh runs beside the winner's.

Done once the claim stands, and only for a proven gain. Every block holds one run of the winner and one of each
configuration that lacks a change, in shuffled order; gain = objective without the change over objective with it. The
run-to-run variance is pooled with the finalists', so that one block gives an interval already, though a wide one. Each
interval holds by itself. A winner with one change needs no run: without it, it is the user's settings, which ran.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from autotune.contract import Ablation, Outcome, Params
from autotune.search import posterior
from autotune.search.finalists import RESERVE_MARGIN, Stage
from autotune.search.proposals import NOT_RECORDED, changes_of, key_of
from autotune.search.ran import Ran
from autotune.search.session import Session
from autotune.search.verdict import BASELINE, compare, pooled_variance

MOST_OF_BUDGET: Final = 0.1
"""It explains a result and finds none: in half an hour three minutes, in five minutes a change or none."""
MOST_OF_RESERVE: Final = 0.05
"""Of the budget, what the search leaves for it; the rest of its share is what the finalists did not need."""
MAX_BLOCKS: Final = 2
WINNER: Final = "winner"


@dataclass(slots=True)
class Ablated:
    """What has been measured so far; an interrupt leaves it as it is."""

    winner: Ran
    without: dict[str, Params]
    """Change -> the winner without it, the largest expected effect first."""
    notes: dict[str, str] = field(default_factory=dict)
    """Change -> why it was not measured."""
    measured: set[str] = field(default_factory=set)
    """Changes without which nothing differs from the user's settings: the finalists' own blocks compare that."""
    runs: list[dict[str, Ran]] = field(default_factory=list)
    """Of every block: the winner's run and those without a change."""


def begin(session: Session, stage: Stage | None) -> Ablated | None:
    """What is to be measured of this winner; None without a proven gain."""
    if stage is None or stage.winner is None or stage.judgement().status != "gain":
        return None
    winner, believed = stage.winner, posterior.fit(session)
    params, canonical = winner.result.params, session.plan.space.canonical
    # A knob that is inert in one of the two has no value to be set back to: it goes with the change that woke it.
    changes = {k: v for k, v in changes_of(params, stage.baseline).items() if v is not None and k in stage.baseline}
    awake = [k for k in changes if stage.baseline[k] is not None]
    order = sorted(awake, key=lambda knob: -believed.gain(knob, changes[knob]))
    ablated = Ablated(winner, {knob: canonical({**params, knob: stage.baseline[knob]}) for knob in order})
    for knob, without in ablated.without.items():
        if key_of(without) == key_of(params):
            ablated.notes[knob] = "it follows from the other changes and cannot be set back alone"
        elif key_of(without) == key_of(stage.baseline):
            ablated.measured.add(knob)
        elif session.proposals and not session.proposals.exists(without):
            ablated.notes[knob] = f"the winner without it is {NOT_RECORDED}"
    return ablated


def run(session: Session, ablated: Ablated) -> None:
    """Measure as many changes as the share of the budget and the time left hold, once and then again."""
    rng = random.Random(session.info.seed + 1)
    budget = session.plan.budget
    end_s = min(
        session.t_s + MOST_OF_BUDGET * session.plan.given_s, session.t_s + budget.left_s() - session.plan.report_s
    )
    for i in range(MAX_BLOCKS):
        knobs = _fitting(session, ablated, end_s - session.t_s)
        if not knobs:
            break
        if i == 0:
            what = "the change" if len(knobs) == 1 else f"each of {len(knobs)} changes"
            session.phase("ablation", f"{what} of the winner set back alone")
        order = [WINNER, *knobs]
        rng.shuffle(order)
        block: dict[str, Ran] = {}
        ablated.runs.append(block)
        for name in order:
            params = ablated.winner.result.params if name == WINNER else ablated.without[name]
            block[name] = session.ask_and_run("ablation", params)
            if block[name].result.outcome is Outcome.INTERRUPTED:
                return  # the budget is over
            if block[name].failed and name != WINNER:
                result = block[name].result
                ablated.notes[name] = f"without it the run failed ({result.outcome}: {result.error})"


def _fitting(session: Session, ablated: Ablated, left_s: float) -> list[str]:
    """The changes of the next block: the first ones, as many as the time holds beside a run of the winner."""
    left_s -= RESERVE_MARGIN * session.price_s(ablated.winner.result.params)
    knobs: list[str] = []
    for knob, params in ablated.without.items():
        if knob in ablated.notes or knob in ablated.measured:
            continue
        price_s = RESERVE_MARGIN * session.price_s(params)
        if price_s > left_s:
            break
        left_s -= price_s
        knobs.append(knob)
    return knobs


def reserve_s(session: Session) -> float:
    """Seconds that the search should leave for the ablation of the best so far; 0 where they hold no block."""
    best = session.best()
    if len(best.changes) < 2:
        return 0.0
    share_s = MOST_OF_RESERVE * session.plan.given_s
    run_s = RESERVE_MARGIN * session.price_s(best.result.params)
    wanted_s = MAX_BLOCKS * (1 + len(best.changes)) * run_s
    return min(wanted_s, share_s) if 2 * run_s <= share_s else 0.0


def result_of(stage: Stage | None, ablated: Ablated | None) -> tuple[Ablation, ...]:
    """What is known of each change, the largest measured gain first; what was not measured last, with a reason."""
    if stage is None or ablated is None:
        return ()
    values = [{n: r.value for n, r in block.items() if r.value and r.result.outcome.measured} for block in ablated.runs]
    own, params = str(ablated.winner.number), ablated.winner.result.params
    found = []
    for knob, without in ablated.without.items():
        blocks: Sequence[Mapping[str, float]] = values
        name, reference, runs = WINNER, knob, ablated.runs
        if knob in ablated.measured:
            blocks, name, reference, runs = stage.contest.blocks, own, BASELINE, stage.runs
        variance, df = pooled_variance(stage.contest.blocks, stage.contest.extra)
        more, more_df = pooled_variance(values)
        if variance is not None and more is not None:
            variance, df = (variance * df + more * more_df) / (df + more_df), df + more_df
        ratio = compare(blocks, name, variance, df, reference=reference)
        found.append(
            Ablation(
                knob=knob,
                value=params[knob],
                baseline=stage.baseline[knob],
                params=without,
                numbers=tuple(block[reference].number for block in runs if reference in block),
                gain=ratio.speedup if ratio else None,
                ci95_lo=ratio.ci95_lo if ratio else None,
                ci95_hi=ratio.ci95_hi if ratio else None,
                note="" if ratio else ablated.notes.get(knob, "no time was left for it: a longer --budget measures it"),
            )
        )
    return tuple(sorted(found, key=lambda a: -(a.gain or 0.0)))
