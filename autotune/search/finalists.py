"""Does the winner hold in fresh processes, block by block, against the user's own settings?"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from statistics import geometric_mean
from typing import Final, Literal

from autotune.contract import Finalist, Outcome, Params, Verdict
from autotune.search import certificates, numerics
from autotune.search.proposals import key_of, yolo_projection
from autotune.search.ran import Ran
from autotune.search.session import Session
from autotune.search.verdict import MIN_BLOCKS, judge, percent

Name = Literal["baseline", "best", "best_yaml"]
N_BLOCKS: Final = MIN_BLOCKS
MAX_BLOCKS: Final = 5
RESERVE_MARGIN: Final = 1.1
"""Run times vary by about 10 % on a shared machine."""
MOST_OF_LEFT: Final = 0.6
WIDE_FRAC: Final = 0.02
"""A confidence interval whose half-width is a larger share of the ratio asks for a block more."""


@dataclass(slots=True)
class Stage:
    """What the finalist stage has done so far; an interrupt leaves it as it is."""

    configs: dict[Name, Params]
    replaced: bool = False
    """The best found failed, and the runner-up stands here."""
    blocks: list[dict[Name, Ran]] = field(default_factory=list)
    finished: bool = False

    def values(self) -> list[dict[str, float]]:
        """Objective of the runs that were measured, a mapping a block."""
        return [{n: r.value for n, r in b.items() if r.result.outcome.measured and r.value} for b in self.blocks]


def configs_of(session: Session, best: Ran) -> tuple[dict[Name, Params], str]:
    """The configurations that must run again for this winner, and a note on its projection onto YOLO's own keys."""
    assert session.proposals is not None
    space, baseline, params = session.plan.space, session.proposals.baseline, best.result.params
    configs: dict[Name, Params] = {"baseline": baseline, "best": params}
    projected = yolo_projection(params, baseline, space.canonical, space.materialise)
    if key_of(projected) == key_of(params):
        return configs, ""
    if session.info.device == "cpu" and session.info.n_ranks > 1:
        return configs, "plain YOLO trains in one process on a CPU: best.yaml alone was not measured"
    if key_of(projected) == key_of(baseline):
        return (
            configs,
            "the winner consists of settings that YOLO has no arguments for: best.yaml alone is the baseline",
        )
    return {**configs, "best_yaml": projected}, ""


def run_blocks(session: Session, stage: Stage) -> None:
    """Run blocks in shuffled order: three, then more while time is left and the interval is wide.

    When the time left holds no whole block, one of baseline and best alone still narrows the claim. A best that fails
    is replaced once, by the runner-up, whose blocks begin anew.
    """
    rng = random.Random(session.info.seed)
    while len(stage.blocks) < MAX_BLOCKS:
        order = _affordable(session, stage)
        if not order or (len(stage.blocks) >= N_BLOCKS and not _wide(session, stage)):
            break
        rng.shuffle(order)
        block: dict[Name, Ran] = {}
        stage.blocks.append(block)
        for name in order:
            block[name] = session.ask_and_run("finalist", stage.configs[name])
            if name == "best" and block[name].failed:
                if not _replace_best(session, stage, block[name]):
                    return
                break
    stage.finished = True


def _replace_best(session: Session, stage: Stage, failed: Ran) -> bool:
    """Put the runner-up in the place of a winner that did not live; False when there is none, or it was done before."""
    session.failed.add(key_of(failed.result.params))
    runner_up = session.best()
    if stage.replaced or not runner_up.changes:
        return False
    why = f"failed when it ran again ({failed.result.outcome}: {failed.result.error})"
    note = f"the best found {why}: the runner-up, trial {runner_up.number}, stands in its place"
    stage.replaced = True
    stage.configs, projected = configs_of(session, runner_up)
    stage.blocks.clear()
    session.notes += [note, projected] if projected else [note]
    session.phase("finalists", note)
    return True


