"""Does the loss with the winner's rounding go where the baseline's goes? Compared over the same first steps.

Only knobs of class NUMERICS are looked at, and of those the ones that the step itself feels: all others stay as the
baseline has them, so that both runs see the same batches in the same order (checked by their checksums).

The baseline's own spread is that over seeds, which draw other batches (and, from scratch, other weights): a change
that no more than a different seed makes is one the user accepts in every training. A repeat with the same seed would
not do. On a CPU, and on a GPU with deterministic=True (YOLO's default), it is equal to the bit; where it is not, it
shows the rounding of the baseline's own precision, and every coarser one, such as bf16, would fail without any harm.

What is compared is the mean loss over the second half of the steps: in the first half both runs still share their
start, and single steps scatter with their batches. It is a look for what goes visibly wrong within so many steps, no
proof of equal accuracy after an epoch.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Final

from autotune.contract import UNFELT, Numerics, Outcome, Params, Training, TrialResult, TrialSpec, Verdict
from autotune.errors import AutotuneError
from autotune.search.ran import Ran
from autotune.search.session import Session
from autotune.space.knobs import KNOBS

N_STEPS: Final = 50
MIN_STEPS: Final = 10
"""Fewer say nothing: an optimizer step takes four batches of YOLO's default size."""
N_SEEDS: Final = 3
"""Of the baseline, the winner's among them."""
MOST_OF_BUDGET: Final = 0.05
"""It checks a result and finds none. In half an hour that is 90 s: four runs of 50 steps of 0.3 s, and their starts."""
MARGIN: Final = 1.2
"""Of the price: steps of a fresh process are slower at first, and it takes a second to end."""
DEADLINE: Final = 2.0
"""A run is stopped at so many times its price."""


def rounding_changes(session: Session, params: Params) -> Params:
    """The part of a configuration that changes how a step rounds, not which images it sees."""
    assert session.proposals is not None
    baseline = session.proposals.baseline
    return {
        name: value
        for name, value in params.items()
        if name in KNOBS
        and KNOBS[name].training is Training.NUMERICS
        and name not in UNFELT["compute"]
        and json.dumps(value) != json.dumps(baseline.get(name))
    }


def reserve_s(session: Session) -> float:
    """Seconds that the search should leave for the check of the best so far; 0 where it would not be run."""
    if not (changes := _to_check(session, session.best().result.params)):
        return 0.0
    allowed_s = MOST_OF_BUDGET * session.plan.given_s
    n_steps = _affordable(session, changes, allowed_s)
    return _all_s(session, changes, n_steps) if n_steps else 0.0


def check(session: Session, params: Params) -> Numerics | None:
    """Run the check for this winner as far as the time goes; whatever becomes of it, the verdict stands.

    Args:
        session: the finalists have run.
        params: the winner.

    Returns:
        What it found; None when there is nothing to check or no time for it, which a note then says.
    """
    assert session.proposals is not None
    changes = _to_check(session, params)
    if not changes:
        return None
    budget = session.plan.budget
    allowed_s = min(MOST_OF_BUDGET * session.plan.given_s, budget.left_s() - session.plan.report_s)
    n_steps = _affordable(session, changes, allowed_s)
    if not n_steps:
        session.notes.append(
            f"not checked for lack of time: whether the loss with {_spell(changes)} goes as with your settings; a "
            "longer --budget does"
        )
        return None
    session.phase("numerics", f"the loss of {n_steps} steps with {_spell(changes)}, against your settings")
    try:
        ran = _run(session, changes, n_steps)
    except AutotuneError as e:
        session.notes.append(f"the check of the loss ended early: {e.message}")
        return None
    numerics = compare(changes, ran)
    if numerics.within is not True:
        session.notes.append(numerics.sentence)
    session.phase("numerics", numerics.sentence)
    return numerics


def warned(verdict: Verdict, checked: Numerics | None) -> Verdict:
    """The verdict; of a winner that changes the loss it says so wherever it goes."""
    if checked is None or checked.within is not False:
        return verdict
    return replace(verdict, sentence=f"{verdict.sentence}; CHANGES THE LOSS: {checked.sentence}")


