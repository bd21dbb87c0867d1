"""What may be claimed of the winner, from what the finalist stage has measured?"""

from __future__ import annotations

from statistics import geometric_mean

from autotune.contract import Finalist, Outcome, Verdict
from autotune.search.contest import PROJECTION
from autotune.search.finalists import Stage
from autotune.search.proposals import key_of
from autotune.search.session import Session
from autotune.search.verdict import percent


def verdict_of(session: Session, stage: Stage | None) -> Verdict:
    """The claim, from what the stage has; None: there was no winner to confirm."""
    if stage is None:
        return _without_finalists(session)
    if stage.contest.leader is None:
        sentence = "unconfirmed: the best found failed when it ran again in a fresh process"
        return Verdict(status="unconfirmed", sentence=sentence)
    judgement = stage.judgement()
    finalists = []
    for name, inner in stage.names.items():
        runs = [block[inner] for block in stage.runs if inner in block]
        if inner == PROJECTION:  # of another winner, which failed
            runs = [r for r in runs if key_of(r.result.params) == key_of(stage.params_of(inner))]
        done = [r.result for r in runs if r.result.outcome.measured]
        ratio = judgement.ratios.get(inner)
        finalists.append(
            Finalist(
                name=name,
                params=stage.params_of(inner),
                numbers=tuple(r.number for r in runs),
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
    sentence = f"no gain: none of {len(tried) + n_pruned} other configurations beat your settings"
    own = geometric_mean(session.baseline_values())
    if tried and min(tried) < own:
        gap = percent(own / min(tried) - 1)
        sentence = (
            f"no significant gain: in the search your settings were within {gap} % of the best of "
            f"{len(tried) + n_pruned} other configurations, which is within the noise "
            f"({percent(session.noise_frac())} %); a longer --budget compares them in fresh runs"
        )
    return Verdict(status="no_gain", sentence=sentence)


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v]
    return geometric_mean(known) if known else None