def _affordable(session: Session, stage: Stage) -> list[Name]:
    """All finalists, or baseline and best, or none: what the time left can run."""
    left_s = session.plan.budget.left_s() - session.plan.report_s
    if len(stage.blocks) >= N_BLOCKS:
        left_s -= numerics.reserve_s(session) + certificates.reserve_s(session)  # a fourth block only narrows the claim
    pair: list[Name] = ["baseline", "best"]
    for names in (list(stage.configs), pair):
        if sum(session.price_s(stage.configs[name]) for name in names) <= left_s:
            return names
    return []


def _wide(session: Session, stage: Stage) -> bool:
    """Would another block narrow the claim?"""
    ratio = judge(stage.values(), [session.baseline_values()]).ratios.get("best")
    if ratio is None or ratio.ci95_lo is None or ratio.ci95_hi is None:
        return True
    return (ratio.ci95_hi - ratio.ci95_lo) / 2 > WIDE_FRAC * ratio.speedup


def verdict_of(session: Session, stage: Stage | None) -> Verdict:
    """The claim, from what the stage has; None: there was no winner to confirm."""
    if stage is None:
        return _without_finalists(session)
    if key_of(stage.configs["best"]) in session.failed:
        sentence = "unconfirmed: the best found failed when it ran again in a fresh process"
        return Verdict(status="unconfirmed", sentence=sentence)
    judgement = judge(stage.values(), [session.baseline_values()], interrupted=not stage.finished)
    finalists = []
    for name, params in stage.configs.items():
        runs = {i: b[name] for i, b in enumerate(stage.blocks) if name in b}
        done = [r.result for r in runs.values() if r.result.outcome.measured]
        ratio = judgement.ratios.get(name)
        finalists.append(
            Finalist(
                name=name,
                params=params,
                numbers=tuple(r.number for r in runs.values()),
                images_per_s=_mean([r.images_per_s for r in done]),
                job_s=_mean([r.job_s for r in done]),
                speedup=1.0 if name == "baseline" and done else ratio.speedup if ratio else None,
                ci95_lo=ratio.ci95_lo if ratio else None,
                ci95_hi=ratio.ci95_hi if ratio else None,
            )
        )
    return Verdict(
        status=judgement.status,
        sentence=judgement.sentence,
        n_blocks=judgement.n_blocks,
        finalists=tuple(finalists),
        sigma_run_frac=judgement.sigma_run_frac,
        df=judgement.df,
        smallest_effect_frac=judgement.smallest_effect_frac,
    )


def _without_finalists(session: Session) -> Verdict:
    """Nothing beat the baseline during the search, or nothing was tried."""
    if session.baseline is None:
        return Verdict(status="unconfirmed", sentence="unconfirmed: your own settings were not measured")
    values = {r.number: r.value for r in session.ran if r.result.role == "trial" and r.result.outcome.measured}
    tried = [value for value in values.values() if value]
    n_pruned = sum(r.result.outcome is Outcome.PRUNED for r in session.ran)
    if not tried and not n_pruned:
        return Verdict(status="unconfirmed", sentence="unconfirmed: no other configuration was measured")
    sentence = f"no gain: none of {len(tried) + n_pruned} other configurations was faster than your settings"
    own = geometric_mean(session.baseline_values())
    if tried and min(tried) < own:
        gap = percent(own / min(tried) - 1)
        sentence = (
            f"no significant gain: your settings are within {gap} % of the best of {len(tried) + n_pruned} other "
            f"configurations, which is within the noise ({percent(session.noise_frac())} %)"
        )
    return Verdict(status="no_gain", sentence=sentence)


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v]
    return geometric_mean(known) if known else None


def reserve_s(session: Session, left_after_baseline_s: float) -> float:
    """Seconds to keep back for the finalists of the best so far, and for the report.

    Never more than MOST_OF_LEFT of what the baseline left: a small budget must search too, and then confirms with
    fewer blocks, or says that it could not.
    """
    best = session.best()
    configs = configs_of(session, best)[0] if best.changes else {}
    block_s = sum(session.price_s(params) for params in configs.values())
    # Until something beats the baseline, three configurations at its price are a guess of what will have to run.
    finalists_s = RESERVE_MARGIN * N_BLOCKS * (block_s or 3 * session.price_s(best.result.params))
    return min(finalists_s, MOST_OF_LEFT * left_after_baseline_s) + session.plan.report_s