def compare(changes: Params, ran: Sequence[TrialResult]) -> Numerics:
    """Judge the runs.

    Args:
        changes: what was looked at.
        ran: the baseline, the same with the changes on the same batches, the baseline with other seeds.
    """
    numbers, what = tuple(r.number for r in ran), _spell(changes)
    failed = next((i for i, r in enumerate(ran) if r.outcome is not Outcome.OK), None)
    if failed == 1 and "NaN" in (ran[failed].error or ""):
        sentence = f"the loss becomes NaN or infinite with {what} and not with your settings: do not train with it"
        return Numerics(within=False, sentence=sentence, changes=changes, numbers=numbers)
    if failed is not None:
        last = ran[failed]
        sentence = f"the loss with {what} was not checked (trial {last.number} of it: {last.outcome}: {last.error})"
        return Numerics(within=None, sentence=sentence, changes=changes, numbers=numbers)
    own, changed, *others = ran
    pairs = zip(own.batch_ids, changed.batch_ids, strict=False)
    n = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(own.losses), len(changed.losses)))
    if n < MIN_STEPS:
        sentence = f"the loss with {what} was not checked: after {n} steps it is given other batches"
        return Numerics(within=None, sentence=sentence, changes=changes, numbers=numbers, n_steps=n)
    means = [fmean(r.losses[n // 2 : n]) for r in (own, *others)]
    difference = fmean(changed.losses[n // 2 : n]) / means[0] - 1
    spread = (max(means) - min(means)) / means[0]
    if difference and not spread:  # a model that starts trained, in an Ultralytics whose loader ignores the seed
        sentence = f"the loss with {what} was not checked: with another seed the baseline's is the same"
        return Numerics(within=None, sentence=sentence, changes=changes, numbers=numbers, n_steps=n)
    within = abs(difference) <= spread
    told = f"over the last {n - n // 2} of {n} steps on the same batches the loss with {what}"
    size, own_spread = _percent(abs(difference)), f"{_percent(spread)} over {len(means)} seeds"
    if not within:
        sentence = f"{told} differs by {size} from your settings', more than their own spread ({own_spread})"
        sentence += ": compare the accuracy before you rely on it"
    else:
        sentence = f"{told} is within your settings' own spread: {size} apart, {own_spread}"
    return Numerics(
        within=within,
        sentence=sentence,
        changes=changes,
        numbers=numbers,
        n_steps=n,
        difference_frac=difference,
        spread_frac=spread,
    )


def _to_check(session: Session, params: Params) -> Params:
    """The changes that act with the rest of the baseline too (no_sync does not without accumulation).

    Nothing in a simulation: its formula has no loss.
    """
    if session.info.simulated:
        return {}
    assert session.proposals is not None
    baseline, changes = session.proposals.baseline, rounding_changes(session, params)
    alone = session.plan.space.canonical({**baseline, **changes})
    return {k: v for k, v in changes.items() if json.dumps(alone.get(k)) == json.dumps(v)}


def _runs(session: Session, changes: Params) -> list[tuple[Params, int]]:
    """Configuration and seed of every run, in order."""
    assert session.proposals is not None
    baseline, seed = session.proposals.baseline, int(session.info.train_args.get("seed", 0))
    changed = session.plan.space.canonical({**baseline, **changes})
    return [(baseline, seed), (changed, seed), *((baseline, seed + i) for i in range(1, N_SEEDS))]


def _run(session: Session, changes: Params, n_steps: int) -> list[TrialResult]:
    """All of them, or up to the first that fails."""
    ran: list[TrialResult] = []
    for params, seed in _runs(session, changes):
        limit_s = DEADLINE * MARGIN * _price_s(session, params, n_steps)
        ran.append(_one(session, params, seed, n_steps, limit_s).result)
        if ran[-1].outcome is not Outcome.OK:
            break
    return ran


def _one(session: Session, params: Params, seed: int, n_steps: int, limit_s: float) -> Ran:
    def vary(spec: TrialSpec) -> TrialSpec:
        return replace(spec, loss_steps=n_steps, train_args={**spec.train_args, "seed": seed})

    return session.ask_and_run("probe", params, limit_s, "losses", vary)


def _all_s(session: Session, changes: Params, n_steps: int) -> float:
    """Seconds of all runs."""
    return MARGIN * sum(_price_s(session, params, n_steps) for params, _ in _runs(session, changes))


def _price_s(session: Session, params: Params, n_steps: int) -> float:
    """Seconds of one run; its steps are taken to be as long as the baseline's."""
    assert session.baseline is not None
    first = session.baseline.result
    price = session.model.price(params, session.plan.segment, warm=True)
    steps_s = first.phases_s.get("first_step", 0.0) + n_steps * (first.step_p50_s or 0.0)
    return price.launch_s + price.compile_s + price.cache_s + steps_s


def _affordable(session: Session, changes: Params, allowed_s: float) -> int:
    """Steps that every run can take when all together have this time; 0 when they are too few to tell anything."""
    fits = [n for n in range(MIN_STEPS, N_STEPS + 1) if _all_s(session, changes, n) <= allowed_s]
    return max(fits, default=0)


def _spell(changes: Params) -> str:
    return " ".join(f"{name}={value}" for name, value in changes.items())


def _percent(frac: float) -> str:
    return f"{100 * frac:.2g} %"
